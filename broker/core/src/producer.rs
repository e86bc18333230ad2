//! Idempotent producers: a retried publish counts once.
//!
//! The rules are Kafka's. A producer numbers its records per (stream, partition); a batch that
//! continues the numbers is new, one that repeats them is a duplicate, one that skips some is
//! refused. The table is a fold of the log, so it survives a restart like everything else.

use std::collections::VecDeque;

use bytes::BufMut;
use hashbrown::HashMap;

use crate::id::{Offset, PartitionId, Position, StreamId};
use crate::limits::{MAX_PRODUCERS, PRODUCER_WINDOW};
use crate::wire::{Malformed, Reader, put_varint};

/// What an idempotent producer writes on a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerStamp {
    /// Chosen at random by the producer, below 2^63.
    pub id: u64,
    /// Raised by a producer that takes over from a former self.
    pub epoch: u16,
    /// Number of the batch's first record, counted per (stream, partition), below 2^31.
    pub sequence: u32,
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not seen before.
    New,
    /// Appended already, at this offset if that is still remembered.
    Duplicate(Option<Offset>),
}

/// Why a producer's batch was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// A newer epoch of the same producer has written.
    #[error("producer {id} with epoch {epoch} was replaced by epoch {current}")]
    Fenced {
        /// Producer id.
        id: u64,
        /// Epoch of the batch.
        epoch: u16,
        /// Newest epoch seen.
        current: u16,
    },
    /// Records before this batch are missing.
    #[error(
        "producer {id} sent sequence {got} but {expected} comes next; publish the missing records first"
    )]
    Gap {
        /// Producer id.
        id: u64,
        /// Sequence of the batch.
        got: u32,
        /// Sequence that continues.
        expected: u32,
    },
}

type Key = (u64, StreamId, PartitionId);

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    epoch: u16,
    /// Sequence that continues.
    next: u32,
    /// Where its latest batches begin: (sequence, records, offset).
    recent: VecDeque<(u32, u32, Offset)>,
    last_used: Position,
}

/// Sequences wrap to zero after 2^31 - 1, as in Kafka.
const SEQUENCE_MODULUS: u32 = 1 << 31;

fn after(sequence: u32, records: u32) -> u32 {
    (sequence % SEQUENCE_MODULUS + records) % SEQUENCE_MODULUS
}

/// What each producer wrote last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerTable {
    states: HashMap<Key, State>,
}

impl ProducerTable {
    /// Judges a batch without changing anything.
    ///
    /// # Errors
    /// When it is fenced or leaves a gap.
    pub fn judge(
        &self,
        stream: StreamId,
        partition: PartitionId,
        stamp: ProducerStamp,
        records: u32,
    ) -> Result<Verdict, ProducerError> {
        let Some(state) = self.states.get(&(stamp.id, stream, partition)) else {
            // Unknown or forgotten: nothing to compare with.
            return Ok(Verdict::New);
        };
        if stamp.epoch < state.epoch {
            return Err(ProducerError::Fenced {
                id: stamp.id,
                epoch: stamp.epoch,
                current: state.epoch,
            });
        }
        if stamp.epoch > state.epoch || stamp.sequence == state.next {
            return Ok(Verdict::New);
        }
        let known = state
            .recent
            .iter()
            .find(|&&(s, n, _)| s == stamp.sequence && n == records);
        if let Some(&(_, _, offset)) = known {
            return Ok(Verdict::Duplicate(Some(offset)));
        }
        let end = after(stamp.sequence, records);
        if behind(end, state.next) {
            return Ok(Verdict::Duplicate(None));
        }
        Err(ProducerError::Gap {
            id: stamp.id,
            got: stamp.sequence,
            expected: state.next,
        })
    }

    /// Notes a batch that was appended.
    pub fn note(
        &mut self,
        stream: StreamId,
        partition: PartitionId,
        stamp: ProducerStamp,
        records: u32,
        offset: Offset,
        position: Position,
    ) {
        if self.states.len() >= MAX_PRODUCERS {
            self.forget_the_stalest();
        }
        let fresh = || State {
            epoch: stamp.epoch,
            next: 0,
            recent: VecDeque::new(),
            last_used: position,
        };
        let state = self
            .states
            .entry((stamp.id, stream, partition))
            .or_insert_with(fresh);
        if stamp.epoch != state.epoch {
            *state = fresh();
        }
        if state.recent.len() == PRODUCER_WINDOW {
            state.recent.pop_front();
        }
        state.recent.push_back((stamp.sequence, records, offset));
        state.next = after(stamp.sequence, records);
        state.last_used = position;
    }

    /// Producers remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Forgets an eighth at once, so that the sort is paid rarely.
    fn forget_the_stalest(&mut self) {
        let mut ages: Vec<_> = self.states.values().map(|state| state.last_used).collect();
        let (_, &mut horizon, _) = ages.select_nth_unstable(MAX_PRODUCERS / 8);
        self.states.retain(|_, state| state.last_used > horizon);
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut states: Vec<_> = self.states.iter().collect();
        states.sort_unstable_by_key(|&(key, _)| *key);
        put_varint(out, states.len() as u64);
        for (&(id, stream, partition), state) in states {
            out.put_u64_le(id);
            out.put_u64_le(stream.get());
            out.put_u16_le(partition.get());
            out.put_u16_le(state.epoch);
            out.put_u32_le(state.next);
            put_varint(out, state.last_used.get());
            put_varint(out, state.recent.len() as u64);
            for &(sequence, records, offset) in &state.recent {
                out.put_u32_le(sequence);
                put_varint(out, u64::from(records));
                put_varint(out, offset.get());
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut table = Self::default();
        for _ in 0..reader.varint()? {
            let id = reader.u64()?;
            let stream = StreamId::new(reader.u64()?);
            let partition = PartitionId::new(reader.u16()?);
            let mut state = State {
                epoch: reader.u16()?,
                next: reader.u32()?,
                last_used: Position::new(reader.varint()?),
                recent: VecDeque::new(),
            };
            for _ in 0..reader.varint()? {
                let sequence = reader.u32()?;
                let records = u32::try_from(reader.varint()?).map_err(|_| Malformed)?;
                state
                    .recent
                    .push_back((sequence, records, Offset::new(reader.varint()?)));
            }
            table.states.insert((id, stream, partition), state);
        }
        Ok(table)
    }
}

/// Whether `end` is at or before `next` on the circle of sequences.
fn behind(end: u32, next: u32) -> bool {
    let distance = (next + SEQUENCE_MODULUS - end) % SEQUENCE_MODULUS;
    distance < SEQUENCE_MODULUS / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: StreamId = StreamId::new(1);
    const PARTITION: PartitionId = PartitionId::new(0);

    fn stamp(epoch: u16, sequence: u32) -> ProducerStamp {
        ProducerStamp {
            id: 9,
            epoch,
            sequence,
        }
    }

    fn table_after(batches: &[(u32, u32)]) -> ProducerTable {
        let mut table = ProducerTable::default();
        for (n, &(sequence, records)) in batches.iter().enumerate() {
            let offset = Offset::new(u64::from(sequence));
            table.note(
                STREAM,
                PARTITION,
                stamp(1, sequence),
                records,
                offset,
                Position::new(n as u64),
            );
        }
        table
    }

    #[test]
    fn a_retry_is_a_duplicate_and_a_gap_is_refused() {
        let table = table_after(&[(0, 10), (10, 5)]);
        let judge = |s, n| table.judge(STREAM, PARTITION, stamp(1, s), n);
        assert_eq!(judge(15, 1), Ok(Verdict::New));
        assert_eq!(judge(10, 5), Ok(Verdict::Duplicate(Some(Offset::new(10)))));
        assert_eq!(judge(0, 5), Ok(Verdict::Duplicate(None)));
        assert!(matches!(
            judge(16, 1),
            Err(ProducerError::Gap { expected: 15, .. })
        ));
        assert!(
            matches!(judge(12, 10), Err(ProducerError::Gap { .. })),
            "half new, half old"
        );
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_starts_over() {
        let table = table_after(&[(0, 10)]);
        assert_eq!(
            table.judge(STREAM, PARTITION, stamp(2, 0), 1),
            Ok(Verdict::New)
        );
        let fenced = table.judge(STREAM, PARTITION, stamp(0, 10), 1);
        assert!(matches!(
            fenced,
            Err(ProducerError::Fenced { current: 1, .. })
        ));
    }

    #[test]
    fn sequences_wrap_as_in_kafka() {
        let last = SEQUENCE_MODULUS - 2;
        let table = table_after(&[(last, 4)]);
        assert_eq!(
            table.judge(STREAM, PARTITION, stamp(1, 2), 1),
            Ok(Verdict::New)
        );
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_stalest() {
        let mut table = ProducerTable::default();
        for id in 0..MAX_PRODUCERS as u64 + 10 {
            let stamp = ProducerStamp {
                id,
                epoch: 0,
                sequence: 0,
            };
            table.note(
                STREAM,
                PARTITION,
                stamp,
                1,
                Offset::new(0),
                Position::new(id),
            );
        }
        assert!(table.len() <= MAX_PRODUCERS);
        let newest = ProducerStamp {
            id: MAX_PRODUCERS as u64 + 9,
            epoch: 0,
            sequence: 0,
        };
        assert!(matches!(
            table.judge(STREAM, PARTITION, newest, 1),
            Ok(Verdict::Duplicate(_))
        ));
    }

    #[test]
    fn the_table_reads_back() {
        let table = table_after(&[(0, 10), (10, 5), (15, 1)]);
        let mut bytes = Vec::new();
        table.encode(&mut bytes);
        assert_eq!(ProducerTable::read(&mut Reader::new(&bytes)), Ok(table));
    }
}
