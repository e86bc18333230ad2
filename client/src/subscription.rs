//! Subscriptions that survive the loss of their connection.

use std::collections::VecDeque;
use std::time::Duration;

use anabranch_core::cursor::Order;
use anabranch_core::id::PartitionId;
use anabranch_protocol::error::Code;
use anabranch_protocol::position::From;
use anabranch_protocol::ws::{
    ClientMessage, Deliver, ErrorMessage, Format, KeyFilter, ServerMessage, Subscribe,
    SubscriptionId,
};
use bytes::Bytes;
use futures_util::stream::{Stream, try_unfold};
use tokio::time::{Instant, sleep, timeout};

use crate::address::Address;
use crate::backoff::Backoff;
use crate::connection::{ConnectOptions, Connection, Received, unexpected};
use crate::delivered::{Delivered, Row, records_of};
use crate::error::Error;

/// The one subscription of a connection.
const SUBSCRIPTION: SubscriptionId = SubscriptionId::new(1);

/// What a subscription is about, and how it behaves.
#[derive(Clone, Debug)]
pub struct SubscribeOptions {
    /// Only these partitions; all when empty.
    pub partitions: Vec<u16>,
    /// Only these keys.
    pub keys: KeyFilter<'static>,
    /// In the order of the broker's log, or in the one that is the same in every region. The latter
    /// waits for regions that are silent, and has no table to begin with.
    pub order: Order,
    /// Bytes that the broker may send ahead of what has been processed. This much may be held in
    /// memory.
    pub credit_bytes: u64,
    /// How long to go on trying when the connection is lost.
    pub give_up_after: Duration,
    /// A quiet connection is checked this often, and given up when nothing has come for three
    /// times as long.
    pub ping_every: Duration,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            partitions: Vec::new(),
            keys: KeyFilter::All,
            order: Order::Local,
            // A few frames of a full log write ahead keep the broker from waiting for us.
            credit_bytes: 8 * 1024 * 1024,
            give_up_after: Duration::from_secs(120),
            ping_every: Duration::from_secs(10),
        }
    }
}

/// What a subscription brings.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A record.
    Record(Delivered),
    /// A row of the table, before the subscription is live.
    Row(Row),
    /// All rows have come; from now on records follow.
    Live,
    /// The connection was lost before all rows had come: forget the rows, they come again.
    Restarted,
}

/// A subscription.
///
/// What has been taken with [`Subscription::next`] counts as processed when the next one is asked
/// for. When the connection is lost, the subscription connects again by itself and goes on behind
/// the last record that came, so that within one process every record comes once.
#[derive(Debug)]
pub struct Subscription {
    address: Address,
    connect: ConnectOptions,
    options: SubscribeOptions,
    stream: String,
    progress: Progress,
    connection: Option<Connection>,
    backoff: Backoff,
    /// Set while there is no connection.
    lost_since: Option<Instant>,
    /// The broker refused; there is nothing more to come.
    ended: bool,
}

impl Subscription {
    pub(crate) async fn open(
        address: Address,
        connect: ConnectOptions,
        stream: String,
        from: From,
        options: SubscribeOptions,
    ) -> Result<Self, Error> {
        let mut subscription = Self {
            progress: Progress::new(from, options.credit_bytes),
            address,
            connect,
            options,
            stream,
            connection: None,
            backoff: Backoff::new(),
            lost_since: None,
            ended: false,
        };
        subscription.connection = Some(subscription.connect().await?);
        Ok(subscription)
    }

    /// Waits for the next event. May be cancelled: nothing is lost.
    ///
    /// # Errors
    /// When the broker refuses, for example because the cursor is older than what is kept, or
    /// when it could not be reached for [`SubscribeOptions::give_up_after`].
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.progress.take() {
                return Ok(event);
            }
            if self.ended {
                return Err(Error::Closed);
            }
            if let Err(error) = self.advance().await {
                self.lost(&error)?;
            }
        }
    }

    /// Waits for the next record; rows and other events are passed over.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub async fn next_record(&mut self) -> Result<Delivered, Error> {
        loop {
            if let Event::Record(record) = self.next().await? {
                return Ok(record);
            }
        }
    }

    /// Where a later subscription goes on, anywhere in the cluster: behind the last frame of which
    /// all records have been taken. `None` before anything has come.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.progress.processed.as_deref()
    }

    /// The same as a stream of events, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> {
        try_unfold(self, |mut subscription| async move {
            let event = subscription.next().await?;
            Ok(Some((event, subscription)))
        })
    }

    /// Connects if need be, grants credit, and takes in one message.
    async fn advance(&mut self) -> Result<(), Error> {
        if self.connection.is_none() {
            if self.lost_since.is_some() {
                sleep(self.backoff.wait(fastrand::f64())).await;
            }
            let connection = self.connect().await?;
            self.progress.restart();
            self.connection = Some(connection);
        }
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        if let Some(bytes) = self.progress.credit_due() {
            let credit = ClientMessage::Credit {
                subscription: SUBSCRIPTION,
                bytes,
            };
            connection.sender.ready().await?;
            connection.sender.start(&credit)?;
            self.progress.credited(bytes);
        }
        // Also what an earlier call added that was cancelled before it could flush.
        connection.sender.flush().await?;
        let received = receive(connection, self.options.ping_every).await?;
        self.progress.receive(&received, &self.options.keys)?;
        self.lost_since = None;
        self.backoff.reset();
        Ok(())
    }

    fn lost(&mut self, error: &Error) -> Result<(), Error> {
        tracing::debug!(%error, stream = %self.stream, "a subscription lost its connection");
        self.connection = None;
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        self.ended = !error.retryable() || since.elapsed() >= self.options.give_up_after;
        match self.ended {
            true => Err(error.clone()),
            false => Ok(()),
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let mut connection = Connection::open(&self.address, &self.connect).await?;
        let partitions = self.options.partitions.iter();
        let subscribe = ClientMessage::Subscribe(Subscribe {
            subscription: SUBSCRIPTION,
            stream: self.stream.as_str().into(),
            partitions: partitions.map(|&n| PartitionId::new(n)).collect(),
            keys: self.options.keys.clone(),
            from: Some(self.progress.from.to_string().into()),
            order: self.options.order,
            format: match self.options.keys {
                // Whole batches cost the broker nothing; with a filter, most of one may be unwanted.
                KeyFilter::All => Format::Batch,
                _ => Format::Records,
            },
            credit: self.options.credit_bytes.max(1),
        });
        connection.send(&subscribe).await?;
        Ok(connection)
    }
}

/// Waits for a message; asks for a sign of life when none comes.
async fn receive(connection: &mut Connection, ping_every: Duration) -> Result<Received, Error> {
    for id in 0..3 {
        if let Ok(received) = timeout(ping_every, connection.receive()).await {
            return received;
        }
        connection.send(&ClientMessage::Ping { id }).await?;
    }
    Err(Error::TimedOut {
        what: "waiting for a sign of life",
        after: ping_every * 3,
    })
}

/// What has come and what has been processed, without any connection.
#[derive(Debug)]
struct Progress {
    /// Where a new connection starts.
    from: From,
    /// What has come and was not taken.
    events: VecDeque<Event>,
    /// Cursor of the message that `events` came in.
    pending: Option<String>,
    /// Cursor behind everything that was taken.
    processed: Option<String>,
    /// Bytes processed for which no credit was granted.
    owed: u64,
    /// Bytes of the message that `events` came in.
    held: u64,
    credit: u64,
    /// Rows have come since the subscription began, but not all.
    in_rows: bool,
}

impl Progress {
    fn new(from: From, credit: u64) -> Self {
        Self {
            from,
            events: VecDeque::new(),
            pending: None,
            processed: None,
            owed: 0,
            held: 0,
            credit,
            in_rows: false,
        }
    }

    /// The next event. When there is none, what came before counts as processed.
    fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if event.is_none() {
            self.owed += std::mem::take(&mut self.held);
            if let Some(cursor) = self.pending.take() {
                self.processed = Some(cursor);
            }
        }
        event
    }

    /// Credit to be granted: when half of it is used up.
    fn credit_due(&self) -> Option<u64> {
        (self.owed > 0 && self.owed >= self.credit / 2).then_some(self.owed)
    }

    fn credited(&mut self, bytes: u64) {
        self.owed -= bytes;
    }

    /// A new connection begins with all its credit.
    fn restart(&mut self) {
        self.owed = 0;
        if std::mem::take(&mut self.in_rows) {
            self.events.push_back(Event::Restarted);
        }
    }

    fn receive(&mut self, received: &Received, keys: &KeyFilter<'_>) -> Result<(), Error> {
        let bytes = received.bytes();
        match received.message() {
            Ok(ServerMessage::Deliver(deliver)) => self.deliver(deliver, bytes, keys)?,
            Ok(ServerMessage::Rows { rows, .. }) => {
                self.in_rows = true;
                self.held = bytes.len() as u64;
                let rows = rows.into_iter().map(|row| Event::Row(Row::of(row, bytes)));
                self.events.extend(rows);
            }
            Ok(ServerMessage::Live { cursor, .. }) => {
                self.in_rows = false;
                self.held = bytes.len() as u64;
                self.events.push_back(Event::Live);
                self.reached(cursor.into_owned());
            }
            Ok(ServerMessage::Error(error)) => return Err(refusal(error)),
            Ok(ServerMessage::Pong { .. } | ServerMessage::Ack(_)) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(_) if received.is_unknown() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        deliver: Deliver<'_>,
        bytes: &Bytes,
        keys: &KeyFilter<'_>,
    ) -> Result<(), Error> {
        self.held = bytes.len() as u64;
        let cursor = deliver.cursor.clone().into_owned();
        let records = records_of(deliver, bytes, keys)?;
        self.events.extend(records.into_iter().map(Event::Record));
        self.reached(cursor);
        Ok(())
    }

    fn reached(&mut self, cursor: String) {
        self.from = From::Cursor(cursor.clone());
        self.pending = Some(cursor);
    }
}

/// Our own reading was too slow for the broker: that is no reason to stop, the subscription goes
/// on from where it was.
fn refusal(error: ErrorMessage) -> Error {
    let mut problem = error.problem;
    if matches!(problem.code, Code::SlowSubscriber | Code::NoCredit) {
        problem.retryable = true;
    }
    problem.into()
}

/// The state of one row, and every change of it.
#[derive(Debug)]
pub struct Watch {
    subscription: Subscription,
    /// Whether the row has been seen since the rows began to come.
    seen: bool,
}

impl Watch {
    pub(crate) fn new(subscription: Subscription) -> Self {
        Self {
            subscription,
            seen: false,
        }
    }

    /// Waits for the row's state: first as it is, then as it becomes. `None` when there is no such
    /// row.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.subscription.next().await? {
                Event::Row(row) => {
                    self.seen = true;
                    return Ok(Some(row.value));
                }
                Event::Live if !self.seen => return Ok(None),
                Event::Live => {}
                Event::Restarted => self.seen = false,
                Event::Record(record) if record.is_delete() => return Ok(None),
                Event::Record(record) => return Ok(record.value),
            }
        }
    }
}
