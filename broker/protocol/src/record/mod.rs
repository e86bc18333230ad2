//! Records on their way to and from a broker, and batches made of them.
//!
//! The JSON form, in [`json`], is the same on HTTP, in the JSON subprotocol and on the command
//! line.

pub mod json;

use std::borrow::Cow;
use std::collections::BTreeMap;

use anabranch_core::batch::{self, Batch, BatchBuilder, BatchError, NewRecord, Operation};
use anabranch_core::id::PartitionId;
use anabranch_core::limits::{MAX_BATCH_RECORDS, MAX_HEADERS, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use anabranch_core::partitioner::partition_of;
use anabranch_core::producer::ProducerStamp;

use crate::error::{Code, Problem};

/// One header: a name, and a value if there is one.
pub type Header<'a> = (Cow<'a, str>, Option<Cow<'a, [u8]>>);

/// A record, borrowed from a message where that is possible.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Record<'a> {
    /// Which row it is about. Keyed streams need one.
    pub key: Option<Cow<'a, [u8]>>,
    /// What it says. In a keyed stream, a record without a value deletes.
    pub value: Option<Cow<'a, [u8]>>,
    /// Names and values, in order.
    pub headers: Vec<Header<'a>>,
    /// Milliseconds since 1970; the receiver's clock when it is left out.
    pub timestamp: Option<i64>,
    /// What it does.
    pub operation: Operation,
}

impl<'a> Record<'a> {
    /// A record that puts a value.
    #[must_use]
    pub fn value(value: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// A record that puts a value under a key.
    #[must_use]
    pub fn put(key: impl Into<Cow<'a, [u8]>>, value: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            key: Some(key.into()),
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// A record that deletes the row of a key.
    #[must_use]
    pub fn delete(key: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            key: Some(key.into()),
            operation: Operation::Delete,
            ..Self::default()
        }
    }

    /// The same, with a header more.
    #[must_use]
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'a, str>>,
        value: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// The same, with a timestamp in milliseconds since 1970.
    #[must_use]
    pub fn at(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The record with everything copied.
    #[must_use]
    pub fn into_owned(self) -> Record<'static> {
        let header = |(name, value): Header<'_>| {
            let value = value.map(|value| Cow::Owned(value.into_owned()));
            (Cow::Owned(name.into_owned()), value)
        };
        Record {
            key: self.key.map(|key| Cow::Owned(key.into_owned())),
            value: self.value.map(|value| Cow::Owned(value.into_owned())),
            headers: self.headers.into_iter().map(header).collect(),
            timestamp: self.timestamp,
            operation: self.operation,
        }
    }

    /// Whether it removes the row of its key.
    #[must_use]
    pub fn is_delete(&self) -> bool {
        self.operation == Operation::Delete || self.value.is_none()
    }

    /// Bytes of key, value and headers.
    #[must_use]
    pub fn len(&self) -> usize {
        let field = |field: &Option<Cow<'_, [u8]>>| field.as_ref().map_or(0, |bytes| bytes.len());
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + field(v)).sum();
        field(&self.key) + field(&self.value) + headers
    }

    /// Whether there are no bytes in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the sizes of key, value and headers.
    ///
    /// # Errors
    /// With the first that is over its limit.
    pub fn check(&self) -> Result<(), TooLarge> {
        let over = |what, size, limit| match size > limit {
            true => Err(TooLarge { what, size, limit }),
            false => Ok(()),
        };
        let length = |field: &Option<Cow<'_, [u8]>>| field.as_ref().map_or(0, |bytes| bytes.len());
        over("bytes of key", length(&self.key), MAX_KEY_BYTES)?;
        over("bytes of value", length(&self.value), MAX_VALUE_BYTES)?;
        over("headers", self.headers.len(), MAX_HEADERS)?;
        for (name, value) in &self.headers {
            over("bytes of header name", name.len(), MAX_KEY_BYTES)?;
            over("bytes of header value", length(value), MAX_VALUE_BYTES)?;
        }
        Ok(())
    }

    /// Adds it to a batch; `now_ms` is its timestamp when it has none.
    ///
    /// # Errors
    /// When it is too large or the batch is full. The batch is then as it was before.
    pub fn push_to(&self, batch: &mut BatchBuilder, now_ms: i64) -> Result<(), BatchError> {
        let plain = NewRecord {
            operation: self.operation,
            timestamp: self.timestamp.unwrap_or(now_ms),
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &[],
        };
        if self.headers.is_empty() {
            return batch.push(&plain);
        }
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_deref()))
            .collect();
        batch.push(&NewRecord {
            headers: &headers,
            ..plain
        })
    }
}

impl<'a> From<&batch::Record<'a>> for Record<'a> {
    fn from(record: &batch::Record<'a>) -> Self {
        let header =
            |(name, value): (&'a str, Option<&'a [u8]>)| (name.into(), value.map(Cow::Borrowed));
        Self {
            key: record.key.map(Cow::Borrowed),
            value: record.value.map(Cow::Borrowed),
            headers: record.headers().map(header).collect(),
            timestamp: Some(record.timestamp),
            operation: record.operation,
        }
    }
}

/// The name of an operation in messages.
#[must_use]
pub const fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Put => "put",
        Operation::Delete => "delete",
    }
}

/// The operation with this name.
#[must_use]
pub fn operation_named(name: &str) -> Option<Operation> {
    match name {
        "put" => Some(Operation::Put),
        "delete" => Some(Operation::Delete),
        _ => None,
    }
}

/// A part of a record is over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{size} {what} are more than the limit of {limit}")]
pub struct TooLarge {
    /// What is too much.
    pub what: &'static str,
    /// How much it is.
    pub size: usize,
    /// How much is allowed.
    pub limit: usize,
}

/// Where the records of one publish go, and what they are given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// How many partitions the stream has.
    pub partitions: u16,
    /// The partition that the publisher asks for; otherwise the key decides.
    pub partition: Option<PartitionId>,
    /// Where records without a key go. All of one publish go to one partition, which keeps them
    /// in order and in one batch; the caller takes the next partition for the next publish.
    pub keyless: PartitionId,
    /// Timestamp of records that have none, in milliseconds since 1970.
    pub now_ms: i64,
    /// The idempotent producer's stamp.
    pub producer: Option<ProducerStamp>,
}

impl Placement {
    /// For a stream with this many partitions; everything else at its default.
    #[must_use]
    pub fn new(partitions: u16, now_ms: i64) -> Self {
        Self {
            partitions,
            partition: None,
            keyless: PartitionId::new(0),
            now_ms,
            producer: None,
        }
    }

    fn of(&self, key: Option<&[u8]>) -> PartitionId {
        match (self.partition, key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of(key, self.partitions),
            (None, None) => PartitionId::new(self.keyless.get() % self.partitions),
        }
    }
}

/// Why records do not become batches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// There are none.
    #[error("a publish needs at least one record")]
    Empty,
    /// More than fit a batch.
    #[error("{0} records are more than the limit of {MAX_BATCH_RECORDS}; publish fewer at once")]
    TooMany(usize),
    /// The partition does not exist.
    #[error("partition {partition} does not exist; the stream has partitions 0 to {}", .partitions - 1)]
    NoSuchPartition {
        /// The one asked for.
        partition: PartitionId,
        /// How many there are.
        partitions: u16,
    },
    /// One record is too large.
    #[error("record {index}: {reason}")]
    RecordTooLarge {
        /// Which one, from 0.
        index: usize,
        /// What about it.
        reason: TooLarge,
    },
    /// A producer's sequence counts records of one partition.
    #[error(
        "records with a producer fall into {0} partitions; publish those of each partition apart, naming it"
    )]
    ProducerNeedsOnePartition(usize),
    /// Too much for one batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl From<BuildError> for Problem {
    fn from(error: BuildError) -> Self {
        let code = match &error {
            BuildError::Empty => Code::BadParameter,
            BuildError::TooMany(_) => Code::BatchTooLarge,
            BuildError::NoSuchPartition { .. } => Code::NoSuchPartition,
            BuildError::RecordTooLarge { .. } => Code::RecordTooLarge,
            BuildError::ProducerNeedsOnePartition(_) => Code::NotPossible,
            BuildError::Batch(error) => Code::from(error),
        };
        Self::new(code, error.to_string())
    }
}

/// Sorts records into one uncompressed batch per partition, in the order of partitions. The order
/// of records within a partition is kept.
///
/// # Errors
/// When there are none or too many, or one is too large. Nothing is then built.
pub fn build_batches(
    records: &[Record<'_>],
    placement: &Placement,
) -> Result<Vec<(PartitionId, Batch)>, BuildError> {
    check_all(records, placement)?;
    if placement.partition.is_some() || placement.partitions == 1 {
        let partition = placement.partition.unwrap_or_default();
        let capacity = records.iter().map(|record| record.len() + 16).sum();
        let mut builder = BatchBuilder::with_capacity(capacity);
        for record in records {
            record.push_to(&mut builder, placement.now_ms)?;
        }
        return Ok(vec![(partition, builder.finish(placement.producer)?)]);
    }
    let mut builders: BTreeMap<PartitionId, BatchBuilder> = BTreeMap::new();
    for record in records {
        let builder = builders
            .entry(placement.of(record.key.as_deref()))
            .or_default();
        record.push_to(builder, placement.now_ms)?;
    }
    if placement.producer.is_some() && builders.len() > 1 {
        return Err(BuildError::ProducerNeedsOnePartition(builders.len()));
    }
    builders
        .into_iter()
        .map(|(partition, builder)| Ok((partition, builder.finish(placement.producer)?)))
        .collect()
}

fn check_all(records: &[Record<'_>], placement: &Placement) -> Result<(), BuildError> {
    let partitions = placement.partitions;
    if let Some(partition) = placement.partition.filter(|p| p.get() >= partitions) {
        return Err(BuildError::NoSuchPartition {
            partition,
            partitions,
        });
    }
    match records.len() {
        0 => return Err(BuildError::Empty),
        n if n > MAX_BATCH_RECORDS => return Err(BuildError::TooMany(n)),
        _ => {}
    }
    for (index, record) in records.iter().enumerate() {
        record
            .check()
            .map_err(|reason| BuildError::RecordTooLarge { index, reason })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_of(batch: &Batch) -> Vec<Option<Vec<u8>>> {
        let records = batch.records().unwrap();
        let keys = records
            .iter()
            .map(|record| record.unwrap().key.map(<[u8]>::to_vec));
        keys.collect()
    }

    #[test]
    fn records_go_where_their_key_says_and_keep_their_order() {
        let records: Vec<_> = (0..100)
            .map(|n: u32| Record::put(n.to_be_bytes().to_vec(), b"v".as_slice()))
            .collect();
        let batches = build_batches(&records, &Placement::new(4, 5)).unwrap();
        assert_eq!(batches.len(), 4);
        for (partition, batch) in &batches {
            let keys = keys_of(batch);
            assert!(keys.is_sorted());
            for key in keys.iter().flatten() {
                assert_eq!(partition_of(key, 4), *partition);
            }
        }
        let total: u32 = batches.iter().map(|(_, batch)| batch.count()).sum();
        assert_eq!(total, 100);
    }

    #[test]
    fn records_without_a_key_stay_together() {
        let records = [
            Record::value(b"a".as_slice()),
            Record::value(b"b".as_slice()),
        ];
        let placement = Placement {
            keyless: PartitionId::new(6),
            ..Placement::new(4, 0)
        };
        let batches = build_batches(&records, &placement).unwrap();
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].0, PartitionId::new(2));
    }

    #[test]
    fn what_cannot_be_built_says_why() {
        let one = Placement::new(1, 0);
        let large = Record::put(vec![0; MAX_KEY_BYTES + 1], b"".as_slice());
        let code = |records: &[Record<'_>], placement: &Placement| {
            Problem::from(build_batches(records, placement).unwrap_err()).code
        };
        assert_eq!(code(&[], &one), Code::BadParameter);
        assert_eq!(code(&[large], &one), Code::RecordTooLarge);
        let elsewhere = Placement {
            partition: Some(PartitionId::new(1)),
            ..one
        };
        assert_eq!(
            code(&[Record::default()], &elsewhere),
            Code::NoSuchPartition
        );
        let stamp = ProducerStamp {
            id: 1,
            epoch: 0,
            sequence: 0,
        };
        let scattered = Placement {
            producer: Some(stamp),
            ..Placement::new(8, 0)
        };
        let records: Vec<_> = (0..9u8).map(|n| Record::delete(vec![n])).collect();
        assert_eq!(code(&records, &scattered), Code::NotPossible);
        let megabytes = vec![Record::value(vec![0; MAX_VALUE_BYTES]); 2];
        assert_eq!(code(&megabytes, &one), Code::BatchTooLarge);
    }

    #[test]
    fn headers_and_timestamps_arrive() {
        let record = Record::put(b"k".as_slice(), b"v".as_slice())
            .with_header("trace", b"1".as_slice())
            .at(77);
        let batches = build_batches(&[record.clone(), Record::default()], &Placement::new(1, 5));
        let records = batches.unwrap().remove(0).1.records().unwrap();
        let read: Vec<_> = records.iter().map(|r| Record::from(&r.unwrap())).collect();
        assert_eq!(read[0], record);
        assert_eq!(read[1].timestamp, Some(5));
    }
}
