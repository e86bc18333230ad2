//! One task per subscription: takes what comes next, encodes it, and waits for credit and room.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anabranch_protocol::codec::encode_rows;
use anabranch_protocol::error::Code;
use anabranch_protocol::ws::{ErrorMessage, ServerMessage};
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::encode::{self, Shape};
use super::outbound::{Gone, Outbox, Piece};
use crate::node::{Ahead, Error, Event, Given, MessageKey, Subscription};

/// Messages are handed over together up to this many bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Room that a subscription takes before it reads: what it may hold while it waits to hand over.
const READ_BYTES: usize = 1024 * 1024;

/// A subscriber whose selection matches nothing is told this often how far it is, so that its
/// cursor does not grow old.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What a client lets the broker send, in bytes of messages.
#[derive(Default)]
pub(super) struct Credit {
    balance: AtomicI64,
    ever_granted: AtomicBool,
    granted: Notify,
}

impl Credit {
    pub(super) fn grant(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.ever_granted.store(true, Ordering::Relaxed);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 2);
        // Saturating, so that a client that grants without end does not wrap into debt.
        let add = |balance: i64| Some(balance.saturating_add(bytes).min(i64::MAX / 2));
        let _ = self
            .balance
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        self.granted.notify_one();
    }

    fn available(&self) -> bool {
        self.balance.load(Ordering::Acquire) > 0
    }

    fn spend(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 2);
        self.balance.fetch_sub(bytes, Ordering::AcqRel);
    }

    async fn wait(&self) {
        while !self.available() {
            self.granted.notified().await;
        }
    }
}

/// Where a subscription would resume.
pub(super) type Reached = Arc<parking_lot::Mutex<String>>;

/// A running subscription, as its connection holds it.
pub(super) struct Feed {
    pub(super) credit: Arc<Credit>,
    pub(super) reached: Reached,
    pub(super) task: JoinHandle<()>,
}

/// How long a subscriber may keep the broker waiting.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) without_credit: Duration,
    pub(super) with_full_buffer: Duration,
}

/// What a subscription's task works with.
pub(super) struct Delivery {
    pub(super) shape: Shape,
    pub(super) credit: Arc<Credit>,
    pub(super) outbox: Outbox,
    pub(super) patience: Patience,
    pub(super) subscription: Subscription,
    /// The cursor after the last message that was handed over; its connection looks at it too.
    pub(super) reached: Reached,
    pub(super) last_message: Instant,
    /// Room for what is being read.
    pub(super) reserved: Option<OwnedSemaphorePermit>,
}

/// Why a delivery ended.
enum End {
    Gone,
    /// The subscription alone ends.
    Refused(Error),
    /// The whole connection ends.
    TooSlow(Error),
}

impl From<Gone> for End {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// Whether it is the broker that ends, and not this subscription.
fn is_the_brokers(code: Code) -> bool {
    matches!(code, Code::ShuttingDown | Code::Stopped)
}

impl Delivery {
    /// Delivers until the subscription or the connection ends.
    pub(super) async fn run(mut self) {
        match self.deliver().await {
            End::Gone => {}
            // The connection says so itself, once everything published is answered.
            End::Refused(error) if is_the_brokers(error.code) => {}
            End::TooSlow(error) => self.end_connection(error),
            End::Refused(error) => {
                let error = match &error.cursor {
                    None => error.with_cursor(self.reached.lock().clone()),
                    Some(_) => error,
                };
                if error.code.closes_connection() || error.code == Code::SlowSubscriber {
                    return self.end_connection(error);
                }
                let Shape {
                    codec,
                    subscription,
                    ..
                } = self.shape;
                let message = encode::error(codec, None, Some(subscription), &error);
                // The connection may be gone already.
                let _ = self.outbox.send(message).await;
            }
        }
    }

    fn end_connection(&self, problem: Error) {
        let subscription = Some(self.shape.subscription);
        self.outbox.end(ErrorMessage {
            id: None,
            subscription,
            problem,
        });
    }

    async fn deliver(&mut self) -> End {
        loop {
            let done = match self.next_event().await {
                Ok(Some(event)) => self.pass_on(event).await,
                Ok(None) => {
                    self.subscription.wait().await;
                    Ok(())
                }
                Err(end) => Err(end),
            };
            self.reserved = None;
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// What comes next, if anything is there. Without credit nothing is read, so that who does not
    /// grant any costs nothing; and what is read is in memory, so there is room for it before.
    async fn next_event(&mut self) -> Result<Option<Event>, End> {
        while !self.credit.available() {
            // Where only some records are wanted, it has to be read which.
            let room = match self.subscription.selection().is_everything() {
                true => None,
                false => Some(self.reserve().await?),
            };
            let ahead = self.subscription.ahead().await?;
            drop(room);
            match ahead {
                Ahead::Something => break,
                Ahead::Unknown => {}
                Ahead::Nothing => tokio::select! {
                    () = self.subscription.wait() => {}
                    () = self.credit.wait() => {}
                },
            }
        }
        self.wait_for_credit().await?;
        self.reserved = Some(self.reserve().await?);
        let event = self.subscription.next_held().await?;
        if event.is_none() {
            self.reserved = None;
        }
        Ok(event)
    }

    async fn pass_on(&mut self, event: Event) -> Result<(), End> {
        let Shape {
            codec,
            subscription,
            ..
        } = self.shape;
        match event {
            Event::Frames(frames) => self.frames(&frames).await,
            Event::Rows(page) => {
                let rows = page.rows.iter().map(|(key, value)| (&key[..], &value[..]));
                let message = encode_rows(codec, subscription, rows);
                self.hand_over(vec![Bytes::from(message)], None).await
            }
            Event::Live(cursor) => {
                let cursor = self.subscription.encode_cursor(&cursor);
                let message = ServerMessage::Live {
                    subscription,
                    cursor: cursor.as_str().into(),
                };
                let message = encode::server(codec, &message);
                self.hand_over(vec![message], Some(cursor)).await
            }
        }
    }

    async fn frames(&mut self, frames: &[Given]) -> Result<(), End> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for frame in frames {
            let indexes = self.subscription.pass(frame);
            last = Some(frame);
            let Some(message) = self.message(frame, &indexes) else {
                continue;
            };
            bytes += message.len();
            messages.push(message);
            if bytes >= PIECE_BYTES {
                let cursor = self.subscription.cursor_after(frame).into_owned();
                self.hand_over(std::mem::take(&mut messages), Some(cursor))
                    .await?;
                bytes = 0;
                last = None;
            }
        }
        let Some(last) = last else { return Ok(()) };
        let cursor = self.subscription.cursor_after(last).into_owned();
        if messages.is_empty() && self.last_message.elapsed() >= PROGRESS_EVERY {
            messages.push(self.shape.progress(last, &cursor));
        }
        if messages.is_empty() {
            *self.reached.lock() = cursor;
            return Ok(());
        }
        self.hand_over(messages, Some(cursor)).await
    }

    /// The message of a frame; `None` when nothing of it is selected.
    fn message(&self, given: &Given, indexes: &Range<u32>) -> Option<Bytes> {
        let shape = self.shape;
        let encode = || shape.deliver(given, &self.subscription, indexes);
        let Some(frame) = self
            .subscription
            .shared(given)
            .filter(|_| indexes.start == 0)
        else {
            return encode();
        };
        let key = MessageKey {
            stream: self.subscription.definition().id(),
            subscription: shape.subscription,
            shape: shape.number(),
        };
        frame.message(key, encode)
    }

    async fn wait_for_credit(&self) -> Result<(), End> {
        let waited = tokio::time::timeout(self.patience.without_credit, self.credit.wait());
        waited
            .await
            .map_err(|_| End::TooSlow(self.without_credit()))
    }

    /// Waits for room to read something.
    async fn reserve(&mut self) -> Result<OwnedSemaphorePermit, End> {
        let room = self.outbox.room_for(READ_BYTES);
        tokio::time::timeout(self.patience.with_full_buffer, room)
            .await
            .map_err(|_| End::TooSlow(self.full_buffer()))
    }

    /// Waits for credit and room, then hands messages over in order.
    async fn hand_over(&mut self, messages: Vec<Bytes>, cursor: Option<String>) -> Result<(), End> {
        let bytes = messages.iter().map(Bytes::len).sum();
        self.wait_for_credit().await?;
        // What was reserved for reading is part of it.
        let room = async {
            match self.reserved.take() {
                Some(reserved) if reserved.num_permits() >= bytes => reserved,
                reserved => {
                    drop(reserved);
                    self.outbox.room_for(bytes).await
                }
            }
        };
        let Ok(room) = tokio::time::timeout(self.patience.with_full_buffer, room).await else {
            return Err(End::TooSlow(self.full_buffer()));
        };
        self.credit.spend(bytes);
        let piece = Piece {
            messages,
            room: Some(room),
            ping: false,
        };
        self.outbox.push(piece).await?;
        self.last_message = Instant::now();
        if let Some(cursor) = cursor {
            *self.reached.lock() = cursor;
        }
        Ok(())
    }

    fn without_credit(&self) -> Error {
        let seconds = self.patience.without_credit.as_secs();
        let (code, what) = if self.credit.ever_granted.load(Ordering::Relaxed) {
            (Code::SlowSubscriber, "no further credit was granted")
        } else {
            (Code::NoCredit, "credit was never granted")
        };
        self.too_slow(
            code,
            format!(
                "{what} to subscription {} for {seconds} s while records were waiting; resume at the cursor",
                self.shape.subscription
            ),
        )
    }

    fn full_buffer(&self) -> Error {
        let seconds = self.patience.with_full_buffer.as_secs();
        self.too_slow(
            Code::SlowSubscriber,
            format!(
                "subscription {} did not read what was sent for {seconds} s; resume at the cursor",
                self.shape.subscription
            ),
        )
    }

    fn too_slow(&self, code: Code, detail: String) -> Error {
        metrics::counter!("anabranch_slow_subscribers_total").increment(1);
        Error::new(code, detail).with_cursor(self.reached.lock().clone())
    }
}
