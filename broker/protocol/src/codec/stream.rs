//! Encoders that write a message piece by piece, straight from what the broker has at hand.

use std::ops::Range;

use anabranch_core::batch::{Batch, BatchError, Walk};
use anabranch_core::id::{Offset, Origin, PartitionId, Sequence};

use super::Codec;
use super::encode::{Fields, about, row};
use super::form::{Form, Json, Msgpack};
use crate::ws::{AckRow, Durability, KeyFilter, SubscriptionId};

/// Runs the same code for either encoding.
macro_rules! with_form {
    ($codec:expr, $out:expr, |$form:ident| $body:expr) => {
        match $codec {
            Codec::Msgpack => {
                let $form = &mut Msgpack::new($out);
                $body
            }
            Codec::Json => {
                let $form = &mut Json::new($out);
                $body
            }
        }
    };
}

/// What all rows of an `ack` share.
#[derive(Clone, Copy, Debug)]
pub struct AckHead<'a> {
    /// Who appended the frame.
    pub origin: Origin,
    /// Which of its frames it is.
    pub sequence: Sequence,
    /// What has been reached.
    pub durability: Durability,
    /// For reads that must include this.
    pub token: &'a str,
}

/// Writes an `ack`, row by row.
#[derive(Debug)]
pub struct AckEncoder {
    codec: Codec,
    out: Vec<u8>,
    mark: usize,
    rows: usize,
}

impl AckEncoder {
    /// Begins with room for `rows` rows.
    #[must_use]
    pub fn begin(codec: Codec, head: &AckHead<'_>, rows: usize) -> Self {
        let mut out = Vec::with_capacity(160 + head.token.len() + 24 * rows);
        let mark = with_form!(codec, &mut out, |form| ack_head(form, head));
        Self {
            codec,
            out,
            mark,
            rows: 0,
        }
    }

    /// Adds a row.
    #[inline]
    pub fn row(&mut self, row: &AckRow) {
        with_form!(self.codec, &mut self.out, |form| ack_row(form, row));
        self.rows += 1;
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The message.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        with_form!(self.codec, &mut self.out, |form| {
            form.close_array(self.mark, self.rows);
            form.end_map();
        });
        self.out
    }
}

/// What a `deliver` says about its frame.
#[derive(Clone, Copy, Debug)]
pub struct DeliverHead<'a> {
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// Where it resumes after this frame.
    pub cursor: &'a str,
    /// Who appended the frame first.
    pub origin: Origin,
    /// Which of its frames it is.
    pub sequence: Sequence,
    /// The frame's hybrid timestamp, in milliseconds since 1970.
    pub timestamp: u64,
}

/// What a `deliver` says about a part.
#[derive(Clone, Copy, Debug)]
pub struct PartHead {
    /// The partition.
    pub partition: PartitionId,
    /// Offset at which the part begins.
    pub offset: Offset,
    /// Index in the frame at which the part begins.
    pub index: u32,
}

/// Writes a `deliver`, part by part.
#[derive(Debug)]
pub struct DeliverEncoder {
    codec: Codec,
    out: Vec<u8>,
    mark: usize,
    parts: usize,
}

impl DeliverEncoder {
    /// Begins with room for `bytes` bytes of parts.
    #[must_use]
    pub fn begin(codec: Codec, head: &DeliverHead<'_>, bytes: usize) -> Self {
        let mut out = Vec::with_capacity(192 + head.cursor.len() + bytes);
        let mark = with_form!(codec, &mut out, |form| deliver_head(form, head));
        Self {
            codec,
            out,
            mark,
            parts: 0,
        }
    }

    /// Adds a part as a record batch, with its offset written in.
    pub fn batch(&mut self, part: &PartHead, batch: &Batch) {
        let prefix = batch.stored_prefix(part.offset);
        with_form!(self.codec, &mut self.out, |form| {
            part_head(form, part);
            form.batch(&prefix, &batch.bytes()[prefix.len()..]);
            form.end_map();
        });
        self.parts += 1;
    }

    /// Adds a part as records, those that pass the filter and whose index in the frame is among
    /// these; nothing when none does. Returns how many passed.
    ///
    /// # Errors
    /// When a record is malformed. The message is then as it was before.
    pub fn records(
        &mut self,
        part: &PartHead,
        records: Walk<'_>,
        keys: &KeyFilter<'_>,
        indexes: &Range<u32>,
    ) -> Result<usize, BatchError> {
        let before = self.out.len();
        let written = with_form!(self.codec, &mut self.out, |form| put_records(
            form, part, records, keys, indexes
        ));
        match written {
            Ok(1..) => self.parts += 1,
            _ => self.out.truncate(before),
        }
        written
    }

    /// Parts so far. A message without parts need not be sent.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// The message.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        with_form!(self.codec, &mut self.out, |form| {
            form.close_array(self.mark, self.parts);
            form.end_map();
        });
        self.out
    }
}

/// A `rows` message.
#[must_use]
pub fn encode_rows<'r>(
    codec: Codec,
    subscription: SubscriptionId,
    rows: impl Iterator<Item = (&'r [u8], &'r [u8])>,
) -> Vec<u8> {
    let mut out = Vec::new();
    with_form!(codec, &mut out, |form| {
        about(form, "rows", subscription, 1);
        form.name("rows");
        let mark = form.open_array();
        let mut count = 0;
        for (key, value) in rows {
            row(form, key, value);
            count += 1;
        }
        form.close_array(mark, count);
        form.end_map();
    });
    out
}

fn put_records(
    form: &mut impl Form,
    part: &PartHead,
    records: Walk<'_>,
    keys: &KeyFilter<'_>,
    indexes: &Range<u32>,
) -> Result<usize, BatchError> {
    part_head(form, part);
    form.name("records");
    let mark = form.open_array();
    let mut count = 0;
    for record in records {
        let record = record?;
        let index = part.index.saturating_add(record.offset_delta);
        if index >= indexes.end {
            break;
        }
        if index >= indexes.start && keys.passes(record.key) {
            let offset = part.offset.advance(u64::from(record.offset_delta));
            Fields::from(&record).put(form, Some(offset.get()));
            count += 1;
        }
    }
    form.close_array(mark, count);
    form.end_map();
    Ok(count)
}

/// Up to and including the opening of the rows.
pub(super) fn ack_head(form: &mut impl Form, head: &AckHead<'_>) -> usize {
    form.message(6);
    form.named_str("type", "ack");
    form.named_str("origin", &head.origin.to_string());
    form.named_uint("sequence", head.sequence.get());
    form.named_str("durability", head.durability.as_str());
    form.named_str("token", head.token);
    form.name("acks");
    form.open_array()
}

#[inline]
pub(super) fn ack_row(form: &mut impl Form, row: &AckRow) {
    form.array(5);
    form.uint(row.id);
    form.uint(u64::from(row.partition.get()));
    match row.offset {
        Some(offset) => form.uint(offset.get()),
        None => form.nil(),
    }
    form.uint(u64::from(row.records));
    match row.index {
        Some(index) => form.uint(u64::from(index)),
        None => form.nil(),
    }
    form.end_array();
}

/// Up to and including the opening of the parts.
pub(super) fn deliver_head(form: &mut impl Form, head: &DeliverHead<'_>) -> usize {
    about(form, "deliver", head.subscription, 5);
    form.named_str("cursor", head.cursor);
    form.named_str("origin", &head.origin.to_string());
    form.named_uint("sequence", head.sequence.get());
    form.named_uint("timestamp", head.timestamp);
    form.name("parts");
    form.open_array()
}

/// Up to the payload.
pub(super) fn part_head(form: &mut impl Form, head: &PartHead) {
    form.map(4);
    form.named_uint("partition", head.partition.get());
    form.named_uint("offset", head.offset.get());
    form.named_uint("index", head.index);
}
