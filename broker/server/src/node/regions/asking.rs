//! Who is asked for what, and when again.

use std::collections::{BTreeMap, BTreeSet};

use anabranch_core::exchange::Ask;
use anabranch_core::id::{BrokerId, Origin, Sequence};

use super::{Regions, State};

impl Regions {
    /// Nothing moves: asks one peer for everything, since what several ship may wait for each other.
    pub(in crate::node) fn ask_one(&self) {
        let mut state = self.state.lock();
        state.only = state.mesh.ask_one().map(|(peer, _)| {
            let report = state.mesh.report(peer);
            let goal = report.map(|report| state.without_forked(&report.applied));
            (peer, goal.unwrap_or_default())
        });
        if let Some((peer, _)) = &state.only {
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
        let ask = state.asks().remove(&peer);
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
        if state.only.as_ref().is_some_and(|(only, _)| *only == peer) {
            // It cannot ship all, as it turns out.
            state.only = None;
        }
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
        let asks = self.asks();
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
        let asks = self.asks();
        let _all_are_asked = self.mesh.take_stopped();
        for (peer, ask) in asks {
            if let Some(link) = self.links.get(&peer) {
                link.asks.send_replace(ask);
            }
        }
    }

    fn asks(&mut self) -> BTreeMap<BrokerId, Ask> {
        if let Some((peer, goal)) = &self.only
            && (self.mesh.applied().covers(goal) || !self.links.contains_key(peer))
        {
            self.only = None;
        }
        let mut asks = self.mesh.asks();
        if let Some((peer, _)) = &self.only {
            for (asked, ask) in &mut asks {
                match asked == peer {
                    true => ask.of = self.mesh.everybody(),
                    false => ask.of.clear(),
                }
            }
        }
        asks
    }
}
