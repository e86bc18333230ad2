//! Short names for operations, within one broker.
//!
//! A dot is 24 bytes and a stamp 20. A row has one of each for every path that was touched lately,
//! so they are stored as the difference to an *anchor*: a frame of the same origin, some minutes
//! older at most. Anchors have numbers, which are this broker's own, and stay for as long as rows
//! name them.
//!
//! ```text
//! name    number, sequence - anchor's, index                            varints
//!         0, broker u64, epoch, sequence, index                         where no anchor fits
//! mark    name, 4 * milliseconds after the anchor, + 1 if a logical counter follows
//!         name, 2, timestamp u64                                        where no anchor fits
//! ```

use std::collections::BTreeMap;

use bytes::BufMut;

use crate::clock::HybridTimestamp;
use crate::id::{BrokerId, Dot, Epoch, Origin, Sequence};
use crate::lww::Stamp;
use crate::wire::{Malformed, Reader, put_varint};

/// Frames of an origin after which it gets another anchor: two bytes of varint.
const MAX_FRAMES: u64 = 1 << 14;

/// Milliseconds after which an origin gets another anchor: three bytes of varint, less two bits.
const MAX_MILLIS: u64 = 1 << 19;

/// In the time of a mark: a logical counter follows.
const LOGICAL: u64 = 1;

/// Instead of the time of a mark: the whole timestamp follows.
const IN_FULL: u8 = 2;

/// A frame that others are named by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    /// Whose frame.
    pub origin: Origin,
    /// Which one.
    pub sequence: Sequence,
    /// Its stamp, cut to the millisecond.
    pub timestamp: HybridTimestamp,
}

/// All anchors of a broker. They are only added to; the number of one is its place from 1.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    anchors: Vec<Anchor>,
    /// Numbers of each origin's, in the order of their sequences.
    of: BTreeMap<Origin, Vec<u64>>,
}

impl Anchors {
    /// Makes sure that the records of a frame have short names; to be called before the frame is
    /// folded. Gives the anchor that was added, which is to be stored no later than the rows.
    pub fn cover(
        &mut self,
        origin: Origin,
        sequence: Sequence,
        timestamp: HybridTimestamp,
    ) -> Option<Anchor> {
        let near = self.before(origin, sequence).is_some_and(|(_, anchor)| {
            let millis = timestamp.millis().checked_sub(anchor.timestamp.millis());
            sequence.get() - anchor.sequence.get() < MAX_FRAMES
                && millis.is_some_and(|millis| millis < MAX_MILLIS)
        });
        if near {
            return None;
        }
        let anchor = Anchor {
            origin,
            sequence,
            timestamp: HybridTimestamp::from_millis(timestamp.millis()),
        };
        self.add(anchor);
        Some(anchor)
    }

    /// Adds an anchor that was stored: all in the order in which [`Anchors::cover`] gave them.
    pub fn add(&mut self, anchor: Anchor) {
        self.anchors.push(anchor);
        let number = self.anchors.len() as u64;
        let anchors = &self.anchors;
        let of = self.of.entry(anchor.origin).or_default();
        let sequence = |number: u64| at(anchors, number).map(|anchor| anchor.sequence);
        let place = of.partition_point(|&held| sequence(held) <= Some(anchor.sequence));
        of.insert(place, number);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// The last anchor of an origin at or before one of its frames.
    fn before(&self, origin: Origin, sequence: Sequence) -> Option<(u64, Anchor)> {
        let of = self.of.get(&origin)?;
        let held = |number: u64| at(&self.anchors, number);
        // Nearly always it is the newest.
        if let Some(&last) = of.last()
            && let Some(anchor) = held(last)
            && anchor.sequence <= sequence
        {
            return Some((last, anchor));
        }
        let place = of.partition_point(|&n| held(n).is_some_and(|a| a.sequence <= sequence));
        let number = *of.get(place.checked_sub(1)?)?;
        Some((number, held(number)?))
    }

    /// Appends an origin and one of its sequences.
    pub(super) fn put_frame(&self, out: &mut Vec<u8>, origin: Origin, sequence: Sequence) -> u64 {
        let Some((number, anchor)) = self.before(origin, sequence) else {
            out.push(0);
            put_origin(out, origin);
            put_varint(out, sequence.get());
            return 0;
        };
        put_varint(out, number);
        put_varint(out, sequence.get() - anchor.sequence.get());
        number
    }

    pub(super) fn read_frame(
        &self,
        reader: &mut Reader<'_>,
    ) -> Result<(Origin, Sequence, Option<Anchor>), Malformed> {
        let number = reader.shortest_varint()?;
        if number == 0 {
            let origin = read_origin(reader)?;
            return Ok((origin, Sequence::new(reader.shortest_varint()?), None));
        }
        let anchor = at(&self.anchors, number).ok_or(Malformed)?;
        let more = reader.shortest_varint()?;
        let sequence = anchor.sequence.get().checked_add(more).ok_or(Malformed)?;
        Ok((anchor.origin, Sequence::new(sequence), Some(anchor)))
    }

    pub(super) fn put_mark(&self, out: &mut Vec<u8>, mark: &Mark) {
        let Dot {
            origin,
            sequence,
            index,
        } = mark.dot;
        let first = mark.timestamp.get().checked_sub(u64::from(index));
        let number = self.put_frame(out, origin, sequence);
        put_varint(out, u64::from(index));
        // A stamp before its anchor's cannot be, since an origin's stamps grow; but it must read back.
        let anchor = at(&self.anchors, number).map(|anchor| anchor.timestamp.get());
        let after = anchor.and_then(|anchor| first?.checked_sub(anchor));
        let Some(after) = after else {
            out.push(IN_FULL);
            out.put_u64_le(mark.timestamp.get());
            return;
        };
        let (millis, logical) = (after >> 16, after & 0xffff);
        put_varint(out, (millis << 2) | if logical > 0 { LOGICAL } else { 0 });
        if logical > 0 {
            put_varint(out, logical);
        }
    }

    pub(super) fn read_mark(&self, reader: &mut Reader<'_>) -> Result<Mark, Malformed> {
        let (origin, sequence, anchor) = self.read_frame(reader)?;
        let index = u32::try_from(reader.shortest_varint()?).map_err(|_| Malformed)?;
        let time = reader.shortest_varint()?;
        let dot = Dot {
            origin,
            sequence,
            index,
        };
        if time == u64::from(IN_FULL) {
            let timestamp = HybridTimestamp::new(reader.u64()?);
            return Ok(Mark { dot, timestamp });
        }
        let logical = match time & 3 {
            0 => 0,
            LOGICAL => reader.shortest_varint()?,
            _ => return Err(Malformed),
        };
        let anchor = anchor.ok_or(Malformed)?.timestamp.get();
        let after = (time >> 2).checked_mul(1 << 16).ok_or(Malformed)?;
        let first = anchor
            .checked_add(after)
            .and_then(|t| t.checked_add(logical));
        let timestamp = first.and_then(|first| first.checked_add(u64::from(index)));
        let timestamp = HybridTimestamp::new(timestamp.ok_or(Malformed)?);
        Ok(Mark { dot, timestamp })
    }
}

fn at(anchors: &[Anchor], number: u64) -> Option<Anchor> {
    let place = usize::try_from(number).ok()?.checked_sub(1)?;
    anchors.get(place).copied()
}

pub(super) fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    out.put_u64_le(origin.broker.get());
    put_varint(out, u64::from(origin.epoch.get()));
}

pub(super) fn read_origin(reader: &mut Reader<'_>) -> Result<Origin, Malformed> {
    let broker = BrokerId::new(reader.u64()?);
    let epoch = u32::try_from(reader.shortest_varint()?).map_err(|_| Malformed)?;
    Ok(Origin {
        broker,
        epoch: Epoch::new(epoch),
    })
}

/// Passes over a frame's short name and the index of a record in it.
pub(super) fn skip_name(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if reader.varint()? == 0 {
        read_origin(reader)?;
    }
    reader.varint()?;
    reader.varint().map(drop)
}

pub(super) fn skip_mark(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    skip_name(reader)?;
    let time = reader.varint()?;
    if time == u64::from(IN_FULL) {
        return reader.u64().map(drop);
    }
    match time & LOGICAL {
        0 => Ok(()),
        _ => reader.varint().map(drop),
    }
}

/// How operations and rows write down the dots of what they name.
pub(super) trait Names {
    fn put_name(&self, out: &mut Vec<u8>, dot: Dot);
    fn read_name(&self, reader: &mut Reader<'_>) -> Result<Dot, Malformed>;
}

impl Names for Anchors {
    fn put_name(&self, out: &mut Vec<u8>, dot: Dot) {
        self.put_frame(out, dot.origin, dot.sequence);
        put_varint(out, u64::from(dot.index));
    }

    fn read_name(&self, reader: &mut Reader<'_>) -> Result<Dot, Malformed> {
        let (origin, sequence, _) = self.read_frame(reader)?;
        let index = u32::try_from(reader.shortest_varint()?).map_err(|_| Malformed)?;
        Ok(Dot {
            origin,
            sequence,
            index,
        })
    }
}

/// Which operation wrote something, and when: what has to be known of it until it is stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) dot: Dot,
    pub(super) timestamp: HybridTimestamp,
}

impl Mark {
    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            timestamp: self.timestamp,
            origin: self.dot.origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin(broker: u64) -> Origin {
        Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        }
    }

    fn bytes_of(anchors: &Anchors, mark: Mark) -> Vec<u8> {
        let mut bytes = Vec::new();
        anchors.put_mark(&mut bytes, &mark);
        let mut reader = Reader::new(&bytes);
        assert_eq!(anchors.read_mark(&mut reader), Ok(mark));
        assert!(reader.is_empty());
        let mut reader = Reader::new(&bytes);
        assert_eq!(skip_mark(&mut reader), Ok(()));
        assert!(reader.is_empty());
        bytes
    }

    fn mark(broker: u64, sequence: u64, index: u32, timestamp: u64) -> Mark {
        Mark {
            dot: Dot {
                origin: origin(broker),
                sequence: Sequence::new(sequence),
                index,
            },
            timestamp: HybridTimestamp::new(timestamp),
        }
    }

    /// Three regions, a frame of a thousand records each 10 ms, for three days.
    #[test]
    fn marks_stay_short_however_long_a_broker_runs() {
        let mut anchors = Anchors::default();
        let mut longest = 0;
        for frame in 1..3 * 24 * 360_000 / 50 {
            let (sequence, millis) = (50 * frame, 1_800_000_000_000 + 500 * frame);
            for broker in 1..=3 {
                let first = HybridTimestamp::from_millis(millis);
                anchors.cover(origin(broker), Sequence::new(sequence), first);
                let last = mark(broker, sequence, 999, first.of_record(999).get());
                longest = longest.max(bytes_of(&anchors, last).len());
            }
        }
        assert!(anchors.len() < 10_000, "{}", anchors.len());
        assert_eq!(longest, 9);
    }

    #[test]
    fn what_no_anchor_fits_is_named_in_full() {
        let mut anchors = Anchors::default();
        assert_eq!(
            bytes_of(&anchors, mark(1, 5, 3, 77)).len(),
            1 + 9 + 2 + 1 + 8
        );
        anchors.cover(origin(1), Sequence::new(9), HybridTimestamp::from_millis(5));
        bytes_of(&anchors, mark(1, 8, 0, 4 << 16));
        bytes_of(&anchors, mark(1, 10, 0, 4 << 16));
        bytes_of(&anchors, mark(1, 10, 9, 3));
    }

    #[test]
    fn a_frame_that_is_folded_again_has_the_same_name() {
        let mut anchors = Anchors::default();
        let at = |millis| HybridTimestamp::from_millis(millis);
        assert!(
            anchors
                .cover(origin(1), Sequence::new(100_000), at(10))
                .is_some()
        );
        let again = anchors.cover(origin(1), Sequence::new(1), at(1));
        assert_eq!(again.map(|anchor| anchor.sequence), Some(Sequence::new(1)));
        assert_eq!(anchors.cover(origin(1), Sequence::new(2), at(1)), None);
        assert_eq!(
            anchors.cover(origin(1), Sequence::new(100_001), at(10)),
            None
        );
        let mut stored = Anchors::default();
        for anchor in &anchors.anchors {
            stored.add(*anchor);
        }
        assert_eq!(
            bytes_of(&stored, mark(1, 2, 0, 1 << 16)),
            bytes_of(&anchors, mark(1, 2, 0, 1 << 16))
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut anchors = Anchors::default();
            anchors.cover(origin(1), Sequence::new(u64::MAX - 3), HybridTimestamp::new(u64::MAX));
            let _ = anchors.read_mark(&mut Reader::new(&bytes));
            let _ = anchors.read_name(&mut Reader::new(&bytes));
            let _ = skip_mark(&mut Reader::new(&bytes));
        }
    }
}
