//! Who is asked for what, and when again.

use std::collections::BTreeSet;

use anabranch_core::id::{BrokerId, Origin, Sequence};

use super::{Regions, State};

impl Regions {
    /// Nothing moves: asks one peer for everything, since what several ship may wait for each other.
    pub(in crate::node) fn ask_one(&self) {
        let mut state = self.state.lock();
        let peer = state.mesh.ask_one();
        state.give_up_forked();
        if let Some(peer) = peer {
            tracing::warn!(%peer, "frames of several peers wait for each other: one is asked for all of them");
        }
        state.ask_again();
    }

    /// What was shipped and not taken is asked for again.
    pub(in crate::node) fn ask_again(&self) {
        self.state.lock().ask_again();
    }

    /// What one peer has shipped and was not taken is asked for again.
    pub(in crate::node) fn ask_peer_again(&self, peer: BrokerId) {
        let mut state = self.state.lock();
        let ask = state.mesh.asks().remove(&peer);
        if let (Some(ask), Some(link)) = (ask, state.links.get(&peer)) {
            link.asks.send_replace(ask);
        }
    }

    /// Whether a peer is asked for the frames of one of these brokers.
    pub(in crate::node) fn asks_of(&self, peer: BrokerId, brokers: &BTreeSet<BrokerId>) -> bool {
        let state = self.state.lock();
        let link = state.links.get(&peer);
        link.is_some_and(|link| !link.asks.borrow().of.is_disjoint(brokers))
    }

    /// A peer holds a stub of this frame, which may be held here: somebody else is to be asked.
    pub(crate) fn note_withheld(&self, peer: BrokerId, origin: Origin, from: Sequence) {
        tracing::info!(%peer, %origin, %from, "a peer may not hold a part of what it was asked for");
        let mut state = self.state.lock();
        state.mesh.withhold(peer, origin, from);
        state.ask_anew();
    }

    /// Whether a peer holds a stub where this broker lacks what it may hold.
    pub(in crate::node) fn is_withheld(&self) -> bool {
        self.state.lock().mesh.is_withheld()
    }
}

impl State {
    /// Tells the links whose peers are to be asked for something else from now on.
    pub(super) fn ask_anew(&mut self) {
        let asks = self.mesh.asks();
        let stopped = self.mesh.take_stopped();
        for (peer, ask) in asks {
            if let Some(link) = self.links.get(&peer) {
                link.asks.send_if_modified(|asked| {
                    // Who has stopped before a frame that is held by now goes on only when asked again.
                    let is_due = asked.of != ask.of
                        || (ask.of.iter()).any(|&broker| stopped.contains(&(peer, broker)));
                    if is_due {
                        *asked = ask;
                    }
                    is_due
                });
            }
        }
    }

    /// Asks all again, for what they may have shipped already.
    fn ask_again(&mut self) {
        let asks = self.mesh.asks();
        let _all_are_asked = self.mesh.take_stopped();
        for (peer, ask) in asks {
            if let Some(link) = self.links.get(&peer) {
                link.asks.send_replace(ask);
            }
        }
    }

    /// Frames of an origin that has forked, and of its broker's later ones, will not come.
    pub(super) fn give_up_forked(&mut self) {
        let Self { mesh, forks, .. } = self;
        mesh.give_up(|origin| {
            let mut forked = forks.keys();
            forked.any(|fork| fork.broker == origin.broker && *fork <= origin)
        });
    }
}
