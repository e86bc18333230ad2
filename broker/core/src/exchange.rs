//! Whom to ask for what, so that every frame that is lacking comes over one link and no more.
//!
//! A peer is asked for its own frames. Those of a broker that cannot be reached are asked of one
//! of the peers that have more of them: they are relayed. A peer that may not hold what is asked for
//! says where it has to stop, and is not asked for what is behind until that came from elsewhere.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::frame::FrameHeader;
use crate::gap::Gap;
use crate::id::{BrokerId, Origin, Sequence};
use crate::vector::VersionVector;

/// The peers that can be reached at the moment, and what each is known to hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Peers {
    reachable: BTreeMap<BrokerId, VersionVector>,
    /// Who relays the frames of a broker that is out of reach. Kept while it is of use, so that
    /// nobody is asked anew with every frame.
    relays: BTreeMap<BrokerId, BrokerId>,
    /// Frames that a peer has and cannot ship here, nor what comes behind them: of its origin and,
    /// since those follow, of later epochs of the same broker.
    withheld: BTreeMap<(BrokerId, Origin), Sequence>,
    /// Peers that have stopped shipping a broker's frames before one that is held by now. They ship
    /// none of them any more until they are asked again.
    stopped: BTreeSet<(BrokerId, BrokerId)>,
}

/// What a peer is asked for: all frames of these brokers that are not in the vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What is held already.
    pub held: VersionVector,
    /// Whose frames.
    pub of: BTreeSet<BrokerId>,
}

impl Ask {
    /// Whether a frame is asked for.
    #[must_use]
    pub fn wants(&self, header: &FrameHeader) -> bool {
        self.beyond(header.origin)
            .is_some_and(|held| header.sequence > held)
    }

    /// The frame beyond which those of an origin are asked for; `None` if none of them are.
    #[must_use]
    pub fn beyond(&self, origin: Origin) -> Option<Sequence> {
        let asked = self.of.contains(&origin.broker);
        asked.then(|| self.held.get(origin))
    }

    /// What of a gap is asked for: its end, if its beginning is held.
    #[must_use]
    pub fn cut(&self, gap: Gap) -> Option<Gap> {
        let held = self.beyond(gap.origin)?;
        gap.beyond(held)
    }
}

impl Peers {
    /// A link is up, or its peer has said again what it holds.
    pub fn reach(&mut self, peer: BrokerId, holds: VersionVector) {
        self.reachable.insert(peer, holds);
    }

    /// A link is down.
    pub fn lose(&mut self, peer: BrokerId) {
        self.reachable.remove(&peer);
        self.withheld.retain(|(from, _), _| *from != peer);
        self.stopped.retain(|(from, _)| *from != peer);
    }

    /// A peer cannot ship an origin's frames here from this one on: somebody else has to, until it is
    /// held.
    pub fn withhold(&mut self, peer: BrokerId, origin: Origin, from: Sequence) {
        if self.reachable.contains_key(&peer) {
            self.withheld.insert((peer, origin), from);
        }
    }

    /// Whether a peer cannot ship what is not held yet.
    #[must_use]
    pub fn is_withheld(&self, held: &VersionVector) -> bool {
        let mut withheld = self.withheld.iter();
        withheld.any(|((_, origin), from)| held.get(*origin) < *from)
    }

    /// Whether what a peer cannot ship has come from elsewhere, so that asks are to be made anew.
    #[must_use]
    pub fn may_resume(&self, held: &VersionVector) -> bool {
        let mut withheld = self.withheld.iter();
        withheld.any(|((_, origin), from)| held.get(*origin) >= *from)
    }

    /// Takes out the peers that have to be asked again for frames of a broker, though they were asked
    /// for them before: each peer with the broker.
    #[must_use]
    pub fn take_stopped(&mut self) -> BTreeSet<(BrokerId, BrokerId)> {
        std::mem::take(&mut self.stopped)
    }

    /// What a peer can ship of what it holds.
    fn ships(&self, peer: BrokerId) -> Cow<'_, VersionVector> {
        let Some(holds) = self.reachable.get(&peer) else {
            return Cow::Owned(VersionVector::EMPTY);
        };
        if self.withheld.is_empty() {
            return Cow::Borrowed(holds);
        }
        let ships = |(origin, sequence): (Origin, Sequence)| {
            let stops = self.withheld.iter();
            let stops = stops.filter(|((from, stop), _)| {
                *from == peer && stop.broker == origin.broker && *stop <= origin
            });
            let before =
                |(&(_, stop), &from): (&(BrokerId, Origin), &Sequence)| match stop == origin {
                    true => Sequence::new(from.get().saturating_sub(1)),
                    false => Sequence::NONE,
                };
            let most = stops
                .map(before)
                .min()
                .map_or(sequence, |most| most.min(sequence));
            (most > Sequence::NONE).then_some((origin, most))
        };
        Cow::Owned(holds.iter().filter_map(ships).collect())
    }

    /// What to ask each reachable peer for. Each broker's frames are asked of one peer only.
    #[must_use]
    pub fn asks(&mut self, held: &VersionVector) -> BTreeMap<BrokerId, Ask> {
        let Self {
            withheld, stopped, ..
        } = self;
        withheld.retain(|(peer, origin), from| {
            let is_lacking = held.get(*origin) < *from;
            if !is_lacking {
                stopped.insert((*peer, origin.broker));
            }
            is_lacking
        });
        let ask = |&peer: &BrokerId| {
            let ask = Ask {
                held: held.clone(),
                of: BTreeSet::from([peer]),
            };
            (peer, ask)
        };
        let mut asks: BTreeMap<_, _> = self.reachable.keys().map(ask).collect();
        self.choose_relays(held);
        for (&broker, relay) in &self.relays {
            if let Some(ask) = asks.get_mut(relay) {
                ask.of.insert(broker);
            }
        }
        asks
    }

    /// What to ask for instead when nothing moves: everything of the one peer that has most. What is
    /// asked of several may wait for each other, if they relay; one peer's log waits for nothing.
    #[must_use]
    pub fn ask_one(&self, held: &VersionVector) -> Option<(BrokerId, Ask)> {
        let lacking = |holds: &VersionVector| held.lacks_of(holds);
        let ships = self.reachable.keys().map(|&peer| (peer, self.ships(peer)));
        let most = ships.max_by_key(|(_, ships)| lacking(ships));
        let (peer, holds) = most.filter(|(_, ships)| lacking(ships) > 0)?;
        let of = holds.iter().map(|(origin, _)| origin.broker).collect();
        let held = held.clone();
        Some((peer, Ask { held, of }))
    }

    /// Whether there is a link to this broker.
    #[must_use]
    pub fn reaches(&self, peer: BrokerId) -> bool {
        self.reachable.contains_key(&peer)
    }

    /// The peers, and what each is known to hold.
    pub fn reachable(&self) -> impl Iterator<Item = (BrokerId, &VersionVector)> {
        self.reachable.iter().map(|(&peer, holds)| (peer, holds))
    }

    fn choose_relays(&mut self, held: &VersionVector) {
        let far = self.out_of_reach();
        self.relays.retain(|broker, _| far.contains(broker));
        for broker in far {
            let current = self.relays.get(&broker);
            let serves = current
                .is_some_and(|&relay| newest_beyond(held, &self.ships(relay), broker).is_some());
            if serves {
                continue;
            }
            match self.relay_of(broker, held) {
                Some(relay) => {
                    self.relays.insert(broker, relay);
                }
                // Nobody has more. Who was asked stays asked, if it is still there; else whoever
                // has as much: what a broker reports comes from whom its frames are asked of.
                None => {
                    let there = current.is_some_and(|relay| self.reachable.contains_key(relay));
                    if !there && let Some(relay) = self.relay_of(broker, &VersionVector::EMPTY) {
                        self.relays.insert(broker, relay);
                    }
                }
            }
        }
    }

    /// Brokers without a link of whom some peer has frames.
    fn out_of_reach(&self) -> BTreeSet<BrokerId> {
        let held = self.reachable.values().flat_map(VersionVector::iter);
        held.map(|(origin, _)| origin.broker)
            .filter(|broker| !self.reachable.contains_key(broker))
            .collect()
    }

    /// The peer that has most of a broker's frames; of several the one with the smallest id.
    fn relay_of(&self, broker: BrokerId, held: &VersionVector) -> Option<BrokerId> {
        let most = self
            .reachable
            .keys()
            .filter_map(|&peer| {
                let beyond = newest_beyond(held, &self.ships(peer), broker)?;
                Some((beyond, std::cmp::Reverse(peer)))
            })
            .max();
        most.map(|(_, peer)| peer.0)
    }
}

/// The last frame of a broker that a peer has and that is not held. The newest epoch decides: its
/// frames follow those of all before.
fn newest_beyond(
    held: &VersionVector,
    holds: &VersionVector,
    broker: BrokerId,
) -> Option<(Origin, Sequence)> {
    let lacking = held.missing_from(holds);
    let of_it = lacking.iter().filter(|(origin, _)| origin.broker == broker);
    of_it.last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;

    fn holds(entries: &[(u64, u32, u64)]) -> VersionVector {
        let entry = |&(broker, epoch, sequence): &(u64, u32, u64)| {
            let origin = Origin {
                broker: BrokerId::new(broker),
                epoch: Epoch::new(epoch),
            };
            (origin, Sequence::new(sequence))
        };
        entries.iter().map(entry).collect()
    }

    fn of(asks: &BTreeMap<BrokerId, Ask>, peer: u64) -> Vec<u64> {
        let of = asks[&BrokerId::new(peer)].of.iter();
        of.map(|broker| broker.get()).collect()
    }

    #[test]
    fn a_peer_is_asked_for_its_own_frames_and_for_those_of_who_is_out_of_reach() {
        let mut peers = Peers::default();
        let held = holds(&[(1, 1, 5), (2, 1, 1)]);
        peers.reach(BrokerId::new(2), holds(&[(2, 1, 9), (3, 1, 7), (4, 1, 2)]));
        peers.reach(BrokerId::new(3), holds(&[(3, 1, 8), (2, 1, 9), (4, 1, 3)]));
        let asks = peers.asks(&held);
        assert_eq!(of(&asks, 2), [2]);
        assert_eq!(of(&asks, 3), [3, 4], "it has more of 4's frames");
        peers.lose(BrokerId::new(3));
        assert_eq!(of(&peers.asks(&held), 2), [2, 3, 4]);
        peers.reach(BrokerId::new(4), holds(&[(4, 1, 3)]));
        assert_eq!(of(&peers.asks(&held), 2), [2, 3]);
        assert_eq!(of(&peers.asks(&held), 4), [4]);
    }

    /// What it reports would not come otherwise.
    #[test]
    fn frames_to_come_are_asked_for_though_none_is_lacking() {
        let mut peers = Peers::default();
        peers.reach(BrokerId::new(2), holds(&[(2, 1, 9), (3, 1, 7)]));
        let asks = peers.asks(&holds(&[(2, 1, 9), (3, 1, 7)]));
        assert_eq!(of(&asks, 2), [2, 3]);
        peers.lose(BrokerId::new(2));
        assert!(peers.asks(&VersionVector::EMPTY).is_empty());
    }

    #[test]
    fn of_relays_with_as_much_one_is_asked() {
        let mut peers = Peers::default();
        for peer in [3, 2] {
            peers.reach(BrokerId::new(peer), holds(&[(9, 2, 4), (9, 1, 50)]));
        }
        let asks = peers.asks(&VersionVector::EMPTY);
        assert_eq!((of(&asks, 2), of(&asks, 3)), (vec![2, 9], vec![3]));
        // It stays so while it is of use.
        peers.reach(BrokerId::new(3), holds(&[(9, 3, 1)]));
        assert_eq!(of(&peers.asks(&VersionVector::EMPTY), 2), [2, 9]);
        // Of others, a newer epoch is more than a longer older one.
        let mut peers = Peers {
            relays: BTreeMap::new(),
            withheld: BTreeMap::new(),
            stopped: BTreeSet::new(),
            ..peers
        };
        let asks = peers.asks(&VersionVector::EMPTY);
        assert_eq!((of(&asks, 2), of(&asks, 3)), (vec![2], vec![3, 9]));
        // Once nothing is lacking, who relayed goes on to be asked for what is to come.
        let all = holds(&[(9, 1, 50), (9, 2, 4), (9, 3, 1)]);
        assert_eq!(of(&peers.asks(&all), 3), [3, 9]);
        // Another one takes over when it has what this one has not.
        peers.reach(BrokerId::new(2), holds(&[(9, 3, 2)]));
        let asks = peers.asks(&all);
        assert_eq!((of(&asks, 2), of(&asks, 3)), (vec![2, 9], vec![3]));
    }

    #[test]
    fn who_cannot_ship_a_frame_is_not_asked_for_it_until_it_is_held() {
        let mut peers = Peers::default();
        let all = holds(&[(9, 1, 50), (9, 2, 4)]);
        peers.reach(BrokerId::new(2), all.clone());
        peers.reach(BrokerId::new(3), holds(&[(9, 1, 8)]));
        let mut held = holds(&[(9, 1, 5)]);
        assert_eq!(of(&peers.asks(&held), 2), [2, 9]);
        let nine = |epoch| Origin {
            broker: BrokerId::new(9),
            epoch: Epoch::new(epoch),
        };
        peers.withhold(BrokerId::new(2), nine(1), Sequence::new(7));
        assert!(peers.is_withheld(&held) && !peers.is_withheld(&all));
        // It still has the one before.
        assert_eq!(of(&peers.asks(&held), 2), [2, 9]);
        held = holds(&[(9, 1, 6)]);
        assert_eq!(of(&peers.asks(&held), 3), [3, 9]);
        assert_eq!(
            of(&peers.asks(&held), 2),
            [2],
            "the later epoch is behind it"
        );
        let (peer, _) = peers.ask_one(&held).unwrap();
        assert_eq!(peer, BrokerId::new(3));
        // Another one withholds it as well: whoever was asked stays asked.
        peers.withhold(BrokerId::new(3), nine(1), Sequence::new(7));
        assert_eq!(of(&peers.asks(&held), 3), [3, 9]);
        assert!(peers.ask_one(&held).is_none());
        // It came over a link that is gone again.
        held = holds(&[(9, 1, 8)]);
        assert_eq!(of(&peers.asks(&held), 2), [2, 9]);
        peers.withhold(BrokerId::new(2), nine(1), Sequence::new(20));
        peers.lose(BrokerId::new(2));
        peers.reach(BrokerId::new(2), all);
        held = holds(&[(9, 1, 19)]);
        assert_eq!(
            of(&peers.asks(&held), 2),
            [2, 9],
            "a new link is asked anew"
        );
    }
    #[test]
    fn who_has_stopped_before_a_frame_that_is_held_by_now_is_asked_again() {
        let mut peers = Peers::default();
        let (relay, far) = (BrokerId::new(2), BrokerId::new(9));
        peers.reach(relay, holds(&[(9, 1, 50)]));
        let nine = Origin {
            broker: far,
            epoch: Epoch::new(1),
        };
        // It is held already when the relay says that it cannot ship it.
        peers.withhold(relay, nine, Sequence::new(7));
        let mut held = holds(&[(9, 1, 7)]);
        assert!(peers.may_resume(&held));
        assert_eq!(of(&peers.asks(&held), 2), [2, 9], "as before");
        assert_eq!(peers.take_stopped(), BTreeSet::from([(relay, far)]));
        assert!(peers.take_stopped().is_empty());
        // It comes later.
        peers.withhold(relay, nine, Sequence::new(20));
        assert!(!peers.may_resume(&held));
        assert_eq!(of(&peers.asks(&held), 2), [2, 9]);
        assert!(peers.take_stopped().is_empty());
        held = holds(&[(9, 1, 20)]);
        assert!(peers.may_resume(&held));
        assert_eq!(of(&peers.asks(&held), 2), [2, 9]);
        assert!(!peers.may_resume(&held));
        assert_eq!(peers.take_stopped(), BTreeSet::from([(relay, far)]));
    }
}
