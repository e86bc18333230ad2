//! Kafka's record batch v2, the payload from producer to disk to consumer.
//!
//! A batch is checked once, at the edge, by [`Batch::parse`]; from then on it is a `Batch` and
//! travels as bytes. Layout (big-endian), from the Kafka protocol guide, "Record Batch":
//!
//! ```text
//!  0 base offset i64      21 attributes i16          43 producer id i64
//!  8 length i32           23 last offset delta i32   51 producer epoch i16
//! 12 leader epoch i32     27 base timestamp i64      53 base sequence i32
//! 16 magic i8 = 2         35 max timestamp i64       57 record count i32
//! 17 crc u32 over 21..                               61 records
//! ```
//!
//! The CRC leaves out the first 21 bytes, so a broker may write its own offset in place. A
//! record's own `attributes` byte, unused by Kafka, carries the [`Operation`].

mod build;
mod compression;
mod records;

use bytes::Bytes;

pub use build::{BatchBuilder, NewRecord};
pub use compression::Compression;
pub use records::{Headers, Operation, Record, Records, Walk};

use crate::id::Offset;
use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS};

/// Bytes before the records.
pub const BATCH_HEADER_BYTES: usize = 61;

const LENGTH_AT: usize = 8;
const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const COUNT_AT: usize = 57;

/// Attribute bits that ask for Kafka transactions or control records, which we do not have.
const UNSUPPORTED_ATTRIBUTES: i16 = 0x10 | 0x20 | 0x40;

/// Why bytes are not an acceptable record batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header takes.
    #[error("record batch of {0} bytes is shorter than its 61-byte header")]
    Truncated(usize),
    /// More bytes than [`MAX_BATCH_BYTES`].
    #[error(
        "record batch of {0} bytes is larger than the limit of {MAX_BATCH_BYTES}; send smaller batches"
    )]
    TooLarge(usize),
    /// The length field and the bytes disagree.
    #[error("record batch says it is {said} bytes long but {got} came")]
    Length {
        /// Bytes by the length field.
        said: i64,
        /// Bytes received.
        got: usize,
    },
    /// Not version 2.
    #[error("record batch has magic {0}; only version 2 is accepted")]
    Magic(i8),
    /// The checksum does not match.
    #[error(
        "record batch has CRC {said:#010x} but its bytes give {computed:#010x}; it was damaged on the way"
    )]
    Crc {
        /// In the header.
        said: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Compression code above 4.
    #[error("compression {0} is unknown; use 0 none, 1 gzip, 2 snappy, 3 lz4 or 4 zstd")]
    UnknownCompression(i16),
    /// Transactional, control or delete-horizon bits.
    #[error(
        "record batch has attributes {0:#06x}; Kafka transactions and control batches are not supported"
    )]
    UnsupportedAttributes(i16),
    /// Count is not within 1..=[`MAX_BATCH_RECORDS`].
    #[error("record batch holds {0} records; allowed are 1 to {MAX_BATCH_RECORDS}")]
    Count(i32),
    /// The last offset delta is not the count less one.
    #[error(
        "record batch of {count} records has last offset delta {last}; it must be one less than the count"
    )]
    OffsetDelta {
        /// Record count.
        count: u32,
        /// The field's value.
        last: i32,
    },
    /// A record is malformed.
    #[error("record {index} of the batch is malformed: {what}")]
    Record {
        /// Which record, from 0.
        index: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Bytes after the last record.
    #[error("record batch has {0} bytes after its last record")]
    Trailing(usize),
    /// The compressed bytes do not inflate.
    #[error("record batch does not inflate: {0}")]
    Inflate(String),
    /// Inflates to more than [`crate::limits::MAX_INFLATED_BYTES`].
    #[error(
        "record batch inflates to more than {} bytes; send smaller batches",
        crate::limits::MAX_INFLATED_BYTES
    )]
    InflatesTooLarge,
}

/// How closely [`Batch::parse`] looks at the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Walk the records of an uncompressed batch; leave a compressed one closed.
    /// For streams whose records only consumers read.
    Outer,
    /// Inflate if need be and walk all records. For streams that are folded by key.
    Records,
}

/// A record batch whose length, CRC, count and (as far as was asked) records have been checked.
/// Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// Checks bytes from outside.
    ///
    /// # Errors
    /// With the first thing that is wrong; see [`BatchError`].
    pub fn parse(bytes: Bytes, check: Check) -> Result<Self, BatchError> {
        let batch = Self::parse_header(bytes)?;
        if batch.is_compacted() {
            return Err(BatchError::UnsupportedAttributes(batch.attributes()));
        }
        batch.check_crc()?;
        if batch.compression() == Compression::None {
            batch.records()?.check_all(batch.count())?;
        } else if check == Check::Records {
            batch.records()?;
        }
        Ok(batch)
    }

    /// Checks bytes that were a `Batch` when they were written: everything but the records.
    ///
    /// # Errors
    /// When they no longer are.
    pub fn reopen(bytes: Bytes) -> Result<Self, BatchError> {
        let batch = Self::parse_header(bytes)?;
        batch.check_crc()?;
        Ok(batch)
    }

    /// The length of the batch that begins here, as it says itself; `None` when none can begin here.
    #[must_use]
    pub fn peek_length(bytes: &[u8]) -> Option<usize> {
        let length = bytes.get(LENGTH_AT..LEADER_EPOCH_AT)?.first_chunk()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
        Some(length + LEADER_EPOCH_AT)
    }

    fn parse_header(bytes: Bytes) -> Result<Self, BatchError> {
        let got = bytes.len();
        if got < BATCH_HEADER_BYTES {
            return Err(BatchError::Truncated(got));
        }
        if got > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge(got));
        }
        let batch = Self { bytes };
        let said = i64::from(batch.i32_at(LENGTH_AT)) + 12;
        if usize::try_from(said) != Ok(got) {
            return Err(BatchError::Length { said, got });
        }
        let magic = batch.bytes[MAGIC_AT].cast_signed();
        if magic != 2 {
            return Err(BatchError::Magic(magic));
        }
        batch.check_attributes_and_count()?;
        Ok(batch)
    }

    fn check_attributes_and_count(&self) -> Result<(), BatchError> {
        let attributes = self.attributes();
        if attributes & UNSUPPORTED_ATTRIBUTES != 0 {
            return Err(BatchError::UnsupportedAttributes(attributes));
        }
        Compression::from_code(attributes & 0x07)?;
        let count = self.i32_at(COUNT_AT);
        let within = usize::try_from(count).is_ok_and(|n| (1..=MAX_BATCH_RECORDS).contains(&n));
        if !within {
            return Err(BatchError::Count(count));
        }
        let last = self.i32_at(LAST_OFFSET_DELTA_AT);
        if last != count - 1 && !self.is_compacted() {
            return Err(BatchError::OffsetDelta {
                count: count.unsigned_abs(),
                last,
            });
        }
        Ok(())
    }

    fn check_crc(&self) -> Result<(), BatchError> {
        let (said, computed) = (self.crc(), crc32c::crc32c(&self.bytes[ATTRIBUTES_AT..]));
        if said == computed {
            Ok(())
        } else {
            Err(BatchError::Crc { said, computed })
        }
    }

    /// The batch as received, offset fields included.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a batch holds at least one record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The 16 bytes that stand at the front of the batch when it is stored at `base`: the offset,
    /// the unchanged length, and leader epoch 0. What follows is `bytes()[16..]`.
    #[must_use]
    pub fn stored_prefix(&self, base: Offset) -> [u8; MAGIC_AT] {
        let mut prefix = [0; MAGIC_AT];
        prefix[..LENGTH_AT].copy_from_slice(&base.get().to_be_bytes());
        prefix[LENGTH_AT..LEADER_EPOCH_AT].copy_from_slice(&self.bytes[LENGTH_AT..LEADER_EPOCH_AT]);
        prefix
    }

    /// CRC-32C of everything from the attributes on.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.i32_at(CRC_AT).cast_unsigned()
    }

    /// Number of records.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.i32_at(COUNT_AT).unsigned_abs()
    }

    /// Offsets the batch spans: its count, or more when compaction has removed records.
    #[must_use]
    pub fn offset_span(&self) -> u32 {
        self.i32_at(LAST_OFFSET_DELTA_AT).unsigned_abs() + 1
    }

    /// Whether compaction has removed records from it.
    #[must_use]
    pub fn is_compacted(&self) -> bool {
        self.attributes() & build::COMPACTED != 0
    }

    /// Compression of the records.
    #[must_use]
    pub fn compression(&self) -> Compression {
        Compression::from_code(self.attributes() & 0x07).unwrap_or(Compression::None)
    }

    /// Timestamp of the first record, in milliseconds since 1970, as its producer said.
    #[must_use]
    pub fn base_timestamp(&self) -> i64 {
        self.i64_at(BASE_TIMESTAMP_AT)
    }

    /// Greatest timestamp of its records, as the producer said.
    #[must_use]
    pub fn max_timestamp(&self) -> i64 {
        self.i64_at(MAX_TIMESTAMP_AT)
    }

    /// The idempotent producer's stamp; `None` when the batch has none.
    #[must_use]
    pub fn producer(&self) -> Option<crate::producer::ProducerStamp> {
        let id = self.i64_at(PRODUCER_ID_AT);
        (id >= 0).then(|| crate::producer::ProducerStamp {
            id: id.cast_unsigned(),
            epoch: self.i16_at(PRODUCER_EPOCH_AT).cast_unsigned(),
            sequence: self.i32_at(BASE_SEQUENCE_AT).cast_unsigned(),
        })
    }

    /// The records, inflated if need be. Inflating is bounded by
    /// [`crate::limits::MAX_INFLATED_BYTES`].
    ///
    /// # Errors
    /// When a compressed batch does not inflate, or its records are malformed.
    pub fn records(&self) -> Result<Records, BatchError> {
        let stored = self.bytes.slice(BATCH_HEADER_BYTES..);
        let inflated = self.compression().inflate(stored)?;
        let records = Records::new(inflated, self.base_timestamp(), self.max_timestamp());
        // A compressed batch may never have been opened before; see [`Check::Outer`].
        if self.compression() != Compression::None && !self.is_compacted() {
            records.check_all(self.count())?;
        }
        Ok(records)
    }

    fn attributes(&self) -> i16 {
        self.i16_at(ATTRIBUTES_AT)
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        field
    }

    fn i16_at(&self, at: usize) -> i16 {
        i16::from_be_bytes(self.field(at))
    }

    fn i32_at(&self, at: usize) -> i32 {
        i32::from_be_bytes(self.field(at))
    }

    fn i64_at(&self, at: usize) -> i64 {
        i64::from_be_bytes(self.field(at))
    }
}
