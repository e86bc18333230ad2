//! Sends frames, by window or by pace, and accounts for every acknowledgement.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use anabranch_protocol::ws::{Ack, AckRow, Durability, ServerMessage};
use anyhow::{Result, bail, ensure};
use indicatif::ProgressBar;
use tokio::sync::Notify;

use crate::frames::Frames;
use crate::latency::{Latencies, nanoseconds};
use crate::pace::Pace;
use crate::wire::{self, Receiver, Transmitter};

/// Written to the socket at once, at most.
const WRITE_BYTES: usize = 1024 * 1024;

/// One connection and what it sends.
pub(crate) struct Publisher {
    frames: Rc<Frames>,
    transmitter: Transmitter,
    receiver: Receiver,
    /// Messages sent since the beginning; the next one is this, round and round.
    sent: usize,
    /// Messages acknowledged since the beginning.
    acknowledged: Cell<usize>,
    latest: Option<Latest>,
    witness: Option<Rc<Witness>>,
}

/// Sees when each message was acknowledged.
#[derive(Debug)]
pub(crate) struct Witness {
    /// Per message made ahead: nanoseconds from the beginning of the phase, plus one; zero while
    /// it is not acknowledged.
    acknowledged: RefCell<Vec<u64>>,
    newest: RefCell<Option<Newest>>,
}

/// The message that was acknowledged last.
#[derive(Clone, Debug)]
pub(crate) struct Newest {
    /// Its index among those made ahead.
    pub(crate) message: usize,
    pub(crate) token: String,
    pub(crate) at: Instant,
}

impl Witness {
    /// When a message was acknowledged, if it was.
    pub(crate) fn acknowledged(&self, message: usize) -> Option<u64> {
        self.acknowledged.borrow()[message].checked_sub(1)
    }

    /// The newest message, if one was acknowledged since this was asked last.
    pub(crate) fn take_newest(&self) -> Option<Newest> {
        self.newest.take()
    }

    fn forget(&self, messages: Range<usize>) {
        self.acknowledged.borrow_mut()[messages].fill(0);
    }

    fn note(&self, ack: &Ack<'_>, now: u64) {
        let mut acknowledged = self.acknowledged.borrow_mut();
        let mut newest = None;
        for row in &ack.rows {
            let message = usize::try_from(row.id).ok();
            if let Some(at) = message.and_then(|message| acknowledged.get_mut(message)) {
                *at = now + 1;
                newest = message;
            }
        }
        *self.newest.borrow_mut() = newest.map(|message| Newest {
            message,
            token: ack.token.to_string(),
            at: Instant::now(),
        });
    }
}

/// The last acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Latest {
    pub(crate) sequence: u64,
    /// For reads that must include everything.
    pub(crate) token: String,
}

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until<'u> {
    /// So many messages.
    Messages(usize),
    /// What can be sent until then.
    Time(Instant),
    /// What can be sent until this is set.
    Told(&'u Cell<bool>),
}

/// How fast to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flow<'p> {
    /// So many messages at most wait for their acknowledgement.
    Window(usize),
    /// Each when it is due, whatever happens.
    Pace(&'p Pace),
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    pub(crate) messages: usize,
    pub(crate) records: usize,
    /// From when a message was sent (window) or due (pace) to its acknowledgement.
    pub(crate) latencies: Latencies,
}

/// Something that may hold a sender back although its window is open.
pub(crate) trait Gate {
    /// How many messages of this phase may have been sent.
    fn allows(&self) -> usize;
    /// Resolves when that may have changed.
    fn changed(&self) -> &Notify;
}

/// No gate.
pub(crate) struct Open(Notify);

impl Open {
    pub(crate) fn new() -> Self {
        Self(Notify::new())
    }
}

impl Gate for Open {
    fn allows(&self) -> usize {
        usize::MAX
    }

    fn changed(&self) -> &Notify {
        &self.0
    }
}

impl Publisher {
    pub(crate) async fn connect(address: SocketAddr, frames: Rc<Frames>) -> Result<Self> {
        let (transmitter, receiver) = wire::open(address).await?;
        Ok(Self {
            frames,
            transmitter,
            receiver,
            sent: 0,
            acknowledged: Cell::new(0),
            latest: None,
            witness: None,
        })
    }

    /// Lets acknowledgements be seen from now on.
    pub(crate) fn witnessed(&mut self) -> Rc<Witness> {
        let witness = Rc::new(Witness {
            acknowledged: RefCell::new(vec![0; self.frames.len()]),
            newest: RefCell::default(),
        });
        self.witness = Some(Rc::clone(&witness));
        witness
    }

    /// Records in each message.
    pub(crate) fn batch(&self) -> usize {
        self.frames.batch()
    }

    /// Messages sent so far.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Records acknowledged so far; true also when a run was broken off.
    pub(crate) fn acknowledged_records(&self) -> usize {
        self.acknowledged.get() * self.frames.batch()
    }

    /// The last acknowledgement, if there was one.
    pub(crate) fn latest(&self) -> Option<&Latest> {
        self.latest.as_ref()
    }

    /// Sends, and waits until everything is acknowledged.
    ///
    /// # Errors
    /// When the broker refuses something, or acknowledges something else than what was sent.
    pub(crate) async fn run(
        &mut self,
        until: Until<'_>,
        flow: Flow<'_>,
        bar: &ProgressBar,
    ) -> Result<Published> {
        self.run_gated(until, flow, bar, &Open::new()).await
    }

    /// The same, held back by a gate.
    pub(crate) async fn run_gated(
        &mut self,
        until: Until<'_>,
        flow: Flow<'_>,
        bar: &ProgressBar,
        gate: &impl Gate,
    ) -> Result<Published> {
        let witness = self.witness.as_deref();
        let flight = Flight::new(&self.frames, self.sent, &self.acknowledged, flow, witness)?;
        let sending = async {
            let sent = flight.send(&self.transmitter, until, gate).await;
            flight.all_sent.set(true);
            flight.changed.notify_one();
            sent
        };
        let receiving = flight.receive(&mut self.receiver, bar, gate.changed());
        let ((), latest) = tokio::try_join!(sending, receiving)?;
        self.sent = flight.sent.get();
        self.latest = latest.or_else(|| self.latest.take());
        let messages = self.sent - flight.first;
        Ok(Published {
            messages,
            records: messages * self.frames.batch(),
            latencies: flight.latencies.into_inner(),
        })
    }
}

/// Messages under way during one phase.
struct Flight<'a> {
    frames: &'a Frames,
    first: usize,
    sent: Cell<usize>,
    acknowledged: &'a Cell<usize>,
    all_sent: Cell<bool>,
    /// For the receiver: that all is sent.
    changed: Notify,
    flow: Flow<'a>,
    began: Instant,
    /// Per message of `frames`: when it was sent or due, plus one; zero when it is not under way.
    sent_at: RefCell<Vec<u64>>,
    latencies: RefCell<Latencies>,
    witness: Option<&'a Witness>,
}

impl<'a> Flight<'a> {
    fn new(
        frames: &'a Frames,
        first: usize,
        acknowledged: &'a Cell<usize>,
        flow: Flow<'a>,
        witness: Option<&'a Witness>,
    ) -> Result<Self> {
        let began = match flow {
            Flow::Pace(pace) => pace.began(),
            Flow::Window(window) => {
                ensure!(
                    window <= frames.len(),
                    "the window is larger than what was made ahead"
                );
                Instant::now()
            }
        };
        Ok(Self {
            frames,
            first,
            sent: Cell::new(first),
            acknowledged,
            all_sent: Cell::new(false),
            changed: Notify::new(),
            flow,
            began,
            sent_at: RefCell::new(vec![0; frames.len()]),
            latencies: RefCell::default(),
            witness,
        })
    }

    fn sent(&self) -> usize {
        self.sent.get() - self.first
    }

    async fn send(
        &self,
        transmitter: &Transmitter,
        until: Until<'_>,
        gate: &impl Gate,
    ) -> Result<()> {
        loop {
            let sent = self.sent();
            let allowed = self.allowed(until).min(gate.allows());
            if self.is_over(sent, until) {
                return Ok(());
            }
            if allowed > sent {
                let next = self.sent.get() % self.frames.len();
                let (bytes, taken) = self.frames.run(next, allowed - sent, WRITE_BYTES);
                self.stamp(sent, next, taken)?;
                self.sent.set(self.sent.get() + taken);
                transmitter.write(bytes).await?;
            } else if let Flow::Pace(pace) = self.flow {
                pace.wait(sent).await?;
            } else {
                gate.changed().notified().await;
            }
        }
    }

    /// How many messages of this phase may have been sent by now.
    fn allowed(&self, until: Until<'_>) -> usize {
        let by_flow = match self.flow {
            Flow::Pace(pace) => pace.due(),
            Flow::Window(window) => self.acknowledged.get() + window - self.first,
        };
        match until {
            Until::Messages(messages) => by_flow.min(messages),
            Until::Time(_) | Until::Told(_) => by_flow,
        }
    }

    fn is_over(&self, sent: usize, until: Until<'_>) -> bool {
        match until {
            Until::Messages(messages) => sent >= messages,
            Until::Time(end) => Instant::now() >= end,
            Until::Told(told) => told.get(),
        }
    }

    fn stamp(&self, sent: usize, next: usize, taken: usize) -> Result<()> {
        if let Some(witness) = self.witness {
            witness.forget(next..next + taken);
        }
        let now = nanoseconds(self.began.elapsed());
        let mut sent_at = self.sent_at.borrow_mut();
        for (message, at) in (sent..).zip(&mut sent_at[next..next + taken]) {
            ensure!(
                *at == 0,
                "more messages wait for the broker than were made ahead"
            );
            *at = 1 + match self.flow {
                Flow::Pace(pace) => pace.intended(message),
                Flow::Window(_) => now,
            };
        }
        Ok(())
    }

    async fn receive(
        &self,
        receiver: &mut Receiver,
        bar: &ProgressBar,
        room: &Notify,
    ) -> Result<Option<Latest>> {
        let mut latest = None;
        while !(self.all_sent.get() && self.acknowledged.get() == self.sent.get()) {
            let message = tokio::select! {
                biased;
                message = receiver.message() => message?,
                () = self.changed.notified() => continue,
            };
            match message {
                ServerMessage::Ack(ack) => {
                    self.take(&ack)?;
                    bar.inc((ack.rows.len() * self.frames.batch()) as u64);
                    latest = Some(Latest {
                        sequence: ack.sequence.get(),
                        token: ack.token.into_owned(),
                    });
                    room.notify_one();
                }
                ServerMessage::Pong { .. } => {}
                other => bail!("the broker sent {other:?} to a publisher"),
            }
        }
        Ok(latest)
    }

    fn take(&self, ack: &Ack<'_>) -> Result<()> {
        let durability = ack.durability;
        ensure!(
            durability == Durability::Disk,
            "the broker acknowledges with durability {} instead of disk",
            durability.as_str()
        );
        let now = nanoseconds(self.began.elapsed());
        let mut latencies = self.latencies.borrow_mut();
        for row in &ack.rows {
            latencies.record(now.saturating_sub(self.land(row)?));
        }
        if let Some(witness) = self.witness {
            witness.note(ack, now);
        }
        self.acknowledged
            .set(self.acknowledged.get() + ack.rows.len());
        Ok(())
    }

    /// Takes a message out of the air; returns when it was sent.
    fn land(&self, row: &AckRow) -> Result<u64> {
        let batch = self.frames.batch();
        let records = row.records;
        ensure!(
            records as usize == batch,
            "the broker acknowledges {records} records of a publish of {batch}"
        );
        let mut sent_at = self.sent_at.borrow_mut();
        let under_way = usize::try_from(row.id)
            .ok()
            .and_then(|id| sent_at.get_mut(id));
        match under_way.map(std::mem::take) {
            Some(at @ 1..) => Ok(at - 1),
            _ => bail!(
                "the broker acknowledges publish {}, which is not under way",
                row.id
            ),
        }
    }
}
