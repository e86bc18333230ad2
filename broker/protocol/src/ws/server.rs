//! What a broker says.

use std::borrow::Cow;

use anabranch_core::id::{Offset, Origin, PartitionId, Sequence};

use super::{Durability, SubscriptionId};
use crate::error::Problem;
pub use crate::record::json::Delivered;

/// A message from a broker to a client.
#[derive(Clone, PartialEq, Debug)]
pub enum ServerMessage<'a> {
    /// The first one.
    Hello(Welcome<'a>),
    /// What became of publishes.
    Ack(Ack<'a>),
    /// The records of one frame.
    Deliver(Deliver<'a>),
    /// Rows of the table, before a subscription from the table goes live.
    Rows {
        /// Of which subscription.
        subscription: SubscriptionId,
        /// Some rows.
        rows: Vec<Row<'a>>,
    },
    /// All rows have been sent; what follows is what changes.
    Live {
        /// Which subscription.
        subscription: SubscriptionId,
        /// Where it resumes from here.
        cursor: Cow<'a, str>,
    },
    /// A subscription ended as asked.
    Unsubscribed {
        /// Which one.
        subscription: SubscriptionId,
        /// Where it would resume.
        cursor: Cow<'a, str>,
    },
    /// Something failed.
    Error(ErrorMessage),
    /// The answer to a ping.
    Pong {
        /// The ping's.
        id: u64,
    },
}

/// Who the broker is.
#[derive(Clone, PartialEq, Debug)]
pub struct Welcome<'a> {
    /// Protocol version; [`super::VERSION`].
    pub version: u64,
    /// The broker's software version.
    pub server: Cow<'a, str>,
    /// The cluster's name.
    pub cluster: Cow<'a, str>,
    /// The broker's id.
    pub broker: Cow<'a, str>,
    /// Its region.
    pub region: Cow<'a, str>,
    /// What it accepts on this connection.
    pub limits: Limits,
}

/// What a broker accepts on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Longest message, in bytes.
    pub message_bytes: u64,
    /// Bytes of publishes that may wait for their acknowledgement. Beyond, the broker reads no
    /// further until some are acknowledged.
    pub in_flight_bytes: u64,
}

/// What became of publishes that share a frame: one row per appended batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Ack<'a> {
    /// Who appended the frame.
    pub origin: Origin,
    /// Which of its frames it is.
    pub sequence: Sequence,
    /// What has been reached.
    pub durability: Durability,
    /// For reads, anywhere, that must include this.
    pub token: Cow<'a, str>,
    /// The batches.
    pub rows: Vec<AckRow>,
}

/// Where one batch of a publish went. In messages: `[id, partition, offset, records, index]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckRow {
    /// The publish's number.
    pub id: u64,
    /// The partition.
    pub partition: PartitionId,
    /// Offset of its first record; `None` for a duplicate whose offset is forgotten.
    pub offset: Option<Offset>,
    /// Number of records.
    pub records: u32,
    /// Index in the frame of its first record; `None` when it is a duplicate.
    pub index: Option<u32>,
}

/// The records of one frame that a subscription asks for. They become visible together.
#[derive(Clone, PartialEq, Debug)]
pub struct Deliver<'a> {
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// Where it resumes after this frame.
    pub cursor: Cow<'a, str>,
    /// Who appended the frame first.
    pub origin: Origin,
    /// Which of its frames it is.
    pub sequence: Sequence,
    /// The frame's hybrid timestamp, in milliseconds since 1970.
    pub timestamp: u64,
    /// Its records, by partition.
    pub parts: Vec<Part<'a>>,
}

/// The records of a frame in one partition.
#[derive(Clone, PartialEq, Debug)]
pub struct Part<'a> {
    /// The partition.
    pub partition: PartitionId,
    /// Offset at which the part begins, whether or not that record is among those delivered.
    pub offset: Offset,
    /// Index in the frame at which the part begins. The index of a record is this plus the
    /// record's offset less `offset`.
    pub index: u32,
    /// The records.
    pub payload: PartPayload<'a>,
}

/// How the records of a part come.
#[derive(Clone, PartialEq, Debug)]
pub enum PartPayload<'a> {
    /// One by one.
    Records(Vec<Delivered<'a>>),
    /// As a record batch v2. Records outside the key filter may be in it.
    Batch(Cow<'a, [u8]>),
}

/// A row of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// Its key.
    pub key: Cow<'a, [u8]>,
    /// Its value.
    pub value: Cow<'a, [u8]>,
}

/// Something failed.
#[derive(Clone, PartialEq, Debug)]
pub struct ErrorMessage {
    /// The publish it is about.
    pub id: Option<u64>,
    /// The subscription that it is about, and that it has ended.
    pub subscription: Option<SubscriptionId>,
    /// What failed.
    pub problem: Problem,
}

impl From<Problem> for ErrorMessage {
    fn from(problem: Problem) -> Self {
        Self {
            id: None,
            subscription: None,
            problem,
        }
    }
}
