//! Credit of a link: bytes that its peer may send before what came is durable here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::super::residents::Peer;

/// Bytes that a peer may send before it waits, and those that it may send again.
#[derive(Debug)]
pub(crate) struct LinkCredit {
    from: Peer,
    /// Taken, and not given back yet.
    out: AtomicU64,
    /// Of that, what can be given back.
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
            out: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            arrived: Notify::new(),
        }
    }

    /// Takes note of bytes that have come.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Ticket {
        self.out.fetch_add(bytes, Ordering::AcqRel);
        Ticket {
            bytes,
            credit: Arc::clone(self),
        }
    }

    /// Bytes that have come and whose credit was not given back. The peer knows of no less, so it may
    /// not let this grow beyond its window.
    pub(crate) fn out(&self) -> u64 {
        self.out.load(Ordering::Acquire)
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
        let given = taken.ok()?;
        self.out.fetch_sub(given, Ordering::AcqRel);
        Some(given)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.credit.returned.fetch_add(self.bytes, Ordering::AcqRel);
        self.credit.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use anabranch_core::id::{BrokerId, RegionName};

    use super::*;

    #[test]
    fn credit_is_out_until_it_is_given_back() {
        let credit = Arc::new(LinkCredit::of(&Peer {
            broker: BrokerId::new(2),
            region: RegionName::parse("b").unwrap(),
        }));
        let (first, second) = (credit.take(5), credit.take(3));
        drop(first);
        assert_eq!(credit.out(), 8, "the peer does not know yet");
        assert_eq!((credit.give_back(6), credit.out()), (None, 8));
        assert_eq!((credit.give_back(5), credit.out()), (Some(5), 3));
        drop(second);
        assert_eq!((credit.give_back(0), credit.out()), (Some(3), 0));
    }
}
