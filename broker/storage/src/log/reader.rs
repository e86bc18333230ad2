//! The reading half. Everything it returns is durable, and was checked when it was read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::frame::Commit;
use anabranch_core::id::{Offset, Origin, PartitionId, Position, Sequence, StreamId};
use anabranch_core::vector::VersionVector;

use super::fetch::{MOST_RETRIES, Wanted, unloadable};
use super::index::Filter;
use super::scan::Found;
use super::shared::{LoadError, Loaded, Segment, Shared};
use crate::durable::Durable;

/// Why a part of the log could not be read. The rest of it can.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is damaged.
    #[error(
        "the log is damaged at position {position} ({} byte {offset}): {what}; what follows begins at position {next}",
        path.display()
    )]
    Damaged {
        /// In which file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// At which position.
        position: Position,
        /// The first position that is not concerned.
        next: Position,
        /// What is wrong.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot read {path} from position {position} on: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// From where on.
        position: Position,
        /// What it said.
        source: io::Error,
    },
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The frames, in order. Parts that were not wanted come without their batch, as do those that
    /// retention has dropped.
    pub commits: Vec<Durable<Arc<Commit>>>,
    /// Where to go on.
    pub next: Position,
}

/// The reading half of a log. Clones share it.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// First position that is not durable yet.
    #[must_use]
    pub fn next_position(&self) -> Position {
        self.shared.state.read().next()
    }

    /// First position still held.
    #[must_use]
    pub fn start_position(&self) -> Position {
        self.shared.state.read().start()
    }

    /// The frames that were dropped for good: those before [`LogReader::start_position`].
    #[must_use]
    pub fn floor(&self) -> VersionVector {
        self.shared.state.read().floor().clone()
    }

    /// Records of the stream before this position may be gone, by retention.
    #[must_use]
    pub fn trimmed(&self, stream: StreamId) -> Position {
        self.shared.state.read().trims.of(stream)
    }

    /// Whether records or deletes of the stream are gone that whoever has seen just this would
    /// miss.
    #[must_use]
    pub fn misses(&self, stream: StreamId, seen: &VersionVector) -> bool {
        !seen.covers(self.shared.state.read().trims.gone(stream))
    }

    /// The last frame of each origin of which records or deletes of the stream are gone.
    #[must_use]
    pub fn gone(&self, stream: StreamId) -> VersionVector {
        self.shared.state.read().trims.gone(stream).clone()
    }

    /// The place behind the last record of the stream that a trim has dropped.
    #[must_use]
    pub fn gone_to(&self, stream: StreamId) -> Position {
        self.shared.state.read().trims.gone_to(stream)
    }

    /// Reads the frames that hold something wanted from `from` on, until they are `max_bytes`
    /// together, but at least one if there is any. Where nothing more follows, the chunk is empty
    /// and its `next` is [`LogReader::next_position`] or near it.
    ///
    /// # Errors
    /// When what is to be read is damaged or cannot be read.
    pub fn read(
        &self,
        from: Position,
        filter: &Filter,
        max_bytes: usize,
    ) -> Result<Chunk, ReadError> {
        let fetched = self.fetch(from, &Wanted::Parts(filter), max_bytes)?;
        let mut commits = Vec::with_capacity(fetched.found.len());
        for found in fetched.found {
            if let Found::Entry(entry) = found {
                commits.push(Durable::new(Arc::new(entry.commit)));
            }
        }
        let next = fetched.next;
        Ok(Chunk { commits, next })
    }

    /// All frames at positions before this one.
    ///
    /// # Errors
    /// When the index of the segment there cannot be read.
    pub fn vector_before(&self, position: Position) -> Result<VersionVector, ReadError> {
        let segment = {
            let state = self.shared.state.read();
            if position <= state.start() {
                return Ok(state.floor().clone());
            }
            match state.segment_of(position) {
                Some(segment) => Arc::clone(segment),
                None => {
                    let index = &state.active.index;
                    return Ok(index.vector_before(index.entry_of(position)));
                }
            }
        };
        let loaded = self.loaded(&segment, position)?;
        let entry = loaded.index.entry_of(position);
        Ok(loaded.index.vector_before(entry))
    }

    /// The smallest position whose frame is not in `seen`; [`LogReader::next_position`] if there
    /// is none.
    #[must_use]
    pub fn resume(&self, seen: &VersionVector) -> Position {
        let segment = {
            let state = self.shared.state.read();
            let with_unseen = state.segments.iter().find(|s| s.summary.has_unseen(seen));
            match with_unseen {
                Some(segment) => Arc::clone(segment),
                None => {
                    let index = &state.active.index;
                    return index
                        .first_unseen(seen)
                        .map_or_else(|| state.next(), |entry| index.position_of(entry));
                }
            }
        };
        self.found_in(&segment, |loaded| loaded.index.first_unseen(seen))
    }

    /// The first position stamped at or after this millisecond since 1970, by the frame's hybrid
    /// timestamp; [`LogReader::next_position`] if there is none.
    #[must_use]
    pub fn at_timestamp(&self, ms: u64) -> Position {
        let segment = {
            let state = self.shared.state.read();
            let late = |s: &&Arc<Segment>| s.summary.last_timestamp.millis() >= ms;
            match state.segments.iter().find(late) {
                Some(segment) => Arc::clone(segment),
                None => {
                    let index = &state.active.index;
                    return index
                        .at_timestamp(ms)
                        .map_or_else(|| state.next(), |entry| index.position_of(entry));
                }
            }
        };
        self.found_in(&segment, |loaded| loaded.index.at_timestamp(ms))
    }

    /// Where a frame is, if it is held.
    ///
    /// # Errors
    /// When the index of its segment cannot be read.
    pub fn locate(
        &self,
        origin: Origin,
        sequence: Sequence,
    ) -> Result<Option<Position>, ReadError> {
        let segment = {
            let state = self.shared.state.read();
            let holds = |s: &&Arc<Segment>| s.summary.holds(origin, sequence);
            match state.segments.iter().find(holds) {
                Some(segment) => Arc::clone(segment),
                None => {
                    let index = &state.active.index;
                    let entry = index.locate(origin, sequence);
                    return Ok(entry.map(|entry| index.position_of(entry)));
                }
            }
        };
        let loaded = self.loaded(&segment, segment.summary.first)?;
        let entry = loaded.index.locate(origin, sequence);
        Ok(entry.map(|entry| loaded.index.position_of(entry)))
    }

    /// The position that holds the record with this offset, or would if it had not been dropped.
    ///
    /// # Errors
    /// When the index of its segment cannot be read.
    pub fn at_offset(
        &self,
        stream: StreamId,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Option<Position>, ReadError> {
        let key = (stream, partition);
        let entry_in = |index: &super::index::SegmentIndex| {
            let extents = &index.list(key)?.extents;
            let at = extents.partition_point(|e| e.base_offset.advance(e.records) <= offset);
            let extent = extents.get(at).filter(|e| e.base_offset <= offset)?;
            Some(index.position_of(extent.entry))
        };
        let segment = {
            let state = self.shared.state.read();
            let holds = |s: &&Arc<Segment>| {
                let found = s.summary.partition(stream, partition);
                found.is_some_and(|p| (p.first_offset..p.next_offset).contains(&offset))
            };
            match state.segments.iter().find(holds) {
                Some(segment) => Arc::clone(segment),
                None => return Ok(entry_in(&state.active.index)),
            }
        };
        let loaded = self.loaded(&segment, segment.summary.first)?;
        Ok(entry_in(&loaded.index))
    }

    /// Of a partition, the first offset that retention has kept and the one that comes next.
    #[must_use]
    pub fn bounds(&self, stream: StreamId, partition: PartitionId) -> (Offset, Offset) {
        let key = (stream, partition);
        let (next, kept, segment) = {
            let state = self.shared.state.read();
            let kept = state.trims.of(stream);
            let next = state.next_offset(stream, partition);
            let holds = |s: &&Arc<Segment>| {
                s.summary.next > kept && s.summary.partition(stream, partition).is_some()
            };
            let segments = state.segments.iter().filter(holds);
            (next, kept, segments.cloned().collect::<Vec<_>>())
        };
        let first_in = |index: &super::index::SegmentIndex| {
            let list = index.list(key)?;
            let mut since = list.since(index.entry_of(kept)).iter();
            // Where the trim lies inside a gap, some of that was before it.
            Some(since.find(|extent| extent.bytes > 0)?.base_offset)
        };
        for segment in segment {
            let begins = segment
                .summary
                .partition(stream, partition)
                .map(|p| p.first_offset);
            if kept <= segment.summary.first {
                return (begins.unwrap_or(next), next);
            }
            match self.loaded(&segment, kept) {
                Ok(loaded) => {
                    if let Some(first) = first_in(&loaded.index) {
                        return (first, next);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the first kept offset is a guess");
                    return (begins.unwrap_or(next), next);
                }
            }
        }
        let first = first_in(&self.shared.state.read().active.index);
        (first.unwrap_or(next), next)
    }

    /// Bytes still stored of a stream.
    #[must_use]
    pub fn stored_bytes(&self, stream: StreamId) -> u64 {
        let state = self.shared.state.read();
        let sealed = state.segments.iter().flat_map(|s| s.summary.stream(stream));
        let active = state.active.index.lists().iter();
        let active = active.filter(|list| list.key.0 == stream);
        sealed.map(|p| p.bytes).sum::<u64>() + active.map(|list| list.bytes).sum::<u64>()
    }

    pub(super) fn loaded(
        &self,
        segment: &Arc<Segment>,
        position: Position,
    ) -> Result<Arc<Loaded>, ReadError> {
        let mut segment = Arc::clone(segment);
        for _ in 0..MOST_RETRIES {
            match self.shared.load(&segment) {
                Err(LoadError::Replaced) => {
                    let state = self.shared.state.read();
                    match state.segment_of(position) {
                        Some(newer) => segment = Arc::clone(newer),
                        None => break,
                    }
                }
                loaded => return loaded.map_err(|e| unloadable(&segment, position, e)),
            }
        }
        Err(unloadable(&segment, position, LoadError::Replaced))
    }

    /// A position found by a segment's index; the segment's first if that cannot be read: then
    /// more is read than is needed, and nothing left out.
    pub(super) fn found_in(
        &self,
        segment: &Arc<Segment>,
        find: impl FnOnce(&Loaded) -> Option<u32>,
    ) -> Position {
        let first = segment.summary.first;
        match self.loaded(segment, first) {
            Ok(loaded) => find(&loaded).map_or(first, |entry| loaded.index.position_of(entry)),
            Err(error) => {
                tracing::error!(%error, "reading from the segment's first position instead");
                first
            }
        }
    }
}
