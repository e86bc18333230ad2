//! Version vectors, and stamps, as differences.
//!
//! What brokers hold is much the same everywhere: most entries of two vectors are equal, or one
//! apart. So a link gives numbers to origins, in the order in which it names them first, and says of
//! a vector in what it differs from one that was said before.
//!
//! ```text
//! edits   tokens, each a varint: numbers passed over, times 4, plus
//!         0  the next one is one more      1  it is more by: varint, zigzag
//!         2  so many of them are one more: varint      3  the rest is the same
//! ```

use std::collections::HashMap;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::id::{BrokerId, Epoch, Origin, Sequence};
use anabranch_core::vector::VersionVector;
use anabranch_core::wire::{Reader, put_varint, put_zigzag};
use bytes::{BufMut, BytesMut};

use super::BadMessage;

/// Origins that a link numbers at most. A vector that names others goes whole.
pub(super) const MOST_ORIGINS: usize = 2048;

/// Entries that a link remembers at most, of all vectors together: 2 MB in each direction.
const MOST_ENTRIES: usize = 1 << 18;

/// Origins that can be numbered while so many vectors are remembered.
pub(super) fn most_origins(vectors: usize) -> usize {
    MOST_ORIGINS.min(MOST_ENTRIES / vectors.max(1))
}

/// From so many in a row on, equal steps are said at once.
const RUN: usize = 3;

const ONE_MORE: u64 = 0;
const MORE: u64 = 1;
const ALL_ONE_MORE: u64 = 2;
const END: u64 = 3;

/// Sequences by an origin's number; those behind its end are 0.
pub(super) type Dense = Vec<u64>;

/// The numbers that a link has given to origins.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    origins: Vec<Origin>,
    numbers: HashMap<Origin, usize>,
}

impl Numbers {
    pub(super) fn len(&self) -> usize {
        self.origins.len()
    }

    pub(super) fn get(&self, origin: Origin) -> Option<usize> {
        self.numbers.get(&origin).copied()
    }

    /// The number that it has from now on; `None` when as many are taken as there can be.
    pub(super) fn give(&mut self, origin: Origin, most: usize) -> Option<usize> {
        if let Some(number) = self.get(origin) {
            return Some(number);
        }
        let number = self.origins.len();
        if number >= most {
            return None;
        }
        self.origins.push(origin);
        self.numbers.insert(origin, number);
        Some(number)
    }

    pub(super) fn origin(&self, number: usize) -> Option<Origin> {
        self.origins.get(number).copied()
    }

    /// The origins of a vector that have no number yet; `None` when they are too many.
    pub(super) fn new_of(&self, vector: &VersionVector, most: usize) -> Option<Vec<Origin>> {
        let new = vector.iter().map(|(origin, _)| origin);
        let new: Vec<_> = new.filter(|origin| self.get(*origin).is_none()).collect();
        (new.is_empty() || self.len() + new.len() <= most).then_some(new)
    }

    /// Gives numbers to these, in this order, and says so.
    pub(super) fn put_new(&mut self, new: &[Origin], out: &mut BytesMut) {
        put_varint(out, new.len() as u64);
        for &origin in new {
            out.put_u64_le(origin.broker.get());
            out.put_u32_le(origin.epoch.get());
            self.give(origin, usize::MAX);
        }
    }

    pub(super) fn read_new(
        &mut self,
        reader: &mut Reader<'_>,
        most: usize,
    ) -> Result<(), BadMessage> {
        for _ in 0..reader.varint()? {
            let origin = Origin {
                broker: BrokerId::new(reader.u64()?),
                epoch: Epoch::new(reader.u32()?),
            };
            let next = self.len();
            if self.give(origin, most) != Some(next) {
                return Err(BadMessage::Malformed);
            }
        }
        Ok(())
    }

    /// The vector by numbers. Every origin in it has one.
    pub(super) fn dense(&self, vector: &VersionVector) -> Dense {
        let mut dense = vec![0; self.len()];
        for (origin, sequence) in vector.iter() {
            let number = self.get(origin).expect("it was given one");
            dense[number] = sequence.get();
        }
        dense
    }

    /// The entries of a vector by numbers that are wanted.
    pub(super) fn sparse(
        &self,
        dense: &[u64],
        wanted: impl Fn(usize, u64) -> bool,
    ) -> VersionVector {
        let entries = dense.iter().zip(&self.origins).enumerate();
        let entries =
            entries.filter(|&(number, (&sequence, _))| sequence > 0 && wanted(number, sequence));
        entries
            .map(|(_, (&sequence, &origin))| (origin, Sequence::new(sequence)))
            .collect()
    }
}

/// Says a stamp by how much later it is than this millisecond.
pub(super) fn put_stamp(stamp: HybridTimestamp, after_millis: u64, out: &mut BytesMut) {
    let later = stamp.millis().wrapping_sub(after_millis);
    put_zigzag(out, later.cast_signed());
    put_varint(out, stamp.get() & 0xffff);
}

pub(super) fn read_stamp(
    reader: &mut Reader<'_>,
    after_millis: u64,
) -> Result<HybridTimestamp, BadMessage> {
    let millis = after_millis.wrapping_add(reader.zigzag()?.cast_unsigned());
    let rest = reader.varint()?;
    match millis <= u64::MAX >> 16 && rest <= 0xffff {
        true => Ok(HybridTimestamp::new(millis << 16 | rest)),
        false => Err(BadMessage::Malformed),
    }
}

pub(super) fn at(dense: &[u64], number: usize) -> u64 {
    dense.get(number).copied().unwrap_or(0)
}

/// In how many numbers two differ.
pub(super) fn differing(from: &[u64], to: &[u64]) -> usize {
    let common = from.iter().zip(to).filter(|(a, b)| a != b).count();
    let (short, long) = match from.len() < to.len() {
        true => (from.len(), to),
        false => (to.len(), from),
    };
    common
        + long[short..]
            .iter()
            .filter(|&&sequence| sequence > 0)
            .count()
}

/// Says in what `to` differs from `from`, which is not longer.
pub(super) fn put_edits(from: &[u64], to: &[u64], out: &mut BytesMut) {
    assert!(from.len() <= to.len(), "numbers are only added");
    let step = |number: usize| to[number].wrapping_sub(at(from, number));
    let (mut said, mut number) = (0, 0);
    while number < to.len() {
        let by = step(number);
        if by == 0 {
            number += 1;
            continue;
        }
        let passed = (number - said) as u64 * 4;
        let run = (number..to.len()).take_while(|&n| step(n) == 1).count();
        if run >= RUN {
            put_varint(out, passed + ALL_ONE_MORE);
            put_varint(out, run as u64);
        } else if run > 0 {
            put_varint(out, passed + ONE_MORE);
        } else {
            put_varint(out, passed + MORE);
            put_zigzag(out, by.cast_signed());
        }
        number += if run >= RUN { run } else { 1 };
        said = number;
    }
    put_varint(out, END);
}

/// What differs so from `from`, which names at most `len` numbers.
pub(super) fn read_edits(
    reader: &mut Reader<'_>,
    from: &[u64],
    len: usize,
) -> Result<Dense, BadMessage> {
    let mut to = from.to_vec();
    to.resize(len, 0);
    let mut number = 0usize;
    loop {
        let token = reader.varint()?;
        if token == END {
            return Ok(to);
        }
        let passed = usize::try_from(token / 4).map_err(|_| BadMessage::Malformed)?;
        number = number.saturating_add(passed);
        let (run, by) = match token % 4 {
            ONE_MORE => (1, 1),
            MORE => (1, reader.zigzag()?.cast_unsigned()),
            ALL_ONE_MORE => (reader.varint()?, 1),
            _ => return Err(BadMessage::Malformed),
        };
        let run = usize::try_from(run).map_err(|_| BadMessage::Malformed)?;
        let end = number.checked_add(run).ok_or(BadMessage::Malformed)?;
        let changed = to.get_mut(number..end).ok_or(BadMessage::Malformed)?;
        for sequence in changed {
            *sequence = sequence.wrapping_add(by);
            // The last sequence there is has none after it, and no broker gets there.
            if *sequence == u64::MAX {
                return Err(BadMessage::Malformed);
            }
        }
        number = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(from: &[u64], to: &[u64]) -> BytesMut {
        let mut out = BytesMut::new();
        put_edits(from, to, &mut out);
        out
    }

    #[test]
    fn equal_steps_take_a_byte_or_less_each() {
        assert_eq!(said(&[1, 2], &[1, 2]).len(), 1);
        assert_eq!(said(&[1, 2, 3], &[2, 2, 3]).len(), 2);
        let (from, to) = (vec![7; 175], vec![8; 175]);
        assert_eq!(said(&from, &to).len(), 4);
        let mut late = to;
        late[100] = 7;
        assert_eq!(said(&from, &late).len(), 5);
    }

    #[test]
    fn numbers_that_a_link_has_not_given_are_refused() {
        for bytes in [
            &[4u8][..],
            &[2, 2, 3],
            &[2, 255, 255, 255, 255, 15, 3],
            &[0, 0, 3],
            &[7],
        ] {
            let read = read_edits(&mut Reader::new(bytes), &[5], 1);
            assert!(read.is_err(), "{bytes:?}");
        }
        let mut numbers = Numbers::default();
        let origin = |n: usize| Origin {
            broker: BrokerId::new(n as u64),
            epoch: Epoch::new(1),
        };
        for n in 0..MOST_ORIGINS {
            assert_eq!(numbers.give(origin(n), MOST_ORIGINS), Some(n));
        }
        assert_eq!(numbers.give(origin(MOST_ORIGINS), MOST_ORIGINS), None);
        assert_eq!(numbers.give(origin(3), MOST_ORIGINS), Some(3));
    }

    proptest! {
        #[test]
        fn what_was_said_as_a_difference_reads_back(
            from in prop::collection::vec(prop_oneof![0u64..4, 0u64..u64::MAX / 2], 0..40),
            more in prop::collection::vec(prop_oneof![4 => 0u64..3, 1 => 0u64..u64::MAX / 2], 0..60),
        ) {
            let len = from.len().max(more.len());
            let to: Vec<u64> = (0..len)
                .map(|n| at(&from, n).wrapping_add(at(&more, n)))
                .collect();
            let out = said(&from, &to);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(read_edits(&mut reader, &from, len), Ok(to.clone()));
            prop_assert!(reader.is_empty());
            let differs = (0..len).filter(|&n| at(&from, n) != to[n]).count();
            prop_assert_eq!(differing(&from, &to), differs);
        }

        #[test]
        fn garbage_is_no_difference_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = read_edits(&mut Reader::new(&bytes), &[1, 2, 3], 9);
            let _ = Numbers::default().read_new(&mut Reader::new(&bytes), 9);
        }
    }
}
