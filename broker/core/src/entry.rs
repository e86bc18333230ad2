//! Whether a broker may write, who has to be made a member, and who may be linked.
//!
//! | a broker | does |
//! |---|---|
//! | is no member, and has met one whose cluster is founded, or its log holds what others have founded that are not linked | waits until a member has written that it is |
//! | is no member otherwise, and all its peers were met, or do not answer for a while | founds: writes that it is one |
//! | is a member, and so are all that were named or met | writes something that follows all their records, once: then its cluster is founded |
//! | is a member of a cluster that is founded, and linked to one that is none | writes that it is |
//! | was parked | writes nothing any more |

use std::collections::BTreeMap;

use crate::id::{BrokerId, Epoch, Origin, RegionName, Sequence};
use crate::members::Standing;
use crate::mesh::Mesh;
use crate::sequencer::Sequencer;
use crate::vector::VersionVector;

/// Under which a broker writes until a start cannot prove its log whole.
const FIRST_EPOCH: Epoch = Epoch::new(1);

/// What a broker says of itself before anything else, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// Under which identity it writes.
    pub origin: Origin,
    /// Where it stands.
    pub region: RegionName,
    /// What it holds.
    pub holds: VersionVector,
    /// Who belongs to the cluster, as its log says.
    pub members: BTreeMap<BrokerId, Standing>,
    /// Whether its cluster is founded, so that somebody may have dropped what only late frames need.
    pub complete: bool,
}

/// Why two brokers are not linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// The peer was parked.
    Parked,
    /// The peer holds frames of this one, which was parked, that are not here.
    BringsBack {
        /// Whose.
        parked: BrokerId,
        /// Nobody waits for these frames any more. Otherwise others may ship them first.
        for_good: bool,
    },
    /// Since it has said what it is, this broker has become something else.
    Outdated,
}

impl Greeting {
    /// Whether this broker knows that the other one was parked.
    #[must_use]
    pub fn knows_parked(&self, peer: &Self) -> bool {
        let standing = self.members.get(&peer.origin.broker);
        standing.is_some_and(|held| *held > Standing::Active)
    }

    /// Whether both have founded clusters apart that cannot become one any more; or one has founded its
    /// own and is not known to the other, whose cluster is founded. It may have held records of that
    /// one's members before. If others know it, their record comes from them.
    #[must_use]
    pub fn is_founded_apart(&self, peer: &Self) -> bool {
        (self.complete || peer.complete)
            && self.has_written()
            && peer.has_written()
            && (!self.is_related(peer)
                || self.was_founded_without(peer)
                || peer.was_founded_without(self))
    }

    fn was_founded_without(&self, other: &Self) -> bool {
        self.complete && !other.complete && !self.members.contains_key(&other.origin.broker)
    }

    /// Whether a broker has written, or may write.
    fn has_written(&self) -> bool {
        let own = self.origin.broker;
        let mut origins = self.holds.iter();
        self.members.contains_key(&own) || origins.any(|(origin, _)| origin.broker == own)
    }

    /// Whether the log of one of them will tell the other who belongs to the cluster.
    fn is_related(&self, other: &Self) -> bool {
        let mut members = self.members.keys();
        members.any(|broker| other.members.contains_key(broker))
    }

    fn is_of_member(&self) -> bool {
        self.members.get(&self.origin.broker) == Some(&Standing::Active)
    }
}

/// Why a member cannot be parked or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unendable {
    /// The cluster is being founded.
    Unfounded,
    /// It is the broker that is asked.
    Itself,
    /// It is linked, and would lose what it has not shipped.
    Linked,
}

/// Whether nothing was written yet since a start found that the log might have lost its end: then what it
/// has lost may not be back either, though its own frames may all be among that.
#[must_use]
pub fn is_unused(sequencer: &Sequencer) -> bool {
    let own = sequencer.origin();
    own.epoch > FIRST_EPOCH && sequencer.vector().get(own) == Sequence::NONE
}

/// What is around a broker, and the mesh does not know.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// Where this broker stands.
    pub region: &'a RegionName,
    /// How many peers are named.
    pub named: usize,
    /// Who was met at the places at which these are said to be.
    pub met: Vec<BrokerId>,
    /// What linked peers have said of themselves.
    pub linked: Vec<&'a Greeting>,
    /// A history has forked: nothing more of it comes.
    pub has_forked: bool,
    /// It has waited long enough for those that do not answer.
    pub patience_is_over: bool,
}

/// Whether a broker may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It may.
    Open,
    /// It fetches what it has lost of its log.
    Fetching,
    /// A member has to write that it is one.
    Joining,
    /// It writes that it is one itself.
    Founding,
    /// It has not met its peers.
    Waiting,
    /// Never again: others do not take its frames any more.
    Parked,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Todo {
    /// Whether this broker may write.
    pub entry: Entry,
    /// Brokers that become members, with their regions.
    pub admit: Vec<(BrokerId, RegionName)>,
    /// Nothing is fetched any more that may have been lost here, since just now.
    pub has_fetched: bool,
    /// Not all members have said what they hold, and this broker writes nevertheless.
    pub unanswered: bool,
}

impl Todo {
    /// Whether it has to be looked again once the patience is over.
    #[must_use]
    pub fn waits(&self) -> bool {
        matches!(self.entry, Entry::Fetching | Entry::Waiting)
    }
}

impl Mesh {
    /// What is to be done so that this broker, and those that are linked, become members. `fetching`
    /// says whether it fetches what it may have lost, and is put right.
    pub fn todo(&mut self, around: &Around<'_>, fetching: &mut bool) -> Todo {
        for broker in &around.met {
            self.greeted(*broker);
        }
        let all_met = around.met.len() + self.ended_unmet(around) >= around.named;
        if all_met {
            self.know_all();
        }
        let mut todo = Todo {
            entry: Entry::Open,
            admit: Vec::new(),
            has_fetched: false,
            unanswered: false,
        };
        if *fetching {
            self.stop_fetching(around, all_met, &mut todo);
            *fetching = !todo.has_fetched;
        }
        let own = self.own();
        todo.entry = match self.members().standing(own) {
            Some(Standing::Active) if *fetching => Entry::Fetching,
            Some(Standing::Active) => {
                todo.admit = self.strangers(around);
                if self.has_to_tell() {
                    todo.admit.push((own, around.region.clone()));
                }
                Entry::Open
            }
            Some(Standing::Parked | Standing::Removed) => Entry::Parked,
            None if self.is_to_join(around) => Entry::Joining,
            None if all_met || around.patience_is_over => {
                todo.admit.push((own, around.region.clone()));
                Entry::Founding
            }
            None => Entry::Waiting,
        };
        todo
    }

    /// Whether a link may be up, by what is known now: it may have changed since the greetings.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_link(&self, own: &Greeting, peer: &Greeting) -> Result<(), Unfit> {
        let broker = peer.origin.broker;
        if self.members().has_ended(broker) {
            return Err(Unfit::Parked);
        }
        if let Some(parked) = self.brings_back(broker, &peer.holds) {
            let for_good = self.has_left(parked);
            return Err(Unfit::BringsBack { parked, for_good });
        }
        // Whoever has become a member since its greeting has to say so.
        match own.members == self.members().standings() && own.complete == self.may_have_dropped() {
            true => Ok(()),
            false => Err(Unfit::Outdated),
        }
    }

    /// Whether a member may be parked or removed, by what is known here.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_end(&self, broker: BrokerId, is_linked: bool) -> Result<(), Unendable> {
        match () {
            () if !self.is_founded() => Err(Unendable::Unfounded),
            () if broker == self.own() => Err(Unendable::Itself),
            () if is_linked => Err(Unendable::Linked),
            () => Ok(()),
        }
    }

    /// A peer that is linked has said what it is. By it this broker, whose identity that is, may learn that
    /// it was a member before what its log has left: then it asks what it may have forgotten.
    pub fn greet(&mut self, own: Origin, peer: &Greeting, is_fetching: bool) {
        self.has_met_founded |= peer.complete;
        let is_known = peer.members.get(&own.broker) == Some(&Standing::Active);
        let knows_itself = self.members().get(own.broker).is_some();
        if is_fetching && is_known && !knows_itself && !self.recalls_itself() {
            self.recall(own);
        }
    }

    /// Whether this broker, which is no member by its log, must not found a cluster: there is one that is
    /// founded, or may be by now, or it was a member of one. Those whose records are in its log cannot
    /// found theirs without it while they are linked.
    fn is_to_join(&self, around: &Around<'_>) -> bool {
        let linked = &around.linked;
        let founds_with = |broker| linked.iter().any(|peer| peer.origin.broker == broker);
        self.has_met_founded
            || self.may_have_dropped()
            || linked
                .iter()
                .any(|peer| peer.members.contains_key(&self.own()))
            || (self.members().iter()).any(|(broker, member)| {
                member.has_ended() || member.is_admitted() || !founds_with(broker)
            })
    }

    /// Parked brokers that were not met since the start: an address at which nobody answers is theirs.
    fn ended_unmet(&self, around: &Around<'_>) -> usize {
        let ended = (self.members().iter()).filter(|(_, member)| member.has_ended());
        ended
            .filter(|(broker, _)| !around.met.contains(broker))
            .count()
    }

    /// Linked brokers that are no members, and of whom no frame that is on its way says that they
    /// are.
    fn strangers(&self, around: &Around<'_>) -> Vec<(BrokerId, RegionName)> {
        // Who joins learns from the record that makes it a member who the others are. It waits for that
        // record as soon as anybody has promised something, which may be before this broker's own
        // founding is over: that in turn waits until all that were met are members. Others may still
        // be unknown here then, and nothing is promised before they are known.
        if !self.may_have_dropped() {
            return Vec::new();
        }
        let members = self.members();
        let is_stranger = |peer: &&&Greeting| {
            let mut held = peer.members.keys();
            let told = peer.is_of_member() && held.any(|&held| members.get(held).is_some());
            members.get(peer.origin.broker).is_none() && !told
        };
        let strangers = around.linked.iter().filter(is_stranger);
        strangers
            .map(|peer| (peer.origin.broker, peer.region.clone()))
            .collect()
    }

    /// Looks whether from now on nothing is fetched any more that this broker may have lost. Those that are
    /// named are waited for, since the log may have lost who the members are, and all members; and none
    /// for longer than the patience lasts. Of a history that has forked nothing more comes.
    fn stop_fetching(&mut self, around: &Around<'_>, all_met: bool, todo: &mut Todo) {
        let holds_linked = self.holds_what_peers_have(around) || around.has_forked;
        let knows_others = self.recalls_itself() && self.members().iter().count() > 1;
        let has_all = holds_linked
            && all_met
            && (around.named > 0 || knows_others)
            && (!self.recalls_itself() || self.is_recalled());
        todo.has_fetched = has_all || around.patience_is_over && holds_linked;
        if todo.has_fetched {
            todo.unanswered = !has_all && self.recalls_itself();
            self.end_recall();
        }
    }

    /// Whether everything is here that linked peers had when they were linked. Not only this broker's
    /// own frames: it may have reported that it held the others, and what it writes has to follow all
    /// that it has reported.
    fn holds_what_peers_have(&self, around: &Around<'_>) -> bool {
        let mut linked = around.linked.iter();
        linked.all(|peer| self.applied().covers(&peer.holds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTimestamp;
    use crate::id::PartitionId;
    use crate::members::{self, Members, founded};
    use crate::sequencer::Publish;
    use crate::stability::Report;
    use crate::stream::StreamDefinition;

    fn origin(broker: u64) -> Origin {
        Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        }
    }

    fn region() -> RegionName {
        RegionName::parse("a").unwrap()
    }

    fn report(broker: u64, applied: &[(u64, u64)], promise: u64) -> Report {
        let entry = |&(broker, sequence)| (origin(broker), Sequence::new(sequence));
        Report {
            broker: BrokerId::new(broker),
            applied: applied.iter().map(entry).collect(),
            promise: HybridTimestamp::new(promise),
        }
    }

    fn greeting(broker: u64, members: &Members, complete: bool) -> Greeting {
        Greeting {
            origin: origin(broker),
            region: region(),
            holds: VersionVector::EMPTY,
            members: members.standings(),
            complete,
        }
    }

    fn around<'a>(region: &'a RegionName, met: &[u64], linked: &[&'a Greeting]) -> Around<'a> {
        Around {
            region,
            named: 2,
            met: met.iter().copied().map(BrokerId::new).collect(),
            linked: linked.to_vec(),
            has_forked: false,
            patience_is_over: false,
        }
    }

    /// 1 is told of 2 and 3, and those of 1 alone. 3 has founded the cluster with 1 before 2 came.
    #[test]
    fn one_that_comes_last_becomes_a_member_though_not_all_have_founded_the_cluster() {
        let here = region();
        let both = founded(&[1, 3]);
        let mut one = Mesh::new(BrokerId::new(1), region());
        one.advance(report(1, &[(1, 1), (3, 2)], 9), &both);
        one.hear(report(3, &[(1, 1), (3, 2)], 9));
        one.link(BrokerId::new(2), region(), VersionVector::EMPTY);
        assert!(one.may_have_dropped() && !one.is_founded());
        // So the new one waits for it.
        let mut two = Mesh::new(BrokerId::new(2), region());
        let said = greeting(1, &both, one.may_have_dropped());
        two.greet(origin(2), &said, false);
        let todo = two.todo(&around(&here, &[1], &[&said]), &mut false);
        assert_eq!((todo.entry, todo.admit.len()), (Entry::Joining, 0));
        let said = greeting(2, &Members::EMPTY, false);
        let todo = one.todo(&around(&here, &[2, 3], &[&said]), &mut false);
        assert_eq!(todo.admit, [(BrokerId::new(2), region())]);
    }

    /// 2 was met and refused the link, and founds the cluster as well.
    #[test]
    fn who_was_met_and_not_linked_has_to_be_a_member_before_the_founding_is_over() {
        let here = region();
        let mut one = Mesh::new(BrokerId::new(1), region());
        let around = around(&here, &[2, 3], &[]);
        one.advance(report(1, &[(1, 1), (3, 2)], 9), &founded(&[1, 3]));
        assert!(one.todo(&around, &mut false).admit.is_empty());
        one.advance(report(1, &[(1, 2), (3, 2)], 9), &founded(&[1, 3]));
        assert!(!one.is_founded());
        one.advance(
            report(1, &[(1, 2), (2, 1), (3, 2)], 9),
            &founded(&[1, 2, 3]),
        );
        assert_eq!(one.todo(&around, &mut false).admit.len(), 1);
        one.advance(
            report(1, &[(1, 3), (2, 1), (3, 2)], 9),
            &founded(&[1, 2, 3]),
        );
        assert!(one.is_founded());
    }

    /// The backup is of when it had written its own record, and nobody else's had come.
    #[test]
    fn one_that_has_lost_all_other_members_waits_for_those_that_are_named() {
        let here = region();
        let mut one = Mesh::new(BrokerId::new(1), region());
        one.recall(origin(1));
        one.advance(report(1, &[(1, 1)], 0), &founded(&[1]));
        let mut fetching = true;
        assert!(
            !one.todo(&around(&here, &[2], &[]), &mut fetching)
                .has_fetched
        );
        let two = Greeting {
            holds: report(2, &[(1, 1), (2, 4)], 0).applied,
            ..greeting(2, &founded(&[1, 2]), true)
        };
        let linked = around(&here, &[2, 3], &[&two]);
        assert!(!one.todo(&linked, &mut fetching).has_fetched);
        assert!(fetching);
    }

    #[test]
    fn an_identity_is_unused_until_it_has_written_unless_it_is_the_first() {
        let mut sequencer = Sequencer::new(origin(1));
        assert!(!is_unused(&sequencer));
        let later = Origin {
            epoch: Epoch::new(7),
            ..origin(1)
        };
        // Of what was written before nothing is left, either.
        sequencer.take_origin(later);
        assert!(is_unused(&sequencer));
        let publish = Publish {
            stream: StreamDefinition::members().id(),
            partition: PartitionId::new(0),
            batch: members::batch(later.broker, Standing::Active, &region(), 1).unwrap(),
        };
        let mut frame = sequencer.open();
        frame.add(&[publish], &mut Vec::new()).unwrap();
        drop(frame.close(1));
        assert!(!is_unused(&sequencer));
    }

    #[test]
    fn founders_wait_for_those_that_are_named_and_then_for_nobody() {
        let here = region();
        let mut one = Mesh::new(BrokerId::new(1), region());
        let nobody = around(&here, &[], &[]);
        assert_eq!(one.todo(&nobody, &mut false).entry, Entry::Waiting);
        let silent = Around {
            patience_is_over: true,
            ..nobody
        };
        let todo = one.todo(&silent, &mut false);
        assert_eq!(todo.entry, Entry::Founding);
        assert_eq!(todo.admit, [(BrokerId::new(1), region())]);
        let two = greeting(2, &founded(&[2]), false);
        let todo = one.todo(&around(&here, &[2, 3], &[&two]), &mut false);
        assert_eq!(todo.entry, Entry::Founding);
    }

    /// It has the frames of the cluster that it was about to join, and its own would not follow what is
    /// stable there.
    #[test]
    fn one_that_was_cut_off_before_it_was_a_member_founds_no_cluster() {
        let here = region();
        let of_founded = greeting(2, &founded(&[2, 3]), true);
        let mut one = Mesh::new(BrokerId::new(1), region());
        one.greet(origin(1), &of_founded, false);
        let todo = one.todo(&around(&here, &[2, 3], &[&of_founded]), &mut false);
        assert_eq!((todo.entry, todo.waits()), (Entry::Joining, false));
        let cut = around(&here, &[2, 3], &[]);
        let todo = one.todo(&cut, &mut false);
        assert_eq!((todo.entry, todo.admit.len()), (Entry::Joining, 0));
        // Started again, it has met nobody, and waits no longer.
        let mut one = Mesh::new(BrokerId::new(1), region());
        one.advance(report(1, &[(2, 5)], 0), &founded(&[2, 3]));
        let silent = Around {
            patience_is_over: true,
            ..cut
        };
        let todo = one.todo(&silent, &mut false);
        assert_eq!((todo.entry, todo.admit.len()), (Entry::Joining, 0));
    }

    #[test]
    fn who_has_founded_without_a_cluster_that_is_founded_does_not_come_into_it() {
        let cluster = greeting(2, &founded(&[2, 3]), true);
        // It had the record of 3 when it wrote its own.
        let apart = greeting(1, &founded(&[1, 3]), false);
        assert!(cluster.is_founded_apart(&apart) && apart.is_founded_apart(&cluster));
        // 3 has taken its record over, and ships it.
        let knows = greeting(3, &founded(&[1, 2, 3]), true);
        assert!(!knows.is_founded_apart(&apart) && !apart.is_founded_apart(&knows));
        // Another one has made it a member, and that record is on its way.
        let admitted = greeting(1, &founded(&[1, 3]), true);
        assert!(!cluster.is_founded_apart(&admitted));
    }
}
