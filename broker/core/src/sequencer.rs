//! Publishes in, one frame out: the only place that assigns sequences, offsets and stamps.
//!
//! ```text
//! let mut open = sequencer.open();
//! open.add(&publishes)?;            // as often as there is room
//! let commit = open.close(now_ms);  // then append, sync, acknowledge
//! ```
//!
//! What it remembers is a fold of the log: [`Sequencer::replay`] over the commits of a log leads
//! to the state that wrote them, and [`Sequencer::checkpoint`] saves replaying from the start.

use std::collections::BTreeMap;

use bytes::BufMut;
use hashbrown::HashMap;

use crate::batch::Batch;
use crate::clock::{HybridClock, HybridTimestamp};
use crate::frame::{Chain, Commit, CommitPart, FrameError, FrameHeader, PartHeader};
use crate::gap::Gap;
use crate::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Position, Sequence, StreamId};
use crate::limits::{MAX_FRAME_BYTES, MAX_FRAME_PARTS, TARGET_FRAME_BYTES};
use crate::producer::{ProducerError, ProducerTable, Verdict};
use crate::stability::Report;
use crate::vector::VersionVector;
use crate::wire::{Malformed, Reader, put_varint};

mod foreign;

pub use foreign::{AcceptError, Foreign, WrongPart};

/// A batch on its way into the log.
#[derive(Clone, Debug)]
pub struct Publish {
    /// To which stream.
    pub stream: StreamId,
    /// To which of its partitions.
    pub partition: PartitionId,
    /// The records.
    pub batch: Batch,
}

/// Where a publish went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// Into this frame.
    Appended {
        /// Offset of its first record.
        base_offset: Offset,
        /// Index in the frame of its first record.
        first_index: u32,
    },
    /// It was there already, at this offset if that is still remembered.
    Duplicate {
        /// Offset of its first record.
        base_offset: Option<Offset>,
    },
}

/// Why a group of publishes was refused. Nothing of it was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// The idempotent producer is at fault.
    #[error(transparent)]
    Producer(#[from] ProducerError),
    /// It would not fit even an empty frame.
    #[error(
        "{bytes} bytes in {parts} batches are too much for one transaction; allowed are {MAX_FRAME_BYTES} bytes in {MAX_FRAME_PARTS} batches"
    )]
    TooLarge {
        /// Bytes of all batches.
        bytes: usize,
        /// Number of batches.
        parts: usize,
    },
}

/// Why a log does not lead to a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A commit is not the next one.
    #[error("entry {got} follows where entry {expected} should be")]
    Position {
        /// The next one.
        expected: Position,
        /// The one that came.
        got: Position,
    },
    /// An origin's sequences have a gap.
    #[error("frame {got} of {origin} follows its frame {held}")]
    Gap {
        /// Whose frame.
        origin: Origin,
        /// Its last one.
        held: Sequence,
        /// The one that came.
        got: Sequence,
    },
    /// Offsets have a gap.
    #[error(
        "stream {stream} partition {partition} continues at offset {got} instead of {expected}"
    )]
    Offset {
        /// Stream.
        stream: StreamId,
        /// Partition.
        partition: PartitionId,
        /// The next one.
        expected: Offset,
        /// The one that came.
        got: Offset,
    },
    /// The hash chain is broken.
    #[error(transparent)]
    Chain(#[from] FrameError),
    /// A checkpoint does not read.
    #[error("the checkpoint of a sealed segment is malformed")]
    Checkpoint,
}

impl From<Malformed> for ReplayError {
    fn from(_: Malformed) -> Self {
        Self::Checkpoint
    }
}

/// The last frame held of an origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Its sequence.
    pub sequence: Sequence,
    /// The chain up to it.
    pub chain: Chain,
}

const NO_HEAD: Head = Head {
    sequence: Sequence::NONE,
    chain: Chain::START,
};

/// Everything that decides the next frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequencer {
    origin: Origin,
    next_position: Position,
    clock: Clock,
    heads: BTreeMap<Origin, Head>,
    /// Frames of other identities that no own frame has named in its context yet.
    news: VersionVector,
    offsets: HashMap<(StreamId, PartitionId), Offset>,
    producers: ProducerTable,
}

/// [`HybridClock`] with equality, for the assertion that replay leads to the same state.
#[derive(Clone, Debug)]
struct Clock(HybridClock);

impl PartialEq for Clock {
    fn eq(&self, other: &Self) -> bool {
        self.0.last() == other.0.last()
    }
}

impl Sequencer {
    /// The state before the first frame.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            next_position: Position::new(0),
            clock: Clock(HybridClock::default()),
            heads: BTreeMap::new(),
            news: VersionVector::EMPTY,
            offsets: HashMap::new(),
            producers: ProducerTable::default(),
        }
    }

    /// Under which identity it writes.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Writes under a new identity from now on.
    ///
    /// # Panics
    /// When the identity has written before: a sequence must never be reused.
    pub fn take_origin(&mut self, origin: Origin) {
        assert!(
            !self.heads.contains_key(&origin),
            "{origin} has written before"
        );
        self.origin = origin;
        // It has told of nothing yet, not even of what this broker wrote under earlier ones.
        self.news = self.vector();
    }

    /// Most bytes that the context of the next frame takes.
    #[must_use]
    pub fn context_bytes(&self) -> usize {
        self.news.encoded_bytes()
    }

    /// Place of the next commit.
    #[must_use]
    pub fn next_position(&self) -> Position {
        self.next_position
    }

    /// The offset that the next record of a partition gets.
    #[must_use]
    pub fn next_offset(&self, stream: StreamId, partition: PartitionId) -> Offset {
        self.offsets
            .get(&(stream, partition))
            .copied()
            .unwrap_or_default()
    }

    /// The offset that comes next, of every partition that has had a record, in no order.
    pub fn next_offsets(&self) -> impl Iterator<Item = ((StreamId, PartitionId), Offset)> {
        self.offsets.iter().map(|(&key, &offset)| (key, offset))
    }

    /// Everything sequenced so far.
    #[must_use]
    pub fn vector(&self) -> VersionVector {
        self.heads
            .iter()
            .map(|(&origin, head)| (origin, head.sequence))
            .collect()
    }

    /// The last frame of an origin.
    #[must_use]
    pub fn head(&self, origin: Origin) -> Head {
        self.heads.get(&origin).copied().unwrap_or(NO_HEAD)
    }

    /// Greatest stamp handed out or seen.
    #[must_use]
    pub fn last_timestamp(&self) -> HybridTimestamp {
        self.clock.0.last()
    }

    /// What other brokers may be told of what is here. All of it must be durable.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            broker: self.origin.broker,
            applied: self.vector(),
            // From the log alone, so that a restart keeps the promise.
            promise: self.clock.0.last(),
        }
    }

    /// Begins a frame. What is added to it takes effect at once; [`OpenFrame::close`] yields it.
    pub fn open(&mut self) -> OpenFrame<'_> {
        OpenFrame {
            sequencer: self,
            parts: Vec::new(),
            body: 0,
            records: 0,
        }
    }

    /// Takes over a commit that is in the log already.
    ///
    /// # Errors
    /// When it does not continue what was replayed so far.
    pub fn replay(&mut self, commit: &Commit) -> Result<(), ReplayError> {
        if commit.position != self.next_position {
            return Err(ReplayError::Position {
                expected: self.next_position,
                got: commit.position,
            });
        }
        let header = &commit.header;
        let head = self.head(header.origin);
        if header.sequence != head.sequence.next() {
            let (origin, got) = (header.origin, header.sequence);
            return Err(ReplayError::Gap {
                origin,
                held: head.sequence,
                got,
            });
        }
        header.verify_chain(head.chain, &commit.header_bytes)?;
        self.check_offsets(commit)?;
        for part in &commit.parts {
            self.note(part, commit.position);
        }
        self.clock.0.observe(header.last_timestamp());
        self.advance(header);
        Ok(())
    }

    /// Takes over what is left of frames that were dropped. The producers that they told of are
    /// forgotten with them.
    ///
    /// # Errors
    /// When they do not continue what was replayed so far.
    pub fn pass_over(&mut self, gap: &Gap) -> Result<(), ReplayError> {
        if gap.position != self.next_position {
            return Err(ReplayError::Position {
                expected: self.next_position,
                got: gap.position,
            });
        }
        let held = self.head(gap.origin).sequence;
        if gap.first != held.next() {
            let (origin, got) = (gap.origin, gap.first);
            return Err(ReplayError::Gap { origin, held, got });
        }
        for part in &gap.parts {
            let key = (part.stream, part.partition);
            let next = self.next_offset(part.stream, part.partition);
            if next != part.base_offset {
                return Err(ReplayError::Offset {
                    stream: part.stream,
                    partition: part.partition,
                    expected: next,
                    got: part.base_offset,
                });
            }
            self.offsets.insert(key, next.advance(part.records));
        }
        self.clock.0.observe(gap.timestamp);
        let head = Head {
            sequence: gap.last(),
            chain: gap.chain,
        };
        self.heads.insert(gap.origin, head);
        if gap.origin == self.origin {
            // The order of neighbouring gaps says nothing, so only what it names has been told.
            self.news = gap.context.missing_from(&self.news);
        } else {
            self.news.advance(gap.origin, gap.last());
        }
        self.next_position = gap.next_position();
        Ok(())
    }

    fn check_offsets(&self, commit: &Commit) -> Result<(), ReplayError> {
        let mut ahead: HashMap<(StreamId, PartitionId), Offset> = HashMap::new();
        for part in &commit.parts {
            let (stream, partition) = (part.header.stream, part.header.partition);
            let next = ahead
                .entry((stream, partition))
                .or_insert_with(|| self.next_offset(stream, partition));
            if *next != part.base_offset {
                let (expected, got) = (*next, part.base_offset);
                return Err(ReplayError::Offset {
                    stream,
                    partition,
                    expected,
                    got,
                });
            }
            *next = next.advance(u64::from(part.header.records));
        }
        Ok(())
    }

    fn note(&mut self, part: &CommitPart, position: Position) {
        let PartHeader {
            stream,
            partition,
            records,
            ..
        } = part.header;
        self.offsets.insert(
            (stream, partition),
            part.base_offset.advance(u64::from(records)),
        );
        if let Some(stamp) = part.batch.as_ref().and_then(Batch::producer) {
            self.producers.note(
                stream,
                partition,
                stamp,
                records,
                part.base_offset,
                position,
            );
        }
    }

    fn advance(&mut self, header: &FrameHeader) {
        let head = Head {
            sequence: header.sequence,
            chain: header.chain,
        };
        self.hear(header.origin, head);
        self.next_position = self.next_position.next();
    }

    /// Notes the last frame of an origin. An own one has told of all others before it.
    fn hear(&mut self, origin: Origin, head: Head) {
        self.heads.insert(origin, head);
        if origin != self.origin {
            self.news.advance(origin, head.sequence);
        } else if !self.news.is_empty() {
            self.news = VersionVector::EMPTY;
        }
    }

    /// The state as bytes, for the end of a sealed segment.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_origin(&mut out, self.origin);
        out.put_u64_le(self.next_position.get());
        out.put_u64_le(self.clock.0.last().get());
        put_varint(&mut out, self.heads.len() as u64);
        for (&origin, head) in &self.heads {
            put_origin(&mut out, origin);
            out.put_u64_le(head.sequence.get());
            out.put_slice(head.chain.as_bytes());
        }
        self.news.encode(&mut out);
        let mut offsets: Vec<_> = self.offsets.iter().collect();
        offsets.sort_unstable();
        put_varint(&mut out, offsets.len() as u64);
        for (&(stream, partition), offset) in offsets {
            out.put_u64_le(stream.get());
            out.put_u16_le(partition.get());
            put_varint(&mut out, offset.get());
        }
        self.producers.encode(&mut out);
        out
    }

    /// The state that a checkpoint was made of.
    ///
    /// # Errors
    /// When the bytes are no checkpoint.
    pub fn restore(checkpoint: &[u8]) -> Result<Self, ReplayError> {
        let mut reader = Reader::new(checkpoint);
        let mut state = Self::new(read_origin(&mut reader)?);
        state.next_position = Position::new(reader.u64()?);
        state.clock.0.observe(HybridTimestamp::new(reader.u64()?));
        for _ in 0..reader.varint()? {
            let origin = read_origin(&mut reader)?;
            let sequence = Sequence::new(reader.u64()?);
            let mut chain = [0; 32];
            chain.copy_from_slice(reader.take(32)?);
            state.heads.insert(
                origin,
                Head {
                    sequence,
                    chain: Chain::new(chain),
                },
            );
        }
        state.news = VersionVector::read(&mut reader)?;
        for _ in 0..reader.varint()? {
            let key = (
                StreamId::new(reader.u64()?),
                PartitionId::new(reader.u16()?),
            );
            state.offsets.insert(key, Offset::new(reader.varint()?));
        }
        state.producers = ProducerTable::read(&mut reader)?;
        if reader.is_empty() {
            Ok(state)
        } else {
            Err(ReplayError::Checkpoint)
        }
    }
}

fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    out.put_u64_le(origin.broker.get());
    out.put_u32_le(origin.epoch.get());
}

fn read_origin(reader: &mut Reader<'_>) -> Result<Origin, Malformed> {
    Ok(Origin {
        broker: BrokerId::new(reader.u64()?),
        epoch: Epoch::new(reader.u32()?),
    })
}

/// A frame that is being filled.
#[derive(Debug)]
pub struct OpenFrame<'a> {
    sequencer: &'a mut Sequencer,
    parts: Vec<CommitPart>,
    body: usize,
    records: u32,
}

impl OpenFrame<'_> {
    /// Whether a group of publishes of this size may still join. The first one always may.
    #[must_use]
    pub fn has_room(&self, bytes: usize, parts: usize) -> bool {
        self.parts.is_empty()
            || (self.body + bytes <= TARGET_FRAME_BYTES
                && self.parts.len() + parts <= MAX_FRAME_PARTS)
    }

    /// Adds a group that becomes visible together. Appends one [`Placed`] for each to `placed`.
    ///
    /// # Errors
    /// When it is refused; then the frame is as it was before.
    pub fn add(
        &mut self,
        group: &[Publish],
        placed: &mut Vec<Placed>,
    ) -> Result<(), SequenceError> {
        let bytes = group.iter().map(|publish| publish.batch.len()).sum();
        if bytes > MAX_FRAME_BYTES || group.len() > MAX_FRAME_PARTS {
            return Err(SequenceError::TooLarge {
                bytes,
                parts: group.len(),
            });
        }
        assert!(
            self.has_room(bytes, group.len()),
            "the caller asks for room first"
        );
        for publish in group {
            if let Some(stamp) = publish.batch.producer() {
                let Publish {
                    stream, partition, ..
                } = *publish;
                self.sequencer
                    .producers
                    .judge(stream, partition, stamp, publish.batch.count())?;
            }
        }
        for publish in group {
            placed.push(self.place(publish));
        }
        Ok(())
    }

    /// Judged before, so a refusal can only mean that the group repeats itself.
    fn place(&mut self, publish: &Publish) -> Placed {
        let Publish {
            stream,
            partition,
            ref batch,
        } = *publish;
        let records = batch.count();
        if let Some(stamp) = batch.producer() {
            match self
                .sequencer
                .producers
                .judge(stream, partition, stamp, records)
            {
                Ok(Verdict::New) => {}
                Ok(Verdict::Duplicate(base_offset)) => return Placed::Duplicate { base_offset },
                Err(_) => return Placed::Duplicate { base_offset: None },
            }
        }
        let length = u32::try_from(batch.len()).expect("a batch is at most 8 MiB");
        let part = CommitPart {
            header: PartHeader {
                stream,
                partition,
                records,
                length,
                crc: batch.crc(),
            },
            base_offset: self.sequencer.next_offset(stream, partition),
            first_index: self.records,
            batch: Some(batch.clone()),
        };
        self.sequencer.note(&part, self.sequencer.next_position);
        let placed = Placed::Appended {
            base_offset: part.base_offset,
            first_index: part.first_index,
        };
        self.body += batch.len();
        self.records += records;
        self.parts.push(part);
        placed
    }

    /// Bytes of records gathered so far.
    #[must_use]
    pub fn body_length(&self) -> usize {
        self.body
    }

    /// The last frame of the identity that writes, this one not included.
    #[must_use]
    pub fn head(&self) -> Head {
        self.sequencer.head(self.sequencer.origin)
    }

    /// Ends the frame and begins the next.
    #[must_use]
    pub fn turn(mut self, now_ms: u64) -> (Option<Commit>, Self) {
        let commit = self.end(now_ms);
        let next = Self {
            sequencer: self.sequencer,
            parts: Vec::new(),
            body: 0,
            records: 0,
        };
        (commit, next)
    }

    /// Ends the frame. `None` when everything in it was there already. `now_ms` is the wall clock.
    #[must_use]
    pub fn close(mut self, now_ms: u64) -> Option<Commit> {
        self.end(now_ms)
    }

    fn end(&mut self, now_ms: u64) -> Option<Commit> {
        if self.parts.is_empty() {
            return None;
        }
        let parts = std::mem::take(&mut self.parts);
        let state = &mut *self.sequencer;
        let head = state.head(state.origin);
        let mut header = FrameHeader {
            origin: state.origin,
            sequence: head.sequence.next(),
            timestamp: state.clock.0.take(now_ms, self.records),
            context: state.news.clone(),
            chain: head.chain,
            parts: parts.iter().map(|part| part.header).collect(),
        };
        let header_bytes = header.seal(head.chain);
        let position = state.next_position;
        state.advance(&header);
        Some(Commit {
            position,
            header,
            header_bytes,
            parts,
        })
    }
}

#[cfg(test)]
mod regions;
#[cfg(test)]
mod tests;
