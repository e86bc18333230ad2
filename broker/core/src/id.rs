//! Newtypes for ids, positions and names.
//!
//! A sequence, an offset and a position are all counters, and swapping two of them is the
//! mistake this module exists to prevent.

use std::fmt;
use std::str::FromStr;

use crate::limits::{MAX_REGION_NAME_BYTES, MAX_STREAM_NAME_BYTES};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a raw number.
            #[must_use]
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }

            /// The raw number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// A partition of a stream, from 0.
    PartitionId(u16)
}
counter! {
    /// An origin's dense counter of frames: 1, 2, 3 … Never reused. 0 means "none yet".
    Sequence(u64)
}
counter! {
    /// Dense position of a record in one (stream, partition) of *this broker's* log, from 0.
    Offset(u64)
}
counter! {
    /// Dense number of an entry in *this broker's* log, from 0. Survives the rewriting of
    /// segments, which file offsets do not.
    Position(u64)
}
counter! {
    /// How often a broker had to take a new write identity.
    Epoch(u32)
}

impl Sequence {
    /// The one before an origin's first frame.
    pub const NONE: Self = Self(0);

    /// The sequence after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The sequence before this one; of the first it is [`Sequence::NONE`].
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Offset {
    /// The offset `records` further on.
    #[must_use]
    pub fn advance(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

impl Position {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A broker: random, chosen once when its data directory is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerId(u64);

impl BrokerId {
    /// Wraps 64 random bits.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw bits.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads the text form: 16 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let raw = is_hex.then(|| u64::from_str_radix(text, 16).ok())?;
        raw.map(Self)
    }
}

impl fmt::Display for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerId({self})")
    }
}

/// A broker's write identity. Its text form is `<broker in hex>.<epoch>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Origin {
    /// Who writes.
    pub broker: BrokerId,
    /// Under which of its identities.
    pub epoch: Epoch,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.broker, self.epoch)
    }
}

/// The global name of one record. Its text form is `<origin>:<sequence>:<index>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dot {
    /// Who wrote it.
    pub origin: Origin,
    /// In which of the origin's frames.
    pub sequence: Sequence,
    /// Which record of the frame, counted over all its parts.
    pub index: u32,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.origin, self.sequence, self.index)
    }
}

/// A text that is not a dot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a record id; expected BROKER.EPOCH:SEQUENCE:INDEX")]
pub struct NotADot(String);

impl FromStr for Dot {
    type Err = NotADot;

    fn from_str(text: &str) -> Result<Self, NotADot> {
        parse_dot(text).ok_or_else(|| NotADot(text.chars().take(80).collect()))
    }
}

fn parse_dot(text: &str) -> Option<Dot> {
    let mut fields = text.split(':');
    let (broker, epoch) = fields.next()?.split_once('.')?;
    let sequence = fields.next()?.parse().ok()?;
    let index = fields.next()?.parse().ok()?;
    if fields.next().is_some() || broker.len() != 16 {
        return None;
    }
    Some(Dot {
        origin: Origin {
            broker: BrokerId::new(u64::from_str_radix(broker, 16).ok()?),
            epoch: Epoch::new(epoch.parse().ok()?),
        },
        sequence: Sequence::new(sequence),
        index,
    })
}

/// Which cluster a broker belongs to: a hash of the cluster's name. Brokers, cursors and tokens
/// of different clusters refuse each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClusterId(u32);

impl ClusterId {
    /// The id of the cluster with this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let hash = blake3::hash(name.as_bytes());
        let [a, b, c, d, ..] = *hash.as_bytes();
        Self(u32::from_le_bytes([a, b, c, d]))
    }

    /// Wraps a raw id, as read from a file or a token.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw id.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A stream, by the hash of its name: regions that create it at the same time mean the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

impl StreamId {
    /// Wraps a raw id, as read from a frame.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw id.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({:016x})", self.0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A stream's name: 1 to 249 of `a-z A-Z 0-9 . _ -`, not `.` or `..`.
///
/// Names that begin with `_` belong to the broker. A name never becomes a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamName {
    name: Box<str>,
    /// Hashed once: it is asked for with every publish.
    id: StreamId,
}

/// Why a text is not a stream name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "stream name {name:?} is not allowed; use 1 to 249 letters, digits, dots, underscores and dashes"
)]
pub struct BadStreamName {
    /// The text, cut to 80 characters.
    pub name: String,
}

impl StreamName {
    /// Parses a name.
    ///
    /// # Errors
    /// When it is empty, too long, or holds a character outside the alphabet.
    pub fn parse(name: &str) -> Result<Self, BadStreamName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let fits = (1..=MAX_STREAM_NAME_BYTES).contains(&name.len());
        if fits && name.bytes().all(allowed) && name != "." && name != ".." {
            return Ok(Self {
                name: name.into(),
                id: id_of(name.as_bytes()),
            });
        }
        Err(BadStreamName {
            name: name.chars().take(80).collect(),
        })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Whether the name is reserved for the broker's own streams.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.name.starts_with('_')
    }

    /// The id of the first stream of this name.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The id of the stream of this name that was made after so many others were deleted, and may
    /// be held by these regions; by all if none are named. They are in order.
    #[must_use]
    pub fn id_of_generation(&self, generation: u32, regions: &[RegionName]) -> StreamId {
        if generation == 0 && regions.is_empty() {
            return self.id;
        }
        let mut hashed = self.name.as_bytes().to_vec();
        // No name holds a zero.
        hashed.push(0);
        hashed.extend_from_slice(&generation.to_le_bytes());
        for region in regions {
            hashed.extend_from_slice(region.as_str().as_bytes());
            hashed.push(0);
        }
        id_of(&hashed)
    }
}

fn id_of(name: &[u8]) -> StreamId {
    let hash = blake3::hash(name);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    StreamId(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A region's name: 1 to 63 of `a-z 0-9 -`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionName(Box<str>);

/// Why a text is not a region name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("region name {0:?} is not allowed; use 1 to 63 lower-case letters, digits and dashes")]
pub struct BadRegionName(String);

impl RegionName {
    /// Parses a name.
    ///
    /// # Errors
    /// When it is empty, too long, or holds a character outside the alphabet.
    pub fn parse(name: &str) -> Result<Self, BadRegionName> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=MAX_REGION_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed) {
            return Ok(Self(name.into()));
        }
        Err(BadRegionName(name.chars().take(80).collect()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_become_paths_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "a\0b",
            "é",
            "a b",
            &"x".repeat(250),
        ] {
            assert!(StreamName::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "orders.v1", "_streams", "A-b_c", &"x".repeat(249)] {
            assert!(StreamName::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_dot_reads_back_from_its_text() {
        let origin = Origin {
            broker: BrokerId::new(0xabc),
            epoch: Epoch::new(7),
        };
        let dot = Dot {
            origin,
            sequence: Sequence::new(9),
            index: 3,
        };
        assert_eq!(dot.to_string(), "0000000000000abc.7:9:3");
        assert_eq!(dot.to_string().parse(), Ok(dot));
        for bad in [
            "",
            "1.2:3:4",
            "0000000000000abc.7:9",
            "0000000000000abc.7:9:3:1",
            "z:::",
        ] {
            assert!(bad.parse::<Dot>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_stream_id_depends_on_the_name_alone() {
        let name = StreamName::parse("orders").unwrap();
        assert_eq!(name.id(), StreamName::parse("orders").unwrap().id());
        assert_ne!(name.id(), StreamName::parse("order").unwrap().id());
    }
}
