//! Which entries a read needs.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use anabranch_core::exchange::Ask;
use anabranch_core::frame::PartHeader;
use anabranch_core::id::{Origin, PartitionId, Position, StreamId};

use super::{Extent, SegmentIndex, Summary};

/// Most entries of one plan: bounds what is copied under a lock.
const MOST_ENTRIES: usize = 4096;

/// Most entries that one plan looks at: a tenth of a millisecond, for which a writer may have to
/// wait.
const MOST_LOOKED_AT: usize = 65_536;

/// Which parts a reader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of every frame.
    All,
    /// Those of one stream.
    Stream(StreamId),
    /// Those of some partitions of one stream.
    Partitions(StreamId, BTreeSet<PartitionId>),
    /// What the other filter wants, of frames of this origin only.
    OfOrigin(Origin, Box<Filter>),
}

impl Filter {
    /// Whether a part is wanted, if its frame is; see [`Filter::wants_origin`].
    #[must_use]
    pub fn wants(&self, part: &PartHeader) -> bool {
        match self {
            Self::All => true,
            Self::Stream(stream) => part.stream == *stream,
            Self::Partitions(stream, partitions) => {
                part.stream == *stream && partitions.contains(&part.partition)
            }
            Self::OfOrigin(_, of_it) => of_it.wants(part),
        }
    }

    /// Whether frames of an origin are wanted.
    #[must_use]
    pub fn wants_origin(&self, origin: Origin) -> bool {
        match self {
            Self::OfOrigin(only, of_it) => *only == origin && of_it.wants_origin(origin),
            Self::All | Self::Stream(_) | Self::Partitions(..) => true,
        }
    }

    /// The one stream that is wanted, if it is one.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::All => None,
            Self::Stream(stream) | Self::Partitions(stream, _) => Some(*stream),
            Self::OfOrigin(_, of_it) => of_it.stream(),
        }
    }

    fn wants_partition(&self, partition: PartitionId) -> bool {
        match self {
            Self::Partitions(_, wanted) => wanted.contains(&partition),
            Self::OfOrigin(_, of_it) => of_it.wants_partition(partition),
            Self::All | Self::Stream(_) => true,
        }
    }

    /// Whether a segment may hold something that is wanted.
    pub(crate) fn may_match(&self, summary: &Summary) -> bool {
        let mut origins = summary.origins.iter();
        if !origins.any(|range| self.wants_origin(range.origin)) {
            return false;
        }
        match self.stream() {
            None => true,
            Some(stream) => summary
                .stream(stream)
                .iter()
                .any(|p| p.bytes > 0 && self.wants_partition(p.key.1)),
        }
    }
}

/// An entry to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) position: Position,
    /// Where in the file.
    pub(crate) at: u64,
    pub(crate) length: usize,
    /// The position behind it.
    pub(crate) next: Position,
    pub(crate) is_gap: bool,
}

/// Entries to be read, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) entries: Vec<Planned>,
    /// Everything that is wanted before this position is in the plan.
    pub(crate) next: Position,
}

impl SegmentIndex {
    /// The entries from `from` on that hold something wanted, until they are `max_bytes` together;
    /// at least one if there is any.
    pub(crate) fn plan(&self, from: Position, filter: &Filter, max_bytes: usize) -> Plan {
        let from = self.entry_of(from);
        let origins: Vec<_> = self.origins.iter().map(|range| range.origin).collect();
        let origins: Vec<_> = origins.iter().map(|&o| filter.wants_origin(o)).collect();
        let wanted = |entry: u32| origins[self.origin_number(entry)];
        match filter.stream() {
            None => {
                let entries = from..self.entry_of(self.next());
                self.take(entries, &|e| wanted(e) && !self.is_gap(e), max_bytes)
            }
            Some(stream) => {
                let lists = self.lists_of(stream, filter, from);
                match lists.as_slice() {
                    [only] => self.take(live(only), &wanted, max_bytes),
                    many => self.take(Merged::of(many), &wanted, max_bytes),
                }
            }
        }
    }

    /// The entries and gaps from `from` on that hold a frame that is asked for.
    pub(crate) fn plan_asked(&self, from: Position, ask: &Ask, max_bytes: usize) -> Plan {
        let entries = self.entry_of(from)..self.entry_of(self.next());
        self.take(entries, &self.asked(ask), max_bytes)
    }

    /// The first entry that holds a frame that is asked for.
    pub(crate) fn first_asked(&self, ask: &Ask) -> Option<u32> {
        // There may be a million entries, so where there is none it is not looked for.
        if !self.origins.iter().any(|range| range.has_asked(ask)) {
            return None;
        }
        let asked = self.asked(ask);
        (0..self.entry_of(self.next())).find(|&entry| asked(entry))
    }

    /// Says which entries hold a frame that is asked for.
    fn asked(&self, ask: &Ask) -> impl Fn(u32) -> bool {
        let beyond: Vec<_> = self
            .origins
            .iter()
            .map(|range| ask.beyond(range.origin))
            .collect();
        move |entry| {
            let held = beyond[self.origin_number(entry)];
            held.is_some_and(|held| self.last_frame(entry).1 > held)
        }
    }

    /// Takes what is wanted of these entries.
    fn take(
        &self,
        entries: impl Iterator<Item = u32>,
        wanted: &dyn Fn(u32) -> bool,
        max_bytes: usize,
    ) -> Plan {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for (looked_at, entry) in entries.enumerate() {
            let full = bytes >= max_bytes || taken.len() >= MOST_ENTRIES;
            if (full && !taken.is_empty()) || looked_at >= MOST_LOOKED_AT {
                return Plan {
                    entries: taken,
                    next: self.position_of(entry),
                };
            }
            if !wanted(entry) {
                continue;
            }
            let (at, length) = self.place(entry as usize);
            bytes += length;
            taken.push(Planned {
                position: self.position_of(entry),
                at,
                length,
                next: self.position_of(entry + 1),
                is_gap: self.is_gap(entry),
            });
        }
        Plan {
            entries: taken,
            next: self.next(),
        }
    }

    fn lists_of(&self, stream: StreamId, filter: &Filter, from: u32) -> Vec<&[Extent]> {
        self.lists
            .iter()
            .filter(|list| list.key.0 == stream && filter.wants_partition(list.key.1))
            .map(|list| list.since(from))
            .filter(|extents| !extents.is_empty())
            .collect()
    }
}

fn live<'a>(extents: &'a [Extent]) -> impl Iterator<Item = u32> + 'a {
    extents.iter().filter(|e| e.bytes > 0).map(|e| e.entry)
}

/// The entries of several lists, each once, in order.
struct Merged<'a> {
    heap: BinaryHeap<Reverse<(u32, usize)>>,
    lists: Vec<Box<dyn Iterator<Item = u32> + 'a>>,
    last: Option<u32>,
}

impl<'a> Merged<'a> {
    fn of(lists: &[&'a [Extent]]) -> Self {
        let mut merged = Self {
            heap: BinaryHeap::new(),
            lists: Vec::new(),
            last: None,
        };
        for (number, extents) in lists.iter().enumerate() {
            merged.lists.push(Box::new(live(extents)));
            merged.refill(number);
        }
        merged
    }

    fn refill(&mut self, number: usize) {
        if let Some(entry) = self.lists[number].next() {
            self.heap.push(Reverse((entry, number)));
        }
    }
}

impl Iterator for Merged<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let Reverse((entry, number)) = self.heap.pop()?;
            self.refill(number);
            if self.last.replace(entry) != Some(entry) {
                return Some(entry);
            }
        }
    }
}
