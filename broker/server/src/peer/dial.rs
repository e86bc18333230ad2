//! Dialling a peer, again and again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anabranch_protocol::error::Code;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Common, link};
use crate::node::{Dialled, Node};

/// How soon a lost link is dialled again, at first.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// How long it takes at most until it is tried again. Short, since a region that is back should not
/// stay behind for longer than people wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// How long a connection may take to be made.
const CONNECT_BUDGET: Duration = Duration::from_secs(5);

/// Where a peer listens: `host:port`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PeerAddress(pub(crate) String);

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Keeps a link to a peer, whatever happens to it.
pub(super) async fn keep(node: Arc<Node>, peer: PeerAddress, common: Common) {
    let mut wait = SHORTEST_WAIT;
    let mut last = None;
    loop {
        let started = Instant::now();
        let attempt = once(Arc::clone(&node), peer.clone(), common.clone());
        let ended = apart(attempt).await;
        let (reason, duplicate) = ended.unwrap_or_else(|| ("the link panicked".to_owned(), false));
        // A peer that is down for hours is told of once, not with every attempt.
        if last.as_ref() == Some(&reason) || duplicate {
            tracing::debug!(%peer, %reason, "no link");
        } else {
            tracing::warn!(%peer, %reason, "no link, dialling again");
        }
        last = Some(reason);
        let lived = started.elapsed() > LONGEST_WAIT;
        wait = if lived {
            SHORTEST_WAIT
        } else {
            (wait * 2).min(LONGEST_WAIT)
        };
        // Half of it is random, so that brokers that lost each other do not dial in step.
        sleep(wait / 2 + wait.mul_f64(fastrand::f64() / 2.0)).await;
    }
}

/// Does something in a task of its own, so that a panic in there ends nothing but that. It is aborted
/// with who waits for it.
async fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    task.join_next().await?.ok()
}

async fn once(node: Arc<Node>, peer: PeerAddress, common: Common) -> (String, bool) {
    match timeout(CONNECT_BUDGET, TcpStream::connect(&peer.0)).await {
        Ok(Ok(stream)) => {
            let ended = link::run(&node, stream, (Dialled::Here, Some(&peer)), &common).await;
            (ended.to_string(), ended.code() == Some(Code::DuplicateLink))
        }
        Ok(Err(error)) => (error.to_string(), false),
        Err(_) => ("it does not answer".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_that_panics_ends_no_dialling() {
        assert_eq!(apart(async { 7 }).await, Some(7));
        assert_eq!(apart::<u8>(async { panic!("injected") }).await, None);
    }
}
