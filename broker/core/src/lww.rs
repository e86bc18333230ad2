//! Rows where the last writer wins.
//!
//! A row is one opaque value; the write with the greatest stamp takes it. A delete is a write of
//! nothing, kept as a tombstone until it is stable. Stored form:
//!
//! ```text
//! byte 0       bit 0: a stamp follows, bit 1: tombstone
//! [20 bytes]   stamp: timestamp u64, broker u64, epoch u32, little-endian
//! rest         the value
//! ```
//!
//! Once a row is stable (applied by every member) its stamp is dropped: whatever is still to come
//! has seen the row, so its stamp is greater, because hybrid clocks run after what they have seen.

use bytes::BufMut;

use crate::clock::HybridTimestamp;
use crate::id::{BrokerId, Epoch, Origin};
use crate::wire::{Malformed, Reader};

/// Decides between concurrent writes: the later timestamp, then the greater origin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    /// The record's hybrid timestamp.
    pub timestamp: HybridTimestamp,
    /// Who wrote it.
    pub origin: Origin,
}

/// Whether every member has applied what is being folded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stability {
    /// Yes: stamps and tombstones are no longer needed.
    Stable,
    /// No: they must be kept.
    Unstable,
}

/// A stored row, borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// The value; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Who wrote it when; `None` once stable.
    pub stamp: Option<Stamp>,
}

const STAMPED: u8 = 1;
const TOMBSTONE: u8 = 2;

impl<'a> Row<'a> {
    /// Reads the stored form.
    ///
    /// # Errors
    /// When the bytes are not a row.
    pub fn decode(stored: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(stored);
        let flags = reader.u8()?;
        if flags & !(STAMPED | TOMBSTONE) != 0 {
            return Err(Malformed);
        }
        let stamp = if flags & STAMPED == 0 {
            None
        } else {
            Some(read_stamp(&mut reader)?)
        };
        let value = reader.take(reader.remaining())?;
        let value = if flags & TOMBSTONE == 0 {
            Some(value)
        } else {
            None
        };
        Ok(Self { value, stamp })
    }

    /// Appends the stored form.
    #[inline]
    pub fn encode(&self, out: &mut impl BufMut) {
        let stamped = if self.stamp.is_some() { STAMPED } else { 0 };
        let tombstone = if self.value.is_none() { TOMBSTONE } else { 0 };
        out.put_u8(stamped | tombstone);
        if let Some(stamp) = self.stamp {
            out.put_u64_le(stamp.timestamp.get());
            out.put_u64_le(stamp.origin.broker.get());
            out.put_u32_le(stamp.origin.epoch.get());
        }
        out.put_slice(self.value.unwrap_or_default());
    }

    /// Length of the stored form.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        1 + if self.stamp.is_some() { 20 } else { 0 } + self.value.map_or(0, <[u8]>::len)
    }

    /// Whether a write with this stamp takes the row.
    #[must_use]
    pub fn yields_to(&self, stamp: Stamp) -> bool {
        self.stamp.is_none_or(|held| held < stamp)
    }
}

/// What to store for a key after a write; see [`fold`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folded<'a> {
    /// The write lost: the row stays as it is.
    Unchanged,
    /// Store this.
    Store(Row<'a>),
    /// Store nothing: the row is gone, and no trace of it is needed.
    Remove,
}

/// Folds one write into the row that is there. `value` is `None` for a delete.
#[must_use]
pub fn fold<'a>(
    held: Option<Row<'_>>,
    value: Option<&'a [u8]>,
    stamp: Stamp,
    stability: Stability,
) -> Folded<'a> {
    if held.is_some_and(|row| !row.yields_to(stamp)) {
        return Folded::Unchanged;
    }
    match (value, stability) {
        (None, Stability::Stable) => Folded::Remove,
        (_, Stability::Stable) => Folded::Store(Row { value, stamp: None }),
        (_, Stability::Unstable) => Folded::Store(Row {
            value,
            stamp: Some(stamp),
        }),
    }
}

fn read_stamp(reader: &mut Reader<'_>) -> Result<Stamp, Malformed> {
    let timestamp = HybridTimestamp::new(reader.u64()?);
    let broker = BrokerId::new(reader.u64()?);
    let epoch = Epoch::new(reader.u32()?);
    Ok(Stamp {
        timestamp,
        origin: Origin { broker, epoch },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(timestamp: u64, broker: u64) -> Stamp {
        let origin = Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        };
        Stamp {
            timestamp: HybridTimestamp::new(timestamp),
            origin,
        }
    }

    type Write = (Option<Vec<u8>>, Stamp);

    fn folded(writes: &[Write]) -> Option<Vec<u8>> {
        let mut stored: Option<Vec<u8>> = None;
        for (value, stamp) in writes {
            let held = stored.as_deref().map(|row| Row::decode(row).unwrap());
            match fold(held, value.as_deref(), *stamp, Stability::Unstable) {
                Folded::Unchanged => {}
                Folded::Remove => stored = None,
                Folded::Store(row) => {
                    let mut bytes = Vec::new();
                    row.encode(&mut bytes);
                    assert_eq!(bytes.len(), row.stored_len());
                    stored = Some(bytes);
                }
            }
        }
        stored
    }

    proptest! {
        #[test]
        fn any_order_of_writes_gives_the_same_row(
            values in prop::collection::vec((any::<Option<Vec<u8>>>(), 0u64..5), 1..8),
            shuffle in any::<prop::sample::Index>(),
        ) {
            // Stamps are unique: (timestamp, origin) names one record.
            let writes: Vec<Write> = values.into_iter().enumerate()
                .map(|(n, (value, timestamp))| (value, stamp(timestamp, n as u64))).collect();
            let mut other = writes.clone();
            other.rotate_left(shuffle.index(writes.len()));
            other.reverse();
            prop_assert_eq!(folded(&writes), folded(&other));
            prop_assert_eq!(folded(&[writes.clone(), writes.clone()].concat()), folded(&writes));
        }
    }

    #[test]
    fn a_stable_row_costs_one_byte_and_a_stable_delete_nothing() {
        let put = fold(None, Some(b"v"), stamp(1, 1), Stability::Stable);
        let Folded::Store(row) = put else {
            panic!("{put:?}")
        };
        assert_eq!(row.stored_len(), 2);
        assert_eq!(
            fold(Some(row), None, stamp(2, 1), Stability::Stable),
            Folded::Remove
        );
    }

    #[test]
    fn an_unstable_delete_beats_an_earlier_put_that_comes_later() {
        let put = (Some(b"old".to_vec()), stamp(1, 1));
        let delete = (None, stamp(2, 2));
        let row = folded(&[delete, put]).unwrap();
        assert_eq!(Row::decode(&row).unwrap().value, None);
    }
}
