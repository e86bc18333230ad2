//! Making a batch from records.

use bytes::{BufMut, Bytes};

use super::{
    ATTRIBUTES_AT, BASE_SEQUENCE_AT, BATCH_HEADER_BYTES, Batch, BatchError, COUNT_AT, CRC_AT,
    Compression, LAST_OFFSET_DELTA_AT, LENGTH_AT, MAX_TIMESTAMP_AT, Operation, PRODUCER_EPOCH_AT,
    PRODUCER_ID_AT, Record,
};
use crate::limits::{
    MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_HEADERS, MAX_INFLATED_BYTES, MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
};
use crate::producer::ProducerStamp;
use crate::wire::{length_len, put_length, put_zigzag, zigzag_len};

/// Attribute bit of a batch from which compaction has removed records. Kafka has no use for bit
/// 14; it never leaves the broker's own disk, since peers are sent whole frames or snapshots.
pub(super) const COMPACTED: i16 = 1 << 14;

/// A record to be put into a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    /// What it does.
    pub operation: Operation,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Key, if any.
    pub key: Option<&'a [u8]>,
    /// Value, if any.
    pub value: Option<&'a [u8]>,
    /// Names and values.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// Gathers records into one uncompressed body and frames it.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Header bytes (filled in at the end), then records.
    bytes: Vec<u8>,
    count: u32,
    next_delta: u32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl BatchBuilder {
    /// A builder with room for this many bytes of records.
    #[must_use]
    pub fn with_capacity(records: usize) -> Self {
        let mut bytes = Vec::with_capacity(BATCH_HEADER_BYTES + records);
        bytes.resize(BATCH_HEADER_BYTES, 0);
        Self {
            bytes,
            count: 0,
            next_delta: 0,
            base_timestamp: 0,
            max_timestamp: i64::MIN,
        }
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes so far, header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no record was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When the key, value or headers are over their limit, or the batch is full. The builder is
    /// then as it was before.
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<(), BatchError> {
        self.push_at(record, self.next_delta)
    }

    /// Adds a record that survives compaction, keeping its place.
    ///
    /// # Errors
    /// As [`BatchBuilder::push`].
    pub fn push_surviving(&mut self, record: &Record<'_>) -> Result<(), BatchError> {
        let headers: Vec<_> = record.headers().collect();
        let kept = NewRecord {
            operation: record.operation,
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: &headers,
        };
        self.push_at(&kept, record.offset_delta)
    }

    fn push_at(&mut self, record: &NewRecord<'_>, delta: u32) -> Result<(), BatchError> {
        self.check(record)?;
        let base = match self.count {
            0 => record.timestamp,
            _ => self.base_timestamp,
        };
        let far = BatchError::Record {
            index: self.count,
            what: "its timestamp is out of range of the batch's first",
        };
        let timestamp_delta = record.timestamp.checked_sub(base).ok_or(far)?;
        self.base_timestamp = base;
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        let body = body_len(record, timestamp_delta, delta);
        let out = &mut self.bytes;
        out.reserve(body + 5);
        put_length(out, body);
        out.put_u8(record.operation.code());
        put_zigzag(out, timestamp_delta);
        put_zigzag(out, i64::from(delta));
        put_field(out, record.key);
        put_field(out, record.value);
        put_length(out, record.headers.len());
        for (name, value) in record.headers {
            put_field(out, Some(name.as_bytes()));
            put_field(out, *value);
        }
        self.count += 1;
        self.next_delta = delta + 1;
        Ok(())
    }

    fn check(&self, record: &NewRecord<'_>) -> Result<(), BatchError> {
        let too_large = |what| {
            Err(BatchError::Record {
                index: self.count,
                what,
            })
        };
        let long_name = |(name, _): &(&str, Option<&[u8]>)| name.len() > MAX_KEY_BYTES;
        if record.key.is_some_and(|key| key.len() > MAX_KEY_BYTES) {
            return too_large("its key is over 4 KiB");
        }
        if record
            .value
            .is_some_and(|value| value.len() > MAX_VALUE_BYTES)
        {
            return too_large("its value is over 4 MiB");
        }
        if record.headers.len() > MAX_HEADERS || record.headers.iter().any(long_name) {
            return too_large("its headers are over 64 or have a name over 4 KiB");
        }
        let headers: usize = record.headers.iter().map(header_len).sum();
        // 40 bytes are more than all the varints of one record take.
        let added =
            record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers + 40;
        if self.count as usize >= MAX_BATCH_RECORDS {
            return Err(BatchError::Count(i32::MAX));
        }
        match self.bytes.len() + added {
            total if total > MAX_BATCH_BYTES => Err(BatchError::TooLarge(total)),
            _ => Ok(()),
        }
    }

    /// Frames the records, uncompressed.
    ///
    /// # Errors
    /// When there are none.
    pub fn finish(self, producer: Option<ProducerStamp>) -> Result<Batch, BatchError> {
        self.frame(0, producer, None)
    }

    /// Frames the records, compressed.
    ///
    /// # Errors
    /// When there are none, or they are too many to compress into a batch that may be inflated.
    pub fn finish_compressed(
        mut self,
        compression: Compression,
        producer: Option<ProducerStamp>,
    ) -> Result<Batch, BatchError> {
        if self.bytes.len() > MAX_INFLATED_BYTES {
            return Err(BatchError::InflatesTooLarge);
        }
        let packed = compression.deflate(&self.bytes[BATCH_HEADER_BYTES..])?;
        self.bytes.truncate(BATCH_HEADER_BYTES);
        self.bytes.extend_from_slice(&packed);
        self.frame(compression.code(), producer, None)
    }

    /// Frames what compaction has left of `original`: same span of offsets, fewer records.
    ///
    /// # Errors
    /// When nothing is left.
    pub fn finish_compacted(self, original: &Batch) -> Result<Batch, BatchError> {
        self.frame(COMPACTED, original.producer(), Some(original.offset_span()))
    }

    fn frame(
        mut self,
        attributes: i16,
        producer: Option<ProducerStamp>,
        span: Option<u32>,
    ) -> Result<Batch, BatchError> {
        let count = i32::try_from(self.count).unwrap_or(i32::MAX);
        if count == 0 {
            return Err(BatchError::Count(0));
        }
        let length = i32::try_from(self.bytes.len() - 12)
            .map_err(|_| BatchError::TooLarge(self.bytes.len()))?;
        let last = span.map_or(count - 1, |span| span.cast_signed() - 1);
        self.put(LENGTH_AT, &length.to_be_bytes());
        self.bytes[super::MAGIC_AT] = 2;
        self.put(ATTRIBUTES_AT, &attributes.to_be_bytes());
        self.put(LAST_OFFSET_DELTA_AT, &last.to_be_bytes());
        self.put(super::BASE_TIMESTAMP_AT, &self.base_timestamp.to_be_bytes());
        self.put(MAX_TIMESTAMP_AT, &self.max_timestamp.to_be_bytes());
        self.put_producer(producer);
        self.put(COUNT_AT, &count.to_be_bytes());
        let crc = crc32c::crc32c(&self.bytes[ATTRIBUTES_AT..]);
        self.put(CRC_AT, &crc.to_be_bytes());
        Ok(Batch {
            bytes: Bytes::from(self.bytes),
        })
    }

    fn put_producer(&mut self, producer: Option<ProducerStamp>) {
        let (id, epoch, sequence) = match producer {
            Some(stamp) => (
                stamp.id.cast_signed(),
                stamp.epoch.cast_signed(),
                stamp.sequence.cast_signed(),
            ),
            None => (-1, -1, -1),
        };
        self.put(PRODUCER_ID_AT, &id.to_be_bytes());
        self.put(PRODUCER_EPOCH_AT, &epoch.to_be_bytes());
        self.put(BASE_SEQUENCE_AT, &sequence.to_be_bytes());
    }

    fn put(&mut self, at: usize, field: &[u8]) {
        self.bytes[at..at + field.len()].copy_from_slice(field);
    }
}

fn put_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        Some(bytes) => {
            put_length(out, bytes.len());
            out.extend_from_slice(bytes);
        }
        None => put_zigzag(out, -1),
    }
}

fn field_len(field: Option<&[u8]>) -> usize {
    field.map_or(1, |bytes| length_len(bytes.len()) + bytes.len())
}

fn header_len((name, value): &(&str, Option<&[u8]>)) -> usize {
    field_len(Some(name.as_bytes())) + field_len(*value)
}

fn body_len(record: &NewRecord<'_>, timestamp_delta: i64, delta: u32) -> usize {
    let headers: usize = record.headers.iter().map(header_len).sum();
    1 + zigzag_len(timestamp_delta)
        + zigzag_len(i64::from(delta))
        + field_len(record.key)
        + field_len(record.value)
        + length_len(record.headers.len())
        + headers
}

#[cfg(test)]
mod tests {
    use super::super::{Check, MAGIC_AT};
    use super::*;
    use proptest::prelude::*;

    fn filled(records: &[NewRecord<'_>]) -> BatchBuilder {
        let mut builder = BatchBuilder::default();
        for record in records {
            builder.push(record).unwrap();
        }
        builder
    }

    fn plain(value: &[u8]) -> NewRecord<'_> {
        NewRecord {
            value: Some(value),
            timestamp: 5,
            ..NewRecord::default()
        }
    }

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    type Field = Option<Vec<u8>>;

    proptest! {
        #[test]
        fn what_was_built_reads_back(
            records in prop::collection::vec(
                (any::<bool>(), 0i64..1 << 50, any::<Field>(), any::<Field>(), any::<(String, Field)>()),
                1..20,
            ),
            which in 0..5usize,
        ) {
            let headers: Vec<_> =
                records.iter().map(|r| [(r.4.0.as_str(), r.4.1.as_deref())]).collect();
            let given: Vec<_> = records.iter().zip(&headers).map(|(r, headers)| NewRecord {
                operation: if r.0 { Operation::Put } else { Operation::Delete },
                timestamp: r.1,
                key: r.2.as_deref(),
                value: r.3.as_deref(),
                headers,
            }).collect();
            let producer = Some(ProducerStamp { id: 7, epoch: 1, sequence: 40 });
            let batch = filled(&given).finish_compressed(ALL[which], producer).unwrap();
            let batch = Batch::parse(batch.bytes().clone(), Check::Records).unwrap();
            prop_assert_eq!(batch.producer(), producer);
            prop_assert_eq!(batch.compression(), ALL[which]);
            let read = batch.records().unwrap();
            let read: Vec<_> = read.iter().map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), given.len());
            for (r, g) in read.iter().zip(&given) {
                prop_assert_eq!((r.operation, r.timestamp, r.key, r.value), (g.operation, g.timestamp, g.key, g.value));
                prop_assert_eq!(r.headers().collect::<Vec<_>>(), g.headers);
            }
        }

        #[test]
        fn a_flipped_byte_is_noticed(at in MAGIC_AT..90, to in any::<u8>()) {
            let batch = filled(&[plain(b"0123456789"), plain(b"abcdefghij")]).finish(None).unwrap();
            let mut bytes = batch.bytes().to_vec();
            prop_assume!(at < bytes.len() && bytes[at] != to);
            bytes[at] = to;
            prop_assert!(Batch::parse(bytes.into(), Check::Outer).is_err());
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Batch::parse(bytes.into(), Check::Records).is_err());
        }

        /// With a CRC that matches, the walk itself has to notice.
        #[test]
        fn lying_records_are_refused_without_panic(records in prop::collection::vec(any::<u8>(), 0..200), which in 0..5i16) {
            let mut builder = filled(&[plain(b"x")]);
            builder.bytes.truncate(BATCH_HEADER_BYTES);
            builder.bytes.extend_from_slice(&records);
            let batch = builder.frame(which, None, None).unwrap();
            let _ = Batch::parse(batch.bytes().clone(), Check::Records);
        }
    }

    fn refuse(change: impl FnOnce(&mut Vec<u8>)) -> BatchError {
        let mut bytes = filled(&[plain(b"a"), plain(b"b")])
            .finish(None)
            .unwrap()
            .bytes()
            .to_vec();
        change(&mut bytes);
        let crc = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
        Batch::parse(bytes.into(), Check::Outer).unwrap_err()
    }

    #[test]
    fn counts_and_lengths_that_lie_are_refused() {
        let put = |at: usize, value: i32| {
            move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes())
        };
        assert!(matches!(refuse(put(COUNT_AT, 0)), BatchError::Count(0)));
        assert!(matches!(
            refuse(put(COUNT_AT, i32::MAX)),
            BatchError::Count(i32::MAX)
        ));
        assert!(matches!(refuse(put(COUNT_AT, -1)), BatchError::Count(-1)));
        assert!(matches!(
            refuse(put(COUNT_AT, 3)),
            BatchError::OffsetDelta { .. }
        ));
        assert!(matches!(
            refuse(put(LENGTH_AT, i32::MAX)),
            BatchError::Length { .. }
        ));
        assert!(matches!(
            refuse(put(LENGTH_AT, i32::MIN)),
            BatchError::Length { .. }
        ));
        assert!(matches!(
            refuse(|bytes| bytes[22] = 5),
            BatchError::UnknownCompression(5)
        ));
        assert!(matches!(
            refuse(|bytes| bytes[22] = 0x10),
            BatchError::UnsupportedAttributes(_)
        ));
        assert!(matches!(
            refuse(|bytes| bytes[MAGIC_AT] = 1),
            BatchError::Magic(1)
        ));
    }

    #[test]
    fn timestamps_too_far_apart_for_a_delta_are_refused_and_leave_the_batch_whole() {
        let at = |timestamp| NewRecord {
            timestamp,
            ..plain(b"v")
        };
        let mut builder = filled(&[at(i64::MIN)]);
        assert!(builder.push(&at(1)).is_err());
        builder.push(&at(i64::MIN + 1)).unwrap();
        let batch = builder.finish(None).unwrap();
        let batch = Batch::parse(batch.bytes().clone(), Check::Records).unwrap();
        assert_eq!(batch.count(), 2);
    }

    #[test]
    fn a_batch_without_its_crc_is_refused() {
        let mut bytes = filled(&[plain(b"a")])
            .finish(None)
            .unwrap()
            .bytes()
            .to_vec();
        bytes[CRC_AT] ^= 1;
        assert!(matches!(
            Batch::parse(bytes.into(), Check::Outer),
            Err(BatchError::Crc { .. })
        ));
    }

    #[test]
    fn a_decompression_bomb_is_stopped_at_the_limit() {
        let zeros = vec![0u8; MAX_INFLATED_BYTES + 1];
        for compression in [
            Compression::Gzip,
            Compression::Lz4,
            Compression::Zstd,
            Compression::Snappy,
        ] {
            let packed = compression.deflate(&zeros).unwrap();
            let error = compression.inflate(packed.into()).unwrap_err();
            assert_eq!(error, BatchError::InflatesTooLarge, "{compression:?}");
        }
    }

    #[test]
    fn fields_can_be_kept_as_slices_of_the_inflated_bytes() {
        let batch = filled(&[plain(b"a"), plain(b"b")]).finish(None).unwrap();
        let records = batch.records().unwrap();
        let value = records.iter().nth(1).unwrap().unwrap().value.unwrap();
        assert_eq!(records.bytes().slice_ref(value), b"b".as_slice());
    }

    #[test]
    fn compaction_keeps_offsets() {
        let batch = filled(&[plain(b"a"), plain(b"b"), plain(b"c")])
            .finish(None)
            .unwrap();
        let records = batch.records().unwrap();
        let mut survivors = BatchBuilder::default();
        survivors
            .push_surviving(&records.iter().nth(1).unwrap().unwrap())
            .unwrap();
        let compacted = survivors.finish_compacted(&batch).unwrap();
        let compacted = Batch::reopen(compacted.bytes().clone()).unwrap();
        assert_eq!((compacted.count(), compacted.offset_span()), (1, 3));
        let records = compacted.records().unwrap();
        assert_eq!(records.iter().next().unwrap().unwrap().offset_delta, 1);
        // What compaction made is only ever read from disk: from outside it is refused.
        assert!(Batch::parse(compacted.bytes().clone(), Check::Outer).is_err());
    }

    #[test]
    fn keys_and_values_over_the_limit_are_refused_and_leave_the_builder_usable() {
        let (key, value) = (vec![0; MAX_KEY_BYTES + 1], vec![0; MAX_VALUE_BYTES + 1]);
        let mut builder = BatchBuilder::default();
        assert!(
            builder
                .push(&NewRecord {
                    key: Some(&key),
                    ..NewRecord::default()
                })
                .is_err()
        );
        assert!(builder.push(&plain(&value)).is_err());
        builder.push(&plain(b"fits")).unwrap();
        assert_eq!(builder.finish(None).unwrap().count(), 1);
    }
}
