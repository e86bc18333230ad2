//! The applier thread: folds durable frames into the tables, behind a bounded queue.

use std::sync::Arc;

use anabranch_core::id::Position;
use anabranch_storage::tables::{Applier, Tables};
use crossbeam_channel::Receiver;
use tokio::sync::watch;

use super::regions::Regions;
use super::writer::Run;

/// Runs that wait for the applier; each is one group of the writer. When they are this many the
/// writer waits, so a slow table slows publishing instead of filling the memory.
pub(crate) const RUNS_AHEAD: usize = 8;

/// Folds until the writer is gone, then flushes. Returns why it ended early, if it did.
pub(crate) fn run(
    mut applier: Applier,
    tables: &Tables,
    runs: &Receiver<(Run, Position)>,
    applied: &Arc<watch::Sender<Position>>,
    regions: &Regions,
) -> Result<(), String> {
    for (run, through) in runs {
        applier.apply(&run).map_err(|error| error.to_string())?;
        applier.pass_to(through);
        applied.send_replace(tables.applied());
        regions.note_applied(tables.applied());
    }
    applier.flush().map_err(|error| error.to_string())
}
