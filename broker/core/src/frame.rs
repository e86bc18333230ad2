//! The frame: the unit of append, of replication and of atomic visibility.
//!
//! A header and one or more parts, each a record batch for one (stream, partition). The header
//! (little-endian) is portable: every broker stores and relays it byte for byte.
//!
//! ```text
//!  0 magic "ABF1"       28 flags u32 = 0        52 part count u32
//!  4 crc u32 over 8..   32 sequence u64         56 context length u32
//!  8 header length u32  40 timestamp u64        60 reserved u32 = 0
//! 12 body length u32    48 record count u32     64 chain, 32 bytes
//! 16 broker u64                                 96 context
//! 24 epoch u32                                     then 24 bytes per part:
//!                                                  stream u64, partition u16, flags u16 = 0,
//!                                                  records u32, length u32, crc u32
//! ```
//!
//! The chain is BLAKE3 over the previous frame's chain, bytes 12..64, the context, and the part
//! table. A part's CRC is its batch's own, so a part whose bytes are withheld still verifies.

use bytes::{BufMut, Bytes, BytesMut};

use crate::batch::Batch;
use crate::clock::HybridTimestamp;
use crate::id::{BrokerId, Dot, Epoch, Offset, Origin, PartitionId, Position, Sequence, StreamId};
use crate::limits::{
    MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_CONTEXT_BYTES, MAX_FRAME_BYTES, MAX_FRAME_PARTS,
};
use crate::vector::VersionVector;
use crate::wire::{Malformed, Reader, put_u32};

/// First bytes of a frame.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"ABF1");

/// Bytes of a header without context and parts.
pub const FIXED_HEADER_BYTES: usize = 96;

/// Bytes of one entry of the part table.
pub const PART_HEADER_BYTES: usize = 24;

/// Longest header there can be.
pub const MAX_HEADER_BYTES: usize =
    FIXED_HEADER_BYTES + MAX_CONTEXT_BYTES + MAX_FRAME_PARTS * PART_HEADER_BYTES;

const CRC_FROM: usize = 8;
const CHAIN_FROM: usize = 12;
const CHAIN_AT: usize = 64;

/// An origin's hash chain up to and including one of its frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain([u8; 32]);

impl Chain {
    /// The chain before an origin's first frame.
    pub const START: Self = Self([0; 32]);

    /// Wraps 32 bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Chain({:02x}{:02x}{:02x}{:02x}…)",
            self.0[0], self.0[1], self.0[2], self.0[3]
        )
    }
}

/// One entry of the part table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartHeader {
    /// For which stream.
    pub stream: StreamId,
    /// For which of its partitions.
    pub partition: PartitionId,
    /// Records, which is also the number of offsets the part spans.
    pub records: u32,
    /// Length of the batch in bytes.
    pub length: u32,
    /// The batch's CRC-32C.
    pub crc: u32,
}

/// A decoded frame header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Who wrote the frame.
    pub origin: Origin,
    /// The origin's counter.
    pub sequence: Sequence,
    /// Stamp of the frame's first record.
    pub timestamp: HybridTimestamp,
    /// What the origin had applied, as the difference to its previous frame's context.
    pub context: VersionVector,
    /// The origin's chain, this frame included.
    pub chain: Chain,
    /// The parts, in the order of their bodies.
    pub parts: Vec<PartHeader>,
}

/// Why bytes are not a frame header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header takes.
    #[error("frame header is cut short")]
    Truncated,
    /// The first bytes are not the magic.
    #[error("no frame begins here")]
    Magic,
    /// The checksum does not match.
    #[error("frame header has a CRC that does not match its bytes")]
    Crc,
    /// A length or count is out of range or disagrees with another.
    #[error("frame header contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The chain does not follow from the previous frame's.
    #[error(
        "frame {sequence} of {origin} does not continue the chain: the origin's log was rolled back, forked or damaged"
    )]
    Chain {
        /// Whose frame.
        origin: Origin,
        /// Which frame.
        sequence: Sequence,
    },
}

impl From<Malformed> for FrameError {
    fn from(_: Malformed) -> Self {
        Self::Truncated
    }
}

impl FrameHeader {
    /// Encodes a header whose chain continues `previous`; sets `self.chain`.
    pub fn seal(&mut self, previous: Chain) -> Bytes {
        let out = self.encode_unchained();
        self.chain = chain_after(previous, &out);
        self.with_chain(out)
    }

    /// The bytes of this header, with the chain that it has.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.with_chain(self.encode_unchained())
    }

    fn with_chain(&self, mut out: BytesMut) -> Bytes {
        out[CHAIN_AT..FIXED_HEADER_BYTES].copy_from_slice(&self.chain.0);
        let crc = crc32c::crc32c(&out[CRC_FROM..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    fn encode_unchained(&self) -> BytesMut {
        let mut context = Vec::new();
        if !self.context.is_empty() {
            self.context.encode(&mut context);
        }
        let length = FIXED_HEADER_BYTES + context.len() + self.parts.len() * PART_HEADER_BYTES;
        assert!(self.parts.len() <= MAX_FRAME_PARTS && context.len() <= MAX_CONTEXT_BYTES);
        assert!(self.body_length() <= MAX_FRAME_BYTES);
        let mut out = BytesMut::with_capacity(length);
        out.put_u32_le(FRAME_MAGIC);
        out.put_u32_le(0);
        put_u32(&mut out, length);
        put_u32(&mut out, self.body_length());
        out.put_u64_le(self.origin.broker.get());
        out.put_u32_le(self.origin.epoch.get());
        out.put_u32_le(0);
        out.put_u64_le(self.sequence.get());
        out.put_u64_le(self.timestamp.get());
        out.put_u32_le(self.record_count());
        put_u32(&mut out, self.parts.len());
        put_u32(&mut out, context.len());
        out.put_u32_le(0);
        out.put_slice(&[0; 32]);
        out.put_slice(&context);
        for part in &self.parts {
            out.put_u64_le(part.stream.get());
            out.put_u16_le(part.partition.get());
            out.put_u16_le(0);
            out.put_u32_le(part.records);
            out.put_u32_le(part.length);
            out.put_u32_le(part.crc);
        }
        debug_assert_eq!(out.len(), length);
        out
    }

    /// The length of the header that begins here, if the bytes begin one. Reads 12 bytes.
    ///
    /// # Errors
    /// When no header begins here or its length is out of range.
    pub fn peek_length(bytes: &[u8]) -> Result<usize, FrameError> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != FRAME_MAGIC {
            return Err(FrameError::Magic);
        }
        let _crc = reader.u32()?;
        let length = reader.u32()? as usize;
        if (FIXED_HEADER_BYTES..=MAX_HEADER_BYTES).contains(&length) {
            Ok(length)
        } else {
            Err(FrameError::Contradiction("its length is out of range"))
        }
    }

    /// Decodes a header; `bytes` holds exactly it. Checks the CRC and every count and length
    /// against each other, but not the chain: see [`FrameHeader::verify_chain`].
    ///
    /// # Errors
    /// With what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if Self::peek_length(bytes)? != bytes.len() {
            return Err(FrameError::Contradiction("its length is not the header's"));
        }
        let mut reader = Reader::new(&bytes[4..]);
        if reader.u32()? != crc32c::crc32c(&bytes[CRC_FROM..]) {
            return Err(FrameError::Crc);
        }
        let _length = reader.u32()?;
        let body = reader.u32()? as usize;
        let broker = BrokerId::new(reader.u64()?);
        let epoch = Epoch::new(reader.u32()?);
        if reader.u32()? != 0 {
            return Err(FrameError::Contradiction(
                "its flags are of a newer version",
            ));
        }
        let sequence = Sequence::new(reader.u64()?);
        let timestamp = HybridTimestamp::new(reader.u64()?);
        let records = reader.u32()?;
        let part_count = reader.u32()? as usize;
        let context_length = reader.u32()? as usize;
        let _reserved = reader.u32()?;
        let mut chain = [0; 32];
        chain.copy_from_slice(reader.take(32)?);
        let context = match context_length {
            0 => VersionVector::default(),
            n => VersionVector::decode(reader.take(n)?)?,
        };
        if part_count > MAX_FRAME_PARTS || reader.remaining() != part_count * PART_HEADER_BYTES {
            return Err(FrameError::Contradiction(
                "its part table has another size than it says",
            ));
        }
        let parts = (0..part_count)
            .map(|_| decode_part(&mut reader))
            .collect::<Result<_, _>>()?;
        let origin = Origin { broker, epoch };
        let header = Self {
            origin,
            sequence,
            timestamp,
            context,
            chain: Chain(chain),
            parts,
        };
        header.check(body, records)?;
        Ok(header)
    }

    fn check(&self, body: usize, records: u32) -> Result<(), FrameError> {
        // The last sequence there is has none after it, and no broker gets there.
        let no_sequence = self.sequence == Sequence::NONE || self.sequence.get() == u64::MAX;
        if no_sequence || self.parts.is_empty() {
            return Err(FrameError::Contradiction("it has no sequence or no parts"));
        }
        if body > MAX_FRAME_BYTES || body != self.body_length() {
            return Err(FrameError::Contradiction(
                "its body length is not the sum of its parts",
            ));
        }
        if records != self.record_count() {
            return Err(FrameError::Contradiction(
                "its record count is not the sum of its parts",
            ));
        }
        Ok(())
    }

    /// Checks that `bytes`, from which this header was decoded, continue the origin's chain.
    ///
    /// # Errors
    /// [`FrameError::Chain`] when they do not.
    pub fn verify_chain(&self, previous: Chain, bytes: &[u8]) -> Result<(), FrameError> {
        if chain_after(previous, bytes) == self.chain {
            return Ok(());
        }
        Err(FrameError::Chain {
            origin: self.origin,
            sequence: self.sequence,
        })
    }

    /// Length of all parts together.
    #[must_use]
    pub fn body_length(&self) -> usize {
        self.parts.iter().map(|part| part.length as usize).sum()
    }

    /// Records of all parts together.
    #[must_use]
    pub fn record_count(&self) -> u32 {
        self.parts.iter().map(|part| part.records).sum()
    }

    /// The greatest stamp of its records.
    #[must_use]
    pub fn last_timestamp(&self) -> HybridTimestamp {
        self.timestamp
            .of_record(self.record_count().saturating_sub(1))
    }

    /// The global name of its record `index`.
    #[must_use]
    pub fn dot(&self, index: u32) -> Dot {
        Dot {
            origin: self.origin,
            sequence: self.sequence,
            index,
        }
    }
}

fn decode_part(reader: &mut Reader<'_>) -> Result<PartHeader, FrameError> {
    let stream = StreamId::new(reader.u64()?);
    let partition = PartitionId::new(reader.u16()?);
    let flags = reader.u16()?;
    let part = PartHeader {
        stream,
        partition,
        records: reader.u32()?,
        length: reader.u32()?,
        crc: reader.u32()?,
    };
    let fits = part.length as usize <= MAX_BATCH_BYTES
        && (1..=MAX_BATCH_RECORDS).contains(&(part.records as usize));
    if flags == 0 && fits {
        Ok(part)
    } else {
        Err(FrameError::Contradiction("a part is out of range"))
    }
}

/// Hashes what the chain covers of an encoded header.
fn chain_after(previous: Chain, header: &[u8]) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&previous.0);
    hasher.update(&header[CHAIN_FROM..CHAIN_AT]);
    hasher.update(&header[FIXED_HEADER_BYTES..]);
    Chain(*hasher.finalize().as_bytes())
}

/// One part of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitPart {
    /// The part table's entry.
    pub header: PartHeader,
    /// Offset of its first record in this broker's log.
    pub base_offset: Offset,
    /// Index in the frame of its first record.
    pub first_index: u32,
    /// The records. `None` where retention has dropped them; with fewer records than the header
    /// says ([`Batch::is_compacted`]) where compaction has removed some.
    pub batch: Option<Batch>,
}

/// A frame with its place in this broker's log: what is appended, applied and delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Place in this broker's log.
    pub position: Position,
    /// The decoded header.
    pub header: FrameHeader,
    /// The header's bytes, as every broker stores them.
    pub header_bytes: Bytes,
    /// The parts, in the header's order.
    pub parts: Vec<CommitPart>,
}

impl Commit {
    /// Bytes of header and parts as they are now.
    #[must_use]
    pub fn size(&self) -> usize {
        let bodies: usize = self
            .parts
            .iter()
            .filter_map(|p| p.batch.as_ref())
            .map(Batch::len)
            .sum();
        self.header_bytes.len() + bodies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(parts: usize, context: u64) -> FrameHeader {
        let origin = Origin {
            broker: BrokerId::new(7),
            epoch: Epoch::new(1),
        };
        let part = |i| PartHeader {
            stream: StreamId::new(i),
            partition: PartitionId::new(0),
            records: 3,
            length: 100,
            crc: 5,
        };
        FrameHeader {
            origin,
            sequence: Sequence::new(4),
            timestamp: HybridTimestamp::from_millis(1000),
            context: (0..context)
                .map(|n| {
                    (
                        Origin {
                            broker: BrokerId::new(n),
                            ..origin
                        },
                        Sequence::new(9),
                    )
                })
                .collect(),
            chain: Chain::START,
            parts: (0..parts as u64).map(part).collect(),
        }
    }

    #[test]
    fn a_header_reads_back_and_continues_its_chain() {
        for (parts, context) in [(1, 0), (3, 2), (MAX_FRAME_PARTS, 0)] {
            let mut sealed = header(parts, context);
            let bytes = sealed.seal(Chain::new([9; 32]));
            let read = FrameHeader::decode(&bytes).unwrap();
            assert_eq!(read, sealed);
            read.verify_chain(Chain::new([9; 32]), &bytes).unwrap();
            assert!(read.verify_chain(Chain::START, &bytes).is_err());
        }
    }

    #[test]
    fn every_flipped_byte_of_a_header_is_noticed() {
        let bytes = header(2, 1).seal(Chain::START).to_vec();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    FrameHeader::decode(&damaged).is_err(),
                    "byte {at} bit {bit}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = FrameHeader::decode(&bytes);
            if bytes.len() >= 12 {
                bytes[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
                let length = u32::try_from(bytes.len()).unwrap();
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                let crc = crc32c::crc32c(&bytes[8..]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
                let _ = FrameHeader::decode(&bytes);
            }
        }
    }
}
