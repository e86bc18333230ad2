//! What to make of a frame that can never be taken over: the log here has lost its end, the frame's
//! origin has forked, or whoever sent it has made it up.
//!
//! A frame by itself shows nothing: anybody can put any name on one. What its sender has said before
//! that it holds, in its hello or its reports, comes from what it has taken over and checked itself.

use anabranch_core::frame::Chain;
use anabranch_core::id::{BrokerId, Origin, Sequence};
use anabranch_core::sequencer::AcceptError;
use anabranch_protocol::error::Code;

use super::super::Error;
use super::{Regions, State};

/// Whose fault it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::node) enum Fault {
    /// This broker's log lacks what was written under its name.
    OwnLog,
    /// The frame's origin has two histories. It is shown as forked.
    Origin(Origin),
    /// The peer's, as far as can be told. Its link ends.
    Peer,
}

impl Regions {
    /// A frame that came from this peer can never be taken over. Whose fault that is, after what follows
    /// from it was done.
    pub(in crate::node) fn refuse(&self, peer: BrokerId, error: &AcceptError) -> Fault {
        let fault = self.fault(peer, error);
        match fault {
            Fault::OwnLog => {}
            Fault::Origin(origin) => self.note_fork(origin, error.to_string()),
            Fault::Peer => self.end_link(peer, error),
        }
        fault
    }

    fn fault(&self, peer: BrokerId, error: &AcceptError) -> Fault {
        let state = self.state.lock();
        match *error {
            AcceptError::Own { .. } => Fault::OwnLog,
            AcceptError::OwnGap {
                origin,
                sequence,
                chain,
            }
            | AcceptError::OwnFork {
                origin,
                sequence,
                chain,
            } if state.vouches(peer, origin, (sequence, chain)) => Fault::OwnLog,
            AcceptError::Chain {
                origin,
                sequence,
                chain,
            } if origin.broker == peer || state.vouches(peer, origin, (sequence, chain)) => {
                Fault::Origin(origin)
            }
            _ => Fault::Peer,
        }
    }

    /// Ends the link to a peer that has sent what it cannot have.
    fn end_link(&self, peer: BrokerId, error: &AcceptError) {
        let problem = match error {
            AcceptError::TooManyOrigins { .. } => Error::new(
                Code::TooManyOrigins,
                format!(
                    "{error}; see with `anabranch regions` whose they are, and keep strangers off the ports of links"
                ),
            ),
            error => Error::new(
                Code::BadFrame,
                format!(
                    "{error}, and broker {peer} has not said that it holds it; if it comes again, check that broker's log: anabranch verify DIR"
                ),
            ),
        };
        let state = self.state.lock();
        // Others of its frames may still come after the link has ended.
        if let Some(link) = state.links.get(&peer)
            && link.ended.borrow().is_none()
        {
            tracing::error!(%peer, %problem, "a peer has sent a frame that is refused, its link ends");
            metrics::counter!("anabranch_frames_refused_total").increment(1);
            link.ended.send_replace(Some(problem));
        }
    }
}

impl State {
    /// Whether a peer has said that it holds this frame of an origin, and that chain where it has said
    /// one.
    fn vouches(&self, peer: BrokerId, origin: Origin, frame: (Sequence, Chain)) -> bool {
        let Some(link) = self.links.get(&peer) else {
            return false;
        };
        let (sequence, chain) = frame;
        match link.heads.get(&origin) {
            Some(&(held, held_chain)) if held == sequence => held_chain == chain,
            Some(&(held, _)) if held > sequence => true,
            _ => {
                let report = self.mesh.report(peer);
                report.is_some_and(|report| report.applied.get(origin) >= sequence)
            }
        }
    }
}
