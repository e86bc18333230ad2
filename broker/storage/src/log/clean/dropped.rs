//! Streams that were deleted: all of their records go.

use anabranch_core::id::{Position, StreamId};

use super::{CleanError, Cleaner, Report, Run};
use crate::log::trims::Trims;

impl Cleaner {
    /// Drops all that a stream has before a position: it was deleted there. Durable once this
    /// returns, so a stream that is made anew under the same name begins empty.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn drop_stream(&mut self, stream: StreamId, before: Position) -> Result<(), CleanError> {
        let mut run = self.run();
        run.drop_before(stream, before);
        run.save_trims()
    }

    /// Drops all records of streams that are not defined: their deletion was cut short by the end
    /// of the process. To be called before anything is written to the log. Returns those streams.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn drop_undefined(
        &mut self,
        defined: &dyn Fn(StreamId) -> bool,
    ) -> Result<Vec<StreamId>, CleanError> {
        let next = self.reader.next_position();
        let mut undefined: Vec<StreamId> = {
            let state = self.shared.state.read();
            let streams = state.offsets.keys().map(|key| key.0);
            streams.filter(|&stream| !defined(stream)).collect()
        };
        undefined.sort_unstable();
        undefined.dedup();
        let mut run = self.run();
        let mut dropped = Vec::new();
        for stream in undefined {
            if run.drop_before(stream, next) {
                dropped.push(stream);
            }
        }
        if !dropped.is_empty() {
            run.save_trims()?;
        }
        Ok(dropped)
    }

    /// A run that has no policies.
    fn run(&self) -> Run<'_> {
        Run {
            reader: &self.reader,
            shared: &self.shared,
            policies: &self.none,
            now_ms: 0,
            trims: Trims::clone(&self.shared.state.read().trims),
            report: Report::default(),
        }
    }
}

impl Run<'_> {
    /// Raises a stream's trim; says whether it has anything before.
    fn drop_before(&mut self, stream: StreamId, before: Position) -> bool {
        let gone = self.records_before(stream, before);
        self.trims
            .raise(stream, before, &gone.clone().unwrap_or_default());
        gone.is_some()
    }
}
