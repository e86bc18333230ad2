//! Where the payload of which streams may be, as the running broker knows it: the writer learns it
//! from every definition before that is durable, links and surfaces ask.

use anabranch_core::exchange::Ask;
use anabranch_core::frame::Commit;
use anabranch_core::gap::Gap;
use anabranch_core::holding::Admit;
use anabranch_core::id::{BrokerId, Origin, RegionName, Sequence, StreamId};
use anabranch_core::residency::Residency;
use anabranch_core::sequencer::Foreign;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::Code;
use anabranch_storage::log::Shipment;
use anabranch_storage::tables::StreamMap;
use parking_lot::RwLock;

use super::Error;
use super::regions::Ticket;

/// Who is at the other end of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Peer {
    pub(crate) broker: BrokerId,
    pub(crate) region: RegionName,
}

/// What is known of it.
#[derive(Debug)]
pub(crate) struct Residents {
    own: BrokerId,
    known: RwLock<Residency>,
}

impl Residents {
    /// Knows what the tables know, which hold all of the log.
    pub(crate) fn new(own: BrokerId, region: RegionName, streams: &StreamMap) -> Self {
        let mut known = Residency::new(region);
        for (stream, regions) in streams.restricted() {
            known.keep(stream, regions);
        }
        let known = RwLock::new(known);
        Self { own, known }
    }

    /// Takes note of what a frame defines, which must not be durable yet.
    pub(super) fn learn(&self, commit: &Commit) {
        let teaches = self.known.read().teaches(commit);
        if teaches {
            self.known.write().learn(commit);
        }
    }

    pub(super) fn may_go(&self, stream: StreamId, to: &Peer) -> bool {
        self.known.read().may_hold(&to.region, stream)
    }

    /// Leaves of a shipment what may go to a peer, see [`Shipment::limit`].
    pub(crate) fn limit(
        &self,
        shipment: &mut Shipment,
        to: &Peer,
        ask: &mut Ask,
    ) -> Vec<(Origin, Sequence)> {
        shipment.limit(&self.known.read(), (self.own, &to.region), ask)
    }

    /// A peer has sent a stub of what may be held here, as none should.
    pub(super) fn note_refused(&self, origin: Origin, ticket: &Ticket) {
        let Peer { broker, region } = ticket.from();
        tracing::error!(peer = %broker, %region, %origin, "a peer has sent a stub of what this region may hold; it is not taken over");
        metrics::counter!("anabranch_stubs_refused_total").increment(1);
    }

    /// Refuses what needs the records of a stream that may not be here.
    ///
    /// # Errors
    /// When they may not.
    pub(super) fn check(&self, definition: &StreamDefinition) -> Result<(), Error> {
        let known = self.known.read();
        if definition.may_be_in(known.own()) {
            return Ok(());
        }
        let kept_in: Vec<_> = definition
            .kept_in()
            .iter()
            .map(RegionName::as_str)
            .collect();
        Err(Error::new(
            Code::OtherRegion,
            format!(
                "stream {} is kept in {}, and this broker is in {}; ask a broker there",
                definition.name,
                kept_in.join(", "),
                known.own()
            ),
        ))
    }
}

impl Admit<Ticket> for Residents {
    fn frame(&self, frame: &mut Foreign, ticket: &Ticket) -> bool {
        self.known.read().incoming(&ticket.from().region, frame)
    }

    fn gaps(&self, gaps: &[Gap], ticket: &Ticket) -> bool {
        let (known, from) = (self.known.read(), ticket.from());
        known.may_pass(gaps, (from.broker, &from.region), known.own())
    }
}
