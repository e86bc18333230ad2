//! What a segment holds, without its bytes: where each entry begins, and which entries hold
//! records of a partition.
//!
//! The index of the segment being written grows in memory; when the segment is sealed it is
//! written behind the entries, and read back when somebody reads there.

mod codec;
mod plan;
mod spans;
mod summary;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::exchange::Ask;
use anabranch_core::frame::Commit;
use anabranch_core::gap::Gap;
use anabranch_core::id::{Offset, Origin, PartitionId, Position, Sequence, StreamId};
use anabranch_core::vector::VersionVector;
use hashbrown::HashMap;

use super::entry::{ALIGNMENT, StoredPart};
use super::fields::short_length;

pub use plan::Filter;
pub(crate) use plan::{Plan, Planned};
use spans::Spans;
pub(crate) use summary::{PartitionSummary, Summary};

/// A partition of a stream.
pub(crate) type Key = (StreamId, PartitionId);

/// The index of one segment.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct SegmentIndex {
    first: Position,
    /// The frames at positions before the first.
    base: VersionVector,
    /// Where the next entry begins.
    end: u64,
    /// Which entries stand for more than one frame.
    spans: Spans,
    /// Bytes of entries, not gaps, of which no batch is left.
    hollow: u64,
    /// Where each entry begins, in units of [`ALIGNMENT`].
    places: Vec<u32>,
    sequences: Vec<u64>,
    timestamps: Vec<u64>,
    appended: Vec<u64>,
    /// For each entry its place in `origins`. Empty while there is only one.
    origin_of: Vec<u16>,
    origins: Vec<OriginRange>,
    lists: Vec<ExtentList>,
    by_key: HashMap<Key, u32>,
}

/// The frames of one origin in a segment. Its sequences are dense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OriginRange {
    pub(crate) origin: Origin,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
}

/// The entries that hold records of one partition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExtentList {
    pub(crate) key: Key,
    pub(crate) extents: Vec<Extent>,
    /// Bytes still stored.
    pub(crate) bytes: u64,
}

/// The records of one partition in one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Which entry, from 0.
    pub(crate) entry: u32,
    /// Offset of its first record.
    pub(crate) base_offset: Offset,
    /// Offsets that it spans.
    pub(crate) records: u64,
    /// Bytes still stored; 0 when all was dropped.
    pub(crate) bytes: u32,
}

impl OriginRange {
    /// Whether some of it is asked for.
    pub(crate) fn has_asked(&self, ask: &Ask) -> bool {
        ask.beyond(self.origin).is_some_and(|held| self.last > held)
    }
}

impl ExtentList {
    /// The first offset after the list.
    pub(crate) fn next_offset(&self) -> Offset {
        self.extents
            .last()
            .map_or_else(Offset::default, |e| e.base_offset.advance(e.records))
    }

    /// The extents of entries from this one on.
    pub(crate) fn since(&self, entry: u32) -> &[Extent] {
        &self.extents[self.extents.partition_point(|e| e.entry < entry)..]
    }
}

/// An entry or a gap, as far as it has a place.
#[derive(Clone, Copy)]
struct Place {
    position: Position,
    origin: Origin,
    /// The first and the last.
    sequences: (Sequence, Sequence),
    timestamp: HybridTimestamp,
    appended_at: u64,
    length: usize,
}

/// What the index takes over of one entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewEntry<'a> {
    pub(crate) commit: &'a Commit,
    pub(crate) appended_at: u64,
    /// Length of the entry in the file.
    pub(crate) length: usize,
}

impl SegmentIndex {
    /// The index of a segment without entries, which follows the frames in `base`.
    pub(crate) fn new(first: Position, base: VersionVector, first_entry_at: u64) -> Self {
        Self {
            first,
            base,
            end: first_entry_at,
            ..Self::default()
        }
    }

    /// Adds the entry that follows, with the batches as they are in the commit.
    pub(crate) fn push(&mut self, new: NewEntry<'_>) {
        let stored = |part: usize| {
            let batch = new.commit.parts[part].batch.as_ref();
            batch.map_or(0, |batch| short_length(batch.len()))
        };
        self.push_with(new, &stored);
    }

    /// Adds the entry that follows, with these stored parts.
    pub(crate) fn push_stored(&mut self, new: NewEntry<'_>, parts: &[StoredPart]) {
        self.push_with(new, &|part| parts[part].length);
    }

    fn push_with(&mut self, new: NewEntry<'_>, stored: &dyn Fn(usize) -> u32) {
        let header = &new.commit.header;
        let entry = self.push_place(Place {
            position: new.commit.position,
            origin: header.origin,
            sequences: (header.sequence, header.sequence),
            timestamp: header.timestamp,
            appended_at: new.appended_at,
            length: new.length,
        });
        if (0..new.commit.parts.len()).all(|part| stored(part) == 0) {
            self.hollow += super::fields::length(new.length);
        }
        let mut last: Option<(Key, usize)> = None;
        for (at, part) in new.commit.parts.iter().enumerate() {
            let key = (part.header.stream, part.header.partition);
            let list = match last {
                Some((held, list)) if held == key => list,
                _ => self.list_of(key),
            };
            last = Some((key, list));
            let list = &mut self.lists[list];
            let bytes = stored(at);
            list.bytes += u64::from(bytes);
            match list.extents.last_mut() {
                Some(extent) if extent.entry == entry => {
                    extent.records += u64::from(part.header.records);
                    extent.bytes += bytes;
                }
                _ => list.extents.push(Extent {
                    entry,
                    base_offset: part.base_offset,
                    records: part.header.records.into(),
                    bytes,
                }),
            }
        }
    }

    /// Adds the gap that follows.
    pub(crate) fn push_gap(&mut self, gap: &Gap, appended_at: u64, length: usize) {
        let entry = self.push_place(Place {
            position: gap.position,
            origin: gap.origin,
            sequences: (gap.first, gap.last()),
            timestamp: gap.timestamp,
            appended_at,
            length,
        });
        self.spans.push(entry, gap.frames);
        for part in &gap.parts {
            let list = self.list_of((part.stream, part.partition));
            self.lists[list].extents.push(Extent {
                entry,
                base_offset: part.base_offset,
                records: part.records,
                bytes: 0,
            });
        }
    }

    fn push_place(&mut self, place: Place) -> u32 {
        assert_eq!(place.position, self.next(), "entries are dense");
        let entry = short_length(self.places.len());
        let at = self.end / u64::try_from(ALIGNMENT).expect("small");
        self.places
            .push(u32::try_from(at).expect("a segment is far below 32 GiB"));
        self.sequences.push(place.sequences.0.get());
        self.timestamps.push(place.timestamp.get());
        self.appended.push(place.appended_at);
        self.note_origin(place.origin, place.sequences);
        self.end += super::fields::length(place.length);
        entry
    }

    fn list_of(&mut self, key: Key) -> usize {
        let lists = &mut self.lists;
        let list = *self.by_key.entry(key).or_insert_with(|| {
            lists.push(ExtentList {
                key,
                extents: Vec::new(),
                bytes: 0,
            });
            short_length(lists.len() - 1)
        });
        list as usize
    }

    fn note_origin(&mut self, origin: Origin, (first, last): (Sequence, Sequence)) {
        let known = self.origins.iter().position(|range| range.origin == origin);
        let at = known.unwrap_or_else(|| {
            self.origins.push(OriginRange {
                origin,
                first,
                last,
            });
            self.origins.len() - 1
        });
        self.origins[at].last = last;
        if self.origins.len() == 1 {
            return;
        }
        let number = u16::try_from(at).expect("a segment has frames of under 65,536 origins");
        // Up to now all entries were of the first origin.
        let before = self.sequences.len() - 1;
        self.origin_of.resize(before, 0);
        self.origin_of.push(number);
    }

    /// Position of the first entry.
    pub(crate) fn first(&self) -> Position {
        self.first
    }

    /// Position after the last entry.
    pub(crate) fn next(&self) -> Position {
        self.spans.next(self.first, short_length(self.places.len()))
    }

    /// The frames before the first entry.
    pub(crate) fn base(&self) -> &VersionVector {
        &self.base
    }

    /// Where in the file the entries end.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Entries and gaps.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// All partitions with records here, in order of their first.
    pub(crate) fn lists(&self) -> &[ExtentList] {
        &self.lists
    }

    /// The records of one partition.
    pub(crate) fn list(&self, key: Key) -> Option<&ExtentList> {
        let list = *self.by_key.get(&key)?;
        self.lists.get(list as usize)
    }

    /// Which entry a position is; entries are counted from 0.
    pub(crate) fn entry_of(&self, position: Position) -> u32 {
        let behind = position.get().saturating_sub(self.first.get());
        u32::try_from(self.spans.entry_of(behind)).unwrap_or(u32::MAX)
    }

    /// The position of an entry, the first one of a gap.
    pub(crate) fn position_of(&self, entry: u32) -> Position {
        self.spans.next(self.first, entry)
    }

    /// Whether an entry is a gap.
    pub(crate) fn is_gap(&self, entry: u32) -> bool {
        self.spans.is_gap(entry)
    }

    /// Origin and last sequence of an entry.
    pub(crate) fn last_frame(&self, entry: u32) -> (Origin, Sequence) {
        let at = entry as usize;
        let last = self.sequences[at] + (self.spans.frames_of(entry) - 1);
        (self.range_of(at).origin, Sequence::new(last))
    }

    /// Where an entry lies in the file, and how long it is.
    pub(crate) fn place(&self, entry: usize) -> (u64, usize) {
        let unit = super::fields::length(ALIGNMENT);
        let at = u64::from(self.places[entry]) * unit;
        let end = self
            .places
            .get(entry + 1)
            .map_or(self.end, |&next| u64::from(next) * unit);
        let length = usize::try_from(end - at).expect("an entry fits memory");
        (at, length)
    }

    fn range_of(&self, entry: usize) -> &OriginRange {
        let number = self.origin_of.get(entry).copied().unwrap_or(0);
        &self.origins[usize::from(number)]
    }

    /// The place in `origins` of an entry's.
    fn origin_number(&self, entry: u32) -> usize {
        self.origin_of
            .get(entry as usize)
            .copied()
            .unwrap_or(0)
            .into()
    }

    /// The frames of all entries before this one, and of the segments before.
    pub(crate) fn vector_before(&self, entry: u32) -> VersionVector {
        let mut vector = self.base.clone();
        let end = self.len().min(entry as usize);
        let mut missing = self.origins.len();
        let mut found = vec![false; self.origins.len()];
        for at in (0..end).rev() {
            let number = usize::from(self.origin_of.get(at).copied().unwrap_or(0));
            if !std::mem::replace(&mut found[number], true) {
                let (origin, last) = self.last_frame(short_length(at));
                vector.advance(origin, last);
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        vector
    }

    /// The frames of all entries and of the segments before.
    pub(crate) fn vector_after(&self) -> VersionVector {
        let mut vector = self.base.clone();
        for range in &self.origins {
            vector.advance(range.origin, range.last);
        }
        vector
    }

    /// The entry that holds a frame.
    pub(crate) fn locate(&self, origin: Origin, sequence: Sequence) -> Option<u32> {
        let range = self.origins.iter().find(|range| range.origin == origin)?;
        if sequence < range.first || sequence > range.last {
            return None;
        }
        if self.origins.len() == 1 {
            let behind = self.sequences.partition_point(|&s| s <= sequence.get());
            return Some(short_length(behind - 1));
        }
        let holds = |&entry: &u32| {
            let at = entry as usize;
            self.sequences[at] <= sequence.get()
                && self.range_of(at).origin == origin
                && self.last_frame(entry).1 >= sequence
        };
        (0..short_length(self.len())).find(holds)
    }

    /// The first entry whose frame is not in `seen`.
    pub(crate) fn first_unseen(&self, seen: &VersionVector) -> Option<u32> {
        let first_missing = |range: &OriginRange| {
            let next = seen.get(range.origin).next().max(range.first);
            self.locate(range.origin, next)
        };
        self.origins.iter().filter_map(first_missing).min()
    }

    /// The first entry stamped at or after this millisecond.
    pub(crate) fn at_timestamp(&self, ms: u64) -> Option<u32> {
        let wanted = HybridTimestamp::from_millis(ms).get();
        let entry = self.timestamps.iter().position(|&stamp| stamp >= wanted)?;
        u32::try_from(entry).ok()
    }

    /// How many entries at the front were all appended before this time.
    pub(crate) fn appended_before(&self, ms: u64) -> usize {
        self.appended
            .iter()
            .position(|&at| at >= ms)
            .unwrap_or(self.len())
    }

    /// Bytes that the index takes in memory, about.
    pub(crate) fn memory(&self) -> usize {
        let extents: usize = self.lists.iter().map(|list| list.extents.len()).sum();
        self.len() * 30 + extents * size_of::<Extent>() + self.lists.len() * 80 + 200
    }
}
