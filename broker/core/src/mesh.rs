//! The brokers of all regions as one of them knows them: who can be reached, who is asked for
//! what, what each holds, and what follows from that.
//!
//! ```text
//! link, unlink, hear(report), advance(own report) ──▶ Mesh ──▶ asks, stable vector, watermark, who holds a frame
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::HybridTimestamp;
use crate::exchange::{Ask, Peers};
use crate::id::{BrokerId, Origin, RegionName, Sequence};
use crate::members::{Members, Standing};
use crate::stability::{Report, Stability};
use crate::vector::VersionVector;

/// What a broker knows of all of them, itself included.
#[derive(Clone, Debug)]
pub struct Mesh {
    own: BrokerId,
    peers: Peers,
    stability: Stability,
    /// The newest report of each broker, own one included.
    reports: BTreeMap<BrokerId, Report>,
    /// Where each stands, as far as it has said so.
    regions: BTreeMap<BrokerId, RegionName>,
    /// Other brokers that have written, were linked, or are named as members, and are waited for.
    met: BTreeSet<BrokerId>,
    /// What the log says of them.
    members: Members,
    /// Those that are not waited for any more.
    left: BTreeSet<BrokerId>,
    /// How many others have to be met before anything counts as stable: who is named as a peer
    /// and was never met may have written anything.
    expected: usize,
}

impl Mesh {
    /// A broker that has met nobody since its start. `expected` is how many others it was told of.
    #[must_use]
    pub fn new(own: BrokerId, region: RegionName, expected: usize) -> Self {
        Self {
            own,
            peers: Peers::default(),
            stability: Stability::new(own),
            reports: BTreeMap::new(),
            regions: BTreeMap::from([(own, region)]),
            met: BTreeSet::new(),
            members: Members::default(),
            left: BTreeSet::new(),
            expected,
        }
    }

    /// A link is up. From now on nothing is stable that its peer has not applied.
    pub fn link(&mut self, peer: BrokerId, region: RegionName, holds: VersionVector) {
        self.regions.insert(peer, region);
        self.meet(peer);
        self.peers.reach(peer, holds);
    }

    /// A link is down.
    pub fn unlink(&mut self, peer: BrokerId) {
        self.peers.lose(peer);
    }

    /// Everything in the report is durable here, and the log names these members.
    pub fn advance(&mut self, report: Report, members: &Members) {
        if self.members != *members {
            self.members = members.clone();
            for (broker, member) in members.iter() {
                self.regions.insert(broker, member.region.clone());
                self.meet(broker);
            }
        }
        // Whoever has written is waited for, whether or not there was ever a link.
        for (origin, _) in report.applied.iter() {
            self.meet(origin.broker);
        }
        self.stability.advance(&report.applied, report.promise);
        self.reports.insert(self.own, report);
        self.let_go();
    }

    fn meet(&mut self, broker: BrokerId) {
        if broker != self.own && !self.left.contains(&broker) && self.met.insert(broker) {
            self.stability.join(broker);
            // A relay may have told what it holds before any frame of it came. It may not say so again.
            if let Some(report) = self.reports.get(&broker) {
                self.stability.hear(report.clone());
            }
        }
    }

    /// Stops waiting for those that were parked, each once nothing more of it can come: all others
    /// have said that they know of it, from when on they take its frames only from each other, and
    /// all that they had of it is here.
    fn let_go(&mut self) {
        let applied = self.stability.applied();
        let ended = self.members.iter().filter(|(broker, member)| {
            let is_ended = member.standing > Standing::Active && self.met.contains(broker);
            is_ended && member.is_known_ended(applied)
        });
        let gone: Vec<BrokerId> = ended
            .filter(|(broker, member)| {
                self.met.iter().all(|other| {
                    if !self.is_waited_for(*other) {
                        return true;
                    }
                    let Some(counted) = self.stability.counted(*other) else {
                        return false;
                    };
                    let mut of_it = counted
                        .iter()
                        .filter(|(origin, _)| origin.broker == *broker);
                    member.is_known_ended(counted)
                        && of_it.all(|(origin, sequence)| applied.contains(origin, sequence))
                })
            })
            .map(|(broker, _)| broker)
            .collect();
        for broker in gone {
            self.met.remove(&broker);
            self.left.insert(broker);
            self.stability.leave(broker);
            self.reports.remove(&broker);
        }
    }

    /// Whether it takes part in deciding what is stable.
    fn is_waited_for(&self, broker: BrokerId) -> bool {
        self.members
            .standing(broker)
            .is_none_or(|standing| standing == Standing::Active)
    }

    /// Another broker says what it has applied.
    pub fn hear(&mut self, report: Report) {
        if report.broker == self.own || self.left.contains(&report.broker) {
            return;
        }
        if self.peers.reaches(report.broker) {
            self.peers.reach(report.broker, report.applied.clone());
        }
        self.stability.hear(report.clone());
        let newer = self
            .reports
            .get(&report.broker)
            .is_none_or(|held| report.applied.covers(&held.applied));
        if newer {
            self.reports.insert(report.broker, report);
        }
        self.let_go();
    }

    /// A peer may not hold a part of what it was asked for, see [`Peers::withhold`].
    pub fn withhold(&mut self, peer: BrokerId, origin: Origin, from: Sequence) {
        self.peers.withhold(peer, origin, from);
    }

    /// Whether a linked peer withholds what is not here yet.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.peers.is_withheld(self.stability.applied())
    }

    /// Whether asks are to be made anew, see [`Peers::may_resume`].
    #[must_use]
    pub fn may_resume(&self) -> bool {
        self.peers.may_resume(self.stability.applied())
    }

    /// Who has to be asked again for whose frames, see [`Peers::take_stopped`].
    #[must_use]
    pub fn take_stopped(&mut self) -> BTreeSet<(BrokerId, BrokerId)> {
        self.peers.take_stopped()
    }

    /// What to ask each linked peer for.
    #[must_use]
    pub fn asks(&mut self) -> BTreeMap<BrokerId, Ask> {
        self.peers.asks(self.stability.applied())
    }

    /// All brokers of whom somebody linked has frames.
    #[must_use]
    pub fn everybody(&self) -> BTreeSet<BrokerId> {
        let held = self.peers.reachable().flat_map(|(_, holds)| holds.iter());
        held.map(|(origin, _)| origin.broker).collect()
    }

    /// Whom to ask for everything when nothing moves, see [`Peers::ask_one`].
    #[must_use]
    pub fn ask_one(&self) -> Option<(BrokerId, Ask)> {
        self.peers.ask_one(self.stability.applied())
    }

    /// Whether enough is known of the others for anything to be stable.
    #[must_use]
    pub fn has_met_all(&self) -> bool {
        self.met.len() + self.left.len() >= self.expected
    }

    /// What the log says of who belongs to the cluster.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Whether a broker that was parked is waited for no more.
    #[must_use]
    pub fn has_left(&self, broker: BrokerId) -> bool {
        self.left.contains(&broker)
    }

    /// How many other brokers are waited for.
    #[must_use]
    pub fn others(&self) -> usize {
        self.met.len()
    }

    /// What is durable here.
    #[must_use]
    pub fn applied(&self) -> &VersionVector {
        self.stability.applied()
    }

    /// Applied by all, and followed by every frame to come.
    #[must_use]
    pub fn stable(&self) -> VersionVector {
        match self.has_met_all() {
            true => self.stability.stable(),
            false => VersionVector::EMPTY,
        }
    }

    /// Every frame to come, from anybody, is stamped later.
    #[must_use]
    pub fn watermark(&self) -> HybridTimestamp {
        match self.has_met_all() {
            true => self.stability.watermark(),
            false => HybridTimestamp::ZERO,
        }
    }

    /// The newest report of a broker.
    #[must_use]
    pub fn report(&self, broker: BrokerId) -> Option<&Report> {
        self.reports.get(&broker)
    }

    /// The newest reports of these brokers, and the own one.
    #[must_use]
    pub fn reports(&self, of: &BTreeSet<BrokerId>) -> Vec<Report> {
        let wanted = |broker: &BrokerId| *broker == self.own || of.contains(broker);
        let reports = self.reports.iter().filter(|(broker, _)| wanted(broker));
        reports.map(|(_, report)| report.clone()).collect()
    }

    /// The regions in which a broker has said that it holds a frame, this one included.
    #[must_use]
    pub fn holding(&self, origin: Origin, sequence: Sequence) -> BTreeSet<&RegionName> {
        let holds = |broker: &BrokerId| {
            let report = self.reports.get(broker);
            report.is_some_and(|report| report.applied.contains(origin, sequence))
        };
        let regions = self.regions.iter().filter(|(broker, _)| holds(broker));
        regions.map(|(_, region)| region).collect()
    }

    /// The regions in which somebody stands that is waited for, this one included.
    #[must_use]
    pub fn regions(&self) -> BTreeSet<&RegionName> {
        let waited_for = |broker: &BrokerId| *broker == self.own || self.met.contains(broker);
        let regions = self.regions.iter().filter(|(broker, _)| waited_for(broker));
        regions.map(|(_, region)| region).collect()
    }

    /// The frames of an origin that a broker of another region has said that it holds.
    #[must_use]
    pub fn elsewhere(&self, origin: Origin) -> Sequence {
        let home = self.regions.get(&self.own);
        let elsewhere = self
            .reports
            .values()
            .filter(|report| report.broker != self.own && self.regions.get(&report.broker) != home);
        let held = elsewhere.map(|report| report.applied.get(origin));
        held.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;

    fn origin(broker: u64) -> Origin {
        Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        }
    }

    fn region(name: &str) -> RegionName {
        RegionName::parse(name).unwrap()
    }

    const NOBODY: Members = Members::EMPTY;

    fn report(broker: u64, applied: &[(u64, u64)], promise: u64) -> Report {
        let entry = |&(broker, sequence)| (origin(broker), Sequence::new(sequence));
        Report {
            broker: BrokerId::new(broker),
            applied: applied.iter().map(entry).collect(),
            promise: HybridTimestamp::new(promise),
        }
    }

    #[test]
    fn nothing_is_stable_before_all_that_are_named_were_met() {
        let mut mesh = Mesh::new(BrokerId::new(1), region("a"), 2);
        mesh.advance(report(1, &[(1, 3)], 30), &NOBODY);
        mesh.link(BrokerId::new(2), region("b"), VersionVector::EMPTY);
        mesh.hear(report(2, &[(1, 3)], 20));
        assert_eq!(mesh.stable(), VersionVector::EMPTY);
        assert_eq!(mesh.watermark(), HybridTimestamp::ZERO);
        // The third is met through a frame that the second has relayed.
        mesh.advance(report(1, &[(1, 3), (3, 1)], 40), &NOBODY);
        assert_eq!(
            mesh.watermark(),
            HybridTimestamp::ZERO,
            "it has promised nothing"
        );
        mesh.hear(report(3, &[(1, 2), (3, 1)], 25));
        assert_eq!(mesh.watermark(), HybridTimestamp::new(20));
        assert_eq!(mesh.stable().get(origin(1)), Sequence::new(2));
    }

    #[test]
    fn what_a_broker_has_reported_before_its_first_frame_came_counts_then() {
        let mut mesh = Mesh::new(BrokerId::new(1), region("a"), 1);
        mesh.hear(report(2, &[(1, 3), (2, 1)], 20));
        mesh.advance(report(1, &[(1, 3), (2, 1)], 20), &NOBODY);
        assert_eq!(mesh.stable(), *mesh.applied());
    }

    #[test]
    fn the_regions_that_hold_a_frame_are_counted_once_each() {
        let mut mesh = Mesh::new(BrokerId::new(1), region("a"), 3);
        for (broker, name) in [(2, "a"), (3, "b"), (4, "c")] {
            mesh.link(BrokerId::new(broker), region(name), VersionVector::EMPTY);
        }
        mesh.advance(report(1, &[(1, 9)], 1), &NOBODY);
        mesh.hear(report(2, &[(1, 9)], 1));
        mesh.hear(report(3, &[(1, 5)], 1));
        mesh.hear(report(4, &[(1, 4)], 1));
        let held = |sequence| mesh.holding(origin(1), Sequence::new(sequence)).len();
        assert_eq!([held(4), held(5), held(9), held(10)], [3, 2, 1, 0]);
        assert_eq!(mesh.elsewhere(origin(1)), Sequence::new(5));
    }
}
