//! The reading half. Everything it returns is durable, and was checked when it was read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::frame::{Commit, PartHeader};
use anabranch_core::id::{Offset, Origin, PartitionId, Position, Sequence, StreamId};
use anabranch_core::vector::VersionVector;

use super::entry::{Entry, EntryFault};
use super::fields::length;
use super::index::{Filter, Plan, Planned};
use super::scan::read_range;
use super::segment::SegmentId;
use super::shared::{LoadError, Loaded, Segment, Shared};
use super::trims::Trims;
use crate::disk::DiskFile;
use crate::durable::Durable;

/// Entries that are not wanted are read along when they lie between wanted ones and are shorter
/// than this: it takes less time than another read.
const GAP_BYTES: u64 = 64 << 10;

/// Most bytes of one read, unless a single entry is longer.
const RUN_BYTES: u64 = 8 << 20;

/// How often a read begins anew because the cleaner has replaced the segment meanwhile.
const MOST_RETRIES: usize = 8;

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

/// A part of one file that is to be read.
struct Work {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    id: SegmentId,
    plan: Plan,
    trims: Arc<Trims>,
}

/// Where a read begins.
enum Place {
    /// In the active segment, or nowhere if that holds nothing that is wanted.
    Active(Work),
    Sealed(Arc<Segment>, Arc<Trims>),
    /// Nothing wanted before this position.
    Skip(Position),
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
        let mut from = from;
        let mut retries = 0;
        loop {
            let work = match self.place(from, filter, max_bytes) {
                Place::Skip(next) => {
                    from = next;
                    continue;
                }
                Place::Active(work) => work,
                Place::Sealed(segment, trims) => match self.shared.load(&segment) {
                    Err(LoadError::Replaced) if retries < MOST_RETRIES => {
                        retries += 1;
                        continue;
                    }
                    Err(error) => return Err(unloadable(&segment, from, error)),
                    Ok(loaded) => Work {
                        file: Arc::clone(&loaded.file),
                        path: loaded.path.clone(),
                        id: loaded.id,
                        plan: loaded.index.plan(from, filter, max_bytes),
                        trims,
                    },
                },
            };
            let next = work.plan.next;
            if !work.plan.entries.is_empty() || next >= self.next_position() {
                let commits = work.read(filter)?;
                let next = next.max(from);
                return Ok(Chunk { commits, next });
            }
            from = next;
        }
    }

    fn place(&self, from: Position, filter: &Filter, max_bytes: usize) -> Place {
        let state = self.shared.state.read();
        let kept = filter
            .stream()
            .map_or_else(Position::default, |s| state.trims.of(s));
        let wanted = from.max(state.start()).max(kept);
        if wanted > from && wanted <= state.next() {
            return Place::Skip(wanted);
        }
        match state.segment_of(from) {
            Some(segment) if filter.may_match(&segment.summary) => {
                Place::Sealed(Arc::clone(segment), Arc::clone(&state.trims))
            }
            Some(segment) => Place::Skip(segment.summary.next),
            None => Place::Active(Work {
                file: Arc::clone(&state.active.file),
                path: state.active.path.clone(),
                id: state.active.id,
                plan: state.active.index.plan(from, filter, max_bytes),
                trims: Arc::clone(&state.trims),
            }),
        }
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
    fn found_in(
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

fn unloadable(segment: &Segment, position: Position, error: LoadError) -> ReadError {
    let damaged = |what: &str| ReadError::Damaged {
        path: segment.path.clone(),
        offset: segment.summary.entries_end,
        position,
        next: segment.summary.next,
        what: what.to_owned(),
    };
    match error {
        LoadError::Io(source) => ReadError::Io {
            path: segment.path.clone(),
            position,
            source,
        },
        LoadError::Replaced => damaged("the file is gone, or is another segment"),
        LoadError::Index(what) => damaged(what),
    }
}

impl Work {
    fn read(&self, filter: &Filter) -> Result<Vec<Durable<Arc<Commit>>>, ReadError> {
        let mut commits = Vec::with_capacity(self.plan.entries.len());
        let mut rest = self.plan.entries.as_slice();
        while let Some(first) = rest.first() {
            let run = run_length(rest);
            let (now, later) = rest.split_at(run);
            let last = now.last().unwrap_or(first);
            let bytes = last.at + length(last.length) - first.at;
            let read =
                read_range(&*self.file, first.at, bytes).map_err(|source| ReadError::Io {
                    path: self.path.clone(),
                    position: first.position,
                    source,
                })?;
            for entry in now {
                let from = usize::try_from(entry.at - first.at).expect("a run fits memory");
                let bytes = read.slice(from..from + entry.length);
                let found = Entry::read(&bytes, self.id.seed(), entry.position, &|part| {
                    self.wants(part, entry.position, filter)
                });
                let found = found.map_err(|fault| self.damaged(entry, &fault))?;
                commits.push(Durable::new(Arc::new(found.commit)));
            }
            rest = later;
        }
        Ok(commits)
    }

    fn wants(&self, part: &PartHeader, position: Position, filter: &Filter) -> bool {
        filter.wants(part) && (self.trims.is_empty() || position >= self.trims.of(part.stream))
    }

    fn damaged(&self, entry: &Planned, fault: &EntryFault) -> ReadError {
        ReadError::Damaged {
            path: self.path.clone(),
            offset: entry.at,
            position: entry.position,
            next: entry.position.next(),
            what: fault.to_string(),
        }
    }
}

/// How many of these entries are read at once.
fn run_length(entries: &[Planned]) -> usize {
    let Some(first) = entries.first() else {
        return 0;
    };
    let joins = |pair: &[Planned]| {
        let end = pair[0].at + length(pair[0].length);
        let to = pair[1].at + length(pair[1].length);
        pair[1].at - end <= GAP_BYTES && to - first.at <= RUN_BYTES
    };
    1 + entries.windows(2).take_while(|pair| joins(pair)).count()
}
