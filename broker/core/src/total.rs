//! One order of all records, the same in every region: by the record's stamp, then by who wrote it.
//!
//! ```text
//! frames of each origin, in its order ──▶ Merge ──▶ slices of frames, up to the watermark
//! ```
//!
//! The stamps of an origin only grow, so its frames are in order already and merging them is
//! enough. A record of another origin may be stamped between two of one frame; then the frame comes
//! in slices. That is also the order by which the last writer wins, so who applies the records in
//! this order ends with the table's rows.
//!
//! Nothing is given whose stamp lies beyond the watermark: what is stamped at or below it is here,
//! and what is still to come is stamped later. The merge relies on being told the frames of every
//! origin up to there.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::clock::HybridTimestamp;
use crate::cursor::{Cursor, Order};
use crate::id::{Origin, Sequence};
use crate::vector::VersionVector;

/// A frame of an origin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whole<T> {
    /// Its number.
    pub sequence: Sequence,
    /// The stamp of its first record.
    pub timestamp: HybridTimestamp,
    /// How many records it holds, those of all its parts.
    pub records: u32,
    /// The frame itself.
    pub item: T,
}

/// Records of a frame that follow each other in the order of all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice<T> {
    /// Who wrote the frame.
    pub origin: Origin,
    /// Its number.
    pub sequence: Sequence,
    /// Which of its records.
    pub records: Range<u32>,
    /// How many it holds.
    pub of: u32,
    /// The frame.
    pub item: T,
}

/// The frames of one origin that wait.
#[derive(Clone, Debug)]
struct Source<T> {
    /// Its frames up to this one were taken in, or passed over.
    read: Sequence,
    frames: VecDeque<Whole<T>>,
    /// A frame of which the first records were given.
    begun: Option<(Sequence, u32)>,
}

/// Merges the frames of all origins.
#[derive(Clone, Debug)]
pub struct Merge<T> {
    /// What is stamped at or below this is passed over.
    after: HybridTimestamp,
    sources: BTreeMap<Origin, Source<T>>,
}

/// A place in the order of all: a stamp, and who has it.
type Place = (HybridTimestamp, Origin);

impl<T> Whole<T> {
    /// How many of its records are stamped at or below this.
    fn stamped_until(&self, stamp: HybridTimestamp) -> u32 {
        let until = stamp
            .get()
            .saturating_add(1)
            .saturating_sub(self.timestamp.get());
        u32::try_from(until).map_or(self.records, |until| until.min(self.records))
    }
}

impl<T> Source<T> {
    fn after(read: Sequence) -> Self {
        Self {
            read,
            frames: VecDeque::new(),
            begun: None,
        }
    }

    /// The frames that were given whole.
    fn seen(&self) -> Sequence {
        let first = self.frames.front();
        first.map_or(self.read, |frame| frame.sequence.previous())
    }

    /// How many records of the frame were given.
    fn given(&self, frame: Sequence) -> u32 {
        let begun = self.begun.filter(|(sequence, _)| *sequence == frame);
        begun.map_or(0, |(_, records)| records)
    }

    /// Where its next record belongs.
    fn next(&self, origin: Origin) -> Option<Place> {
        let first = self.frames.front()?;
        let stamp = first.timestamp.of_record(self.given(first.sequence));
        Some((stamp, origin))
    }
}

impl<T: Clone> Merge<T> {
    /// A merge that goes on behind what was given.
    #[must_use]
    pub fn after(cursor: &Cursor) -> Self {
        let mut sources: BTreeMap<_, _> = cursor
            .seen
            .iter()
            .map(|(origin, sequence)| (origin, Source::after(sequence)))
            .collect();
        for (&origin, &records) in &cursor.begun {
            let source = sources.entry(origin);
            let source = source.or_insert_with(|| Source::after(Sequence::NONE));
            source.begun = Some((source.read.next(), records));
        }
        Self {
            after: cursor.after,
            sources,
        }
    }

    /// The frames of an origin up to here were taken in, or passed over.
    #[must_use]
    pub fn read(&self, origin: Origin) -> Sequence {
        let source = self.sources.get(&origin);
        source.map_or(Sequence::NONE, |source| source.read)
    }

    /// Whether no frame of an origin waits.
    #[must_use]
    pub fn lacks(&self, origin: Origin) -> bool {
        let source = self.sources.get(&origin);
        source.is_none_or(|source| source.frames.is_empty())
    }

    /// Takes in a frame of an origin, which must come in their order; those that were given already
    /// are passed over.
    pub fn push(&mut self, origin: Origin, frame: Whole<T>) {
        let unwanted = frame.stamped_until(self.after);
        let source = self.source(origin);
        if frame.sequence <= source.read {
            return;
        }
        source.read = frame.sequence;
        let given = source.given(frame.sequence).max(unwanted);
        if given < frame.records {
            if unwanted > 0 {
                // What an origin wrote before has earlier stamps, so this is the first that waits.
                source.begun = Some((frame.sequence, given));
            }
            source.frames.push_back(frame);
        }
    }

    /// An origin has no other frames up to this one than those that were taken in.
    pub fn pass(&mut self, origin: Origin, sequence: Sequence) {
        let source = self.source(origin);
        source.read = source.read.max(sequence);
    }

    fn source(&mut self, origin: Origin) -> &mut Source<T> {
        let source = self.sources.entry(origin);
        source.or_insert_with(|| Source::after(Sequence::NONE))
    }

    /// What comes next, if it is stamped at or below the watermark.
    pub fn next(&mut self, watermark: HybridTimestamp) -> Option<Slice<T>> {
        let (first, second) = self.least();
        let (stamp, origin) = first.filter(|(stamp, _)| *stamp <= watermark)?;
        let source = self.sources.get_mut(&origin)?;
        let frame = source.frames.front()?;
        let start = source.given(frame.sequence);
        // Records up to the watermark, and before the first one of anybody else.
        let mut count = (watermark.get() - stamp.get()).saturating_add(1);
        if let Some((other, by)) = second {
            let tie = u64::from(origin < by);
            count = count.min(other.get() - stamp.get() + tie);
        }
        let left = frame.records - start;
        let count = u32::try_from(count).map_or(left, |count| count.min(left));
        let end = start + count;
        let slice = Slice {
            origin,
            sequence: frame.sequence,
            records: start..end,
            of: frame.records,
            item: frame.item.clone(),
        };
        if end == frame.records {
            source.frames.pop_front();
            source.begun = None;
        } else {
            source.begun = Some((slice.sequence, end));
        }
        Some(slice)
    }

    /// The first two of the places where the next record of each origin belongs.
    fn least(&self) -> (Option<Place>, Option<Place>) {
        let (mut first, mut second) = (None, None);
        for (&origin, source) in &self.sources {
            let Some(place) = source.next(origin) else {
                continue;
            };
            if first.is_none_or(|first| place < first) {
                second = first.replace(place);
            } else if second.is_none_or(|second| place < second) {
                second = Some(place);
            }
        }
        (first, second)
    }

    /// The frames that were taken in or passed over.
    #[must_use]
    pub fn frontier(&self) -> VersionVector {
        let sources = self.sources.iter();
        sources
            .map(|(&origin, source)| (origin, source.read))
            .collect()
    }

    /// What was given.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let mut cursor = Cursor {
            order: Order::Total,
            after: self.after,
            ..Cursor::default()
        };
        for (&origin, source) in &self.sources {
            let seen = source.seen();
            cursor.seen.advance(origin, seen);
            let begun = source
                .begun
                .filter(|(sequence, _)| *sequence == seen.next());
            if let Some((_, records)) = begun {
                cursor.begun.insert(origin, records);
            }
        }
        cursor
    }
}

impl<T> Slice<T> {
    /// Notes in a cursor that the frame's records before this one were given, and all frames of its
    /// origin before it.
    pub fn note(&self, cursor: &mut Cursor, before: u32) {
        cursor.begun.remove(&self.origin);
        if before >= self.of {
            cursor.seen.advance(self.origin, self.sequence);
            return;
        }
        cursor.seen.advance(self.origin, self.sequence.previous());
        if before > 0 {
            cursor.begun.insert(self.origin, before);
        }
    }
}

#[cfg(test)]
mod tests;
