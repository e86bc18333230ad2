//! The applier thread: folds durable frames into the tables, behind a bounded queue.

use std::sync::Arc;

use anabranch_core::id::Position;
use anabranch_storage::tables::{Applier, StreamMap};
use crossbeam_channel::Receiver;

use super::Running;
use super::writer::Run;

/// Runs that wait for the applier; each is one group of the writer. When they are this many the
/// writer waits, so a slow table slows publishing instead of filling the memory.
pub(crate) const RUNS_AHEAD: usize = 8;

/// Folds until the writer is gone, then flushes. Returns why it ended early, if it did.
pub(crate) fn run(
    mut applier: Applier,
    running: &Running,
    runs: &Receiver<(Run, Position)>,
) -> Result<(), String> {
    let tables = &running.tables;
    let mut streams = tables.streams();
    for (run, through) in runs {
        applier.apply(&run).map_err(|error| error.to_string())?;
        applier.pass_to(through);
        running.applied.send_replace(tables.applied());
        running.regions.note_applied(tables.applied());
        let now = tables.streams();
        if !Arc::ptr_eq(&now, &streams) {
            forget_deleted(running, &streams, &now);
            streams = now;
        }
    }
    applier.flush().map_err(|error| error.to_string())
}

/// Streams may be deleted in other regions, too.
fn forget_deleted(running: &Running, before: &StreamMap, now: &StreamMap) {
    let ids = before.iter().map(|definition| definition.id());
    for gone in ids.filter(|&id| now.get(id).is_none()) {
        match now.is_displaced(gone) {
            false => running.forget_stream(gone),
            true => {
                tracing::error!(stream = %gone, "two regions made a stream of one name at once, with different regions; what was written to this one is not shown")
            }
        }
    }
}
