//! Fetching entries: the index says which, and only those are read.

use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::exchange::Ask;
use anabranch_core::frame::PartHeader;
use anabranch_core::id::{Position, StreamId};

use super::entry::{Entry, EntryFault};
use super::fields::length;
use super::gap;
use super::index::{Filter, Plan, Planned, SegmentIndex, Summary};
use super::reader::{LogReader, ReadError};
use super::scan::{Found, read_range};
use super::segment::SegmentId;
use super::shared::{LoadError, Segment};
use super::trims::Trims;
use crate::disk::DiskFile;

/// Entries that are not wanted are read along when they lie between wanted ones and are shorter
/// than this: it takes less time than another read.
const GAP_BYTES: u64 = 64 << 10;

/// Most bytes of one read, unless a single entry is longer.
const RUN_BYTES: u64 = 8 << 20;

/// How often a read begins anew because the cleaner has replaced the segment meanwhile.
pub(super) const MOST_RETRIES: usize = 8;

/// What a read is for.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// Frames that hold a part that passes, with just those parts.
    Parts(&'a Filter),
    /// Frames that a peer asks for, with all that is left of them of streams that may go to it, and
    /// gaps that hold any.
    Frames(&'a Ask, &'a dyn Fn(StreamId) -> bool),
}

impl Wanted<'_> {
    /// The position before which nothing wanted is left.
    fn kept(&self, trims: &Trims) -> Position {
        let stream = match self {
            Self::Parts(filter) => filter.stream(),
            Self::Frames(..) => None,
        };
        stream.map_or_else(Position::default, |stream| trims.of(stream))
    }

    fn may_match(&self, summary: &Summary) -> bool {
        match self {
            Self::Parts(filter) => filter.may_match(summary),
            Self::Frames(ask, _) => summary.has_asked(ask),
        }
    }

    fn plan(&self, index: &SegmentIndex, from: Position, max_bytes: usize) -> Plan {
        match self {
            Self::Parts(filter) => index.plan(from, filter, max_bytes),
            Self::Frames(ask, _) => index.plan_asked(from, ask, max_bytes),
        }
    }

    fn wants(&self, part: &PartHeader) -> bool {
        match self {
            Self::Parts(filter) => filter.wants(part),
            Self::Frames(_, may_go) => may_go(part.stream),
        }
    }
}

/// What was fetched.
pub(super) struct Fetched {
    /// In order.
    pub(super) found: Vec<Found>,
    /// Where to go on.
    pub(super) next: Position,
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
    /// Fetches what is wanted from `from` on, until it is `max_bytes`, but something if there is
    /// anything.
    pub(super) fn fetch(
        &self,
        from: Position,
        wanted: &Wanted<'_>,
        max_bytes: usize,
    ) -> Result<Fetched, ReadError> {
        let mut from = from;
        let mut retries = 0;
        loop {
            let work = match self.place(from, wanted, max_bytes) {
                Place::Skip(next) => {
                    from = next;
                    continue;
                }
                Place::Active(work) => work,
                Place::Sealed(segment, trims) => match self.shared().load(&segment) {
                    Err(LoadError::Replaced) if retries < MOST_RETRIES => {
                        retries += 1;
                        continue;
                    }
                    Err(error) => return Err(unloadable(&segment, from, error)),
                    Ok(loaded) => Work {
                        file: Arc::clone(&loaded.file),
                        path: loaded.path.clone(),
                        id: loaded.id,
                        plan: wanted.plan(&loaded.index, from, max_bytes),
                        trims,
                    },
                },
            };
            let next = work.plan.next;
            if !work.plan.entries.is_empty() || next >= self.next_position() {
                let found = work.read(wanted)?;
                let next = next.max(from);
                return Ok(Fetched { found, next });
            }
            from = next;
        }
    }

    fn place(&self, from: Position, wanted: &Wanted<'_>, max_bytes: usize) -> Place {
        let state = self.shared().state.read();
        let least = from.max(state.start()).max(wanted.kept(&state.trims));
        if least > from && least <= state.next() {
            return Place::Skip(least);
        }
        match state.segment_of(from) {
            Some(segment) if wanted.may_match(&segment.summary) => {
                Place::Sealed(Arc::clone(segment), Arc::clone(&state.trims))
            }
            Some(segment) => Place::Skip(segment.summary.next),
            None => Place::Active(Work {
                file: Arc::clone(&state.active.file),
                path: state.active.path.clone(),
                id: state.active.id,
                plan: wanted.plan(&state.active.index, from, max_bytes),
                trims: Arc::clone(&state.trims),
            }),
        }
    }
}

pub(super) fn unloadable(segment: &Segment, position: Position, error: LoadError) -> ReadError {
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
    fn read(&self, wanted: &Wanted<'_>) -> Result<Vec<Found>, ReadError> {
        let mut found = Vec::with_capacity(self.plan.entries.len());
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
                let seed = self.id.seed();
                let checked = match entry.is_gap {
                    true => gap::read(&bytes, seed, entry.position).map(Found::Gap),
                    false => Entry::read(&bytes, seed, entry.position, &|part| {
                        self.wants(part, entry.position, wanted)
                    })
                    .map(Found::Entry),
                };
                found.push(checked.map_err(|fault| self.damaged(entry, &fault))?);
            }
            rest = later;
        }
        Ok(found)
    }

    fn wants(&self, part: &PartHeader, position: Position, wanted: &Wanted<'_>) -> bool {
        wanted.wants(part) && (self.trims.is_empty() || position >= self.trims.of(part.stream))
    }

    fn damaged(&self, entry: &Planned, fault: &EntryFault) -> ReadError {
        ReadError::Damaged {
            path: self.path.clone(),
            offset: entry.at,
            position: entry.position,
            next: entry.next,
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
