//! How a simulated broker becomes a member, makes others members, and learns that one was parked.
//! What is to be done is decided as in the program, see [`anabranch_core::entry`].

use std::collections::BTreeMap;

use anabranch_core::entry::{Around, Entry, Todo};
use anabranch_core::id::BrokerId;
use anabranch_core::members::Standing;

use super::agenda::Time;
use super::broker::{Request, Running};
use super::link::Side;
use super::mutant::Mutant;

/// How far a broker is.
#[derive(Debug)]
pub(super) struct Entrance {
    pub(super) entry: Entry,
    /// Links or members have changed.
    pub(super) changed: bool,
    /// Who was met on which of the machines that were named to it.
    met: BTreeMap<usize, BrokerId>,
    /// Records of members that it has to write and are not durable yet.
    saying: usize,
    /// It looks again once its patience is over.
    waits: bool,
    /// Links that end, since their peers were parked.
    pub(super) fenced: Vec<u64>,
}

impl Default for Entrance {
    fn default() -> Self {
        Self {
            entry: Entry::Waiting,
            changed: true,
            met: BTreeMap::new(),
            saying: 0,
            waits: false,
            fenced: Vec::new(),
        }
    }
}

impl Entrance {
    /// A broker was met on a machine.
    pub(super) fn meet(&mut self, at: usize, broker: BrokerId) {
        self.changed |= self.met.insert(at, broker) != Some(broker);
    }

    /// So many records of members are durable, or there was no room for them.
    pub(super) fn note_said(&mut self, count: usize) {
        self.saying -= count;
    }
}

impl Running {
    /// Whether it may write.
    pub(super) fn may_write(&self) -> bool {
        self.entrance.entry == Entry::Open
    }

    /// Does what is to be done for the members' sake.
    pub(super) fn attend(&mut self, now: Time) {
        self.fetch_less();
        let deadline = self.who.deadline;
        let patience_is_over = deadline.is_some_and(|deadline| now >= deadline) && !self.fetching;
        if patience_is_over && std::mem::take(&mut self.entrance.waits) {
            self.entrance.changed = true;
        }
        let is_parked = self.entrance.entry == Entry::Parked;
        if is_parked || self.entrance.saying > 0 || !std::mem::take(&mut self.entrance.changed) {
            return;
        }
        let around = Around {
            region: &self.who.region,
            named: self.who.named,
            met: self.entrance.met.values().copied().collect(),
            linked: self.sides.values().filter_map(Side::greeting).collect(),
            has_forked: false,
            patience_is_over,
        };
        let todo = self.mesh.todo(&around, &mut self.fetching);
        self.follow(todo);
    }

    fn follow(&mut self, todo: Todo) {
        if todo.has_fetched {
            self.settle();
        }
        self.entrance.waits = todo.waits();
        self.entrance.entry = todo.entry;
        for (broker, region) in todo.admit {
            self.say(Request::Member(broker, Standing::Active, region));
        }
    }

    /// Writes where a broker stands.
    pub(super) fn say(&mut self, member: Request) {
        self.entrance.saying += 1;
        self.inbox.push_back(member);
    }

    /// The mistakes of writing before all is fetched.
    fn fetch_less(&mut self) {
        let has_enough = match self.mutant {
            Some(Mutant::FetchOwnTailOnly) => self.has_own_tail(),
            Some(Mutant::ReuseSequence) => self.sides.values().any(Side::is_seated),
            _ => false,
        };
        if self.fetching && has_enough {
            self.fetching = false;
            self.mesh.end_recall();
            self.settle();
            self.entrance.changed = true;
        }
    }

    /// Whether somebody is linked, and all is here that those that are had of this broker's own.
    fn has_own_tail(&self) -> bool {
        let held = self.vector();
        let own = self.who.id;
        let mut linked = self.sides.values().filter_map(Side::greeting).peekable();
        linked.peek().is_some()
            && linked.all(|peer| {
                let theirs = peer.holds.iter();
                let mut of_it = theirs.filter(|(origin, _)| origin.broker == own);
                of_it.all(|(origin, sequence)| held.contains(origin, sequence))
            })
    }

    /// Brokers were parked: their links end, and what they have shipped and waits among the rest is
    /// not taken any more. What others have of it they ship again.
    pub(super) fn fence(&mut self) {
        let members = self.sequencer.members();
        let linked = self.linked();
        let parked = linked.iter().filter(|(peer, _)| members.has_ended(**peer));
        self.entrance.fenced = parked.map(|(_, &number)| number).collect();
        self.holding.clear();
        let asks = self.mesh.asks();
        self.tell_asks(asks, true);
    }

    /// A peer says that this broker was parked.
    pub(super) fn note_parked(&mut self) {
        self.entrance.entry = Entry::Parked;
    }
}
