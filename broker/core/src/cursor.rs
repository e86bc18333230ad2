//! Cursors: where a subscription resumes, in whatever region.
//!
//! Every region's log has its own order, so a place in one of them means nothing in another. A
//! cursor says instead what was given: whole frames as a version vector, and of frames that were
//! given in part how many records. Another region may lack some of that when it is resumed there.
//! [`Resumed`] keeps it until the frames have come, so that they are passed over, and so that the
//! next cursor still says it.

use std::collections::BTreeMap;

use bytes::BufMut;

use crate::clock::HybridTimestamp;
use crate::id::{BrokerId, ClusterId, Epoch, Origin, Sequence};
use crate::vector::{BadVector, VersionVector, decode_text, encode_text, malformed};
use crate::wire::{Malformed, Reader, put_varint};

/// First byte of a cursor between frames. In base64 all of them begin with a `Y`.
const BETWEEN: u8 = b'c';

/// First byte of a cursor of the order of all.
const OF_TOTAL: u8 = b'a';

/// First byte of a cursor that says of which frames a part was given.
const WITHIN: u8 = b'b';

/// In which order a subscription is given records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// In that of the broker's log: each follows all that its writer had seen. Waits for nobody.
    #[default]
    Local,
    /// In the one that is the same in every region, see [`crate::total`]. Waits for silent regions.
    Total,
}

impl Order {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Total => "total",
        }
    }

    /// The order with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Local, Self::Total]
            .into_iter()
            .find(|order| order.as_str() == name)
    }
}

/// What a subscription was given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    /// In which order.
    pub order: Order,
    /// Of the order of all: nothing stamped at or below this is wanted.
    pub after: HybridTimestamp,
    /// Frames given whole.
    pub seen: VersionVector,
    /// Of the frame that follows those of this origin, so many records were given, from its first.
    pub begun: BTreeMap<Origin, u32>,
}

impl Cursor {
    /// After these frames, and inside none.
    #[must_use]
    pub fn after(seen: VersionVector) -> Self {
        Self {
            seen,
            ..Self::default()
        }
    }

    /// The opaque text.
    #[must_use]
    pub fn encode(&self, cluster: ClusterId) -> String {
        let mut fields = Vec::with_capacity(self.seen.encoded_bytes());
        let kind = match (self.order, self.begun.is_empty()) {
            (Order::Local, true) => BETWEEN,
            (Order::Local, false) => WITHIN,
            (Order::Total, _) => OF_TOTAL,
        };
        if self.order == Order::Total {
            put_varint(&mut fields, self.after.get());
        }
        put_varint(&mut fields, self.begun.len() as u64);
        for (origin, &records) in &self.begun {
            fields.put_u64_le(origin.broker.get());
            put_varint(&mut fields, u64::from(origin.epoch.get()));
            put_varint(&mut fields, u64::from(records));
        }
        self.seen.encode(&mut fields);
        encode_text(kind, cluster, &fields)
    }

    /// Reads the opaque text.
    ///
    /// # Errors
    /// When it is malformed or of another cluster.
    pub fn decode(text: &str, cluster: ClusterId) -> Result<Self, BadVector> {
        let (kind, fields) = decode_text(text, cluster)?;
        let order = match kind {
            OF_TOTAL => Order::Total,
            _ => Order::Local,
        };
        let cursor = Self::read(order, &fields).ok();
        let cursor = cursor.filter(|cursor| match kind {
            BETWEEN => cursor.begun.is_empty(),
            WITHIN => !cursor.begun.is_empty(),
            OF_TOTAL => true,
            _ => false,
        });
        cursor.ok_or_else(|| malformed(text))
    }

    fn read(order: Order, fields: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(fields);
        let after = match order {
            Order::Local => HybridTimestamp::ZERO,
            Order::Total => HybridTimestamp::new(reader.varint()?),
        };
        let mut begun = BTreeMap::new();
        for _ in 0..reader.varint()? {
            let broker = BrokerId::new(reader.u64()?);
            let number = |value: u64| u32::try_from(value).map_err(|_| Malformed);
            let epoch = Epoch::new(number(reader.varint()?)?);
            let records = number(reader.varint()?)?;
            let origin = Origin { broker, epoch };
            let in_order = begun
                .last_key_value()
                .is_none_or(|(last, _)| *last < origin);
            if records == 0 || !in_order {
                return Err(Malformed);
            }
            begun.insert(origin, records);
        }
        let seen = VersionVector::read(&mut reader)?;
        match reader.is_empty() {
            true => Ok(Self {
                order,
                after,
                seen,
                begun,
            }),
            false => Err(Malformed),
        }
    }
}

/// A frame that was given in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Begun {
    sequence: Sequence,
    /// Records given.
    records: u32,
}

/// What was given elsewhere of frames that do not lie before the place in this log where a
/// subscription stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resumed {
    seen: VersionVector,
    begun: BTreeMap<Origin, Begun>,
}

impl Resumed {
    /// What a cursor says beyond the frames that lie before the place where it is resumed.
    #[must_use]
    pub fn at(cursor: &Cursor, before: &VersionVector) -> Self {
        let begun = cursor.begun.iter().map(|(&origin, &records)| {
            let sequence = cursor.seen.get(origin).next();
            (origin, Begun { sequence, records })
        });
        let mut resumed = Self {
            seen: cursor.seen.clone(),
            begun: begun.collect(),
        };
        resumed.pass(before);
        resumed
    }

    /// Whether what lies before the place says all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty() && self.begun.is_empty()
    }

    /// Whether all of a frame was given.
    #[must_use]
    pub fn has_seen(&self, origin: Origin, sequence: Sequence) -> bool {
        self.seen.contains(origin, sequence)
    }

    /// How many records of a frame were given.
    #[must_use]
    pub fn begun(&self, origin: Origin, sequence: Sequence) -> u32 {
        let begun = self.begun.get(&origin);
        let of_it = begun.filter(|begun| begun.sequence == sequence);
        of_it.map_or(0, |begun| begun.records)
    }

    /// These frames lie before the place now.
    pub fn pass(&mut self, before: &VersionVector) {
        self.seen = before.missing_from(&self.seen);
        self.begun
            .retain(|&origin, begun| !before.contains(origin, begun.sequence));
    }

    /// The cursor of a place behind these frames.
    #[must_use]
    pub fn cursor(&self, before: VersionVector) -> Cursor {
        let mut seen = before;
        seen.merge(&self.seen);
        let begun = self.begun.iter();
        let begun = begun.filter(|&(&origin, begun)| !seen.contains(origin, begun.sequence));
        let begun = begun
            .map(|(&origin, begun)| (origin, begun.records))
            .collect();
        Cursor {
            begun,
            ..Cursor::after(seen)
        }
    }
}

#[cfg(test)]
mod tests;
