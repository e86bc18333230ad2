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

use hashbrown::HashMap;

use crate::batch::Batch;
use crate::clock::{HybridClock, HybridTimestamp};
use crate::frame::{Chain, Commit, CommitPart, FrameHeader, PartHeader};
use crate::id::{Offset, Origin, PartitionId, Position, Sequence, StreamId};
use crate::limits::{MAX_FRAME_BYTES, MAX_FRAME_PARTS, TARGET_FRAME_BYTES};
use crate::members::Members;
use crate::producer::{ProducerError, ProducerTable, Verdict};
use crate::stability::Report;
use crate::vector::VersionVector;

mod checkpoint;
mod foreign;
mod replay;

pub use foreign::{AcceptError, Foreign, WrongPart};
pub use replay::ReplayError;

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
    /// Frames of other identities that no own frame has named in its context yet, up to the last
    /// one of each of which there was anything here. Nothing that is written here can follow from
    /// a frame of which nothing came; and where it may be held, it may take long to come.
    news: VersionVector,
    /// What frames followed of which only a gap came, as far as it is not here yet. The next frame
    /// of their origin follows it too, and does not say so again.
    awaited: BTreeMap<Origin, VersionVector>,
    offsets: HashMap<(StreamId, PartitionId), Offset>,
    producers: ProducerTable,
    members: Members,
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
            awaited: BTreeMap::new(),
            offsets: HashMap::new(),
            producers: ProducerTable::default(),
            members: Members::default(),
        }
    }

    /// Which brokers the log names as members.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
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

    /// The last frame of every origin.
    pub fn heads(&self) -> impl Iterator<Item = (Origin, Head)> {
        self.heads.iter().map(|(&origin, &head)| (origin, head))
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

    fn advance(&mut self, commit: &Commit) {
        let header = &commit.header;
        let head = Head {
            sequence: header.sequence,
            chain: header.chain,
        };
        let is_stub = commit.parts.iter().all(|part| part.batch.is_none());
        self.hear(header.origin, head, is_stub);
        self.next_position = self.next_position.next();
    }

    /// Notes the last frame of an origin. An own one has told of all others before it.
    fn hear(&mut self, origin: Origin, head: Head, is_stub: bool) {
        self.heads.insert(origin, head);
        if origin != self.origin {
            if !is_stub {
                self.news.advance(origin, head.sequence);
            }
        } else if !self.news.is_empty() {
            self.news = VersionVector::EMPTY;
        }
        if !self.awaited.is_empty() {
            // What a frame of this origin waited for was there, or it would not be here.
            self.awaited.remove(&origin);
            self.forget_awaited();
        }
    }

    /// Nobody waits any more for what has come.
    fn forget_awaited(&mut self) {
        let heads = &self.heads;
        let is_here = |(origin, sequence)| {
            let head: Option<&Head> = heads.get(&origin);
            head.is_some_and(|head| head.sequence >= sequence)
        };
        self.awaited.retain(|_, wanted| {
            *wanted = wanted.iter().filter(|&frame| !is_here(frame)).collect();
            !wanted.is_empty()
        });
    }
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
    /// Which brokers the log names as members, without what this frame says.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.sequencer.members
    }

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
        state.members.note(&header, &parts);
        let commit = Commit {
            position: state.next_position,
            header,
            header_bytes,
            parts,
        };
        state.advance(&commit);
        Some(commit)
    }
}

#[cfg(test)]
mod gaps;
#[cfg(test)]
mod regions;
#[cfg(test)]
mod tests;
