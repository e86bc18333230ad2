//! Which entries a read needs.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use anabranch_core::frame::PartHeader;
use anabranch_core::id::{PartitionId, Position, StreamId};

use super::{Extent, SegmentIndex, Summary};

/// Most entries of one plan: bounds what is copied under a lock.
const MOST_ENTRIES: usize = 4096;

/// Which parts a reader wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of every frame.
    All,
    /// Those of one stream.
    Stream(StreamId),
    /// Those of some partitions of one stream.
    Partitions(StreamId, BTreeSet<PartitionId>),
}

impl Filter {
    /// Whether a part is wanted.
    #[must_use]
    pub fn wants(&self, part: &PartHeader) -> bool {
        match self {
            Self::All => true,
            Self::Stream(stream) => part.stream == *stream,
            Self::Partitions(stream, partitions) => {
                part.stream == *stream && partitions.contains(&part.partition)
            }
        }
    }

    /// The one stream that is wanted, if it is one.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::All => None,
            Self::Stream(stream) | Self::Partitions(stream, _) => Some(*stream),
        }
    }

    fn wants_partition(&self, partition: PartitionId) -> bool {
        match self {
            Self::Partitions(_, wanted) => wanted.contains(&partition),
            Self::All | Self::Stream(_) => true,
        }
    }

    /// Whether a segment may hold something that is wanted.
    pub(crate) fn may_match(&self, summary: &Summary) -> bool {
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
        let mut taken = Taken {
            index: self,
            entries: Vec::new(),
            bytes: 0,
            max_bytes,
        };
        let last = match filter.stream() {
            None => {
                let entries = from..self.entry_of(self.next());
                taken.take_while_room(entries.filter(|&entry| !self.is_gap(entry)))
            }
            Some(stream) => {
                let lists = self.lists_of(stream, filter, from);
                match lists.as_slice() {
                    [] => None,
                    [only] => taken.take_while_room(live(only)),
                    many => taken.take_while_room(Merged::of(many)),
                }
            }
        };
        let next = last.map_or(self.next(), |entry| self.position_of(entry).next());
        Plan {
            entries: taken.entries,
            next,
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

struct Taken<'a> {
    index: &'a SegmentIndex,
    entries: Vec<Planned>,
    bytes: usize,
    max_bytes: usize,
}

impl Taken<'_> {
    /// The last entry taken when the room ended before the entries did.
    fn take_while_room(&mut self, entries: impl Iterator<Item = u32>) -> Option<u32> {
        for entry in entries {
            let full = self.bytes >= self.max_bytes || self.entries.len() >= MOST_ENTRIES;
            if full && let Some(last) = self.entries.last() {
                return Some(self.index.entry_of(last.position));
            }
            let (at, length) = self.index.place(entry as usize);
            self.bytes += length;
            self.entries.push(Planned {
                position: self.index.position_of(entry),
                at,
                length,
            });
        }
        None
    }
}
