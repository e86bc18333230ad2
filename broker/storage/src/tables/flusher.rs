//! The thread that writes frozen images into the store, the oldest first.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::error::TablesError;
use super::shared::{Frozen, Shared};

/// Ends when it is told to, or after the first failure: what follows must not overtake.
pub(super) fn spawn(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("tables-flush".into())
        .spawn(move || run(&shared))
}

fn run(shared: &Shared) {
    while let Some(frozen) = shared.next_to_flush() {
        match flush(shared, &frozen) {
            Ok(()) => shared.flushed(),
            Err(error) => {
                tracing::error!(%error, "tables can no longer be written");
                return shared.flush_failed(error);
            }
        }
    }
}

fn flush(shared: &Shared, frozen: &Frozen) -> Result<(), TablesError> {
    let began = Instant::now();
    shared
        .store
        .ingest(&frozen.image, frozen.order(), frozen.mark)?;
    tracing::debug!(
        rows = frozen.image.len(),
        folded = frozen.image.folded,
        applied = %frozen.mark.applied,
        took = ?began.elapsed(),
        "flushed an image"
    );
    Ok(())
}
