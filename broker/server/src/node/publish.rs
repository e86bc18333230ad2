//! What goes into the writer and what comes back: submissions and acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::id::{Origin, PartitionId, RegionName, Sequence, StreamId};
use anabranch_core::sequencer::{Placed, Publish};
use anabranch_core::vector::{Token, VersionVector};
use anabranch_protocol::ws::{AckLevel, Durability};
use anabranch_storage::log::most_entry_bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::Error;

/// Batches that become visible together.
#[derive(Debug)]
pub(crate) enum Group {
    /// The usual case, without a heap allocation.
    One(Publish),
    /// A transaction, or a publish whose keys fall into several partitions.
    Many(Vec<Publish>),
}

impl Group {
    pub(crate) fn as_slice(&self) -> &[Publish] {
        match self {
            Self::One(publish) => std::slice::from_ref(publish),
            Self::Many(publishes) => publishes,
        }
    }

    /// Bytes of its batches.
    pub(crate) fn bytes(&self) -> usize {
        self.as_slice().iter().map(|p| p.batch.len()).sum()
    }
}

impl From<Vec<Publish>> for Group {
    fn from(mut publishes: Vec<Publish>) -> Self {
        match publishes.len() {
            1 => Self::One(publishes.remove(0)),
            _ => Self::Many(publishes),
        }
    }
}

/// One publish of a connection, with the number it is answered under.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) id: u64,
    pub(crate) group: Group,
    pub(crate) wish: Wish,
}

/// When a publish is to be acknowledged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) level: AckLevel,
    /// How long it waits for other regions; `None` as configured.
    pub(crate) patience: Option<Duration>,
}

/// What the writer takes from its inbox. It owns its share of the in-flight budget, which is given
/// back when it is dropped.
pub(crate) struct Submission {
    pub(crate) publishes: Vec<Numbered>,
    pub(crate) reply: Reply,
    pub(crate) budget: Budget,
}

impl Submission {
    /// The most that it takes in the log.
    pub(crate) fn most_log_bytes(&self) -> usize {
        let groups = self.publishes.iter().map(|publish| &publish.group);
        groups
            .map(|group| most_entry_bytes(group.as_slice().len(), group.bytes()))
            .sum()
    }
}

/// Bytes that are on their way to the disk, taken from the broker's budget and, if a connection
/// sent them, from its window. The window gets them back once the outcomes are with the client.
pub(crate) struct Budget {
    pub(crate) broker: Arc<Semaphore>,
    /// Given back apart from the rest: a publish may wait for other regions long after it is on disk.
    pub(crate) window: Option<Arc<Window>>,
    pub(crate) permits: usize,
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.broker.add_permits(self.permits);
    }
}

/// What a submission takes of its connection's window, until all of it is answered.
pub(crate) struct Window {
    pub(crate) connection: Arc<AckSink>,
    pub(crate) permits: usize,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.connection.settle(self.permits);
    }
}

/// Whom to tell.
pub(crate) enum Reply {
    /// A connection that has many publishes on the way.
    Connection(Arc<AckSink>),
    /// Somebody who waits for just this one.
    Once(oneshot::Sender<Result<Ack, Error>>),
}

/// A [`Reply`] to one publish.
pub(crate) enum Answer {
    Connection(Arc<AckSink>, u64),
    Once(oneshot::Sender<Result<Ack, Error>>),
}

impl Answer {
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Once(sender) => {
                // Whoever asked may have given up.
                let _ = sender.send(Err(error));
            }
            Self::Connection(sink, id) => sink.push(&mut vec![Outcome::Refused { id, error }]),
        }
    }

    pub(crate) fn acknowledge(self, ack: Ack) {
        match self {
            Self::Once(sender) => {
                // Whoever asked may have given up; the records are in the log all the same.
                let _ = sender.send(Ok(ack));
            }
            Self::Connection(sink, id) => {
                let (sequence, durability) = (ack.sequence, ack.durability);
                let outcome = |row| Outcome::Row {
                    id,
                    sequence,
                    durability,
                    row,
                };
                sink.push(&mut ack.rows.into_iter().map(outcome).collect());
            }
        }
    }
}

/// Where one batch of a publish went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckRow {
    pub(crate) stream: StreamId,
    pub(crate) partition: PartitionId,
    pub(crate) records: u32,
    pub(crate) placed: Placed,
}

/// The answer to one publish.
#[derive(Clone, Debug)]
pub(crate) struct Ack {
    pub(crate) origin: Origin,
    /// The frame. For a duplicate: the origin's latest frame, which the first one is not after.
    pub(crate) sequence: Sequence,
    pub(crate) durability: Durability,
    /// The regions that hold it, where the publish asked for some.
    pub(crate) regions: Vec<RegionName>,
    pub(crate) rows: Vec<AckRow>,
}

impl Ack {
    /// What a client carries to read its own write anywhere.
    pub(crate) fn token(&self) -> Token {
        token_of(self.origin, self.sequence)
    }
}

/// A frame's own dot says it all: whoever has applied it has applied its context.
pub(crate) fn token_of(origin: Origin, sequence: Sequence) -> Token {
    let seen = VersionVector::from_iter([(origin, sequence)]);
    Token { seen }
}

/// What became of a publish of a connection.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// One row of an acknowledgement; rows of one publish follow each other.
    Row {
        id: u64,
        sequence: Sequence,
        durability: Durability,
        row: AckRow,
    },
    /// Refused.
    Refused { id: u64, error: Error },
}

/// Where the writer leaves outcomes for a connection: one lock and one wake-up per group, not per
/// publish. Bounded by the connection's window, which is given back by [`AckSink::delivered`].
pub(crate) struct AckSink {
    left: Mutex<Left>,
    arrived: Notify,
    /// Bytes of publishes whose outcomes have not reached the client.
    pub(crate) window: Semaphore,
    pub(crate) window_bytes: usize,
}

/// What was left for a connection.
#[derive(Default)]
pub(crate) struct Left {
    pub(crate) outcomes: Vec<Outcome>,
    /// What [`AckSink::delivered`] gives back once they are with the client.
    pub(crate) permits: usize,
}

impl AckSink {
    pub(crate) fn new(window_bytes: usize) -> Self {
        Self {
            left: Mutex::default(),
            arrived: Notify::new(),
            window: Semaphore::new(window_bytes),
            window_bytes,
        }
    }

    pub(crate) fn push(&self, outcomes: &mut Vec<Outcome>) {
        if !outcomes.is_empty() {
            self.left.lock().outcomes.append(outcomes);
            self.arrived.notify_one();
        }
    }

    /// What these permits were taken for is done; its outcomes were pushed.
    fn settle(&self, permits: usize) {
        self.left.lock().permits += permits;
        self.arrived.notify_one();
    }

    /// Outcomes have been written to the client.
    pub(crate) fn delivered(&self, permits: usize) {
        self.window.add_permits(permits);
    }

    /// Waits until every outcome has been written to the client.
    pub(crate) async fn all_delivered(&self) {
        let all = u32::try_from(self.window_bytes).expect("windows are below 4 GiB");
        // The semaphore is never closed, and what was acquired is given back at once.
        let _ = self.window.acquire_many(all).await;
    }

    /// Waits until there is something, then takes all of it.
    pub(crate) async fn take(&self) -> Left {
        loop {
            let taken = std::mem::take(&mut *self.left.lock());
            if !taken.outcomes.is_empty() || taken.permits > 0 {
                return taken;
            }
            self.arrived.notified().await;
        }
    }
}
