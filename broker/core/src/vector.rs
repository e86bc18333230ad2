//! Version vectors, and tokens: the opaque texts made of them that clients carry.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BufMut;

use crate::id::{BrokerId, ClusterId, Epoch, Origin, Sequence};
use crate::wire::{Malformed, Reader, put_varint};

/// Origin → highest sequence held. Because an origin's sequences are dense, this describes
/// exactly which frames a broker has.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct VersionVector {
    entries: BTreeMap<Origin, Sequence>,
}

impl VersionVector {
    /// That of who has nothing.
    pub const EMPTY: Self = Self {
        entries: BTreeMap::new(),
    };

    /// The highest sequence held of an origin; [`Sequence::NONE`] when there is none.
    #[must_use]
    pub fn get(&self, origin: Origin) -> Sequence {
        self.entries.get(&origin).copied().unwrap_or(Sequence::NONE)
    }

    /// Raises an origin's entry; a lower sequence changes nothing.
    pub fn advance(&mut self, origin: Origin, sequence: Sequence) {
        if sequence > Sequence::NONE {
            let held = self.entries.entry(origin).or_default();
            *held = (*held).max(sequence);
        }
    }

    /// Raises every entry to the other's.
    pub fn merge(&mut self, other: &Self) {
        for (origin, sequence) in other.iter() {
            self.advance(origin, sequence);
        }
    }

    /// What is in both.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        let both = self
            .iter()
            .map(|(origin, s)| (origin, s.min(other.get(origin))));
        both.collect()
    }

    /// Whether everything in `other` is also here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other
            .iter()
            .all(|(origin, sequence)| self.get(origin) >= sequence)
    }

    /// Whether this frame is here.
    #[must_use]
    pub fn contains(&self, origin: Origin, sequence: Sequence) -> bool {
        self.get(origin) >= sequence
    }

    /// The entries of `other` that are beyond what is here.
    #[must_use]
    pub fn missing_from(&self, other: &Self) -> Self {
        let entries = other
            .iter()
            .filter(|&(origin, s)| s > self.get(origin))
            .collect();
        Self { entries }
    }

    /// How many frames of `other` are not in this one.
    #[must_use]
    pub fn lacks_of(&self, other: &Self) -> u64 {
        let lacking = other
            .iter()
            .map(|(origin, sequence)| sequence.get().saturating_sub(self.get(origin).get()));
        // What others say they hold may be anything.
        lacking.fold(0, u64::saturating_add)
    }

    /// All entries, ordered by origin.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, Sequence)> {
        self.entries
            .iter()
            .map(|(&origin, &sequence)| (origin, sequence))
    }

    /// Number of origins.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends the binary form: a count, then (broker, epoch, sequence) each.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_varint(out, self.entries.len() as u64);
        for (origin, sequence) in self.iter() {
            out.put_u64_le(origin.broker.get());
            put_varint(out, u64::from(origin.epoch.get()));
            put_varint(out, sequence.get());
        }
    }

    /// Most bytes of the binary form.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        10 + self.entries.len() * (8 + 5 + 10)
    }

    /// Reads the binary form, which must fill `bytes` exactly.
    ///
    /// # Errors
    /// When the bytes are not a vector in canonical order.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let vector = Self::read(&mut reader)?;
        if reader.is_empty() {
            Ok(vector)
        } else {
            Err(Malformed)
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = reader.varint()?;
        let mut vector = Self::default();
        let mut previous = None;
        // An entry takes at least ten bytes, so a lying count runs out of bytes at once.
        for _ in 0..count {
            let broker = BrokerId::new(reader.u64()?);
            let epoch = Epoch::new(u32::try_from(reader.varint()?).map_err(|_| Malformed)?);
            let sequence = Sequence::new(reader.varint()?);
            let origin = Origin { broker, epoch };
            // The last sequence there is has none after it, and no broker gets there.
            let no_sequence = sequence == Sequence::NONE || sequence.get() == u64::MAX;
            if previous >= Some(origin) || no_sequence {
                return Err(Malformed);
            }
            previous = Some(origin);
            vector.entries.insert(origin, sequence);
        }
        Ok(vector)
    }
}

impl FromIterator<(Origin, Sequence)> for VersionVector {
    fn from_iter<I: IntoIterator<Item = (Origin, Sequence)>>(entries: I) -> Self {
        let mut vector = Self::default();
        for (origin, sequence) in entries {
            vector.advance(origin, sequence);
        }
        vector
    }
}

/// Why a token or a cursor was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadVector {
    /// It is not something this software made.
    #[error("{0:?} is not a token or cursor; pass on unchanged what the broker sent")]
    Malformed(String),
    /// It was made by another cluster.
    #[error(
        "the token or cursor comes from another cluster; start again from earliest, latest or the table"
    )]
    OtherCluster,
}

/// First byte of a token.
const KIND: u8 = b't';

/// What a client carries so that its next read, anywhere, includes what it has seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// What the client has seen.
    pub seen: VersionVector,
}

impl Token {
    /// The opaque text, for a header or a message.
    #[must_use]
    pub fn encode(&self, cluster: ClusterId) -> String {
        let mut fields = vec![0];
        self.seen.encode(&mut fields);
        encode_text(KIND, cluster, &fields)
    }

    /// Reads the opaque text.
    ///
    /// # Errors
    /// When it is malformed or of another cluster.
    pub fn decode(text: &str, cluster: ClusterId) -> Result<Self, BadVector> {
        let seen = match decode_text(text, cluster)? {
            (KIND, fields) => fields
                .strip_prefix(&[0])
                .and_then(|fields| VersionVector::decode(fields).ok()),
            _ => None,
        };
        Ok(Self {
            seen: seen.ok_or_else(|| malformed(text))?,
        })
    }
}

/// Longest token or cursor that is looked at: room for 1,000 origins.
const MAX_TEXT_BYTES: usize = 40 * 1024;

/// The opaque text of a token or cursor, from its fields.
pub(crate) fn encode_text(kind: u8, cluster: ClusterId, fields: &[u8]) -> String {
    let mut bytes = vec![kind];
    bytes.put_u32_le(cluster.get());
    bytes.extend_from_slice(fields);
    bytes.push(check_byte(&bytes));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Kind and fields of an opaque text.
pub(crate) fn decode_text(text: &str, cluster: ClusterId) -> Result<(u8, Vec<u8>), BadVector> {
    let malformed = || malformed(text);
    if text.len() > MAX_TEXT_BYTES {
        return Err(malformed());
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed())?;
    let check = bytes.pop().ok_or_else(malformed)?;
    let &[kind, a, b, c, d, ref fields @ ..] = &bytes[..] else {
        return Err(malformed());
    };
    if check != check_byte(&bytes) {
        return Err(malformed());
    }
    if u32::from_le_bytes([a, b, c, d]) != cluster.get() {
        return Err(BadVector::OtherCluster);
    }
    Ok((kind, fields.to_vec()))
}

pub(crate) fn malformed(text: &str) -> BadVector {
    BadVector::Malformed(text.chars().take(40).collect())
}

/// Catches a text that was cut or retyped, before it is taken for a place in the log.
fn check_byte(bytes: &[u8]) -> u8 {
    crc32c::crc32c(bytes).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors() -> impl Strategy<Value = VersionVector> {
        prop::collection::vec((0u64..5, 0u32..3, 1u64..1_000_000), 0..6).prop_map(|entries| {
            let named = |(broker, epoch, sequence)| {
                let origin = Origin {
                    broker: BrokerId::new(broker),
                    epoch: Epoch::new(epoch),
                };
                (origin, Sequence::new(sequence))
            };
            entries.into_iter().map(named).collect()
        })
    }

    proptest! {
        #[test]
        fn a_vector_reads_back(vector in vectors()) {
            let mut bytes = Vec::new();
            vector.encode(&mut bytes);
            prop_assert_eq!(VersionVector::decode(&bytes), Ok(vector));
        }

        #[test]
        fn merge_is_the_least_upper_bound(a in vectors(), b in vectors()) {
            let mut both = a.clone();
            both.merge(&b);
            prop_assert!(both.covers(&a) && both.covers(&b));
            let mut other = b.clone();
            other.merge(&a);
            prop_assert_eq!(&both, &other);
            prop_assert!(a.covers(&b) == a.missing_from(&b).is_empty());
        }

        #[test]
        fn a_token_reads_back_in_its_own_cluster_only(seen in vectors()) {
            let token = Token { seen };
            let ours = ClusterId::of("ours");
            let text = token.encode(ours);
            prop_assert_eq!(Token::decode(&text, ours), Ok(token));
            prop_assert_eq!(
                Token::decode(&text, ClusterId::of("theirs")),
                Err(BadVector::OtherCluster)
            );
        }
    }
}
