//! Publishing many records without waiting for each.
//!
//! ```text
//! send → gather (one open batch per partition) → pipeline (stamped, in order) → connection
//!   ↑ window of bytes                                │ acks, refusals
//!   └────────────────────────────────────────────────┘
//! ```
//!
//! `gather` is shared between callers and the worker, behind a lock. `pipeline` is the pure part:
//! what is on its way, and what to do when it is refused or the connection breaks. `worker` is the
//! task that owns the connection.

mod gather;
mod pipeline;
mod worker;

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::id::{Dot, Offset, PartitionId};
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{AckLevel, Durability};
use tokio::sync::watch;

use crate::ack::Ack;
use crate::address::Address;
use crate::connection::ConnectOptions;
use crate::error::Error;
use gather::Gather;
use worker::Worker;

/// How a publisher behaves.
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// A batch is sent when it has this many records,
    pub batch_records: u32,
    /// or this many bytes,
    pub batch_bytes: usize,
    /// or when its first record has waited this long.
    pub linger: Duration,
    /// Bytes of records that may wait for their acknowledgement; beyond, `send` waits.
    pub window_bytes: usize,
    /// When a record is acknowledged.
    pub ack: AckLevel,
    /// How long to go on trying when the connection is lost or the broker does not answer. Then
    /// everything that waits fails, and the publisher is closed.
    pub give_up_after: Duration,
    /// A quiet connection is checked this often, and given up when nothing has come for three
    /// times as long.
    pub ping_every: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            // Where the cost of a message no longer shows beside that of its records.
            batch_records: 1000,
            batch_bytes: 256 * 1024,
            linger: Duration::from_millis(2),
            window_bytes: 16 * 1024 * 1024,
            ack: AckLevel::Disk,
            give_up_after: Duration::from_secs(120),
            ping_every: Duration::from_secs(10),
        }
    }
}

/// What became of a batch.
#[derive(Clone, Debug)]
struct BatchAck {
    partition: PartitionId,
    offset: Option<Offset>,
    /// Name of its first record.
    dot: Option<Dot>,
    token: Arc<str>,
    durability: Durability,
}

type Outcome = Option<Result<BatchAck, Error>>;

/// Publishes to one stream: pipelined, in order, each record once.
///
/// Records are numbered per producer, so that a batch that has to be sent again after a lost
/// connection counts once. Records of the same key stay in order.
#[derive(Debug)]
pub struct Publisher {
    gather: Arc<Gather>,
}

impl Publisher {
    pub(crate) fn start(
        address: Address,
        connect: ConnectOptions,
        stream: String,
        partitions: u16,
        options: PublisherOptions,
    ) -> Self {
        let gather = Arc::new(Gather::new(partitions, &options));
        let worker = Worker::new(
            address,
            connect,
            stream,
            partitions,
            options,
            Arc::clone(&gather),
        );
        tokio::spawn(worker.run());
        Self { gather }
    }

    /// Adds a record. Waits while the window is full. What it returns resolves once the record is
    /// acknowledged; dropping that does not take the record back.
    ///
    /// # Errors
    /// When the record is too large, or the publisher has given up.
    pub async fn send(&self, record: Record<'_>) -> Result<AckFuture, Error> {
        record.check()?;
        self.gather.room_for(&record).await?;
        self.gather.add(&record)
    }

    /// Sends what was added so far and waits until it is acknowledged.
    ///
    /// # Errors
    /// With the first that was not.
    pub async fn flush(&self) -> Result<(), Error> {
        for mut outcome in self.gather.flush() {
            settled(&mut outcome).await?;
        }
        Ok(())
    }

    /// Flushes, and ends the publisher.
    ///
    /// # Errors
    /// As [`Publisher::flush`].
    pub async fn close(self) -> Result<(), Error> {
        self.flush().await
    }

    /// Whether the publisher has given up; a new one may do better.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.gather.is_closed()
    }
}

impl Drop for Publisher {
    /// The worker ends when what was added has been settled.
    fn drop(&mut self) {
        self.gather.finish();
    }
}

/// Resolves to the acknowledgement of one record.
#[derive(Debug)]
pub struct AckFuture {
    outcome: watch::Receiver<Outcome>,
    /// Which record of its batch.
    index: u32,
}

impl IntoFuture for AckFuture {
    type Output = Result<Ack, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Ack, Error>> + Send>>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            let batch = settled(&mut self.outcome).await?;
            let dot = batch.dot.map(|dot| Dot {
                index: dot.index.saturating_add(self.index),
                ..dot
            });
            Ok(Ack {
                partition: batch.partition,
                offset: batch.offset.map(|base| base.advance(u64::from(self.index))),
                dot,
                token: batch.token,
                durability: batch.durability,
            })
        })
    }
}

async fn settled(outcome: &mut watch::Receiver<Outcome>) -> Result<BatchAck, Error> {
    match outcome.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Err(Error::Closed)),
        // The worker is gone without a word: the runtime is shutting down.
        Err(_) => Err(Error::Closed),
    }
}
