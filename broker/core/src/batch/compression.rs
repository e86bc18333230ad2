//! The four compressions of a record batch. Inflating stops at a limit.

use std::io::{Read, Write};

use bytes::Bytes;

use super::BatchError;
use crate::limits::MAX_INFLATED_BYTES;

/// How the records of a batch are compressed. The codes are Kafka's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Code 1.
    Gzip,
    /// Code 2: raw, or in the frames of snappy-java ("xerial").
    Snappy,
    /// Code 3: the LZ4 frame format.
    Lz4,
    /// Code 4.
    Zstd,
}

/// What snappy-java writes before its blocks: a magic, a version and a compatible version.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;

impl Compression {
    /// The compression with this code.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_code(code: i16) -> Result<Self, BatchError> {
        match code {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(BatchError::UnknownCompression(other)),
        }
    }

    /// The code in a batch's attributes.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    pub(super) fn inflate(self, stored: Bytes) -> Result<Bytes, BatchError> {
        match self {
            Self::None => Ok(stored),
            Self::Gzip => read_limited(flate2::read::MultiGzDecoder::new(&stored[..])),
            Self::Snappy => inflate_snappy(&stored),
            Self::Lz4 => read_limited(lz4_flex::frame::FrameDecoder::new(&stored[..])),
            Self::Zstd => {
                read_limited(zstd::stream::read::Decoder::new(&stored[..]).map_err(failed)?)
            }
        }
    }

    pub(super) fn deflate(self, records: &[u8]) -> Result<Vec<u8>, BatchError> {
        match self {
            Self::None => Ok(records.to_vec()),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(records).map_err(failed)?;
                encoder.finish().map_err(failed)
            }
            Self::Snappy => snap::raw::Encoder::new()
                .compress_vec(records)
                .map_err(failed),
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(records).map_err(failed)?;
                encoder.finish().map_err(failed)
            }
            Self::Zstd => zstd::stream::encode_all(records, 1).map_err(failed),
        }
    }
}

fn failed(error: impl ToString) -> BatchError {
    BatchError::Inflate(error.to_string())
}

/// Reads to the end, but no further than the limit, growing as bytes really come.
fn read_limited(reader: impl Read) -> Result<Bytes, BatchError> {
    let mut inflated = Vec::new();
    let limit = MAX_INFLATED_BYTES as u64 + 1;
    reader
        .take(limit)
        .read_to_end(&mut inflated)
        .map_err(failed)?;
    if inflated.len() > MAX_INFLATED_BYTES {
        return Err(BatchError::InflatesTooLarge);
    }
    Ok(inflated.into())
}

fn inflate_snappy(stored: &[u8]) -> Result<Bytes, BatchError> {
    if !stored.starts_with(XERIAL_MAGIC) {
        let mut inflated = Vec::new();
        inflate_snappy_block(stored, &mut inflated)?;
        return Ok(inflated.into());
    }
    let mut rest = stored.get(XERIAL_HEADER_BYTES..).unwrap_or_default();
    let mut inflated = Vec::new();
    while !rest.is_empty() {
        let (length, blocks) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| failed("snappy block header is cut short"))?;
        let length = u32::from_be_bytes(*length) as usize;
        let (block, after) = blocks
            .split_at_checked(length)
            .ok_or_else(|| failed("snappy block is cut short"))?;
        inflate_snappy_block(block, &mut inflated)?;
        rest = after;
    }
    Ok(inflated.into())
}

/// A snappy block says its inflated length up front; it is compared with the limit, and with what
/// a block of this size can hold at best, before memory is taken for it.
fn inflate_snappy_block(block: &[u8], inflated: &mut Vec<u8>) -> Result<(), BatchError> {
    let length = snap::raw::decompress_len(block).map_err(failed)?;
    let start = inflated.len();
    if length > MAX_INFLATED_BYTES - start {
        return Err(BatchError::InflatesTooLarge);
    }
    // The densest snappy element makes 64 bytes from 3.
    if length / 32 > block.len() {
        return Err(failed("snappy block claims more bytes than it can hold"));
    }
    inflated.resize(start + length, 0);
    snap::raw::Decoder::new()
        .decompress(block, &mut inflated[start..])
        .map_err(failed)?;
    Ok(())
}
