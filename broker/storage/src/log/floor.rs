//! Where the log begins, and what is left of the frames before that: enough for a peer that lacks
//! them to go on behind them.

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::exchange::Ask;
use anabranch_core::frame::Chain;
use anabranch_core::gap::Gap;
use anabranch_core::id::{BrokerId, Epoch, Origin, Position, Sequence};
use anabranch_core::sequencer::{Head, Sequencer};
use anabranch_core::vector::VersionVector;

use super::fields::{Fields, Malformed, short_length};

/// The place before which nothing is held.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Floor {
    position: Position,
    /// The greatest stamp before it.
    timestamp: HybridTimestamp,
    /// The last frame of each origin before it, in order.
    heads: Vec<(Origin, Head)>,
}

impl Floor {
    /// The place that this state has reached.
    pub(crate) fn at(state: &Sequencer) -> Self {
        Self {
            position: state.next_position(),
            timestamp: state.last_timestamp(),
            heads: state.heads().collect(),
        }
    }

    /// First position that must be there.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// What stands for the frames before it that are asked for.
    pub(crate) fn gaps(&self, ask: &Ask) -> Vec<Gap> {
        let heads = self.heads.iter();
        heads
            .filter_map(|&(origin, head)| ask.cut(self.gap(origin, head)))
            .collect()
    }

    /// Whether a frame before it is asked for.
    pub(crate) fn has_asked(&self, ask: &Ask) -> bool {
        self.heads.iter().any(|&(origin, head)| {
            let held = ask.beyond(origin);
            held.is_some_and(|held| head.sequence > held)
        })
    }

    fn gap(&self, origin: Origin, head: Head) -> Gap {
        Gap {
            position: Position::default(),
            origin,
            first: Sequence::NONE.next(),
            frames: head.sequence.get(),
            timestamp: self.timestamp,
            chain: head.chain,
            context: self.followed_by(origin),
            parts: Vec::new(),
        }
    }

    /// All that the last frame of an origin may have followed. For the owner of this log that is
    /// everything before it; for others it may be more than they knew.
    fn followed_by(&self, origin: Origin) -> VersionVector {
        let is_later = |other: &Origin| other.broker == origin.broker && *other > origin;
        if self.heads.iter().any(|(other, _)| is_later(other)) {
            // Its epoch is over: no frame comes behind it.
            return VersionVector::EMPTY;
        }
        let others = self.heads.iter().filter(|(other, _)| *other != origin);
        others
            .map(|&(other, head)| (other, head.sequence))
            .collect()
    }

    /// Appends position u64, timestamp u64, count u32, then broker u64, epoch u32, sequence u64 and
    /// chain, 32 bytes, each.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.position.get().to_le_bytes());
        out.extend_from_slice(&self.timestamp.get().to_le_bytes());
        out.extend_from_slice(&short_length(self.heads.len()).to_le_bytes());
        for (origin, head) in &self.heads {
            out.extend_from_slice(&origin.broker.get().to_le_bytes());
            out.extend_from_slice(&origin.epoch.get().to_le_bytes());
            out.extend_from_slice(&head.sequence.get().to_le_bytes());
            out.extend_from_slice(head.chain.as_bytes());
        }
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let mut floor = Self {
            position: Position::new(fields.u64()?),
            timestamp: HybridTimestamp::new(fields.u64()?),
            heads: Vec::new(),
        };
        for _ in 0..fields.u32()? {
            let origin = Origin {
                broker: BrokerId::new(fields.u64()?),
                epoch: Epoch::new(fields.u32()?),
            };
            let sequence = Sequence::new(fields.u64()?);
            let mut chain = [0; 32];
            chain.copy_from_slice(fields.take(32)?);
            let chain = Chain::new(chain);
            if sequence == Sequence::NONE || sequence.get() == u64::MAX {
                return Err(Malformed);
            }
            floor.heads.push((origin, Head { sequence, chain }));
        }
        Ok(floor)
    }
}
