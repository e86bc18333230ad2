//! Summary and index as they lie in a sealed segment.
//!
//! ```text
//! summary  first, next, base vector, end of the entries, entries, hollow bytes,
//!          origins: broker u64, epoch, first sequence, last sequence
//!          last timestamp, last append
//!          partitions: stream u64, partition u16, first offset, next offset, bytes
//! index    gaps: entry, frames
//!          per entry: length in units of 8, [origin], sequence, timestamp, appended at
//!          per partition of the summary: extents: entry, records, bytes
//! ```
//!
//! Numbers without a size are varints; those that grow are differences to the one before. Offsets
//! of a partition are dense, so each extent begins where the one before ends.

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::id::{
    BrokerId, Epoch, Offset, Origin, PartitionId, Position, Sequence, StreamId,
};

use super::super::fields::{Fields, Malformed, length, put_delta, put_varint, put_vector};
use super::{
    ALIGNMENT, Extent, ExtentList, OriginRange, PartitionSummary, SegmentIndex, Spans, Summary,
};

impl Summary {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.first.get());
        put_varint(&mut out, self.next.get());
        put_vector(&mut out, &self.base);
        put_varint(&mut out, self.entries_end);
        put_varint(&mut out, self.entries);
        put_varint(&mut out, self.hollow);
        put_varint(&mut out, length(self.origins.len()));
        for range in &self.origins {
            out.extend_from_slice(&range.origin.broker.get().to_le_bytes());
            put_varint(&mut out, range.origin.epoch.get().into());
            put_varint(&mut out, range.first.get());
            put_varint(&mut out, range.last.get());
        }
        put_varint(&mut out, self.last_timestamp.get());
        put_varint(&mut out, self.last_appended);
        put_varint(&mut out, length(self.partitions.len()));
        for partition in &self.partitions {
            out.extend_from_slice(&partition.key.0.get().to_le_bytes());
            out.extend_from_slice(&partition.key.1.get().to_le_bytes());
            put_varint(&mut out, partition.first_offset.get());
            put_varint(&mut out, partition.next_offset.get());
            put_varint(&mut out, partition.bytes);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        let summary = Self {
            first: Position::new(fields.varint()?),
            next: Position::new(fields.varint()?),
            base: fields.vector()?,
            entries_end: fields.varint()?,
            entries: fields.varint()?,
            hollow: fields.varint()?,
            origins: read_all(&mut fields, read_origin)?,
            last_timestamp: HybridTimestamp::new(fields.varint()?),
            last_appended: fields.varint()?,
            partitions: read_all(&mut fields, read_partition)?,
        };
        let sorted = summary.partitions.is_sorted_by(|a, b| a.key < b.key);
        if fields.is_empty() && sorted && summary.first <= summary.next {
            Ok(summary)
        } else {
            Err(Malformed)
        }
    }
}

fn read_all<T>(
    fields: &mut Fields<'_>,
    read: fn(&mut Fields<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = fields.count()?;
    let mut all = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        all.push(read(fields)?);
    }
    Ok(all)
}

fn read_origin(fields: &mut Fields<'_>) -> Result<OriginRange, Malformed> {
    let origin = Origin {
        broker: BrokerId::new(fields.u64()?),
        epoch: Epoch::new(fields.varint_u32()?),
    };
    Ok(OriginRange {
        origin,
        first: Sequence::new(fields.varint()?),
        last: Sequence::new(fields.varint()?),
    })
}

fn read_partition(fields: &mut Fields<'_>) -> Result<PartitionSummary, Malformed> {
    let key = (
        StreamId::new(fields.u64()?),
        PartitionId::new(fields.u16()?),
    );
    Ok(PartitionSummary {
        key,
        first_offset: Offset::new(fields.varint()?),
        next_offset: Offset::new(fields.varint()?),
        bytes: fields.varint()?,
    })
}

impl SegmentIndex {
    /// The index block, which is read together with this summary.
    pub(crate) fn encode(&self, summary: &Summary) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len() * 12);
        let gaps = self.spans.iter();
        put_varint(&mut out, length(gaps.len()));
        let mut entry = 0;
        for gap in gaps {
            put_varint(&mut out, u64::from(gap.entry - entry));
            put_varint(&mut out, gap.frames);
            entry = gap.entry;
        }
        let (mut sequence, mut timestamp, mut appended) = (0, 0, 0);
        for entry in 0..self.len() {
            put_varint(&mut out, length(self.place(entry).1 / ALIGNMENT));
            if self.origins.len() > 1 {
                put_varint(&mut out, self.origin_of[entry].into());
            }
            put_delta(&mut out, sequence, self.sequences[entry]);
            put_delta(&mut out, timestamp, self.timestamps[entry]);
            put_delta(&mut out, appended, self.appended[entry]);
            sequence = self.sequences[entry];
            timestamp = self.timestamps[entry];
            appended = self.appended[entry];
        }
        for partition in &summary.partitions {
            let list = self
                .list(partition.key)
                .expect("it was summed up from here");
            put_varint(&mut out, length(list.extents.len()));
            let mut entry = 0;
            for extent in &list.extents {
                put_varint(&mut out, u64::from(extent.entry - entry));
                put_varint(&mut out, extent.records);
                put_varint(&mut out, extent.bytes.into());
                entry = extent.entry;
            }
        }
        out
    }

    pub(crate) fn decode(
        bytes: &[u8],
        summary: &Summary,
        first_entry_at: u64,
    ) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        let mut index = Self::new(summary.first, summary.base.clone(), first_entry_at);
        index.origins.clone_from(&summary.origins);
        index.hollow = summary.hollow;
        let count = u32::try_from(summary.entries).map_err(|_| Malformed)?;
        index.spans = decode_spans(&mut fields, count)?;
        if index.spans.next(summary.first, count) != summary.next {
            return Err(Malformed);
        }
        for _ in 0..count {
            index.decode_entry(&mut fields)?;
        }
        if index.end != summary.entries_end {
            return Err(Malformed);
        }
        for (number, partition) in summary.partitions.iter().enumerate() {
            let extents = decode_extents(&mut fields, partition, index.len())?;
            let bytes = extents.iter().map(|e| u64::from(e.bytes)).sum();
            if bytes != partition.bytes {
                return Err(Malformed);
            }
            index.lists.push(ExtentList {
                key: partition.key,
                extents,
                bytes,
            });
            index
                .by_key
                .insert(partition.key, u32::try_from(number).map_err(|_| Malformed)?);
        }
        if fields.is_empty() {
            Ok(index)
        } else {
            Err(Malformed)
        }
    }

    fn decode_entry(&mut self, fields: &mut Fields<'_>) -> Result<(), Malformed> {
        let unit = length(ALIGNMENT);
        let units = fields.varint_u32()?;
        let place = u32::try_from(self.end / unit).map_err(|_| Malformed)?;
        let last = |column: &[u64]| column.last().copied().unwrap_or(0);
        if self.origins.len() > 1 {
            let origin = u16::try_from(fields.varint()?).map_err(|_| Malformed)?;
            if usize::from(origin) >= self.origins.len() {
                return Err(Malformed);
            }
            self.origin_of.push(origin);
        } else if self.origins.is_empty() {
            return Err(Malformed);
        }
        self.sequences.push(fields.delta(last(&self.sequences))?);
        self.timestamps.push(fields.delta(last(&self.timestamps))?);
        self.appended.push(fields.delta(last(&self.appended))?);
        self.places.push(place);
        self.end += u64::from(units) * unit;
        Ok(())
    }
}

fn decode_spans(fields: &mut Fields<'_>, entries: u32) -> Result<Spans, Malformed> {
    let mut spans = Spans::default();
    let mut least = 0u32;
    let mut positions = 0u64;
    let mut before = 0u32;
    for _ in 0..fields.count()? {
        let entry = before.checked_add(fields.varint_u32()?).ok_or(Malformed)?;
        let frames = fields.varint()?;
        positions = positions.checked_add(frames).ok_or(Malformed)?;
        if entry < least || entry >= entries || frames == 0 || positions >= 1 << 62 {
            return Err(Malformed);
        }
        spans.push(entry, frames);
        before = entry;
        least = entry + 1;
    }
    Ok(spans)
}

fn decode_extents(
    fields: &mut Fields<'_>,
    partition: &PartitionSummary,
    entries: usize,
) -> Result<Vec<Extent>, Malformed> {
    let count = fields.count()?;
    let mut extents = Vec::with_capacity(count.min(entries));
    let mut entry = 0u32;
    let mut base_offset = partition.first_offset;
    for _ in 0..count {
        entry = entry.checked_add(fields.varint_u32()?).ok_or(Malformed)?;
        if entry as usize >= entries {
            return Err(Malformed);
        }
        let records = fields.varint()?;
        let bytes = fields.varint_u32()?;
        extents.push(Extent {
            entry,
            base_offset,
            records,
            bytes,
        });
        let next = base_offset.get().checked_add(records).ok_or(Malformed)?;
        base_offset = Offset::new(next);
    }
    if base_offset == partition.next_offset && !extents.is_empty() {
        Ok(extents)
    } else {
        Err(Malformed)
    }
}
