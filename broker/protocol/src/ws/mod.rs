//! The messages of the WebSocket protocol.
//!
//! [`ClientMessage`]s go to the broker, [`ServerMessage`]s come from it; [`crate::codec`] turns
//! both into bytes and back. What they mean is written down in `docs/protocol/websocket.md`.

mod client;
mod server;

use std::fmt;

use anabranch_core::quorum::Quorum;

pub use client::{ClientMessage, Hello, KeyFilter, Payload, Publish, Subscribe, shared};
pub use server::{
    Ack, AckRow, Deliver, Delivered, ErrorMessage, Limits, Part, PartPayload, Row, ServerMessage,
    Welcome,
};

/// Path of the WebSocket endpoint.
pub const PATH: &str = "/v1/ws";

/// The version that `hello` carries on both sides.
pub const VERSION: u64 = 1;

/// The number by which a connection's messages name one of its subscriptions; chosen by the client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SubscriptionId(u32);

impl SubscriptionId {
    /// Wraps a number.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When a publish is to be acknowledged.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum AckLevel {
    /// As [`Durability::Disk`].
    #[default]
    Disk,
    /// As [`Durability::Memory`].
    Memory,
    /// Once it is on disk in these regions.
    Regions(Quorum),
}

impl AckLevel {
    /// Reads `disk`, `memory`, `regions:N` or `region:NAME,…`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "disk" => Some(Self::Disk),
            "memory" => Some(Self::Memory),
            text => Quorum::parse(text).map(Self::Regions),
        }
    }

    /// What has to be reached here.
    #[must_use]
    pub const fn here(&self) -> Durability {
        match self {
            Self::Disk | Self::Regions(_) => Durability::Disk,
            Self::Memory => Durability::Memory,
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("disk"),
            Self::Memory => f.write_str("memory"),
            Self::Regions(quorum) => quorum.fmt(f),
        }
    }
}

/// What an acknowledgement says that was reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Durability {
    /// After `fdatasync`.
    #[default]
    Disk,
    /// Once it is with the operating system, before it is on disk. Lost if the machine fails within
    /// the next moments.
    Memory,
    /// On disk in the regions that the publish asked for.
    Regions,
}

impl Durability {
    /// The name in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Regions => "regions",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "disk" => Some(Self::Disk),
            "memory" => Some(Self::Memory),
            "regions" => Some(Self::Regions),
            _ => None,
        }
    }
}

/// How a subscription's records come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Format {
    /// One by one, decoded.
    #[default]
    Records,
    /// As record batches, byte for byte as they were published.
    Batch,
}

impl Format {
    /// The name in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Batch => "batch",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "records" => Some(Self::Records),
            "batch" => Some(Self::Batch),
            _ => None,
        }
    }
}
