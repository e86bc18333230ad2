//! Publish messages made ahead of the clock, ready to be written to a socket.

use std::collections::HashMap;

use anabranch_core::batch::{BatchBuilder, NewRecord};
use anabranch_core::id::PartitionId;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{AckLevel, ClientMessage, Payload, Publish};
use anyhow::{Result, ensure};
use fastrand::Rng;

use crate::cli::Format;
use crate::keys::{self, KEY_BYTES, KeySpace, hexadecimal};
use crate::wire;

/// Shortest value: two quotes, the number, and a little of its own.
pub(crate) const SHORTEST_VALUE: usize = 24;

/// More than the envelope of one message, and of one record, takes.
const MESSAGE_OVERHEAD: usize = 160;
const RECORD_OVERHEAD: usize = 40;

/// What the messages are like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) stream: String,
    /// Records in each.
    pub(crate) batch: usize,
    /// Bytes of each value.
    pub(crate) value_bytes: usize,
    /// Records have no key when `None`.
    pub(crate) keys: Option<KeySpace>,
    pub(crate) format: Format,
}

impl Shape {
    /// Bytes of the key and value of a record.
    pub(crate) fn record_bytes(&self) -> usize {
        self.value_bytes + self.keys.as_ref().map_or(0, |_| KEY_BYTES)
    }
}

/// Messages, one after the other in memory. The `id` of each is its index.
#[derive(Debug)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    batch: usize,
    /// The key of every record.
    keys: Vec<u32>,
    values: Values,
}

impl Frames {
    /// Makes `count` messages. The same seed makes the same messages.
    pub(crate) fn build(shape: &Shape, count: usize, seed: u64) -> Result<Self> {
        ensure!(
            shape.value_bytes >= SHORTEST_VALUE,
            "values of {} bytes are too short to be told apart; --record-bytes must be at least {SHORTEST_VALUE}",
            shape.value_bytes
        );
        ensure!(count > 0 && shape.batch > 0, "there is nothing to send");
        let per_message = MESSAGE_OVERHEAD + shape.batch * (shape.record_bytes() + RECORD_OVERHEAD);
        let mut frames = Self {
            bytes: Vec::with_capacity(count * per_message),
            ends: Vec::with_capacity(count),
            batch: shape.batch,
            keys: Vec::with_capacity(shape.keys.as_ref().map_or(0, |_| count * shape.batch)),
            values: Values::new(shape.value_bytes),
        };
        let mut random = Rng::with_seed(seed);
        let mut scratch = Vec::new();
        for id in 0..count {
            frames.push(id as u64, shape, &mut random, &mut scratch)?;
        }
        Ok(frames)
    }

    fn push(
        &mut self,
        id: u64,
        shape: &Shape,
        random: &mut Rng,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let first = id * shape.batch as u64;
        let rows: Vec<_> = (first..first + shape.batch as u64)
            .map(|number| {
                let key = shape.keys.as_ref().map(|space| space.draw(number, random));
                self.keys.extend(key);
                (key.map(keys::text), self.values.value(number))
            })
            .collect();
        let payload = match shape.format {
            Format::Batch => Payload::Batch(batch_of(&rows)?.into()),
            Format::Records => Payload::Records(rows.iter().map(record_of).collect()),
        };
        let message = ClientMessage::Publish(Publish {
            id,
            stream: shape.stream.as_str().into(),
            partition: Some(PartitionId::new(0)),
            payload,
            producer: None,
            ack: AckLevel::Disk,
        });
        wire::put_message(&mut self.bytes, &message, scratch);
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Records in each message.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// The key of a record, by its number.
    pub(crate) fn key(&self, record: usize) -> Option<u32> {
        self.keys.get(record).copied()
    }

    /// Some messages from the one with index `first` on, at most `most`, as one piece of memory of
    /// about `bytes` at most; and how many they are.
    pub(crate) fn run(&self, first: usize, most: usize, bytes: usize) -> (&[u8], usize) {
        let begin = if first == 0 { 0 } else { self.ends[first - 1] };
        let last = (first + most).min(self.len());
        let fitting = self.ends[first..last].partition_point(|end| end - begin <= bytes);
        let taken = fitting.max(1);
        (&self.bytes[begin..self.ends[first + taken - 1]], taken)
    }

    /// The value that each key must have once `sent` messages have been sent, round and round.
    pub(crate) fn last_values(&self, sent: usize) -> HashMap<u32, Vec<u8>> {
        let mut last = HashMap::new();
        for message in sent.saturating_sub(self.len())..sent {
            let first = (message % self.len()) * self.batch;
            for (number, &key) in (first..).zip(&self.keys[first..first + self.batch]) {
                last.insert(key, number as u64);
            }
        }
        last.into_iter()
            .map(|(key, number)| (key, self.values.value(number)))
            .collect()
    }
}

type Row = (Option<[u8; KEY_BYTES]>, Vec<u8>);

fn batch_of(rows: &[Row]) -> Result<Vec<u8>> {
    let mut builder = BatchBuilder::with_capacity(rows.len() * RECORD_OVERHEAD);
    for (key, value) in rows {
        builder.push(&NewRecord {
            timestamp: RECORD_TIME,
            key: key.as_ref().map(|key| &key[..]),
            value: Some(value),
            ..NewRecord::default()
        })?;
    }
    Ok(builder.finish(None)?.bytes().to_vec())
}

fn record_of((key, value): &Row) -> Record<'_> {
    Record {
        key: key.as_ref().map(|key| key[..].into()),
        value: Some(value.into()),
        ..Record::default()
    }
}

/// What producers say of when their records happened: 2024-01-01.
const RECORD_TIME: i64 = 1_704_067_200_000;

/// Values: JSON strings with a number first and something that does not compress after it.
#[derive(Debug)]
pub(crate) struct Values {
    noise: Vec<u8>,
    bytes: usize,
}

impl Values {
    /// Longer than any window in which a compressor would find the same noise again.
    const NOISE_BYTES: usize = 1 << 20;

    pub(crate) fn new(bytes: usize) -> Self {
        let mut random = Rng::with_seed(2024);
        let length = Self::NOISE_BYTES + bytes;
        Self {
            noise: (0..length).map(|_| noise_byte(&mut random)).collect(),
            bytes,
        }
    }

    /// The value of a record.
    pub(crate) fn value(&self, number: u64) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.bytes);
        value.push(b'"');
        value.extend_from_slice(&hexadecimal(number));
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44;
        let begin = usize::try_from(scattered).expect("20 bits are a usize");
        let rest = self.bytes - value.len() - 1;
        value.extend_from_slice(&self.noise[begin..begin + rest]);
        value.push(b'"');
        value
    }

    /// The number of the record that has this value; `None` for a value of others.
    pub(crate) fn number_of(value: &[u8]) -> Option<usize> {
        let digits = std::str::from_utf8(value.get(1..17)?).ok()?;
        usize::from_str_radix(digits, 16).ok()
    }
}

fn noise_byte(random: &mut Rng) -> u8 {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    LETTERS[random.usize(..LETTERS.len())]
}

#[cfg(test)]
mod tests {
    use anabranch_core::batch::{Batch, Check};
    use anabranch_protocol::codec::{Codec, FrameKind};

    use super::*;

    fn shape(format: Format, keys: Option<u32>) -> Shape {
        Shape {
            stream: "s".to_owned(),
            batch: 10,
            value_bytes: 100,
            keys: keys.map(|keys| KeySpace::new(keys, None)),
            format,
        }
    }

    /// Numbers of all records, as a broker would read them.
    fn numbers(frames: &[u8]) -> Vec<usize> {
        let mut numbers = Vec::new();
        for payload in wire::unframed(frames) {
            let message = Codec::Msgpack
                .decode_client(FrameKind::Binary, &payload)
                .unwrap();
            let ClientMessage::Publish(publish) = message else {
                panic!("{message:?}")
            };
            match publish.payload {
                Payload::Batch(batch) => {
                    let batch = Batch::parse(batch.into_owned().into(), Check::Records).unwrap();
                    let records = batch.records().unwrap();
                    let values = records.iter().map(|record| record.unwrap().value.unwrap());
                    numbers.extend(values.map(|value| Values::number_of(value).unwrap()));
                }
                Payload::Records(records) => {
                    let values = records
                        .iter()
                        .map(|record| record.value.as_deref().unwrap());
                    numbers.extend(values.map(|value| Values::number_of(value).unwrap()));
                }
            }
        }
        numbers
    }

    #[test]
    fn a_broker_reads_what_was_made() {
        for format in [Format::Batch, Format::Records] {
            let frames = Frames::build(&shape(format, Some(7)), 3, 1).unwrap();
            assert_eq!(numbers(&frames.bytes), (0..30).collect::<Vec<_>>());
        }
    }

    #[test]
    fn runs_are_bounded_by_number_bytes_and_end() {
        let frames = Frames::build(&shape(Format::Batch, None), 4, 1).unwrap();
        let one = frames.ends[0];
        assert_eq!(frames.run(0, 3, usize::MAX).1, 3);
        assert_eq!(frames.run(2, 9, usize::MAX).1, 2);
        assert_eq!(frames.run(1, 9, 2 * one + 5).1, 2);
        assert_eq!(frames.run(1, 9, 1).1, 1);
        assert_eq!(
            numbers(frames.run(3, 1, usize::MAX).0),
            (30..40).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_last_value_of_a_key_is_the_one_sent_last() {
        let frames = Frames::build(&shape(Format::Batch, Some(3)), 2, 1).unwrap();
        let last = frames.last_values(3);
        assert_eq!(last.len(), 3);
        for (key, value) in last {
            let number = Values::number_of(&value).unwrap();
            let latest = frames.keys[..10].iter().rposition(|&other| other == key);
            let expected = latest
                .unwrap_or_else(|| frames.keys.iter().rposition(|&other| other == key).unwrap());
            assert_eq!(number, expected);
            assert_eq!(value, Values::new(100).value(number as u64));
        }
    }

    #[test]
    fn short_values_are_refused() {
        let mut shape = shape(Format::Batch, None);
        shape.value_bytes = 23;
        assert!(Frames::build(&shape, 1, 1).is_err());
        shape.value_bytes = 24;
        assert!(Frames::build(&shape, 1, 1).is_ok());
    }
}
