//! What a subscription brings, as values that share the bytes of the message they came in.

use std::borrow::Cow;

use anabranch_core::batch::{Batch, BatchError, Operation};
use anabranch_core::id::{Dot, Offset, PartitionId};
use anabranch_protocol::ws::{self, Deliver, KeyFilter, Part, PartPayload, shared};
use bytes::Bytes;

use crate::error::Error;

/// A record that was delivered.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivered {
    /// Its global name.
    pub dot: Dot,
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset in the partition, on the broker that delivered it.
    pub offset: Offset,
    /// Milliseconds since 1970, as its producer said.
    pub timestamp: i64,
    /// What it does.
    pub operation: Operation,
    /// Its key, if any.
    pub key: Option<Bytes>,
    /// Its value, if any.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl Delivered {
    /// Whether it removes the row of its key.
    #[must_use]
    pub fn is_delete(&self) -> bool {
        self.operation == Operation::Delete || self.value.is_none()
    }
}

/// A row of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
}

impl Row {
    pub(crate) fn of(row: ws::Row<'_>, message: &Bytes) -> Self {
        Self {
            key: shared(row.key, message),
            value: shared(row.value, message),
        }
    }
}

/// The records of a `deliver` message that pass the filter.
pub(crate) fn records_of(
    deliver: Deliver<'_>,
    message: &Bytes,
    keys: &KeyFilter<'_>,
) -> Result<Vec<Delivered>, Error> {
    let frame = Frame {
        origin_of: |index| Dot {
            origin: deliver.origin,
            sequence: deliver.sequence,
            index,
        },
        message,
    };
    let mut records = Vec::new();
    for part in deliver.parts {
        frame.part(part, keys, &mut records)?;
    }
    Ok(records)
}

/// What the records of one frame have in common.
struct Frame<'m, F> {
    origin_of: F,
    message: &'m Bytes,
}

impl<F: Fn(u32) -> Dot> Frame<'_, F> {
    fn part(
        &self,
        part: Part<'_>,
        keys: &KeyFilter<'_>,
        records: &mut Vec<Delivered>,
    ) -> Result<(), Error> {
        let (partition, base, first) = (part.partition, part.offset, part.index);
        match part.payload {
            PartPayload::Batch(bytes) => {
                let batch = Batch::reopen(shared(bytes, self.message))?;
                self.batch(&batch, (partition, base, first), keys, records)?;
            }
            PartPayload::Records(delivered) => records.extend(
                delivered
                    .into_iter()
                    .map(|record| self.record(record, (partition, base, first))),
            ),
        }
        Ok(())
    }

    fn batch(
        &self,
        batch: &Batch,
        (partition, base, first): (PartitionId, Offset, u32),
        keys: &KeyFilter<'_>,
        records: &mut Vec<Delivered>,
    ) -> Result<(), BatchError> {
        let inflated = batch.records()?;
        let bytes = inflated.bytes();
        records.reserve(batch.count() as usize);
        for record in inflated.iter() {
            let record = record?;
            if !keys.passes(record.key) {
                continue;
            }
            let owned = |field: &[u8]| bytes.slice_ref(field);
            let header = |(name, value): (&str, Option<&[u8]>)| (name.to_owned(), value.map(owned));
            records.push(Delivered {
                dot: (self.origin_of)(first.saturating_add(record.offset_delta)),
                partition,
                offset: base.advance(u64::from(record.offset_delta)),
                timestamp: record.timestamp,
                operation: record.operation,
                key: record.key.map(owned),
                value: record.value.map(owned),
                headers: record.headers().map(header).collect(),
            });
        }
        Ok(())
    }

    fn record(
        &self,
        delivered: ws::Delivered<'_>,
        (partition, base, first): (PartitionId, Offset, u32),
    ) -> Delivered {
        let delta = delivered.offset.get().saturating_sub(base.get());
        let index = first.saturating_add(u32::try_from(delta).unwrap_or(u32::MAX));
        let owned = |field: Cow<'_, [u8]>| shared(field, self.message);
        let record = delivered.record;
        let headers = record.headers.into_iter();
        Delivered {
            dot: (self.origin_of)(index),
            partition,
            offset: delivered.offset,
            timestamp: record.timestamp.unwrap_or_default(),
            operation: record.operation,
            key: record.key.map(owned),
            value: record.value.map(owned),
            headers: headers
                .map(|(name, value)| (name.into_owned(), value.map(owned)))
                .collect(),
        }
    }
}
