//! The two ends of a segment file: its header, and the footer that seals it.
//!
//! ```text
//! header, 64 bytes            footer, the last 96 bytes
//!  0 magic "ABSEGMT1"          0 magic "ABSEALED"         48 index length u64
//!  8 crc u32 over 12..         8 crc u32 over 12..        56 index crc u32
//! 12 format u32 = 1           12 format u32 = 1           60 reserved u32 = 0
//! 16 cluster u32              16 segment id u64           64 checkpoint length u64
//! 20 reserved u32 = 0         24 next position u64        72 checkpoint crc u32
//! 24 broker u64               32 end of the entries u64   76 reserved, 20 bytes of 0
//! 32 segment id u64           40 summary length u32
//! 40 first position u64       44 summary crc u32
//! 48 reserved, 16 bytes of 0
//! ```
//!
//! Between the entries and the footer lie summary, index and checkpoint, without gaps.

use std::io;
use std::path::{Path, PathBuf};

use anabranch_core::id::{BrokerId, ClusterId, Position};

use super::fields::{Fields, Malformed};
use crate::data_dir::Identity;
use crate::disk::DiskFile;

/// Bytes of a segment's header; its first entry follows.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;

/// Bytes of a segment's footer.
pub(crate) const FOOTER_BYTES: usize = 96;

/// Where the first entry begins.
pub(crate) const FIRST_ENTRY_AT: u64 = 64;

const HEADER_MAGIC: &[u8; 8] = b"ABSEGMT1";
const FOOTER_MAGIC: &[u8; 8] = b"ABSEALED";
const FORMAT: u32 = 1;
const SUFFIX: &str = ".segment";

/// Why the end of a segment is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    /// Wrong magic, checksum or reserved bytes.
    #[error("its checksum does not match")]
    Crc,
    /// A later version wrote it.
    #[error("it has format {0}, which a later version wrote")]
    NewerFormat(u32),
    /// Lengths do not add up to the file's.
    #[error("its lengths do not add up")]
    Lengths,
}

impl From<Malformed> for SegmentFault {
    fn from(_: Malformed) -> Self {
        Self::Crc
    }
}

/// Random and unique: seeds the CRC of every entry, so that stale bytes never pass.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct SegmentId(pub(crate) u64);

impl SegmentId {
    /// What the CRCs of the entries start from.
    pub(crate) fn seed(self) -> u32 {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h])
    }
}

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) id: SegmentId,
    pub(crate) first: Position,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(HEADER_MAGIC);
        out[12..16].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..20].copy_from_slice(&self.identity.cluster.get().to_le_bytes());
        out[24..32].copy_from_slice(&self.identity.broker.get().to_le_bytes());
        out[32..40].copy_from_slice(&self.id.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.first.get().to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, SegmentFault> {
        let mut fields = checked(bytes, *HEADER_MAGIC)?;
        let cluster = ClusterId::new(fields.u32()?);
        let _reserved = fields.u32()?;
        let broker = BrokerId::new(fields.u64()?);
        Ok(Self {
            identity: Identity { cluster, broker },
            id: SegmentId(fields.u64()?),
            first: Position::new(fields.u64()?),
        })
    }

    /// Reads the header of a file. A file too short for one is [`SegmentFault::Lengths`].
    pub(crate) fn read(file: &dyn DiskFile) -> io::Result<Result<Self, SegmentFault>> {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        match file.read_at(&mut bytes, 0) {
            Ok(()) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err(SegmentFault::Lengths))
            }
            Err(error) => Err(error),
        }
    }
}

/// A length and the CRC of that many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    pub(crate) length: u64,
    pub(crate) crc: u32,
}

impl Block {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            length: super::fields::length(bytes.len()),
            crc: crc32c::crc32c(bytes),
        }
    }
}

/// What seals a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    pub(crate) id: SegmentId,
    pub(crate) next: Position,
    pub(crate) entries_end: u64,
    pub(crate) summary: Block,
    pub(crate) index: Block,
    pub(crate) checkpoint: Block,
}

impl Footer {
    pub(crate) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[..8].copy_from_slice(FOOTER_MAGIC);
        out[12..16].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..24].copy_from_slice(&self.id.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.next.get().to_le_bytes());
        out[32..40].copy_from_slice(&self.entries_end.to_le_bytes());
        let summary = u32::try_from(self.summary.length).expect("a summary is a few MiB at most");
        out[40..44].copy_from_slice(&summary.to_le_bytes());
        out[44..48].copy_from_slice(&self.summary.crc.to_le_bytes());
        out[48..56].copy_from_slice(&self.index.length.to_le_bytes());
        out[56..60].copy_from_slice(&self.index.crc.to_le_bytes());
        out[64..72].copy_from_slice(&self.checkpoint.length.to_le_bytes());
        out[72..76].copy_from_slice(&self.checkpoint.crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; FOOTER_BYTES]) -> Result<Self, SegmentFault> {
        let mut fields = checked(bytes, *FOOTER_MAGIC)?;
        let id = SegmentId(fields.u64()?);
        let next = Position::new(fields.u64()?);
        let entries_end = fields.u64()?;
        let summary = Block {
            length: u64::from(fields.u32()?),
            crc: fields.u32()?,
        };
        let index = Block {
            length: fields.u64()?,
            crc: fields.u32()?,
        };
        let _reserved = fields.u32()?;
        let checkpoint = Block {
            length: fields.u64()?,
            crc: fields.u32()?,
        };
        Ok(Self {
            id,
            next,
            entries_end,
            summary,
            index,
            checkpoint,
        })
    }

    /// Length of the whole file; `None` when the lengths cannot be.
    pub(crate) fn file_length(&self) -> Option<u64> {
        self.entries_end
            .checked_add(self.summary.length)?
            .checked_add(self.index.length)?
            .checked_add(self.checkpoint.length)?
            .checked_add(super::fields::length(FOOTER_BYTES))
    }

    /// Reads the footer of a file of this length. An error of the inner kind means that the
    /// segment is not sealed, or that its footer is damaged: only its place can tell.
    pub(crate) fn read(
        file: &dyn DiskFile,
        file_length: u64,
    ) -> io::Result<Result<Self, SegmentFault>> {
        let footer = super::fields::length(FOOTER_BYTES);
        let Some(at) = file_length
            .checked_sub(footer)
            .filter(|&at| at >= FIRST_ENTRY_AT)
        else {
            return Ok(Err(SegmentFault::Lengths));
        };
        let mut bytes = [0; FOOTER_BYTES];
        file.read_at(&mut bytes, at)?;
        Ok(Self::decode(&bytes).and_then(|footer| {
            if footer.file_length() == Some(file_length) && footer.entries_end >= FIRST_ENTRY_AT {
                Ok(footer)
            } else {
                Err(SegmentFault::Lengths)
            }
        }))
    }

    /// Whether a file that has no whole footer ends in what is left of its segment's: one that a
    /// crash left without a footer does not.
    pub(crate) fn remains(
        file: &dyn DiskFile,
        file_length: u64,
        id: SegmentId,
    ) -> io::Result<bool> {
        let footer = super::fields::length(FOOTER_BYTES);
        let Some(at) = file_length.checked_sub(footer) else {
            return Ok(false);
        };
        let mut bytes = [0; FOOTER_BYTES];
        file.read_at(&mut bytes, at)?;
        Ok(bytes[..8] == *FOOTER_MAGIC || bytes[16..24] == id.0.to_le_bytes())
    }

    /// Where the summary begins.
    pub(crate) fn summary_at(&self) -> u64 {
        self.entries_end
    }

    /// Where the index begins.
    pub(crate) fn index_at(&self) -> u64 {
        self.entries_end + self.summary.length
    }

    /// Where the checkpoint begins.
    pub(crate) fn checkpoint_at(&self) -> u64 {
        self.index_at() + self.index.length
    }
}

/// Reads a block; `None` when it does not have its CRC.
pub(crate) fn read_block(
    file: &dyn DiskFile,
    at: u64,
    block: Block,
) -> io::Result<Option<Vec<u8>>> {
    let length = usize::try_from(block.length).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, at)?;
    Ok((crc32c::crc32c(&bytes) == block.crc).then_some(bytes))
}

/// Checks magic, CRC and format; what is left to read begins after the format.
fn checked(bytes: &[u8], magic: [u8; 8]) -> Result<Fields<'_>, SegmentFault> {
    let mut fields = Fields::new(bytes);
    let magic_is_right = fields.take(8)? == magic;
    let crc = fields.u32()?;
    if !magic_is_right || crc != crc32c::crc32c(&bytes[12..]) {
        return Err(SegmentFault::Crc);
    }
    match fields.u32()? {
        FORMAT => Ok(fields),
        newer => Err(SegmentFault::NewerFormat(newer)),
    }
}

/// The file of the segment that begins at a position.
pub(crate) fn path_of(dir: &Path, first: Position) -> PathBuf {
    dir.join(format!("{:020}{SUFFIX}", first.get()))
}

/// The position in a segment file's name; `None` for other files.
pub(crate) fn first_of(name: &str) -> Option<Position> {
    let digits = name.strip_suffix(SUFFIX)?;
    let canonical = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    let raw = digits.parse().ok().filter(|_| canonical)?;
    Some(Position::new(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_the_first_position() {
        let path = path_of(Path::new("/d"), Position::new(42));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(name, "00000000000000000042.segment");
        assert_eq!(first_of(name), Some(Position::new(42)));
        for other in [
            "42.segment",
            "0000000000000000004x.segment",
            "prepared",
            "+0000000000000000042.segment",
        ] {
            assert_eq!(first_of(other), None, "{other}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_or_footer_is_noticed() {
        let header = SegmentHeader {
            identity: Identity {
                cluster: ClusterId::new(1),
                broker: BrokerId::new(2),
            },
            id: SegmentId(3),
            first: Position::new(4),
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        let block = Block { length: 5, crc: 6 };
        let footer = Footer {
            id: SegmentId(3),
            next: Position::new(9),
            entries_end: 64,
            summary: block,
            index: block,
            checkpoint: block,
        };
        let sealed = footer.encode();
        assert_eq!(Footer::decode(&sealed), Ok(footer));
        for bit in 0..FOOTER_BYTES * 8 {
            let mut damaged = sealed;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&damaged).is_err(), "footer bit {bit}");
            if bit < SEGMENT_HEADER_BYTES * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(SegmentHeader::decode(&damaged).is_err(), "header bit {bit}");
            }
        }
    }
}
