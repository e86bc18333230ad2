//! Frames in a block, as they go over a link.
//!
//! ```text
//! kind u8 = 1   a frame: header length u32, header, and for each of its parts:
//!               length u32, batch; length 0 where the part is not there
//! kind u8 = 2   gaps that belong together: count u32, and for each: length u32, gap
//! ```
//!
//! Header and batches are the bytes of the log: nothing is encoded anew.

use anabranch_core::batch::Batch;
use anabranch_core::frame::{Commit, FrameHeader};
use anabranch_core::gap::Gap;
use anabranch_core::id::Position;
use anabranch_core::sequencer::Foreign;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::take;
use super::{BadMessage, LENGTH_BYTES};

const FRAME: u8 = 1;
const GAPS: u8 = 2;

/// Bytes of an item beside those of the log.
pub const ITEM_BYTES: usize = 5;

/// One item of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame.
    Frame(Foreign),
    /// What is left of frames that were dropped. They count together or not at all.
    Gaps(Vec<Gap>),
}

/// Appends a frame.
pub fn put_frame(commit: &Commit, out: &mut BytesMut) {
    out.put_u8(FRAME);
    put_bytes(out, &commit.header_bytes);
    for part in &commit.parts {
        put_bytes(out, part.batch.as_ref().map_or(&[], |batch| batch.bytes()));
    }
}

/// Bytes that a frame takes.
#[must_use]
pub fn frame_bytes(commit: &Commit) -> usize {
    ITEM_BYTES + commit.size() + LENGTH_BYTES * commit.parts.len()
}

/// Appends gaps that belong together.
pub fn put_gaps(gaps: &[Gap], out: &mut BytesMut) {
    out.put_u8(GAPS);
    put_length(out, gaps.len());
    let mut bytes = Vec::new();
    for gap in gaps {
        bytes.clear();
        gap.encode(&mut bytes);
        put_bytes(out, &bytes);
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

fn put_length(out: &mut BytesMut, length: usize) {
    out.put_u32_le(u32::try_from(length).expect("parts of frames are bounded"));
}

/// Reads the items of a block. Every checksum and length is checked; chains and contexts are the
/// sequencer's to check.
///
/// # Errors
/// When the bytes are something else, or a batch is not the one that its header names.
pub fn read(mut items: Bytes) -> Result<Vec<Item>, BadMessage> {
    let mut read = Vec::new();
    while !items.is_empty() {
        read.push(match items.try_get_u8()? {
            FRAME => Item::Frame(read_frame(&mut items)?),
            GAPS => Item::Gaps(read_gaps(&mut items)?),
            _ => return Err(BadMessage::Malformed),
        });
    }
    Ok(read)
}

fn read_frame(items: &mut Bytes) -> Result<Foreign, BadMessage> {
    let header_bytes = read_bytes(items)?;
    let header = FrameHeader::decode(&header_bytes).map_err(|_| BadMessage::Malformed)?;
    let mut batches = Vec::with_capacity(header.parts.len());
    for _ in &header.parts {
        let bytes = read_bytes(items)?;
        batches.push(match bytes.is_empty() {
            true => None,
            false => Some(Batch::reopen(bytes).map_err(|_| BadMessage::Malformed)?),
        });
    }
    Foreign::new(header, header_bytes, batches).map_err(|_| BadMessage::Malformed)
}

fn read_gaps(items: &mut Bytes) -> Result<Vec<Gap>, BadMessage> {
    let mut gaps = Vec::new();
    for _ in 0..items.try_get_u32_le()? {
        let bytes = read_bytes(items)?;
        let gap = Gap::decode(Position::new(0), &bytes).map_err(|_| BadMessage::Malformed)?;
        gaps.push(gap);
    }
    Ok(gaps)
}

fn read_bytes(items: &mut Bytes) -> Result<Bytes, BadMessage> {
    let length = items.try_get_u32_le()? as usize;
    take(items, length)
}
