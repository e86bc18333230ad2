//! What is shown of links, members and what exists only here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anabranch_core::id::{BrokerId, Origin, RegionName};
use anabranch_core::members::Members;
use anabranch_core::vector::VersionVector;

use super::super::wall_clock_ms;
use super::{Dialled, Entry, Link, LinkCounts, Regions, State};

/// How far one side is behind another.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behind {
    pub(crate) frames: u64,
    /// May count some that are there: bytes are known for stretches of the log only.
    pub(crate) bytes: u64,
    pub(crate) millis: u64,
}

/// What is shown of a link.
#[derive(Clone, Debug)]
pub(crate) struct LinkStatus {
    pub(crate) origin: Origin,
    pub(crate) region: RegionName,
    pub(crate) dialled: Dialled,
    pub(crate) up_seconds: u64,
    pub(crate) asked_of: BTreeSet<BrokerId>,
    /// What the peer has and this broker has not.
    pub(crate) behind: Behind,
    /// What this broker has and the peer has not said that it has.
    pub(crate) ahead: Behind,
    pub(crate) counts: Arc<LinkCounts>,
}

/// What is shown of it all.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) entry: Entry,
    /// Applied by all.
    pub(crate) stable: VersionVector,
    pub(crate) members: Members,
    /// Members that nobody waits for any more.
    pub(crate) left: BTreeSet<BrokerId>,
    /// Frames that other members have not said that they hold, linked or not.
    pub(crate) lacks: BTreeMap<BrokerId, u64>,
    pub(crate) links: Vec<LinkStatus>,
    /// The peers that are named, and who was met there since the start.
    pub(crate) peers: Vec<(String, Option<BrokerId>)>,
    /// Frames that wait for what they follow.
    pub(crate) held_frames: usize,
    pub(crate) held_bytes: usize,
    /// What was written here and no other region has said that it holds.
    pub(crate) only_here: Behind,
    /// Origins whose histories contradict each other, each with what was found.
    pub(crate) forks: Vec<String>,
}

impl Regions {
    /// Whether this broker takes links, or has met others before.
    pub(crate) fn has_links(&self) -> bool {
        self.expected.is_some()
    }

    /// Whether a linked peer has said that it holds what is held here, no more and no less.
    pub(in crate::node) fn is_level_with(&self, peer: BrokerId) -> bool {
        let state = self.state.lock();
        let report = state.mesh.report(peer);
        report.is_some_and(|report| report.applied == *state.mesh.applied())
    }

    /// How things stand.
    pub(crate) fn status(&self) -> Status {
        let state = self.state.lock();
        let mesh = &state.mesh;
        let now = wall_clock_ms();
        let only_here = Behind {
            frames: (mesh.applied().get(self.own).get())
                .saturating_sub(mesh.elsewhere(self.own).get()),
            bytes: state.only_here.bytes(state.appended),
            millis: state.only_here.millis(now),
        };
        let members = mesh.members().clone();
        let has_left = |broker: &BrokerId| mesh.has_left(*broker);
        Status {
            entry: self.entry.borrow().clone(),
            stable: mesh.stable(),
            left: members.iter().map(|(id, _)| id).filter(has_left).collect(),
            lacks: (members.iter())
                .filter(|(id, member)| *id != self.own.broker && !member.has_ended())
                .map(|(id, _)| id)
                .map(|id| (id, state.lacks(id)))
                .collect(),
            members,
            links: (state.links.iter())
                .map(|(peer, link)| state.link_status(*peer, link, now))
                .collect(),
            peers: (self.named.iter())
                .map(|address| (address.clone(), state.named_met.get(address).copied()))
                .collect(),
            held_frames: state.waiting.0,
            held_bytes: state.waiting.1,
            only_here,
            forks: state.forks.values().cloned().collect(),
        }
    }
}

impl State {
    /// Frames that a broker has not said that it holds.
    fn lacks(&self, broker: BrokerId) -> u64 {
        let held = self.mesh.applied();
        match self.mesh.report(broker) {
            Some(report) => report.applied.lacks_of(held),
            None => VersionVector::EMPTY.lacks_of(held),
        }
    }

    fn link_status(&self, peer: BrokerId, link: &Link, now: u64) -> LinkStatus {
        let held = self.mesh.applied();
        let holds = match self.mesh.report(peer) {
            Some(report) => report.applied.clone(),
            None => link.greeting.holds.clone(),
        };
        let received = link
            .counts
            .bytes_in
            .load(std::sync::atomic::Ordering::Relaxed);
        LinkStatus {
            origin: link.greeting.origin,
            region: link.greeting.region.clone(),
            dialled: link.dialled,
            up_seconds: link.since.elapsed().as_secs(),
            asked_of: link.asks.borrow().of.clone(),
            behind: Behind {
                frames: held.lacks_of(&holds),
                bytes: link.behind.bytes(received),
                millis: link.behind.millis(now),
            },
            ahead: Behind {
                frames: holds.lacks_of(held),
                bytes: link.ahead.bytes(self.appended),
                millis: link.ahead.millis(now),
            },
            counts: Arc::clone(&link.counts),
        }
    }
}
