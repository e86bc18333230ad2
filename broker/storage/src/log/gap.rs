//! A gap as it lies in a file, in the place of the entries that it stands for.
//!
//! ```text
//!  0 magic "ABG2"                       24 appended at, the newest of them, ms since 1970, u64
//!  4 crc u32 over all that follows      32 durable position when it was written, u64
//!  8 length u32, of all of it           40 then the gap, see `anabranch_core::gap`,
//! 12 length of the gap u32                 and zeros up to 8 bytes
//! 16 position u64
//! ```
//!
//! Rewritten segments hold them, where the durable position is 0, and those to which a peer's were
//! appended. The CRC starts from the segment's own seed, as an entry's.

use anabranch_core::gap::Gap;
use anabranch_core::id::Position;

use super::entry::{ALIGNMENT, EntryFault, MAX_ENTRY_BYTES};
use super::fields::{Fields, short_length};

/// First bytes of a gap.
pub(crate) const GAP_MAGIC: u32 = u32::from_le_bytes(*b"ABG2");

/// Bytes before the gap itself.
pub(crate) const HEADER_BYTES: usize = 40;

/// A gap with what the file says beside it.
#[derive(Clone, Debug)]
pub(crate) struct StoredGap {
    pub(crate) gap: Gap,
    /// When the newest of its frames was appended.
    pub(crate) appended_at: u64,
    /// First position that was not durable when the gap was written.
    pub(crate) durable: Position,
    /// Length in the file.
    pub(crate) length: usize,
}

/// Appends a gap. Returns its length.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    seed: u32,
    gap: &Gap,
    appended_at: u64,
    durable: Position,
) -> usize {
    let start = out.len();
    let mut body = Vec::new();
    gap.encode(&mut body);
    let length = (HEADER_BYTES + body.len()).next_multiple_of(ALIGNMENT);
    out.extend_from_slice(&GAP_MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&short_length(length).to_le_bytes());
    out.extend_from_slice(&short_length(body.len()).to_le_bytes());
    out.extend_from_slice(&gap.position.get().to_le_bytes());
    out.extend_from_slice(&appended_at.to_le_bytes());
    out.extend_from_slice(&durable.get().to_le_bytes());
    out.extend_from_slice(&body);
    out.resize(start + length, 0);
    let crc = crc32c::crc32c_append(seed, &out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    length
}

/// The length of the gap that begins here, if one does; the bytes may be more.
pub(crate) fn peek(bytes: &[u8]) -> Result<Option<usize>, EntryFault> {
    let mut fields = Fields::new(bytes);
    if fields.u32()? != GAP_MAGIC {
        return Ok(None);
    }
    let _crc = fields.u32()?;
    let length = fields.u32()? as usize;
    let fits = (HEADER_BYTES..=MAX_ENTRY_BYTES).contains(&length);
    if fits && length.is_multiple_of(ALIGNMENT) {
        Ok(Some(length))
    } else {
        Err(EntryFault::Lengths)
    }
}

/// Checks the CRC of a gap, which `bytes` hold exactly; the fields behind it.
fn checked(bytes: &[u8], seed: u32) -> Result<Fields<'_>, EntryFault> {
    let length = peek(bytes)?.ok_or(EntryFault::Magic)?;
    if length != bytes.len() {
        return Err(EntryFault::Truncated);
    }
    let mut fields = Fields::new(&bytes[4..]);
    if fields.u32()? == crc32c::crc32c_append(seed, &bytes[8..]) {
        Ok(fields)
    } else {
        Err(EntryFault::HeaderCrc)
    }
}

/// What a gap, which `bytes` hold exactly, says was durable when it was written.
pub(crate) fn durable(bytes: &[u8], seed: u32) -> Option<Position> {
    let mut fields = checked(bytes, seed).ok()?;
    // Length, length of the gap, position, time.
    fields.take(4 + 4 + 8 + 8).ok()?;
    fields.u64().ok().map(Position::new)
}

/// Checks a gap, which `bytes` hold exactly.
pub(crate) fn read(bytes: &[u8], seed: u32, position: Position) -> Result<StoredGap, EntryFault> {
    let mut fields = checked(bytes, seed)?;
    let length = fields.u32()? as usize;
    let body = fields.u32()? as usize;
    let found = Position::new(fields.u64()?);
    if found != position {
        return Err(EntryFault::Position(found));
    }
    let appended_at = fields.u64()?;
    let durable = Position::new(fields.u64()?);
    let body = fields.take(body)?;
    if (HEADER_BYTES + body.len()).next_multiple_of(ALIGNMENT) != length {
        return Err(EntryFault::Lengths);
    }
    let gap = Gap::decode(position, body).map_err(|error| EntryFault::Frame(error.to_string()))?;
    Ok(StoredGap {
        gap,
        appended_at,
        durable,
        length,
    })
}
