//! From what is in the log to the state that wrote it.

use hashbrown::HashMap;

use super::{Head, Sequencer};
use crate::frame::{Commit, FrameError};
use crate::gap::Gap;
use crate::id::{Offset, Origin, PartitionId, Position, Sequence, StreamId};
use crate::wire::Malformed;

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

impl Sequencer {
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
        self.members.note(header, &commit.parts);
        self.advance(commit);
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
        self.pass(gap);
        Ok(())
    }

    /// Moves on by a gap, but for the offsets that it names.
    pub(super) fn pass(&mut self, gap: &Gap) {
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
        let wanted = self.awaited.entry(gap.origin).or_default();
        wanted.merge(&gap.context);
        self.forget_awaited();
        self.next_position = gap.next_position();
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
}
