//! Links to brokers of other regions: a surface that subscribes on the way out and publishes on
//! the way in.
//!
//! ```text
//! dial, accept ──▶ handshake: hello ⇄ hello ──▶ link ┬─ outgoing: asks, frames, credit, reports
//!                                                    └─ incoming: the same from the other side
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `audit` | comparing rows with the peer of a link |
//! | `blocks` | blocks of what a peer wants, read from the log |
//! | `dial` | one task for each configured peer, which dials again when the link is down |
//! | `ended` | why a link has ended |
//! | `link` | a link from hello to its end |
//! | `packing` | how blocks are compressed |
//! | `wire` | messages over a socket |

mod audit;
mod blocks;
mod dial;
mod ended;
mod link;
mod packing;
mod wire;

use std::sync::Arc;

use anabranch_protocol::error::Code;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) use dial::PeerAddress;

use self::packing::{Latest, Packer};
use crate::config::Links;
use crate::node::{Dialled, Node};

/// Links that are being opened from outside at the same time, and those that are open: more than
/// a cluster has brokers.
const MOST_LINKS: usize = 1024;

/// What all links have in common.
#[derive(Clone)]
pub(crate) struct Common {
    options: Links,
    latest: Arc<Latest>,
}

impl Common {
    pub(crate) fn new(options: Links) -> Self {
        Self {
            options,
            latest: Arc::default(),
        }
    }

    /// `None` where blocks are not compressed.
    fn packer(&self) -> Option<Packer> {
        self.options.compress.then(|| Packer::new(&self.latest))
    }
}

/// Takes links until it is dropped.
pub(crate) async fn accept(node: Arc<Node>, listener: TcpListener, common: Common) {
    let mut links = JoinSet::new();
    loop {
        while links.try_join_next().is_some() {}
        if links.len() >= MOST_LINKS {
            links.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, from)) => {
                let (node, common) = (Arc::clone(&node), common.clone());
                links.spawn(async move {
                    let ended = link::run(&node, stream, (Dialled::There, None), &common).await;
                    if ended.code() == Some(Code::DuplicateLink) {
                        tracing::debug!(%from, reason = %ended, "link from a peer ended");
                    } else {
                        tracing::info!(%from, reason = %ended, "link from a peer ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a link cannot be accepted");
                // Out of file handles, most likely: they come back as connections end.
                tokio::time::sleep(dial::SHORTEST_WAIT).await;
            }
        }
    }
}

/// Dials the configured peers until it is dropped.
pub(crate) async fn dial_all(node: Arc<Node>, peers: Vec<PeerAddress>, common: Common) {
    let mut dials = JoinSet::new();
    for peer in peers {
        dials.spawn(dial::keep(Arc::clone(&node), peer, common.clone()));
    }
    // None of them ends.
    while dials.join_next().await.is_some() {}
}
