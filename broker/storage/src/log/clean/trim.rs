//! Up to where a stream's limits reach.

use std::ops::Range;
use std::sync::Arc;

use anabranch_core::id::{Position, StreamId};
use anabranch_core::stream::MergeMode;

use super::super::index::SegmentIndex;
use super::super::shared::{Loaded, Segment};
use super::super::trims::Gone;
use super::{CleanError, Policy, Run};

impl Run<'_> {
    /// Moves the trims of all `append` streams to where their policies want them.
    pub(super) fn trim(&mut self) -> Result<(), CleanError> {
        for (&stream, policy) in self.policies {
            if policy.merge != MergeMode::Append {
                continue;
            }
            let wanted = self.limit_of(stream, policy)?;
            let gone = self.records_before(stream, wanted);
            if gone.is_some_and(|gone| self.trims.raise(stream, wanted, &gone)) {
                self.report.trimmed.push((stream, wanted));
            }
        }
        if self.report.trimmed.is_empty() {
            return Ok(());
        }
        self.report.trimmed.sort_unstable();
        self.save_trims()
    }

    /// The first position that all limits of the stream keep.
    pub(super) fn limit_of(
        &self,
        stream: StreamId,
        policy: &Policy,
    ) -> Result<Position, CleanError> {
        let mut limit = Position::default();
        let too_old = policy
            .retention
            .max_age_seconds
            .map(|seconds| self.now_ms.saturating_sub(seconds.saturating_mul(1000)));
        for before in [too_old, policy.trim_before_ms].into_iter().flatten() {
            limit = limit.max(self.appended_before(before)?);
        }
        if let Some(bytes) = policy.retention.max_bytes {
            limit = limit.max(self.beyond(stream, bytes)?);
        }
        Ok(limit)
    }

    /// The first position that was not appended before this time, nor follows one that was not.
    fn appended_before(&self, ms: u64) -> Result<Position, CleanError> {
        let segments = self.shared.state.read().segments.clone();
        let late = segments.iter().find(|s| s.summary.last_appended >= ms);
        let in_index = |index: &SegmentIndex| {
            let entry = u32::try_from(index.appended_before(ms)).unwrap_or(u32::MAX);
            index.position_of(entry)
        };
        match late {
            Some(segment) => Ok(in_index(&self.loaded(segment)?.index)),
            None => Ok(in_index(&self.shared.state.read().active.index)),
        }
    }

    /// The first position from which on the stream has at most so many bytes.
    fn beyond(&self, stream: StreamId, most: u64) -> Result<Position, CleanError> {
        let mut left = most;
        let segments = {
            let state = self.shared.state.read();
            if let Some(limit) = limit_in(&state.active.index, stream, &mut left) {
                return Ok(limit);
            }
            state.segments.clone()
        };
        for segment in segments.iter().rev() {
            let bytes: u64 = segment.summary.stream(stream).iter().map(|p| p.bytes).sum();
            if bytes <= left {
                left -= bytes;
                continue;
            }
            let loaded = self.loaded(segment)?;
            let limit = limit_in(&loaded.index, stream, &mut left);
            return Ok(limit.unwrap_or(segment.summary.next));
        }
        Ok(Position::default())
    }

    /// What is stored of a stream from its trim up to here; `None` if it is nothing.
    pub(super) fn records_before(&self, stream: StreamId, position: Position) -> Option<Gone> {
        let trim = self.trims.of(stream);
        let mut gone = Gone::default();
        let segments = {
            let state = self.shared.state.read();
            note_records(&state.active.index, stream, trim..position, &mut gone);
            state.segments.clone()
        };
        for segment in &segments {
            let summary = &segment.summary;
            let within = summary.first < position && summary.next > trim;
            if within && summary.stream(stream).iter().any(|p| p.bytes > 0) {
                match self.loaded(segment) {
                    Ok(loaded) => note_records(&loaded.index, stream, trim..position, &mut gone),
                    Err(error) => {
                        // Whatever it holds is dropped; so is what it might hold.
                        tracing::error!(%error, "taking all of the segment for the stream's");
                        gone.frames.merge(&summary.vector_after());
                        gone.to = gone.to.max(summary.next.min(position));
                    }
                }
            }
        }
        Some(gone).filter(|gone| !gone.frames.is_empty())
    }

    pub(super) fn loaded(&self, segment: &Arc<Segment>) -> Result<Arc<Loaded>, CleanError> {
        Ok(self.reader.loaded(segment, segment.summary.first)?)
    }
}

/// Notes which frames of an index hold something of a stream in a range.
fn note_records(index: &SegmentIndex, stream: StreamId, range: Range<Position>, gone: &mut Gone) {
    if index.first() >= range.end {
        return;
    }
    let (from, end) = (index.entry_of(range.start), index.entry_of(range.end));
    for list in index.lists().iter().filter(|list| list.key.0 == stream) {
        let within = list.since(from).iter().take_while(|e| e.entry < end);
        for extent in within.filter(|extent| extent.bytes > 0) {
            let (origin, sequence) = index.last_frame(extent.entry);
            gone.frames.advance(origin, sequence);
            gone.to = gone.to.max(index.position_of(extent.entry).next());
        }
    }
}

/// The position after the newest entry that no longer fits what is `left`, which is lowered by all
/// that do.
fn limit_in(index: &SegmentIndex, stream: StreamId, left: &mut u64) -> Option<Position> {
    let lists = index.lists().iter().filter(|list| list.key.0 == stream);
    let mut extents: Vec<_> = lists.flat_map(|list| &list.extents).collect();
    extents.sort_unstable_by_key(|extent| std::cmp::Reverse(extent.entry));
    for extent in extents {
        match left.checked_sub(extent.bytes.into()) {
            Some(rest) => *left = rest,
            None => return Some(index.position_of(extent.entry).next()),
        }
    }
    None
}
