//! The task that owns a publisher's connection.

use std::sync::Arc;

use anabranch_core::id::Dot;
use anabranch_protocol::ws::{self, AckRow, ClientMessage, ErrorMessage, Payload, ServerMessage};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use super::gather::{Gather, Taken};
use super::pipeline::{Pause, Pipeline, Refused, split};
use super::{BatchAck, Outcome, PublisherOptions};
use crate::address::Address;
use crate::backoff::Backoff;
use crate::connection::{ConnectOptions, Connection, ConnectionSender, Received, unexpected};
use crate::error::Error;

/// Who waits for a batch.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) outcome: watch::Sender<Outcome>,
    pub(super) permits: usize,
}

pub(super) struct Worker {
    address: Address,
    connect: ConnectOptions,
    stream: String,
    options: PublisherOptions,
    gather: Arc<Gather>,
    pipeline: Pipeline<Waiter>,
    backoff: Backoff,
    /// When drained partitions start over.
    resume_at: Option<Instant>,
    /// Since when nothing has been acknowledged although something waits.
    stuck_since: Option<Instant>,
}

/// How a connection ended.
enum End {
    /// Everything is settled and no more will come.
    Finished,
    /// It can be tried again.
    Lost(Error),
    /// It cannot.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error.retryable() {
            true => Self::Lost(error),
            false => Self::Failed(error),
        }
    }
}

/// What to do next on a connection.
enum Step {
    Received(Received),
    Ready,
    Flushed,
    Resume,
    Look,
    Tick,
}

/// A random producer id, below 2^63.
fn producer() -> u64 {
    fastrand::u64(..1 << 63)
}

impl Worker {
    pub(super) fn new(
        address: Address,
        connect: ConnectOptions,
        stream: String,
        partitions: u16,
        options: PublisherOptions,
        gather: Arc<Gather>,
    ) -> Self {
        Self {
            address,
            connect,
            stream,
            options,
            gather,
            pipeline: Pipeline::new(partitions, producer),
            backoff: Backoff::new(),
            resume_at: None,
            stuck_since: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut lost_since: Option<Instant> = None;
        loop {
            match self.take_in() {
                Ok(taken) if taken.finishing && self.pipeline.is_empty() => {
                    return self.gather.close(&Error::Closed);
                }
                Ok(_) => {}
                Err(error) => return self.give_up(&error),
            }
            let error = match self.connection(&mut lost_since).await {
                End::Finished => return self.gather.close(&Error::Closed),
                End::Failed(error) => return self.give_up(&error),
                End::Lost(error) => error,
            };
            tracing::debug!(%error, stream = %self.stream, "a publisher lost its connection");
            let since = *lost_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.options.give_up_after {
                return self.give_up(&error);
            }
            self.pipeline.disconnected();
            sleep(self.backoff.wait(fastrand::f64())).await;
        }
    }

    fn give_up(&mut self, error: &Error) {
        self.gather.close(error);
        for waiter in self.pipeline.give_up() {
            waiter.outcome.send_replace(Some(Err(error.clone())));
        }
    }

    /// Makes a connection and works with it until it ends.
    async fn connection(&mut self, lost_since: &mut Option<Instant>) -> End {
        let connection = match Connection::open(&self.address, &self.connect).await {
            Ok(connection) => connection,
            Err(error) => return error.into(),
        };
        *lost_since = None;
        match self.work(connection).await {
            Ok(sender) => {
                sender.close().await;
                End::Finished
            }
            Err(end) => end,
        }
    }

    async fn work(&mut self, connection: Connection) -> Result<ConnectionSender, End> {
        let (mut sender, mut receiver) = connection.split();
        let every = self.options.ping_every;
        let mut ticks = interval_at(Instant::now() + every, every);
        let mut heard = Instant::now();
        let mut dirty = false;
        loop {
            let taken = self.take_in()?;
            if taken.finishing && self.pipeline.is_empty() {
                return Ok(sender);
            }
            let pausing = self.resume_at.is_some();
            let has_next = self.pipeline.has_next();
            let step = tokio::select! {
                biased;
                received = receiver.receive() => Step::Received(received?),
                step = write(&mut sender, has_next), if has_next || dirty => step?,
                () = at(self.resume_at), if pausing => Step::Resume,
                () = at(taken.next), if taken.next.is_some() => Step::Look,
                () = self.gather.changed.notified() => Step::Look,
                _ = ticks.tick() => Step::Tick,
            };
            match step {
                Step::Received(received) => {
                    heard = Instant::now();
                    self.receive(&received)?;
                }
                Step::Ready => {
                    self.send_one(&mut sender)?;
                    dirty = true;
                }
                Step::Flushed => dirty = false,
                Step::Resume => {
                    self.resume_at = None;
                    self.pipeline.resume(producer).map_err(Error::from)?;
                }
                Step::Look => {}
                Step::Tick => {
                    self.check_patience(heard)?;
                    sender.ready().await?;
                    sender.start(&ClientMessage::Ping { id: 0 })?;
                    dirty = true;
                }
            }
        }
    }

    /// Takes batches that are due, and notes when partitions have drained.
    fn take_in(&mut self) -> Result<Taken, Error> {
        let mut taken = self.gather.take(Instant::now());
        for full in std::mem::take(&mut taken.batches) {
            let (partition, builder, waiter) = split(full);
            self.pipeline.admit(partition, builder, waiter)?;
            self.stuck_since.get_or_insert_with(Instant::now);
        }
        if self.resume_at.is_none()
            && let Some(pause) = self.pipeline.drained()
        {
            self.resume_at = Some(match pause {
                Pause::None => Instant::now(),
                Pause::Backoff => Instant::now() + self.backoff.wait(fastrand::f64()),
            });
        }
        Ok(taken)
    }

    fn send_one(&mut self, sender: &mut ConnectionSender) -> Result<(), Error> {
        let Some((id, partition, batch)) = self.pipeline.next() else {
            return Ok(());
        };
        sender.start(&ClientMessage::Publish(ws::Publish {
            id,
            stream: self.stream.as_str().into(),
            partition: Some(partition),
            payload: Payload::Batch(batch.bytes().as_ref().into()),
            producer: None,
            ack: self.options.ack.clone(),
        }))
    }

    /// # Errors
    /// When the broker is silent, or answers but never to what waits.
    fn check_patience(&self, heard: Instant) -> Result<(), End> {
        let silence = self.options.ping_every * 3;
        if heard.elapsed() >= silence {
            let (what, after) = ("waiting for a sign of life", silence);
            return Err(End::Lost(Error::TimedOut { what, after }));
        }
        let after = self.options.give_up_after;
        match self.stuck_since {
            Some(since) if since.elapsed() >= after => {
                let what = "waiting for an acknowledgement";
                Err(End::Failed(Error::TimedOut { what, after }))
            }
            _ => Ok(()),
        }
    }

    fn receive(&mut self, received: &Received) -> Result<(), End> {
        match received.message() {
            Ok(ServerMessage::Ack(ack)) => {
                let token: Arc<str> = ack.token.as_ref().into();
                for row in &ack.rows {
                    let dot = |index| Dot {
                        origin: ack.origin,
                        sequence: ack.sequence,
                        index,
                    };
                    let outcome = BatchAck {
                        partition: row.partition,
                        offset: row.offset,
                        dot: row.index.map(dot),
                        token: Arc::clone(&token),
                        durability: ack.durability,
                    };
                    self.acked(row, outcome);
                }
                Ok(())
            }
            Ok(ServerMessage::Error(error)) => self.refused(error),
            Ok(ServerMessage::Pong { .. }) => Ok(()),
            Ok(other) => Err(unexpected(&other).into()),
            Err(_) if received.is_unknown() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn acked(&mut self, row: &AckRow, outcome: BatchAck) {
        // An answer that was overtaken by a lost connection has nobody waiting.
        if let Some((_, waiter)) = self.pipeline.acked(row.id) {
            self.settle(waiter, Ok(outcome));
            self.backoff.reset();
        }
    }

    fn refused(&mut self, error: ErrorMessage) -> Result<(), End> {
        let Some(id) = error.id else {
            return Err(Error::from(error.problem).into());
        };
        match self.pipeline.refused(id, error.problem) {
            Refused::Failed((_, waiter), problem) => self.settle(waiter, Err(problem.into())),
            Refused::Kept | Refused::Unknown => {}
            Refused::Fatal(problem) => return Err(End::Failed(problem.into())),
        }
        Ok(())
    }

    fn settle(&mut self, waiter: Waiter, outcome: Result<BatchAck, Error>) {
        waiter.outcome.send_replace(Some(outcome));
        self.gather.give_back(waiter.permits);
        self.stuck_since = (!self.pipeline.is_empty()).then(Instant::now);
    }
}

/// Makes room for the next message, or writes out what was added.
async fn write(sender: &mut ConnectionSender, has_next: bool) -> Result<Step, Error> {
    match has_next {
        true => sender.ready().await.map(|()| Step::Ready),
        false => sender.flush().await.map(|()| Step::Flushed),
    }
}

/// Waits until then; forever when there is no then.
async fn at(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
