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
use crate::limits::MAX_CONTEXT_BYTES;
use crate::members::{Member, Members};
use crate::recall::{Heard, Recall, Recalls};
use crate::stability::{Report, Stability, is_of_earlier_life};
use crate::vector::VersionVector;

/// Brokers of which nothing is known but a report.
const MOST_UNKNOWN: usize = 256;

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
    /// Whether all that were named were met, see [`Mesh::know_all`].
    knows_all: bool,
    founding: Founding,
    /// Whether somebody was linked whose cluster is founded, see [`Mesh::greet`].
    pub(crate) has_met_founded: bool,
    /// Who alone is asked for everything, until this is held: nothing moved before.
    only: Option<(BrokerId, VersionVector)>,
    /// Who has to fetch what it may have forgotten before it writes.
    recalls: Recalls,
}

/// What a broker has to tell its peers.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// What brokers have applied.
    pub reports: Vec<Report>,
    /// What brokers ask that may have forgotten what they reported, with the answers so far.
    pub recalls: Vec<Recall>,
    /// What is held here, while this broker does not report it.
    pub held: Option<VersionVector>,
}

/// How far it is known who may write. A cluster may be founded by several brokers at once, each with
/// a record of its own; they have to know of each other before anything is stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Founding {
    /// Somebody that was met is no member by this log, or somebody that was named was not met.
    Open,
    /// All are members by this log. Others may count on what is promised here once they have one of
    /// the frames after these, since it follows the records of all members.
    Known { own_frames: u64 },
    /// Such a frame is there.
    Complete,
}

impl Mesh {
    /// A broker that has met nobody since its start.
    #[must_use]
    pub fn new(own: BrokerId, region: RegionName) -> Self {
        Self {
            own,
            peers: Peers::default(),
            stability: Stability::new(own),
            reports: BTreeMap::new(),
            regions: BTreeMap::from([(own, region)]),
            met: BTreeSet::new(),
            members: Members::default(),
            left: BTreeSet::new(),
            knows_all: false,
            founding: Founding::Open,
            has_met_founded: false,
            only: None,
            recalls: Recalls::new(own),
        }
    }

    /// This broker may have forgotten what it has reported: it asks all others what they hold.
    pub fn recall(&mut self, origin: Origin) {
        self.recalls.ask(origin);
    }

    /// Whether it asks others what they hold.
    #[must_use]
    pub fn recalls_itself(&self) -> bool {
        self.recalls.asks()
    }

    /// Whether it holds what all members held when they were asked, or has not asked. Who they are is
    /// not known before the log says that this broker is one.
    #[must_use]
    pub fn is_recalled(&self) -> bool {
        let knows_members = self.members.get(self.own).is_some();
        let is_over = knows_members && self.recalls.is_over(&self.members, self.applied());
        is_over || !self.recalls.asks()
    }

    /// This broker writes: it has what it asked for, or does not wait for it any more.
    pub fn end_recall(&mut self) {
        self.recalls.end();
    }

    /// Somebody asks, or knows more answers. Whether that is something to pass on.
    pub fn hear_recall(&mut self, recall: Recall) -> bool {
        let broker = recall.origin.broker;
        let applied = self.stability.applied();
        let heard = self.recalls.hear(recall, &self.members, applied);
        if heard == Heard::New && broker != self.own {
            // It may hold less than it said.
            self.stability.forget_waiting(broker);
            self.reports.remove(&broker);
        }
        heard != Heard::Nothing
    }

    /// What was found out before is so still: all that may write are members by this log.
    pub fn resume(&mut self) {
        self.knows_all = true;
        self.found();
        self.complete();
    }

    fn complete(&mut self) {
        self.founding = Founding::Complete;
        if let Some(own) = self.reports.get_mut(&self.own) {
            own.promise = self.stability.promise();
        }
    }

    /// Whoever was named as a peer was met once, or nobody was. Before, nothing is stable, and nothing
    /// is promised to others: who was never met may have founded a cluster of its own, and its frames
    /// come to the others through this broker.
    pub fn know_all(&mut self) {
        self.knows_all = true;
        self.found();
    }

    /// Looks how far the founding is.
    fn found(&mut self) {
        if self.founding == Founding::Complete {
            return;
        }
        let mut met = self.met.iter();
        let all_are_members = self.knows_all
            && self.members.is_active(self.own)
            && met.all(|broker| self.members.get(*broker).is_some());
        let applied = self.stability.applied().iter();
        let own = applied.filter(|(origin, _)| origin.broker == self.own);
        let own_frames = own.map(|(_, sequence)| sequence.get()).sum();
        match self.founding {
            _ if !all_are_members => self.founding = Founding::Open,
            // There is nobody to tell.
            _ if self.met.is_empty() => self.complete(),
            Founding::Open => self.founding = Founding::Known { own_frames },
            Founding::Known { own_frames: then } if own_frames > then => self.complete(),
            Founding::Known { .. } | Founding::Complete => {}
        }
    }

    /// Whether this broker has to write something, so that others learn from what it follows who the
    /// members are.
    #[must_use]
    pub fn has_to_tell(&self) -> bool {
        matches!(self.founding, Founding::Known { .. })
    }

    /// Whether others may have dropped what only late frames need: then a cluster that was founded
    /// apart must not be joined with this one.
    #[must_use]
    pub fn may_have_dropped(&self) -> bool {
        let own = self.members.get(self.own);
        let promises = self.reports.values();
        self.is_founded()
            || own.is_some_and(Member::is_admitted)
            || promises
                .into_iter()
                .any(|report| report.promise > HybridTimestamp::ZERO)
    }

    /// A link is up. From now on nothing is stable that its peer has not applied, if it may write.
    pub fn link(&mut self, peer: BrokerId, region: RegionName, holds: VersionVector) {
        self.regions.insert(peer, region);
        self.greeted(peer);
        self.found();
        self.peers.reach(peer, holds);
    }

    /// A broker has said what it is, whether or not it is linked.
    pub(crate) fn greeted(&mut self, peer: BrokerId) {
        // Who is no member of a cluster that is founded writes nothing before the log says that it is.
        if !self.is_founded() || self.members.get(peer).is_some() {
            self.meet(peer);
        }
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
        self.recalls.advance(&report.applied);
        self.found();
        let promise = match self.founding {
            Founding::Complete => self.stability.promise(),
            Founding::Open | Founding::Known { .. } => HybridTimestamp::ZERO,
        };
        self.reports.insert(self.own, Report { promise, ..report });
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

    /// A parked broker of which who is no member holds a frame that is not here: it may have come to
    /// nobody else, and be late.
    #[must_use]
    pub fn brings_back(&self, peer: BrokerId, holds: &VersionVector) -> Option<BrokerId> {
        let applied = self.stability.applied();
        let mut unknown = applied.missing_from(holds);
        if self.members.get(peer).is_some() {
            unknown = unknown
                .iter()
                .filter(|(origin, _)| self.left.contains(&origin.broker))
                .collect();
        }
        let mut brokers = unknown.iter().map(|(origin, _)| origin.broker);
        brokers.find(|broker| self.members.has_ended(*broker))
    }

    /// Stops waiting for those that were parked, all of them at once, when nothing more of them can
    /// come: all others have said that they know of it, from when on they take frames of these only
    /// from each other, and all that they had of them is here. One of them may have frames of another
    /// one, so none is let go before it is known of all.
    fn let_go(&mut self) {
        let ended: Vec<(BrokerId, &Member)> = (self.members.iter())
            .filter(|(broker, member)| member.has_ended() && self.met.contains(broker))
            .collect();
        if ended.is_empty() {
            return;
        }
        let applied = self.stability.applied();
        let nothing_more_comes_from = |other: &BrokerId| {
            let Some(counted) = self.stability.counted(*other) else {
                return false;
            };
            let knows = |(_, member): &(BrokerId, &Member)| member.is_known_ended(counted);
            let mut of_them = counted.iter().filter(|(origin, _)| {
                let is_ended = |(broker, _): &(BrokerId, &Member)| *broker == origin.broker;
                ended.iter().any(is_ended)
            });
            ended.iter().all(knows)
                && of_them.all(|(origin, sequence)| applied.contains(origin, sequence))
        };
        let mut others = self
            .met
            .iter()
            .filter(|other| !self.members.has_ended(**other));
        if !others.all(nothing_more_comes_from) {
            return;
        }
        let gone: Vec<BrokerId> = ended.into_iter().map(|(broker, _)| broker).collect();
        for broker in gone {
            self.met.remove(&broker);
            self.left.insert(broker);
            self.stability.leave(broker);
            self.reports.remove(&broker);
        }
    }

    /// A linked peer that fetches what it has lost says what it holds, so that others can have that
    /// from it. It is no report: its frames to come need not follow it yet.
    pub fn hear_held(&mut self, peer: BrokerId, held: VersionVector) {
        if self.peers.reaches(peer) {
            self.peers.reach(peer, held);
        }
    }

    /// Another broker says what it has applied.
    pub fn hear(&mut self, report: Report) {
        if report.broker == self.own || self.left.contains(&report.broker) {
            return;
        }
        // More origins than there can be.
        let is_too_long = report.applied.encoded_bytes() > MAX_CONTEXT_BYTES;
        if is_too_long || !self.has_room_for(report.broker) {
            return;
        }
        if self.peers.reaches(report.broker) {
            self.peers.reach(report.broker, report.applied.clone());
        }
        self.stability.hear(report.clone());
        let newer = self.reports.get(&report.broker).is_none_or(|held| {
            report.applied.covers(&held.applied) || is_of_earlier_life(held, &report)
        });
        if newer {
            self.reports.insert(report.broker, report);
        }
        self.let_go();
    }

    /// Whether a report of this broker is kept. A relay may tell of one before any frame of it came; but
    /// anybody may make up brokers.
    fn has_room_for(&self, broker: BrokerId) -> bool {
        let is_known = |broker: &BrokerId| {
            self.met.contains(broker) || self.members.get(*broker).is_some() || *broker == self.own
        };
        let is_kept = is_known(&broker) || self.reports.contains_key(&broker);
        is_kept || self.reports.keys().filter(|kept| !is_known(kept)).count() < MOST_UNKNOWN
    }

    /// A peer may not hold a part of what it was asked for, see [`Peers::withhold`].
    pub fn withhold(&mut self, peer: BrokerId, origin: Origin, from: Sequence) {
        // It cannot ship all, as it turns out.
        self.only.take_if(|(only, _)| *only == peer);
        self.peers.withhold(peer, origin, from);
    }

    /// Whether a linked peer withholds what is not here yet.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.peers.is_withheld(self.stability.applied())
    }

    /// Whether asks are to be made anew after something came: since one peer alone was asked, or as
    /// [`Peers::may_resume`] says.
    #[must_use]
    pub fn may_resume(&self) -> bool {
        self.only.is_some() || self.peers.may_resume(self.stability.applied())
    }

    /// Who has to be asked again for whose frames, see [`Peers::take_stopped`].
    #[must_use]
    pub fn take_stopped(&mut self) -> BTreeSet<(BrokerId, BrokerId)> {
        self.peers.take_stopped()
    }

    /// What to ask each linked peer for.
    #[must_use]
    pub fn asks(&mut self) -> BTreeMap<BrokerId, Ask> {
        let held = self.stability.applied();
        self.only
            .take_if(|(peer, goal)| held.covers(goal) || !self.peers.reaches(*peer));
        let mut asks = self.peers.asks(held);
        if let Some((only, _)) = self.only {
            let everybody = self.everybody();
            for (peer, ask) in &mut asks {
                match *peer == only {
                    true => ask.of.clone_from(&everybody),
                    false => ask.of.clear(),
                }
            }
        }
        asks
    }

    /// All brokers of whom somebody linked has frames.
    fn everybody(&self) -> BTreeSet<BrokerId> {
        let held = self.peers.reachable().flat_map(|(_, holds)| holds.iter());
        held.map(|(origin, _)| origin.broker).collect()
    }

    /// Nothing moves: from now on one peer alone is asked, for everything, until what it has said that
    /// it holds is here; see [`Peers::ask_one`]. Which one it is.
    pub fn ask_one(&mut self) -> Option<BrokerId> {
        let most = self.peers.ask_one(self.stability.applied());
        self.only = most.map(|(peer, _)| {
            let report = self.reports.get(&peer);
            let goal = report.map(|report| report.applied.clone());
            (peer, goal.unwrap_or_default())
        });
        self.only.as_ref().map(|(peer, _)| *peer)
    }

    /// These frames will not come: who alone is asked for everything is not asked for them.
    pub fn give_up(&mut self, lost: impl Fn(Origin) -> bool) {
        if let Some((_, goal)) = &mut self.only {
            *goal = goal.iter().filter(|(origin, _)| !lost(*origin)).collect();
        }
    }

    /// Whether this broker is a member of a cluster that is founded, so that something can be stable. Who
    /// joins learns who the others are from what comes before the record that makes it a member.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        self.members.is_active(self.own) && self.founding == Founding::Complete
    }

    /// This broker.
    pub(crate) fn own(&self) -> BrokerId {
        self.own
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
        // Somebody who promises nothing has not met all that may write.
        match self.watermark() > HybridTimestamp::ZERO {
            true => self.stability.stable(),
            false => VersionVector::EMPTY,
        }
    }

    /// Every frame to come, from anybody, is stamped later.
    #[must_use]
    pub fn watermark(&self) -> HybridTimestamp {
        match self.is_founded() {
            true => self.stability.watermark(),
            false => HybridTimestamp::ZERO,
        }
    }

    /// The newest report of a broker.
    #[must_use]
    pub fn report(&self, broker: BrokerId) -> Option<&Report> {
        self.reports.get(&broker)
    }

    /// What there is to tell a peer: the newest reports of these brokers, or of all, and the own one.
    /// A broker that fetches what it has lost says what it holds instead of that. A report counts once
    /// the own frames in it are there, and those that were lost here may still be on their way to
    /// somebody, and follow less.
    #[must_use]
    pub fn news(&self, of: Option<&BTreeSet<BrokerId>>, is_fetching: bool) -> News {
        let wanted = |broker: &BrokerId| match *broker == self.own {
            true => !is_fetching,
            false => of.is_none_or(|of| of.contains(broker)),
        };
        let reports = self.reports.iter().filter(|(broker, _)| wanted(broker));
        News {
            reports: reports.map(|(_, report)| report.clone()).collect(),
            recalls: self.recalls.all().cloned().collect(),
            held: is_fetching.then(|| self.applied().clone()),
        }
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
mod membership;
#[cfg(test)]
mod tests;
