//! What a broker answers to a publish.

use std::sync::Arc;

use anabranch_core::id::{Dot, Offset, PartitionId};
use anabranch_protocol::ws::Durability;

/// Where a record went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset, unless it is a duplicate whose offset the broker has forgotten.
    pub offset: Option<Offset>,
    /// Its global name; `None` when the broker had it already from an earlier try.
    pub dot: Option<Dot>,
    /// For reads, anywhere, that must include it.
    pub token: Arc<str>,
    /// What has been reached.
    pub durability: Durability,
}
