//! Credit of a link: bytes that its peer may send before what came is durable here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::super::residents::Peer;

/// Bytes that a peer may send before it waits, and those that it may send again.
#[derive(Debug)]
pub(crate) struct LinkCredit {
    from: Peer,
    returned: AtomicU64,
    arrived: Notify,
}

/// Bytes of credit that go back once what they were taken for is durable, or was not needed.
#[derive(Debug)]
pub(crate) struct Ticket {
    bytes: u64,
    credit: Arc<LinkCredit>,
}

impl Ticket {
    /// Over whose link it was taken.
    pub(in crate::node) fn from(&self) -> &Peer {
        &self.credit.from
    }
}

impl LinkCredit {
    /// Of a link to this peer.
    pub(crate) fn of(peer: &Peer) -> Self {
        Self {
            from: peer.clone(),
            returned: AtomicU64::new(0),
            arrived: Notify::new(),
        }
    }

    /// Takes note of bytes that have come.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Ticket {
        Ticket {
            bytes,
            credit: Arc::clone(self),
        }
    }

    /// Waits until something can be given back.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// What can be given back, once it is at least this much.
    pub(crate) fn give_back(&self, at_least: u64) -> Option<u64> {
        let enough = |held: u64| (held >= at_least.max(1)).then_some(0);
        let taken = self
            .returned
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enough);
        taken.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.credit.returned.fetch_add(self.bytes, Ordering::AcqRel);
        self.credit.arrived.notify_one();
    }
}
