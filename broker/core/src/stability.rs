//! What every member has applied, and up to when nobody will stamp anything any more.
//!
//! Members report what they have applied. A report says something about frames that are still to
//! come from its member: they follow all that it had applied. It says that only of frames that it
//! had not written yet, so it counts once all that it had, under whatever epoch, has been applied
//! here too. Used earlier it is unsound: a frame that is on its way follows less.
//!
//! A member must not forget what it has reported. One that does, since it was restored from a
//! backup, has to join anew.

use std::collections::BTreeMap;

use crate::clock::HybridTimestamp;
use crate::id::BrokerId;
use crate::vector::VersionVector;

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who says it.
    pub broker: BrokerId,
    /// What it had applied, its own frames of all epochs included.
    pub applied: VersionVector,
    /// No later frame of it is stamped at or below this.
    pub promise: HybridTimestamp,
}

/// A member, as far as it is known here.
#[derive(Clone, Debug, Default)]
struct Member {
    /// The least that its frames to come follow.
    counted: Option<Counted>,
    /// The newest report that does not count yet, and the oldest one. Those between would say
    /// less than the one and come no sooner than the other.
    waiting: [Option<Report>; 2],
}

#[derive(Clone, Debug)]
struct Counted {
    applied: VersionVector,
    promise: HybridTimestamp,
}

/// The members, and what follows from their reports.
#[derive(Clone, Debug)]
pub struct Stability {
    own: BrokerId,
    applied: VersionVector,
    promise: HybridTimestamp,
    others: BTreeMap<BrokerId, Member>,
}

impl Stability {
    /// A broker that is alone.
    #[must_use]
    pub fn new(own: BrokerId) -> Self {
        Self {
            own,
            applied: VersionVector::EMPTY,
            promise: HybridTimestamp::ZERO,
            others: BTreeMap::new(),
        }
    }

    /// From now on nothing is stable that this broker has not applied. It must be called before
    /// any of its frames is applied here.
    ///
    /// # Panics
    /// When it is this broker.
    pub fn join(&mut self, broker: BrokerId) {
        assert_ne!(broker, self.own, "a broker is always a member of its own");
        self.others.entry(broker).or_default();
    }

    /// Nobody waits for this broker any more. It may only come back as one that joins: with a
    /// snapshot, and under a new epoch.
    pub fn leave(&mut self, broker: BrokerId) {
        self.others.remove(&broker);
    }

    /// Notes what is applied here, and up to when nothing more is stamped here.
    pub fn advance(&mut self, applied: &VersionVector, promise: HybridTimestamp) {
        self.applied.merge(applied);
        self.promise = self.promise.max(promise);
        for member in self.others.values_mut() {
            member.count(&self.applied);
        }
    }

    /// Takes a member's report; of who is no member it is passed over.
    pub fn hear(&mut self, report: Report) {
        if let Some(member) = self.others.get_mut(&report.broker) {
            member.hear(report);
            member.count(&self.applied);
        }
    }

    /// What is applied here.
    #[must_use]
    pub fn applied(&self) -> &VersionVector {
        &self.applied
    }

    /// What every member has applied, and every frame to come follows.
    #[must_use]
    pub fn stable(&self) -> VersionVector {
        let mut stable = self.applied.clone();
        for member in self.others.values() {
            stable = match &member.counted {
                Some(counted) => stable.least(&counted.applied),
                None => return VersionVector::EMPTY,
            };
        }
        stable
    }

    /// Every frame to come, from anybody, is stamped later.
    #[must_use]
    pub fn watermark(&self) -> HybridTimestamp {
        let promises = self.others.values().map(|member| match &member.counted {
            Some(counted) => counted.promise,
            None => HybridTimestamp::ZERO,
        });
        promises.fold(self.promise, HybridTimestamp::min)
    }

    /// What the frames of a member that are still to come follow at least, once that is known.
    #[must_use]
    pub fn counted(&self, broker: BrokerId) -> Option<&VersionVector> {
        let counted = self.others.get(&broker)?.counted.as_ref()?;
        Some(&counted.applied)
    }

    /// Members of whom nothing is known yet, or only what does not count yet.
    pub fn silent(&self) -> impl Iterator<Item = BrokerId> {
        let silent = self.others.iter().filter(|(_, m)| m.counted.is_none());
        silent.map(|(&broker, _)| broker)
    }
}

impl Member {
    fn hear(&mut self, report: Report) {
        match &mut self.waiting {
            [oldest @ None, _] => *oldest = Some(report),
            [_, newest] => {
                let is_newer = newest.as_ref().is_none_or(|held| {
                    report.applied.covers(&held.applied) && report.promise >= held.promise
                });
                if is_newer {
                    *newest = Some(report);
                }
            }
        }
    }

    /// Counts what waits for nothing any more.
    fn count(&mut self, applied: &VersionVector) {
        let counts = |report: &Report| {
            let all = report.applied.iter();
            let mut own = all.filter(|(origin, _)| origin.broker == report.broker);
            own.all(|(origin, sequence)| applied.contains(origin, sequence))
        };
        for waiting in &mut self.waiting {
            if waiting.as_ref().is_some_and(counts)
                && let Some(report) = waiting.take()
            {
                let counted = self.counted.get_or_insert(Counted {
                    applied: VersionVector::EMPTY,
                    promise: HybridTimestamp::ZERO,
                });
                counted.applied.merge(&report.applied);
                counted.promise = counted.promise.max(report.promise);
            }
        }
        if self.waiting[0].is_none() {
            self.waiting.swap(0, 1);
        }
    }
}
