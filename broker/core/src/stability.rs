//! What every member has applied, and up to when nobody will stamp anything any more.
//!
//! Members report what they have applied. A report says something about frames that are still to
//! come from its member: they follow all that it had applied. It says that only of frames that it
//! had not written yet, so it counts once all that it had, under whatever epoch, has been applied
//! here too. Used earlier it is unsound: a frame that is on its way follows less.
//!
//! A member must not forget what it has reported. One that may have, since it was restored from a
//! backup, asks the others before it writes: [`recall`](crate::recall).

use std::collections::BTreeMap;

use crate::clock::HybridTimestamp;
use crate::id::{BrokerId, Position};
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

    /// Up to when nothing more is stamped here.
    #[must_use]
    pub fn promise(&self) -> HybridTimestamp {
        self.promise
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

    /// A member may have forgotten what it reported: what does not count yet never will.
    pub fn forget_waiting(&mut self, broker: BrokerId) {
        if let Some(member) = self.others.get_mut(&broker) {
            member.waiting = [None, None];
        }
    }

    /// Members of whom nothing is known yet, or only what does not count yet.
    pub fn silent(&self) -> impl Iterator<Item = BrokerId> {
        let silent = self.others.iter().filter(|(_, m)| m.counted.is_none());
        silent.map(|(&broker, _)| broker)
    }
}

impl Member {
    fn hear(&mut self, report: Report) {
        // One that promises more, and has applied less, is of a life after a restore. What was said
        // before that may name frames that are nowhere any more, and would wait for them for ever.
        for waiting in &mut self.waiting {
            waiting.take_if(|held| is_of_earlier_life(held, &report));
        }
        if self.waiting[0].is_none() {
            self.waiting.swap(0, 1);
        }
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

/// Whether a broker was restored from a backup between a report and another, later one.
pub(crate) fn is_of_earlier_life(report: &Report, later: &Report) -> bool {
    later.promise > report.promise && !later.applied.covers(&report.applied)
}

/// Watermarks on their way to the tables: one is theirs once they hold what it was found with, since
/// what is on its way to them may be stamped earlier.
#[derive(Clone, Debug, Default)]
pub struct Rising {
    /// The oldest that waits, and the newest. With the newest alone none would ever arrive where
    /// each is found before the one before it has.
    waiting: [Option<(HybridTimestamp, Position)>; 2],
}

impl Rising {
    /// A watermark that was found with what is before this position.
    pub fn note(&mut self, watermark: HybridTimestamp, from: Position) {
        let [oldest, newest] = &mut self.waiting;
        let last = newest.or(*oldest);
        if last.is_some_and(|(last, _)| watermark <= last) {
            return;
        }
        match oldest {
            None => *oldest = Some((watermark, from)),
            Some(_) => *newest = Some((watermark, from)),
        }
    }

    /// Takes out the highest that is the tables', which hold what is before this position.
    pub fn arrive(&mut self, applied: Position) -> Option<HybridTimestamp> {
        let mut arrived = None;
        while let [Some((watermark, from)), _] = self.waiting
            && from <= applied
        {
            arrived = Some(watermark);
            self.waiting = [self.waiting[1], None];
        }
        arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, Origin, Sequence};

    fn report(entries: &[(u32, u64)], promise: u64) -> Report {
        let entry = |&(epoch, sequence)| {
            let origin = Origin {
                broker: BrokerId::new(2),
                epoch: Epoch::new(epoch),
            };
            (origin, Sequence::new(sequence))
        };
        Report {
            broker: BrokerId::new(2),
            applied: entries.iter().map(entry).collect(),
            promise: HybridTimestamp::new(promise),
        }
    }

    /// It had written up to 9, and shipped up to 5, when its disk was put back.
    #[test]
    fn what_a_restored_broker_reported_of_frames_that_are_gone_holds_up_nothing() {
        for said_before in [&[9][..], &[8, 9], &[]] {
            let mut stability = Stability::new(BrokerId::new(1));
            stability.join(BrokerId::new(2));
            stability.advance(&report(&[(1, 5)], 0).applied, HybridTimestamp::new(1));
            for (n, &sequence) in said_before.iter().enumerate() {
                stability.hear(report(&[(1, sequence)], 40 + n as u64));
            }
            for n in 1..100 {
                // It comes a moment before the frame in it, as it does under load.
                stability.hear(report(&[(1, 5), (2, n + 1)], 100 + n));
                let here = report(&[(1, 5), (2, n)], 0).applied;
                stability.advance(&here, HybridTimestamp::new(10_000));
            }
            assert!(stability.watermark() > HybridTimestamp::new(150));
        }
    }

    fn stamp(millis: u64) -> HybridTimestamp {
        HybridTimestamp::from_millis(millis)
    }

    #[test]
    fn the_tables_watermark_rises_though_they_are_always_behind() {
        let mut rising = Rising::default();
        for at in 1..100 {
            rising.note(stamp(at), Position::new(at));
            let arrived = rising.arrive(Position::new(at.saturating_sub(5)));
            assert!(arrived <= Some(stamp(at.saturating_sub(5).max(1))));
            assert!(at < 7 || rising.waiting[0] >= Some((stamp(at - 5), Position::new(at - 5))));
        }
        assert_eq!(rising.arrive(Position::new(99)), Some(stamp(99)));
        assert_eq!(rising.arrive(Position::new(99)), None);
    }

    #[test]
    fn a_watermark_waits_for_what_it_was_found_with_and_never_falls() {
        let mut rising = Rising::default();
        rising.note(stamp(5), Position::new(10));
        rising.note(stamp(5), Position::new(20));
        rising.note(stamp(4), Position::new(20));
        assert_eq!(rising.arrive(Position::new(9)), None);
        assert_eq!(rising.arrive(Position::new(10)), Some(stamp(5)));
        assert_eq!(rising.arrive(Position::new(20)), None);
    }
}
