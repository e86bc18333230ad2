//! What is left of frames of which nothing is left: where they were, and where their origin's
//! chain, context and offsets go on behind them.
//!
//! ```text
//! broker u64, epoch u32, first sequence, frames, timestamp u64, chain, 32 bytes,
//! context: length, bytes, then a count of partitions, and for each:
//! stream u64, partition u16, base offset, records
//! ```
//!
//! Little-endian; numbers without a size are varints.

use bytes::BufMut;

use crate::clock::HybridTimestamp;
use crate::frame::{Chain, Commit};
use crate::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Position, Sequence, StreamId};
use crate::limits::MAX_GAP_PARTITIONS;
use crate::vector::VersionVector;
use crate::wire::{Malformed, Reader, put_varint};

/// Frames of one origin that follow each other in a log, and were dropped whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Place of the first of them.
    pub position: Position,
    /// Whose frames.
    pub origin: Origin,
    /// The first of them.
    pub first: Sequence,
    /// How many. Their sequences are dense.
    pub frames: u64,
    /// The greatest stamp of their records.
    pub timestamp: HybridTimestamp,
    /// The origin's chain, the last of them included.
    pub chain: Chain,
    /// The difference of the last one's context to that of the frame before the first.
    pub context: VersionVector,
    /// Offsets that are gone.
    pub parts: Vec<GapPart>,
}

/// Offsets of one partition that are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GapPart {
    /// Of which stream.
    pub stream: StreamId,
    /// Of which of its partitions.
    pub partition: PartitionId,
    /// The first of them.
    pub base_offset: Offset,
    /// How many.
    pub records: u64,
}

/// The greatest sequence that a gap may reach: at a million frames a second it takes two thousand years.
const MOST_FRAMES: u64 = 1 << 56;

impl Gap {
    /// The last frame.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence::new(self.first.get() + self.frames - 1)
    }

    /// The place after it.
    #[must_use]
    pub fn next_position(&self) -> Position {
        Position::new(self.position.get() + self.frames)
    }

    /// What of it comes after a frame of its origin: nothing, its end or all of it. The context
    /// stays; so it may name frames that those that are left did not name.
    #[must_use]
    pub fn beyond(mut self, held: Sequence) -> Option<Self> {
        if self.last() <= held {
            return None;
        }
        let known = held.next().get().saturating_sub(self.first.get());
        self.position = Position::new(self.position.get() + known);
        self.first = self.first.max(held.next());
        self.frames -= known;
        Some(self)
    }

    /// Appends all but the position.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.origin.broker.get());
        out.put_u32_le(self.origin.epoch.get());
        put_varint(out, self.first.get());
        put_varint(out, self.frames);
        out.put_u64_le(self.timestamp.get());
        out.put_slice(self.chain.as_bytes());
        let mut context = Vec::new();
        self.context.encode(&mut context);
        put_varint(out, context.len() as u64);
        out.put_slice(&context);
        put_varint(out, self.parts.len() as u64);
        for part in &self.parts {
            out.put_u64_le(part.stream.get());
            out.put_u16_le(part.partition.get());
            put_varint(out, part.base_offset.get());
            put_varint(out, part.records);
        }
    }

    /// Reads what [`Gap::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(position: Position, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let origin = Origin {
            broker: BrokerId::new(reader.u64()?),
            epoch: Epoch::new(reader.u32()?),
        };
        let (first, frames) = (reader.varint()?, reader.varint()?);
        let timestamp = HybridTimestamp::new(reader.u64()?);
        let mut chain = [0; 32];
        chain.copy_from_slice(reader.take(32)?);
        let length = usize::try_from(reader.varint()?).map_err(|_| Malformed)?;
        let context = VersionVector::decode(reader.take(length)?)?;
        let count = usize::try_from(reader.varint()?).map_err(|_| Malformed)?;
        if count > MAX_GAP_PARTITIONS || count > reader.remaining() {
            return Err(Malformed);
        }
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push(GapPart {
                stream: StreamId::new(reader.u64()?),
                partition: PartitionId::new(reader.u16()?),
                base_offset: Offset::new(reader.varint()?),
                records: reader.varint()?,
            });
        }
        // A peer that claims more than any log ever holds would use up the numbers of this one.
        let is_plausible = |end: u64| end <= MOST_FRAMES;
        let in_range = first > 0
            && frames > 0
            && first.checked_add(frames).is_some_and(is_plausible)
            && position.get().checked_add(frames).is_some()
            && parts
                .iter()
                .all(|p| p.base_offset.get().checked_add(p.records).is_some());
        if !reader.is_empty() || !in_range {
            return Err(Malformed);
        }
        Ok(Self {
            position,
            origin,
            first: Sequence::new(first),
            frames,
            timestamp,
            chain: Chain::new(chain),
            context,
            parts,
        })
    }
}

/// Gathers neighbours of which nothing is left, and says in how few gaps they fit: one for each
/// origin. The order between origins is forgotten; together they stand for all that was there.
#[derive(Debug, Default)]
pub struct GapBuilder {
    first: Position,
    frames: u64,
    gaps: Vec<Gap>,
    parts: Vec<GapPart>,
    /// Where in `parts` each partition is.
    place: hashbrown::HashMap<(StreamId, PartitionId), usize>,
}

impl GapBuilder {
    /// Whether nothing was added since the last [`GapBuilder::take`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether this many more partitions fit into one gap; if not, [`GapBuilder::take`] is due
    /// before they are added.
    #[must_use]
    pub fn fits(&self, partitions: usize) -> bool {
        self.parts.len() + partitions <= MAX_GAP_PARTITIONS
    }

    /// Adds the next frame, of which no batch is left.
    ///
    /// # Panics
    /// When it does not follow what was added before, or something of it is left.
    pub fn add(&mut self, commit: &Commit) {
        let header = &commit.header;
        assert!(commit.parts.iter().all(|part| part.batch.is_none()));
        let parts = commit.parts.iter().map(|part| GapPart {
            stream: part.header.stream,
            partition: part.header.partition,
            base_offset: part.base_offset,
            records: part.header.records.into(),
        });
        self.join(Gap {
            position: commit.position,
            origin: header.origin,
            first: header.sequence,
            frames: 1,
            timestamp: header.last_timestamp(),
            chain: header.chain,
            context: header.context.clone(),
            parts: parts.collect(),
        });
    }

    /// Adds the next gap.
    ///
    /// # Panics
    /// When it does not follow what was added before.
    pub fn join(&mut self, gap: Gap) {
        if self.is_empty() {
            self.first = gap.position;
        }
        let next = self.first.get() + self.frames;
        assert_eq!(gap.position.get(), next, "neighbours are added in order");
        self.frames += gap.frames;
        for &part in &gap.parts {
            self.join_part(part);
        }
        match self.gaps.iter_mut().find(|held| held.origin == gap.origin) {
            None => self.gaps.push(Gap {
                parts: Vec::new(),
                ..gap
            }),
            Some(held) => {
                assert_eq!(gap.first, held.last().next(), "sequences are dense");
                held.frames += gap.frames;
                held.timestamp = held.timestamp.max(gap.timestamp);
                held.chain = gap.chain;
                held.context.merge(&gap.context);
            }
        }
    }

    fn join_part(&mut self, part: GapPart) {
        let key = (part.stream, part.partition);
        let at = *self.place.entry(key).or_insert(self.parts.len());
        match self.parts.get_mut(at) {
            None => self.parts.push(part),
            Some(held) => {
                let next = held.base_offset.advance(held.records);
                assert_eq!(part.base_offset, next, "offsets are dense");
                held.records += part.records;
            }
        }
    }

    /// What was added, as gaps that follow each other; all offsets are with the last one.
    pub fn take(&mut self) -> Vec<Gap> {
        let mut gaps = std::mem::take(&mut self.gaps);
        let mut next = self.first;
        for gap in &mut gaps {
            gap.position = next;
            next = gap.next_position();
        }
        if let Some(last) = gaps.last_mut() {
            last.parts = std::mem::take(&mut self.parts);
        }
        *self = Self::default();
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, NewRecord};
    use crate::sequencer::{Foreign, Publish, Sequencer};
    use proptest::prelude::*;

    fn origin(broker: u64) -> Origin {
        Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        }
    }

    fn publish(partition: u16) -> Publish {
        let mut builder = BatchBuilder::default();
        builder.push(&NewRecord::default()).unwrap();
        Publish {
            stream: StreamId::new(5),
            partition: PartitionId::new(partition % 2),
            batch: builder.finish(None).unwrap(),
        }
    }

    fn write(writer: &mut Sequencer, partition: u16, now: u64) -> Commit {
        let mut frame = writer.open();
        frame.add(&[publish(partition)], &mut Vec::new()).unwrap();
        frame.close(now).unwrap()
    }

    /// The log of a broker that writes, and takes over frames of two others.
    fn history(choices: &[(u8, u16)]) -> (Vec<Commit>, Sequencer) {
        let mut log = Sequencer::new(origin(0));
        let mut others = [1, 2].map(|n| Sequencer::new(origin(n)));
        let mut commits = Vec::new();
        for (now, &(writer, partition)) in choices.iter().enumerate() {
            let now = now as u64 + 1;
            commits.push(match usize::from(writer).checked_sub(1) {
                None => write(&mut log, partition, now),
                Some(other) => {
                    let commit = write(&mut others[other], partition, now);
                    log.accept(&Foreign::from(&commit), now).unwrap()
                }
            });
        }
        (commits, log)
    }

    proptest! {
        #[test]
        fn gaps_lead_to_the_state_of_the_frames_that_they_stand_for(
            choices in prop::collection::vec((0u8..3, 0u16..2), 1..40),
            cuts in prop::collection::vec(0usize..40, 0..4),
        ) {
            let (commits, reached) = history(&choices);
            let mut builder = GapBuilder::default();
            let mut gaps = Vec::new();
            for (number, mut commit) in commits.into_iter().enumerate() {
                if cuts.contains(&number) {
                    gaps.extend(builder.take());
                }
                for part in &mut commit.parts {
                    part.batch = None;
                }
                builder.add(&commit);
            }
            gaps.extend(builder.take());
            // Neighbouring gaps can be joined again, into one for each origin.
            for gap in gaps.clone() {
                builder.join(gap);
            }
            let joined = builder.take();
            prop_assert!(joined.len() <= 3 && builder.is_empty());
            for gaps in [gaps, joined] {
                let mut state = Sequencer::new(origin(0));
                for gap in gaps {
                    let mut bytes = Vec::new();
                    gap.encode(&mut bytes);
                    prop_assert_eq!(&Gap::decode(gap.position, &bytes).unwrap(), &gap);
                    state.pass_over(&gap).unwrap();
                }
                prop_assert_eq!(state.next_position(), reached.next_position());
                prop_assert_eq!(state.last_timestamp(), reached.last_timestamp());
                for origin in [0, 1, 2].map(origin) {
                    prop_assert_eq!(state.head(origin), reached.head(origin));
                }
                for partition in [0, 1].map(PartitionId::new) {
                    let next = state.next_offset(StreamId::new(5), partition);
                    prop_assert_eq!(next, reached.next_offset(StreamId::new(5), partition));
                }
                // The next own frame tells of all that it would have told of, or of more of it.
                let told = write(&mut state, 0, 100).header.context;
                prop_assert!(told.covers(&write(&mut reached.clone(), 0, 100).header.context));
                prop_assert!(reached.vector().covers(&told));
            }
        }

        #[test]
        fn bytes_that_are_no_gap_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(gap) = Gap::decode(Position::new(0), &bytes) {
                prop_assert!(gap.frames > 0);
            }
        }
    }

    #[test]
    fn a_gap_cut_short_is_refused() {
        let (mut commits, _) = history(&[(0, 0), (0, 1)]);
        let mut builder = GapBuilder::default();
        for commit in &mut commits {
            commit.parts[0].batch = None;
            builder.add(commit);
        }
        let gap = builder.take().remove(0);
        let mut bytes = Vec::new();
        gap.encode(&mut bytes);
        for length in 0..bytes.len() {
            assert!(Gap::decode(gap.position, &bytes[..length]).is_err());
        }
        assert_eq!((gap.frames, gap.parts.len()), (2, 2));
    }
}
