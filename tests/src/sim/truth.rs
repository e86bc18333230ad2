//! What nobody in the simulation knows: every frame that there is, and what its writer knew.

use std::collections::BTreeMap;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::frame::Commit;
use anabranch_core::id::{BrokerId, Origin, Sequence};
use anabranch_core::vector::VersionVector;
use bytes::Bytes;

use super::verdict::{Checked, Violation, ensure};

/// A frame's name.
pub(super) type Name = (Origin, Sequence);

pub(super) fn name_of(commit: &Commit) -> Name {
    (commit.header.origin, commit.header.sequence)
}

/// What is so of a frame.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    /// What its writer had applied: what it must follow everywhere.
    pub(super) known: VersionVector,
    header: Bytes,
    /// The CRC of each part.
    parts: Vec<u32>,
    first_stamp: HybridTimestamp,
}

impl Fact {
    pub(super) fn of(commit: &Commit, known: VersionVector) -> Self {
        Self {
            known,
            header: commit.header_bytes.clone(),
            parts: commit.parts.iter().map(|part| part.header.crc).collect(),
            first_stamp: commit.header.timestamp,
        }
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Truth {
    frames: BTreeMap<Name, Fact>,
    /// Sequenced, and not durable yet: a crash may undo them.
    pending: BTreeMap<Name, Fact>,
    /// The header of each frame of which a write was acknowledged.
    acked: BTreeMap<Name, Bytes>,
    /// Writes that were acknowledged.
    pub(super) acks: u64,
}

impl Truth {
    pub(super) fn frames(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Everything there is.
    pub(super) fn all(&self) -> VersionVector {
        self.frames.keys().copied().collect()
    }

    /// The name of every frame.
    pub(super) fn names(&self) -> impl Iterator<Item = Name> {
        self.frames.keys().copied()
    }

    pub(super) fn fact(&self, name: Name) -> Checked<&Fact> {
        let fact = self.frames.get(&name);
        fact.ok_or_else(|| Violation(format!("nobody has written {name:?}")))
    }

    /// A broker has given a sequence.
    pub(super) fn sequenced(&mut self, commit: &Commit, known: VersionVector) -> Checked {
        let name = name_of(commit);
        ensure(!self.frames.contains_key(&name), || {
            format!("{name:?} is given twice: a sequence is reused")
        })?;
        self.pending.insert(name, Fact::of(commit, known));
        Ok(())
    }

    /// A frame is durable where it was written.
    pub(super) fn settle(&mut self, name: Name) {
        if let Some(fact) = self.pending.remove(&name) {
            self.frames.insert(name, fact);
        }
    }

    /// A broker has lost what was not durable.
    pub(super) fn forget(&mut self, broker: BrokerId) {
        self.pending.retain(|name, _| name.0.broker != broker);
    }

    pub(super) fn ack(&mut self, name: Name) {
        let written = self.frames.get(&name).or_else(|| self.pending.get(&name));
        if let Some(fact) = written {
            self.acked.insert(name, fact.header.clone());
            self.acks += 1;
        }
    }

    /// What was acknowledged is there, and has not become something else.
    pub(super) fn check_acked(&self) -> Checked {
        self.acked.iter().try_for_each(|(name, header)| {
            let found = self.frames.get(name);
            ensure(found.is_some_and(|fact| fact.header == *header), || {
                format!("{name:?} was acknowledged, and is lost")
            })
        })
    }

    /// A log holds a frame. It is the one that was written, it follows all it must, and it comes
    /// right after the one before.
    pub(super) fn check_appended(&self, commit: &Commit, held: &VersionVector) -> Checked {
        let name = name_of(commit);
        let fact = self.fact(name)?;
        let last = held.get(name.0);
        ensure(name.1 > last, || {
            format!("{name:?} is in a log twice, which had {last}")
        })?;
        ensure(name.1 == last.next(), || {
            format!("{name:?} follows {last} in a log")
        })?;
        ensure(held.covers(&fact.known), || {
            let missing = held.missing_from(&fact.known);
            format!("{name:?} is in a log before what it follows: {missing:?}")
        })?;
        let parts = commit.parts.iter();
        let same_parts = parts
            .map(|part| part.batch.as_ref().map(anabranch_core::batch::Batch::crc))
            .eq(fact.parts.iter().map(|&crc| Some(crc)));
        ensure(fact.header == commit.header_bytes && same_parts, || {
            format!("{name:?} is not as it was written")
        })
    }

    /// What was stable somewhere is followed by a frame that came there later, and what is stamped
    /// at or below the watermark there has come.
    pub(super) fn check_stable(
        &self,
        commit: &Commit,
        stable: &VersionVector,
        watermark: HybridTimestamp,
    ) -> Checked {
        let name = name_of(commit);
        let fact = self.fact(name)?;
        ensure(fact.known.covers(stable), || {
            let missing = fact.known.missing_from(stable);
            format!("{name:?} does not follow what was called stable: {missing:?}")
        })?;
        ensure(fact.first_stamp > watermark, || {
            let stamp = fact.first_stamp;
            format!("{name:?} is stamped {stamp:?}, not after the watermark {watermark:?}")
        })
    }
}
