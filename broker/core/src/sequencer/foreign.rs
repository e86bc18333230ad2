//! Frames of other origins on their way into this broker's log: the same commits, without a
//! publish.

use bytes::Bytes;
use hashbrown::HashMap;

use super::Sequencer;
use crate::batch::Batch;
use crate::clock::HybridTimestamp;
use crate::frame::{Chain, Commit, CommitPart, FrameHeader};
use crate::gap::Gap;
use crate::id::{Origin, Sequence, StreamId};
use crate::limits::{MAX_CLOCK_AHEAD_MS, MAX_ORIGINS, SPARE_ORIGINS};
use crate::vector::VersionVector;

/// A frame that was relayed, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    header: FrameHeader,
    header_bytes: Bytes,
    batches: Vec<Option<Batch>>,
}

/// Why a frame is not taken over, at least not now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// It is there already.
    #[error("frame {sequence} of {origin} is there already")]
    Known {
        /// Whose frame.
        origin: Origin,
        /// Which one.
        sequence: Sequence,
    },
    /// Frames before it are not there yet.
    #[error("frame {got} of {origin} came after its frame {held}")]
    Early {
        /// Whose frame.
        origin: Origin,
        /// The last one that is there.
        held: Sequence,
        /// The one that came.
        got: Sequence,
    },
    /// Frames that its origin had applied when it wrote it are not there yet.
    #[error("frames that it follows are not there yet: {missing:?}")]
    Uncovered {
        /// Up to where they are wanted.
        missing: VersionVector,
    },
    /// It is stamped in the future.
    #[error("it is stamped {stamp:?}, more than {MAX_CLOCK_AHEAD_MS} ms ahead of the clock here")]
    Ahead {
        /// Its greatest stamp.
        stamp: HybridTimestamp,
    },
    /// It is of the identity that is being written under, and continues its chain: this broker has
    /// lost the end of its log.
    #[error("frame {sequence} of {origin} was written here, and this log has lost it")]
    Own {
        /// The identity that is being written under.
        origin: Origin,
        /// The frame.
        sequence: Sequence,
    },
    /// The same of a gap, of which nothing shows that it is true.
    #[error("frames up to {sequence} of {origin} are dropped elsewhere, and this log lacks them")]
    OwnGap {
        /// The identity that is being written under.
        origin: Origin,
        /// The last frame of the gap.
        sequence: Sequence,
        /// The chain that it claims there.
        chain: Chain,
    },
    /// It is of the identity that is being written under, and contradicts what was written here. By
    /// itself it shows nothing: who claims to hold it may just have made it up.
    #[error("frame {sequence} of {origin} does not continue what was written here under that name")]
    OwnFork {
        /// The identity that is being written under.
        origin: Origin,
        /// The frame.
        sequence: Sequence,
        /// Its chain.
        chain: Chain,
    },
    /// It is the first of its origin, and there are too many already.
    #[error(
        "frame of {origin}, of which there was none: there are frames of {MAX_ORIGINS} origins and more here, and a context has no room for others"
    )]
    TooManyOrigins {
        /// The one too many.
        origin: Origin,
    },
    /// It does not continue its origin's chain: one of the two logs was rolled back or forked.
    #[error("frame {sequence} of {origin} does not continue the chain that is held here")]
    Chain {
        /// Whose frame.
        origin: Origin,
        /// Which one.
        sequence: Sequence,
        /// Its chain.
        chain: Chain,
    },
}

impl AcceptError {
    /// Whether the same frame may be taken over later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Early { .. } | Self::Uncovered { .. } | Self::Ahead { .. }
        )
    }
}

/// Why parts are not those of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("part {part} is not the one that the frame's header names")]
pub struct WrongPart {
    /// Counted from 0.
    pub part: usize,
}

impl Foreign {
    /// Puts a frame together from what came over a link. `None` stands for a part that may not be
    /// held here, or of which retention has left nothing.
    ///
    /// # Errors
    /// When a batch is not the one that the header names.
    pub fn new(
        header: FrameHeader,
        header_bytes: Bytes,
        batches: Vec<Option<Batch>>,
    ) -> Result<Self, WrongPart> {
        let least = header.parts.len().min(batches.len());
        if header.parts.len() != batches.len() {
            return Err(WrongPart { part: least });
        }
        let wrong = header.parts.iter().zip(&batches).position(|(part, batch)| {
            batch.as_ref().is_some_and(|batch| {
                let whole = (batch.crc(), batch.len()) == (part.crc, part.length as usize);
                batch.offset_span() != part.records || !(whole || batch.is_compacted())
            })
        });
        match wrong {
            Some(part) => Err(WrongPart { part }),
            None => Ok(Self {
                header,
                header_bytes,
                batches,
            }),
        }
    }

    /// Bytes of header and parts.
    #[must_use]
    pub fn size(&self) -> usize {
        let bodies = self.batches.iter().flatten().map(Batch::len);
        self.header_bytes.len() + bodies.sum::<usize>()
    }

    /// Drops the batches of streams that are not to be kept.
    pub fn strip(&mut self, mut keep: impl FnMut(StreamId) -> bool) {
        for (part, batch) in self.header.parts.iter().zip(&mut self.batches) {
            if !keep(part.stream) {
                *batch = None;
            }
        }
    }

    /// Its parts, in the header's order.
    #[must_use]
    pub fn batches(&self) -> &[Option<Batch>] {
        &self.batches
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The header's bytes, as every broker stores them.
    #[must_use]
    pub fn header_bytes(&self) -> &Bytes {
        &self.header_bytes
    }
}

impl Sequencer {
    /// Takes over a frame that another origin wrote, if it follows all that its origin had applied
    /// when it wrote it. `now_ms` is the wall clock.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    /// After [`AcceptError::Own`] this broker must not write any more: it would give a sequence twice.
    pub fn accept(&mut self, frame: &Foreign, now_ms: u64) -> Result<Commit, AcceptError> {
        self.judge(frame, now_ms)?;
        Ok(self.take_over(frame))
    }

    /// Whether a frame may be taken over now.
    ///
    /// # Errors
    /// As [`Sequencer::accept`].
    pub fn judge(&self, frame: &Foreign, now_ms: u64) -> Result<(), AcceptError> {
        let header = &frame.header;
        let (origin, got) = (header.origin, header.sequence);
        let head = self.head(origin);
        if got <= head.sequence {
            return Err(self.judge_held(header));
        }
        self.check_origins(origin, 0)?;
        if got != head.sequence.next() {
            return Err(AcceptError::Early {
                origin,
                held: head.sequence,
                got,
            });
        }
        if origin == self.origin {
            return Err(self.judge_own(frame));
        }
        // What may pass is found out first: a frame that waits is judged again and again, and the
        // chain is the one check that takes time.
        let mut missing = self.lacks(&header.context);
        if let Some(wanted) = self.awaited.get(&origin) {
            missing.merge(wanted);
        }
        if !missing.is_empty() {
            return Err(AcceptError::Uncovered { missing });
        }
        let stamp = header.last_timestamp();
        if stamp.millis() > now_ms.saturating_add(MAX_CLOCK_AHEAD_MS) {
            return Err(AcceptError::Ahead { stamp });
        }
        continues(head.chain, frame)
    }

    /// What to make of a frame where one of its origin and sequence is held.
    fn judge_held(&self, header: &FrameHeader) -> AcceptError {
        let (origin, sequence, chain) = (header.origin, header.sequence, header.chain);
        let head = self.head(origin);
        match origin == self.origin && sequence == head.sequence && chain != head.chain {
            true => AcceptError::OwnFork {
                origin,
                sequence,
                chain,
            },
            false => AcceptError::Known { origin, sequence },
        }
    }

    /// What to make of the frame that comes next of the identity that is being written under.
    fn judge_own(&self, frame: &Foreign) -> AcceptError {
        let header = &frame.header;
        let (origin, sequence, chain) = (header.origin, header.sequence, header.chain);
        match continues(self.head(origin).chain, frame) {
            Ok(()) => AcceptError::Own { origin, sequence },
            Err(_) => AcceptError::OwnFork {
                origin,
                sequence,
                chain,
            },
        }
    }

    /// Whether a frame of this origin may come, beside the first ones of so many others.
    fn check_origins(&self, origin: Origin, others: usize) -> Result<(), AcceptError> {
        let is_new = origin != self.origin && !self.heads.contains_key(&origin);
        let most = match self.members.get(origin.broker) {
            Some(_) => MAX_ORIGINS + SPARE_ORIGINS,
            None => MAX_ORIGINS,
        };
        match is_new && self.heads.len() + others >= most {
            true => Err(AcceptError::TooManyOrigins { origin }),
            false => Ok(()),
        }
    }

    /// Takes over a frame that [`Sequencer::judge`] has just allowed.
    pub(crate) fn take_over(&mut self, frame: &Foreign) -> Commit {
        let commit = self.place_foreign(frame);
        for part in &commit.parts {
            self.note(part, commit.position);
        }
        self.clock.0.observe(frame.header.last_timestamp());
        self.members.note(&frame.header, &commit.parts);
        self.advance(&commit);
        commit
    }

    /// What of a context is not here.
    fn lacks(&self, context: &VersionVector) -> VersionVector {
        let beyond =
            |&(origin, sequence): &(Origin, Sequence)| self.head(origin).sequence < sequence;
        context.iter().filter(beyond).collect()
    }

    /// Takes over what is left of frames of other origins of which nothing is left, without what
    /// is here already. They get positions, but none of the offsets: no partition of this log
    /// counts them. `now_ms` is the wall clock.
    ///
    /// Nothing in a gap can be read, so it may come before what its frames followed. Its origin's
    /// next frame waits for that instead. So two gaps that name each other's frames, and come over
    /// two links, do not wait for each other.
    ///
    /// The chain at a gap's end is taken on trust. Nothing can prove it before the origin's next
    /// frame, which is refused if it does not continue it.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn accept_gaps(&mut self, gaps: &[Gap], now_ms: u64) -> Result<Vec<Gap>, AcceptError> {
        let lacking = self.judge_gaps(gaps, now_ms)?;
        let mut placed = Vec::with_capacity(lacking.len());
        for gap in lacking {
            let gap = Gap {
                position: self.next_position,
                parts: Vec::new(),
                ..gap
            };
            self.pass(&gap);
            placed.push(gap);
        }
        Ok(placed)
    }

    /// What of these gaps is not here, if it may be taken over now.
    ///
    /// # Errors
    /// As [`Sequencer::accept_gaps`].
    pub fn judge_gaps(&self, gaps: &[Gap], now_ms: u64) -> Result<Vec<Gap>, AcceptError> {
        let mut reached: HashMap<Origin, Sequence> = HashMap::new();
        let mut lacking = Vec::with_capacity(gaps.len());
        let mut first_ones = 0;
        for gap in gaps {
            let (origin, got) = (gap.origin, gap.first);
            let held = reached
                .entry(origin)
                .or_insert_with(|| self.head(origin).sequence);
            if got > held.next() {
                return Err(AcceptError::Early {
                    origin,
                    held: *held,
                    got,
                });
            }
            let Some(rest) = gap.clone().beyond(*held) else {
                self.check_known(gap)?;
                continue;
            };
            if origin == self.origin {
                return Err(AcceptError::OwnGap {
                    origin,
                    sequence: rest.last(),
                    chain: rest.chain,
                });
            }
            self.check_origins(origin, first_ones)?;
            first_ones += usize::from(*held == Sequence::NONE);
            let stamp = rest.timestamp;
            if stamp.millis() > now_ms.saturating_add(MAX_CLOCK_AHEAD_MS) {
                return Err(AcceptError::Ahead { stamp });
            }
            *held = rest.last();
            lacking.push(rest);
        }
        Ok(lacking)
    }

    /// A gap that ends where the origin's frames end here has the same chain there.
    fn check_known(&self, gap: &Gap) -> Result<(), AcceptError> {
        let (origin, sequence, chain) = (gap.origin, gap.last(), gap.chain);
        let head = self.head(origin);
        if head.sequence != sequence || head.chain == chain {
            return Ok(());
        }
        Err(match origin == self.origin {
            true => AcceptError::OwnFork {
                origin,
                sequence,
                chain,
            },
            false => AcceptError::Chain {
                origin,
                sequence,
                chain,
            },
        })
    }

    fn place_foreign(&self, frame: &Foreign) -> Commit {
        let mut ahead: HashMap<_, u64> = HashMap::new();
        let mut first_index = 0;
        let mut parts = Vec::with_capacity(frame.batches.len());
        for (header, batch) in frame.header.parts.iter().zip(&frame.batches) {
            let key = (header.stream, header.partition);
            let before = ahead.entry(key).or_default();
            parts.push(CommitPart {
                header: *header,
                base_offset: self.next_offset(key.0, key.1).advance(*before),
                first_index,
                batch: batch.clone(),
            });
            *before += u64::from(header.records);
            first_index += header.records;
        }
        Commit {
            position: self.next_position,
            header: frame.header.clone(),
            header_bytes: frame.header_bytes.clone(),
            parts,
        }
    }
}

/// Whether a frame continues its origin's chain.
fn continues(chain: Chain, frame: &Foreign) -> Result<(), AcceptError> {
    let header = &frame.header;
    let verified = header.verify_chain(chain, &frame.header_bytes);
    verified.map_err(|_| AcceptError::Chain {
        origin: header.origin,
        sequence: header.sequence,
        chain: header.chain,
    })
}

impl From<&Commit> for Foreign {
    /// The frame as it is relayed.
    fn from(commit: &Commit) -> Self {
        Self {
            header: commit.header.clone(),
            header_bytes: commit.header_bytes.clone(),
            batches: commit.parts.iter().map(|part| part.batch.clone()).collect(),
        }
    }
}
