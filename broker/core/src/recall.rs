//! What a broker may have forgotten.
//!
//! Others count on what a member has reported: all that it writes follows it. A broker that was
//! restored from a backup has forgotten some of it, and does not know what. So it asks what every
//! member holds. What it had reported, and is anywhere still, is among that, and once it has the same
//! it may write.
//!
//! ```text
//! restored ──▶ Recall { answered: {}, held: {} } ──▶ b adds itself ──▶ c adds itself
//!     ▲                                                                  │
//!     └── it holds what is in `held`, and all members are in `answered` ◀┘
//! ```
//!
//! It goes from broker to broker as reports do: each joins what it hears with what it knows, adds what
//! it holds itself, and says it to all of its links. So it does not matter who is linked with whom, nor
//! how many were restored at once: who waits answers others nevertheless.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{BrokerId, Origin, Sequence};
use crate::members::Members;
use crate::vector::VersionVector;

/// Recalls that are kept of a member: of starts that it did not write after.
const OF_A_MEMBER: usize = 4;

/// Those of brokers that are no members by this log, all together: it may have to learn of them yet,
/// and anybody may claim to be one.
const OF_STRANGERS: usize = 16;

/// A broker asks what it has to hold before it writes, with the answers so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Under which identity it will write.
    pub origin: Origin,
    /// Who has answered.
    pub answered: BTreeSet<BrokerId>,
    /// What these held when they did.
    pub held: VersionVector,
}

/// What became of one that was heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// Nothing is to be passed on.
    Nothing,
    /// Others have answered.
    More,
    /// It was not known, and is answered.
    New,
}

/// Those that a broker knows of. By origin: which of two epochs is the later one cannot be told, since
/// one that was restored from a backup does not know how far it had come.
#[derive(Clone, Debug)]
pub(crate) struct Recalls {
    own: BrokerId,
    known: BTreeMap<Origin, Recall>,
    /// What this broker itself asks under.
    asked: Option<Origin>,
}

impl Recalls {
    /// None yet.
    pub(crate) fn new(own: BrokerId) -> Self {
        Self {
            own,
            known: BTreeMap::new(),
            asked: None,
        }
    }

    /// This broker asks itself.
    pub(crate) fn ask(&mut self, origin: Origin) {
        assert_eq!(origin.broker, self.own, "each asks for itself");
        let nobody_yet = Recall {
            origin,
            answered: BTreeSet::new(),
            held: VersionVector::EMPTY,
        };
        self.known.insert(origin, nobody_yet);
        self.asked = Some(origin);
    }

    /// Whether this broker asks.
    pub(crate) fn asks(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether all members have answered, and all that they held is here.
    pub(crate) fn is_over(&self, members: &Members, applied: &VersionVector) -> bool {
        let Some(own) = self.asked.and_then(|origin| self.known.get(&origin)) else {
            return true;
        };
        if !members.is_active(self.own) {
            // What it has lost says who the others are.
            return false;
        }
        let mut others = members
            .iter()
            .filter(|(broker, member)| *broker != self.own && !member.has_ended());
        others.all(|(broker, _)| own.answered.contains(&broker)) && applied.covers(&own.held)
    }

    /// This broker has what it asked for, or does not wait for it any more.
    pub(crate) fn end(&mut self) {
        if let Some(origin) = self.asked.take() {
            self.known.remove(&origin);
        }
    }

    /// Somebody asks, or knows more answers.
    pub(crate) fn hear(
        &mut self,
        recall: Recall,
        members: &Members,
        applied: &VersionVector,
    ) -> Heard {
        let origin = recall.origin;
        // What an earlier start has asked for does not matter any more.
        let is_over = match origin.broker == self.own {
            true => self.asked != Some(origin),
            false => has_written(origin, applied),
        };
        if is_over {
            return Heard::Nothing;
        }
        if let Some(held) = self.known.get_mut(&origin) {
            let knows_more =
                !held.answered.is_superset(&recall.answered) || !held.held.covers(&recall.held);
            held.answered.extend(recall.answered);
            held.held.merge(&recall.held);
            return match knows_more {
                true => Heard::More,
                false => Heard::Nothing,
            };
        }
        if !self.make_room(origin.broker, members) {
            return Heard::Nothing;
        }
        let held = self.known.entry(origin).or_insert(recall);
        held.answered.insert(self.own);
        held.held.merge(applied);
        Heard::New
    }

    /// Whether one more of this broker can be kept. Of a member the one with most answers goes: it is
    /// that of an earlier start.
    fn make_room(&mut self, broker: BrokerId, members: &Members) -> bool {
        let is_member = |broker: BrokerId| members.get(broker).is_some();
        let of_it = self
            .known
            .iter()
            .filter(|(origin, _)| origin.broker == broker);
        if !is_member(broker) {
            let strangers = self.known.keys().filter(|origin| !is_member(origin.broker));
            return strangers.count() < OF_STRANGERS;
        }
        if of_it.clone().count() >= OF_A_MEMBER {
            let oldest = of_it.max_by_key(|(_, recall)| recall.answered.len());
            if let Some(oldest) = oldest.map(|(origin, _)| *origin) {
                self.known.remove(&oldest);
            }
        }
        true
    }

    /// Those who have written since they asked wait for nothing.
    pub(crate) fn advance(&mut self, applied: &VersionVector) {
        self.known
            .retain(|origin, _| Some(*origin) == self.asked || !has_written(*origin, applied));
    }

    /// What is to be said of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Recall> {
        self.known.values()
    }
}

fn has_written(origin: Origin, applied: &VersionVector) -> bool {
    applied.get(origin) > Sequence::NONE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;
    use crate::members::founded;

    fn origin(broker: u64, epoch: u32) -> Origin {
        Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(epoch),
        }
    }

    fn vector(entries: &[(u64, u64)]) -> VersionVector {
        let entry = |&(broker, sequence)| (origin(broker, 1), Sequence::new(sequence));
        entries.iter().map(entry).collect()
    }

    struct Broker {
        recalls: Recalls,
        applied: VersionVector,
    }

    fn broker(id: u64, applied: &[(u64, u64)]) -> Broker {
        Broker {
            recalls: Recalls::new(BrokerId::new(id)),
            applied: vector(applied),
        }
    }

    /// Says all that the one knows to the other.
    fn tell(from: &Broker, to: &mut Broker) -> bool {
        let said: Vec<_> = from.recalls.all().cloned().collect();
        let (mut told, all) = (false, founded(&[1, 2, 3]));
        for recall in said {
            told |= to.recalls.hear(recall, &all, &to.applied) != Heard::Nothing;
        }
        told
    }

    /// 1 and 2 are linked, and 2 and 3. Both 1 and 2 were restored, so that 2 knows no better than 1
    /// what that had reported.
    #[test]
    fn two_that_were_restored_at_once_wait_for_what_only_a_third_holds() {
        let members = founded(&[1, 2, 3]);
        let mut one = broker(1, &[(1, 5), (2, 4)]);
        let mut two = broker(2, &[(1, 5), (2, 4)]);
        let mut three = broker(3, &[(1, 9), (2, 8), (3, 7)]);
        one.recalls.ask(origin(1, 2));
        two.recalls.ask(origin(2, 2));
        assert!(tell(&one, &mut two));
        assert!(tell(&two, &mut one));
        assert!(!one.recalls.is_over(&members, &one.applied));
        assert!(tell(&two, &mut three));
        assert!(tell(&three, &mut two));
        assert!(tell(&two, &mut one));
        assert!(
            !one.recalls.is_over(&members, &one.applied),
            "it lacks some"
        );
        one.applied = three.applied.clone();
        assert!(one.recalls.is_over(&members, &one.applied));
        // Nothing is said for ever.
        tell(&one, &mut two);
        tell(&two, &mut three);
        assert!(!tell(&one, &mut three));
        assert!(!tell(&two, &mut one));
    }

    /// It was a member once, as a peer says, and by its log there are none.
    #[test]
    fn one_that_has_lost_who_the_members_are_waits_until_its_log_says_so_again() {
        let mut one = broker(1, &[]);
        let mut two = broker(2, &[(1, 5), (2, 4)]);
        one.recalls.ask(origin(1, 2));
        assert!(!one.recalls.is_over(&Members::EMPTY, &one.applied));
        assert!(!one.recalls.is_over(&founded(&[2]), &one.applied));
        assert!(tell(&one, &mut two));
        assert!(tell(&two, &mut one));
        one.applied = two.applied.clone();
        assert!(one.recalls.is_over(&founded(&[1, 2]), &one.applied));
    }

    #[test]
    fn who_has_written_since_is_not_answered_any_more_nor_is_an_earlier_start() {
        let mut one = broker(1, &[]);
        let mut two = broker(2, &[]);
        one.recalls.ask(origin(1, 3));
        assert!(tell(&one, &mut two));
        two.applied.advance(origin(1, 3), Sequence::new(1));
        two.recalls.advance(&two.applied);
        assert_eq!(two.recalls.all().count(), 0);
        assert!(!tell(&one, &mut two));
        // Restored once more, it may come by a smaller number.
        let mut later = broker(1, &[]);
        later.recalls.ask(origin(1, 2));
        assert!(!tell(&one, &mut later));
        assert!(tell(&later, &mut two));
        assert!(tell(&two, &mut later));
        let answered = later.recalls.known[&origin(1, 2)].answered.clone();
        assert_eq!(answered, [BrokerId::new(2)].into_iter().collect());
    }

    #[test]
    fn those_that_were_parked_are_not_waited_for_and_not_more_are_answered_than_there_can_be() {
        let members = founded(&[1]);
        let mut one = broker(1, &[]);
        one.recalls.ask(origin(1, 2));
        let applied = one.applied.clone();
        assert!(
            one.recalls.is_over(&members, &applied),
            "nobody else is there"
        );
        for id in 4..2000 {
            let mut other = broker(id, &[]);
            other.recalls.ask(origin(id, 1));
            assert_eq!(tell(&other, &mut one), id < 4 + OF_STRANGERS as u64);
        }
        // A member is answered all the same, however often it has asked and not written.
        for epoch in 1..20 {
            let mut other = broker(2, &[]);
            other.recalls.ask(origin(2, epoch));
            assert!(tell(&other, &mut one));
        }
        assert_eq!(one.recalls.all().count(), 1 + OF_STRANGERS + OF_A_MEMBER);
        one.recalls.end();
        assert!(!one.recalls.asks());
    }
}
