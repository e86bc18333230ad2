//! One entry of a segment: a commit as it lies in a file.
//!
//! ```text
//!  0 magic "ABE1"                       24 appended at, ms since 1970, u64
//!  4 crc u32 over 8.. and the parts     32 durable position when it was written, u64
//!  8 length u32, of all of it           40 part count u32
//! 12 frame header length u32            44 frame header crc u32
//! 16 position u64                       48 then 16 bytes per part:
//!                                             base offset u64, stored length u32, stored crc u32
//!                                          the frame header, the batches, zeros up to 8 bytes
//! ```
//!
//! Little-endian. The CRC starts from the segment's own seed, so that bytes which an earlier file
//! left in the same place never pass. The frame header and each batch carry their own CRCs, and
//! this header repeats them, so that every byte is covered and none can be swapped for another
//! entry's. A part of stored length 0 was dropped by retention.

use anabranch_core::batch::Batch;
use anabranch_core::frame::{Commit, CommitPart, FrameHeader, MAX_HEADER_BYTES, PartHeader};
use anabranch_core::id::{Offset, Position};
use anabranch_core::limits::{MAX_BATCH_BYTES, MAX_FRAME_BYTES, MAX_FRAME_PARTS};
use bytes::Bytes;

use super::fields::{Fields, Malformed, length, short_length};
use super::index::NewEntry;

/// First bytes of an entry.
pub(crate) const ENTRY_MAGIC: u32 = u32::from_le_bytes(*b"ABE1");

/// Bytes before the part table.
pub(crate) const ENTRY_HEADER_BYTES: usize = 48;

/// Bytes of one entry of the part table.
pub(crate) const STORED_PART_BYTES: usize = 16;

/// Entries begin at multiples of this, so that one can be found again after damage.
pub(crate) const ALIGNMENT: usize = 8;

/// Longest entry there can be.
pub(crate) const MAX_ENTRY_BYTES: usize = ENTRY_HEADER_BYTES
    + MAX_FRAME_PARTS * STORED_PART_BYTES
    + MAX_HEADER_BYTES
    + MAX_FRAME_BYTES
    + ALIGNMENT;

/// Bytes at the front of a stored batch that its own CRC does not cover.
pub(crate) const BATCH_PREFIX_BYTES: usize = 16;

/// Why bytes are not the entry they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// They end too early.
    #[error("it is cut short")]
    Truncated,
    /// They do not begin like an entry.
    #[error("no entry begins here")]
    Magic,
    /// The checksum of the entry's header does not match.
    #[error("its header has a CRC that does not match")]
    HeaderCrc,
    /// Lengths contradict each other.
    #[error("its lengths contradict each other")]
    Lengths,
    /// It is an entry, but of another position.
    #[error("it holds position {0}")]
    Position(Position),
    /// The frame header is damaged.
    #[error("its frame header: {0}")]
    Frame(String),
    /// A batch is damaged.
    #[error("batch {index}: {what}")]
    Batch {
        /// Which part.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The bytes up to the next entry are not zero.
    #[error("the bytes after it are not zero")]
    Padding,
}

impl From<Malformed> for EntryFault {
    fn from(_: Malformed) -> Self {
        Self::Truncated
    }
}

/// An entry's own header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryHeader {
    /// Length of the entry, a multiple of [`ALIGNMENT`].
    pub(crate) length: usize,
    pub(crate) frame_length: usize,
    pub(crate) frame_crc: u32,
    pub(crate) position: Position,
    pub(crate) appended_at: u64,
    /// First position that was not durable when the entry was written.
    pub(crate) durable: Position,
    pub(crate) parts: usize,
}

/// Where and how a part is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StoredPart {
    pub(crate) base_offset: Offset,
    /// 0 when dropped.
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl EntryHeader {
    /// Reads what comes before the part table, without the CRC.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Self, EntryFault> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != ENTRY_MAGIC {
            return Err(EntryFault::Magic);
        }
        let _crc = fields.u32()?;
        let length = fields.u32()? as usize;
        let frame_length = fields.u32()? as usize;
        let header = Self {
            length,
            frame_length,
            position: Position::new(fields.u64()?),
            appended_at: fields.u64()?,
            durable: Position::new(fields.u64()?),
            parts: fields.u32()? as usize,
            frame_crc: fields.u32()?,
        };
        let fits = header.parts <= MAX_FRAME_PARTS
            && frame_length <= MAX_HEADER_BYTES
            && length <= MAX_ENTRY_BYTES
            && length.is_multiple_of(ALIGNMENT)
            && header.body_at() <= length;
        if fits {
            Ok(header)
        } else {
            Err(EntryFault::Lengths)
        }
    }

    /// Length of header and part table: what the CRC covers.
    pub(crate) fn table_end(&self) -> usize {
        ENTRY_HEADER_BYTES + self.parts * STORED_PART_BYTES
    }

    /// Where the first batch begins.
    pub(crate) fn body_at(&self) -> usize {
        self.table_end() + self.frame_length
    }

    /// Reads and checks header and part table, which `bytes` must hold at least.
    pub(crate) fn check(bytes: &[u8], seed: u32) -> Result<Self, EntryFault> {
        let header = Self::peek(bytes)?;
        let covered = bytes
            .get(8..header.table_end())
            .ok_or(EntryFault::Truncated)?;
        let said = Fields::new(&bytes[4..]).u32()?;
        if said == crc32c::crc32c_append(seed, covered) {
            Ok(header)
        } else {
            Err(EntryFault::HeaderCrc)
        }
    }

    /// The part table of an entry that was checked.
    pub(crate) fn stored_parts(&self, bytes: &[u8]) -> Result<Vec<StoredPart>, EntryFault> {
        let mut fields = Fields::new(&bytes[ENTRY_HEADER_BYTES..]);
        let mut parts = Vec::with_capacity(self.parts);
        let mut body = 0;
        for _ in 0..self.parts {
            let part = StoredPart {
                base_offset: Offset::new(fields.u64()?),
                length: fields.u32()?,
                crc: fields.u32()?,
            };
            if part.length as usize > MAX_BATCH_BYTES {
                return Err(EntryFault::Lengths);
            }
            body += part.length as usize;
            parts.push(part);
        }
        if (self.body_at() + body).next_multiple_of(ALIGNMENT) == self.length {
            Ok(parts)
        } else {
            Err(EntryFault::Lengths)
        }
    }
}

/// Appends an entry.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    seed: u32,
    commit: &Commit,
    appended_at: u64,
    durable: Position,
) {
    let start = out.len();
    let total = encode_front(out, seed, commit, appended_at, durable);
    out.reserve(start + total - out.len());
    for part in &commit.parts {
        if let Some(batch) = &part.batch {
            out.extend_from_slice(&batch.stored_prefix(part.base_offset));
            out.extend_from_slice(&batch.bytes()[BATCH_PREFIX_BYTES..]);
        }
    }
    out.resize(start + total, 0);
}

/// Appends what comes before the batches of an entry, and returns the length of all of it.
pub(crate) fn encode_front(
    out: &mut Vec<u8>,
    seed: u32,
    commit: &Commit,
    appended_at: u64,
    durable: Position,
) -> usize {
    let start = out.len();
    let bodies: usize = commit
        .parts
        .iter()
        .map(|part| part.batch.as_ref().map_or(0, Batch::len))
        .sum();
    let parts = commit.parts.len();
    let body_at = ENTRY_HEADER_BYTES + parts * STORED_PART_BYTES + commit.header_bytes.len();
    let total = (body_at + bodies).next_multiple_of(ALIGNMENT);
    out.reserve(body_at);
    out.extend_from_slice(&ENTRY_MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&short_length(total).to_le_bytes());
    out.extend_from_slice(&short_length(commit.header_bytes.len()).to_le_bytes());
    out.extend_from_slice(&commit.position.get().to_le_bytes());
    out.extend_from_slice(&appended_at.to_le_bytes());
    out.extend_from_slice(&durable.get().to_le_bytes());
    out.extend_from_slice(&short_length(parts).to_le_bytes());
    out.extend_from_slice(&commit.header_bytes[4..8]);
    for part in &commit.parts {
        let mut row = [0; STORED_PART_BYTES];
        row[..8].copy_from_slice(&part.base_offset.get().to_le_bytes());
        if let Some(batch) = &part.batch {
            row[8..12].copy_from_slice(&short_length(batch.len()).to_le_bytes());
            row[12..].copy_from_slice(&batch.crc().to_le_bytes());
        }
        out.extend_from_slice(&row);
    }
    let crc = crc32c::crc32c_append(seed, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&commit.header_bytes);
    total
}

/// An entry read back.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) header: EntryHeader,
    pub(crate) commit: Commit,
    pub(crate) stored: Vec<StoredPart>,
}

impl Entry {
    /// What an index takes over.
    pub(crate) fn as_new(&self) -> NewEntry<'_> {
        NewEntry {
            commit: &self.commit,
            appended_at: self.header.appended_at,
            length: self.header.length,
        }
    }

    /// Checks an entry, which `bytes` hold exactly, and the batches of the parts that are wanted;
    /// the others come without.
    pub(crate) fn read(
        bytes: &Bytes,
        seed: u32,
        position: Position,
        wanted: &dyn Fn(&PartHeader) -> bool,
    ) -> Result<Self, EntryFault> {
        let header = EntryHeader::check(bytes, seed)?;
        if header.length != bytes.len() {
            return Err(EntryFault::Truncated);
        }
        if header.position != position {
            return Err(EntryFault::Position(header.position));
        }
        let stored = header.stored_parts(bytes)?;
        let header_bytes = bytes.slice(header.table_end()..header.body_at());
        let frame = read_frame(&header_bytes, header.frame_crc)?;
        if frame.parts.len() != stored.len() {
            return Err(EntryFault::Lengths);
        }
        let (parts, end) = read_parts(bytes, header.body_at(), &frame, &stored, wanted)?;
        if bytes[end..].iter().any(|&byte| byte != 0) {
            return Err(EntryFault::Padding);
        }
        let commit = Commit {
            position,
            header: frame,
            header_bytes,
            parts,
        };
        Ok(Self {
            header,
            commit,
            stored,
        })
    }
}

fn read_frame(bytes: &Bytes, crc: u32) -> Result<FrameHeader, EntryFault> {
    let damaged = |what: &dyn std::fmt::Display| EntryFault::Frame(what.to_string());
    let frame = FrameHeader::decode(bytes).map_err(|error| damaged(&error))?;
    if Fields::new(&bytes[4..]).u32()? == crc {
        Ok(frame)
    } else {
        Err(damaged(&"it is another entry's"))
    }
}

fn read_parts(
    bytes: &Bytes,
    body_at: usize,
    frame: &FrameHeader,
    stored: &[StoredPart],
    wanted: &dyn Fn(&PartHeader) -> bool,
) -> Result<(Vec<CommitPart>, usize), EntryFault> {
    let mut at = body_at;
    let mut first_index = 0;
    let mut parts = Vec::with_capacity(stored.len());
    for (index, (header, stored)) in frame.parts.iter().zip(stored).enumerate() {
        let end = at + stored.length as usize;
        let batch = if stored.length > 0 && wanted(header) {
            let batch = read_batch(bytes.slice(at..end), header, stored)
                .map_err(|what| EntryFault::Batch { index, what })?;
            Some(batch)
        } else {
            None
        };
        parts.push(CommitPart {
            header: *header,
            base_offset: stored.base_offset,
            first_index,
            batch,
        });
        first_index += header.records;
        at = end;
    }
    Ok((parts, at))
}

fn read_batch(bytes: Bytes, header: &PartHeader, stored: &StoredPart) -> Result<Batch, String> {
    let batch = Batch::reopen(bytes).map_err(|error| error.to_string())?;
    let prefix = &batch.bytes()[..BATCH_PREFIX_BYTES];
    if *prefix != batch.stored_prefix(stored.base_offset) {
        return Err("its offset is not the entry's".to_owned());
    }
    if batch.crc() != stored.crc || batch.offset_span() != header.records {
        return Err("it is another entry's".to_owned());
    }
    if !batch.is_compacted()
        && (batch.crc(), length(batch.len())) != (header.crc, u64::from(header.length))
    {
        return Err("it is not the one that the frame names".to_owned());
    }
    Ok(batch)
}
