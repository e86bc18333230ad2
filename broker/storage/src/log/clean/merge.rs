//! Putting small segments together: a segment of which nearly nothing is left would still be a
//! file, an index, a checkpoint, and something to look at when the log is opened.

use std::sync::Arc;

use super::super::shared::Segment;
use super::compact::Newest;
use super::{CleanError, KEPT_SEGMENTS, Run};

/// Fewer are not put together: the first of them may be large, and would be copied each time.
const LEAST_MERGED: usize = 8;

impl Run<'_> {
    /// Puts together segments that follow each other and fit into one, until none do.
    pub(super) fn merge_small(&mut self) -> Result<(), CleanError> {
        while self.merge_once()? {}
        Ok(())
    }

    fn merge_once(&mut self) -> Result<bool, CleanError> {
        let before = self.report.merged;
        let sealed = self.sealed();
        let settled = sealed.len().saturating_sub(KEPT_SEGMENTS);
        let mut rest = &sealed[..settled];
        while !rest.is_empty() {
            let (group, later) = rest.split_at(fitting(rest, self.shared.segment_bytes));
            if group.len() >= LEAST_MERGED && self.rewrite(group, true, &Newest::nothing())? {
                self.report.merged += group.len();
            }
            rest = later;
        }
        Ok(self.report.merged > before)
    }
}

/// How many segments from the first on fit into one, at least 1.
fn fitting(segments: &[Arc<Segment>], most: u64) -> usize {
    let mut bytes = 0;
    let fits = |segment: &&Arc<Segment>| {
        bytes += segment.summary.entries_end;
        bytes <= most
    };
    segments.iter().take_while(fits).count().max(1)
}
