//! The thread that writes frozen images into the store, the oldest first.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::error::TablesError;
use super::key::KeySpan;
use super::shared::{Frozen, Shared, Work};
use crate::alarm::Alarm;

/// Ends when it is told to, or after the first failure: what follows must not overtake.
pub(super) fn spawn(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    spawn_with(shared, run)
}

/// Nobody waits for a flusher that has panicked.
fn spawn_with(shared: &Arc<Shared>, run: fn(&Shared)) -> std::io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .name("tables-flush".into())
        .spawn(move || {
            let _alarm = Alarm(|| shared.flush_failed(TablesError::Panicked));
            run(&shared);
        })
}

fn run(shared: &Shared) {
    // Where it is, and the watermark it began with: what an image brings meanwhile may lie behind
    // it, and must be left for the next one.
    let mut sweep = None;
    loop {
        let done = match shared.next_work(sweep.is_some()) {
            Work::Flush(frozen) => flush(shared, &frozen).map(|()| shared.flushed(frozen.mark)),
            Work::Sweep => {
                let begin = || (KeySpan::all().from, shared.store_watermark());
                let (from, watermark) = sweep.take().unwrap_or_else(begin);
                // Nothing is left out while older frames are folded again.
                let watermark = shared.store_watermark().min(watermark);
                let swept = shared.store.sweep(from, watermark);
                swept.map(|next| sweep = next.map(|next| (next, watermark)))
            }
            Work::Stop => return,
        };
        if let Err(error) = done {
            tracing::error!(%error, "tables can no longer be written");
            return shared.flush_failed(error);
        }
    }
}

fn flush(shared: &Shared, frozen: &Frozen) -> Result<(), TablesError> {
    let began = Instant::now();
    shared
        .store
        .ingest(&frozen.image, frozen.order(), frozen.mark, frozen.watermark)?;
    tracing::debug!(
        rows = frozen.image.len(),
        folded = frozen.image.folded,
        applied = %frozen.mark.applied,
        took = ?began.elapsed(),
        "flushed an image"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{Tables, TablesOptions};

    #[test]
    fn a_flusher_that_panics_is_a_failure_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let options = TablesOptions::default();
        let (tables, mut applier) = Tables::open(dir.path(), options).unwrap();
        let broken = spawn_with(&tables.shared, |_| panic!("injected")).unwrap();
        assert!(broken.join().is_err());
        let flushed = applier.flush();
        assert!(matches!(flushed, Err(TablesError::Panicked)), "{flushed:?}");
    }
}
