//! A link, from hello to its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anabranch_core::audit::Audit;
use anabranch_core::exchange::Ask;
use anabranch_core::id::{BrokerId, Position};
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::block::{Block, BlockReader, BlockWriter, Item, item_bytes};
use anabranch_protocol::peer::{Encoder, Hello, MAX_MESSAGE_BYTES, PeerMessage, Told};
use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::Common;
use super::audit::{self, Auditing};
use super::blocks::{Made, make_block};
use super::dial::PeerAddress;
use super::ended::Ended;
use super::packing::{Packer, Unpacker};
use super::wire::{Incoming, ReadError};
use crate::node::{Dialled, LinkCredit, Node, Running, Seat, check_hello};

/// How long the other side may take to say who it is.
const HELLO_BUDGET: Duration = Duration::from_secs(5);

/// A link that has nothing to say says so, this often.
const PING_EVERY: Duration = Duration::from_secs(1);

/// A link that was silent for so long is cut: the other side pings more often than that.
const SILENCE: Duration = Duration::from_secs(5);

/// Bytes of frames that are read from the log at once; blocks are about this long.
const BLOCK_BYTES: usize = 1 << 20;

/// Reports go out no more often than this while nothing else does.
const REPORT_EVERY: Duration = Duration::from_millis(2);

/// All reports are told that often, not only those of brokers whose frames are asked for: two peers may
/// ask each other for those of a third one while there are no new ones, and hear no report of it.
const TELL_ALL_EVERY: Duration = Duration::from_secs(1);

/// Bytes of reports that a link carries in a millisecond at most. A report names every broker, and a hub
/// passes on those of all, so that with 175 regions one each 2 ms would be as much as the records.
const REPORT_BYTES_PER_MS: u64 = 50;

/// What the other side wants from now on.
struct Wanted {
    ask: Ask,
    window: u64,
}

/// What was told of reports, and when there may be more.
struct Telling {
    told: Told,
    next: Instant,
    next_of_all: Instant,
}

/// From the reading to the writing half.
enum Note {
    Wanted(Wanted),
    Credit(u64),
}

/// Runs a link until it ends.
pub(super) async fn run(
    node: &Arc<Node>,
    stream: TcpStream,
    (dialled, address): (Dialled, Option<&PeerAddress>),
    common: &Common,
) -> Ended {
    // A delay of small messages would be a delay of every record.
    if let Err(error) = stream.set_nodelay(true) {
        return Ended::Write(error);
    }
    let (read, mut write) = stream.into_split();
    let mut incoming = Incoming::new(read);
    let ended = match greet(node, &mut incoming, &mut write, (dialled, address)).await {
        Ok((running, seat)) => {
            tracing::info!(peer = %seat.peer.broker, region = %seat.peer.region, "link up");
            let ended = keep(&running, seat, incoming, &mut write, common).await;
            // Said by one of the same cluster, whose hello was checked.
            if let Ended::Bye(Code::Parked, why) = &ended {
                running.regions.note_parked(why.clone());
            }
            ended
        }
        Err(ended) => ended,
    };
    if let Ended::Refused(error) = &ended {
        let bye = PeerMessage::Bye {
            code: error.code,
            message: error.detail.clone(),
        };
        // It may be gone already.
        let _ = timeout(HELLO_BUDGET, send(&mut write, &bye)).await;
    }
    ended
}

async fn greet(
    node: &Arc<Node>,
    incoming: &mut Incoming<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    (dialled, address): (Dialled, Option<&PeerAddress>),
) -> Result<(Arc<Running>, Seat), Ended> {
    let running = Arc::clone(node.running()?);
    let own = running.hello().await?;
    send(write, &PeerMessage::Hello(own.clone())).await?;
    let first = timeout(HELLO_BUDGET, incoming.next()).await;
    let hello: Hello = match first.map_err(|_| Ended::Silent)?? {
        PeerMessage::Hello(hello) => hello,
        PeerMessage::Bye { code, message } => return Err(Ended::Bye(code, message)),
        _ => return Err(Ended::Protocol("its first message is no hello")),
    };
    check_hello(&own, &hello)?;
    incoming.greeted();
    if let Some(address) = address {
        let met = hello.origin.broker;
        running.regions.note_met(address.0.clone(), met);
    }
    let seat = running.regions.take_seat(&own, &hello, dialled)?;
    Ok((running, seat))
}

async fn send(write: &mut OwnedWriteHalf, message: &PeerMessage) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    Encoder::default().encode(message, &mut bytes);
    write.write_all(&bytes).await
}

async fn keep(
    running: &Arc<Running>,
    seat: Seat,
    incoming: Incoming<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    common: &Common,
) -> Ended {
    let credit = Arc::new(LinkCredit::of(&seat.peer));
    // The other side asks seldom, and credit comes no faster than what it was given for.
    let (tell, told) = mpsc::channel(64);
    let (say, said) = mpsc::channel(audit::AHEAD);
    let (answer, audits) = mpsc::channel(audit::AHEAD);
    let mut ended = seat.ended.clone();
    let window = common.options.window_bytes.in_memory() as u64;
    let outgoing = Outgoing {
        running,
        seat: &seat,
        write,
        told,
        audits,
        said: Instant::now(),
        credit: &credit,
        window,
        encoder: Encoder::default(),
        writer: BlockWriter::default(),
        packer: common.packer(),
        wanted: None,
        reports_of: BTreeSet::new(),
        left: 0,
        position: Position::new(0),
    };
    let auditing = Auditing {
        running,
        peer: seat.peer.clone(),
        said,
        tell: answer,
        every: common.options.audit_seconds,
    };
    let reading = Reading {
        running,
        seat: &seat,
        tell,
        say,
        credit: &credit,
        window,
        reader: BlockReader::default(),
        unpacker: Unpacker::default(),
    };
    tokio::select! {
        ended = outgoing.run() => ended,
        ended = reading.run(incoming) => ended,
        ended = auditing.run() => ended,
        reason = ended.wait_for(Option::is_some) => match reason.as_deref() {
            Ok(Some(error)) => Ended::Refused(error.clone()),
            Ok(None) | Err(_) => Ended::Replaced,
        },
    }
}

struct Reading<'a> {
    running: &'a Arc<Running>,
    seat: &'a Seat,
    tell: mpsc::Sender<Note>,
    say: mpsc::Sender<Audit>,
    credit: &'a Arc<LinkCredit>,
    window: u64,
    reader: BlockReader,
    unpacker: Unpacker,
}

impl Reading<'_> {
    async fn run(mut self, mut incoming: Incoming<OwnedReadHalf>) -> Ended {
        loop {
            let message = match timeout(SILENCE, incoming.next()).await {
                Ok(Ok(message)) => message,
                Ok(Err(error)) => return error.into(),
                Err(_) => return Ended::Silent,
            };
            if let Err(ended) = self.take(message).await {
                return ended;
            }
        }
    }

    async fn take(&mut self, message: PeerMessage) -> Result<(), Ended> {
        let told = match message {
            PeerMessage::Block {
                compressed,
                inflated,
                block,
            } => {
                let inflated = compressed.then_some(inflated);
                return self.take_block(inflated, block).await;
            }
            PeerMessage::Reports(reports) => {
                self.running.regions.hear(reports);
                return Ok(());
            }
            PeerMessage::Held(held) => {
                let peer = self.seat.peer.broker;
                self.running.regions.hear_held(peer, held);
                return Ok(());
            }
            PeerMessage::Recalls(recalls) => {
                self.running.regions.hear_recalls(recalls);
                return Ok(());
            }
            PeerMessage::Withheld(origin, from) => {
                let regions = &self.running.regions;
                regions.note_withheld(self.seat.peer.broker, origin, from);
                return Ok(());
            }
            PeerMessage::Audit(audit) => {
                // What is too much is left out: a later round says it again.
                let _ = self.say.try_send(audit);
                return Ok(());
            }
            PeerMessage::Ask { ask, window } => Note::Wanted(Wanted { ask, window }),
            PeerMessage::Credit(bytes) => Note::Credit(bytes),
            PeerMessage::Ping => return Ok(()),
            PeerMessage::Bye { code, message } => return Err(Ended::Bye(code, message)),
            PeerMessage::Hello(_) => return Err(Ended::Protocol("it says hello twice")),
        };
        // A writing half that cannot write for so long, while more and more is said to it, never will.
        match timeout(SILENCE, self.tell.send(told)).await {
            // The writing half ends with the link.
            Ok(_) => Ok(()),
            Err(_) => Err(Ended::Clogged),
        }
    }

    async fn take_block(&mut self, inflated: Option<u32>, mut block: Block) -> Result<(), Ended> {
        let arrived = (block.heads.len() + block.bodies.len()) as u64;
        let credit = u64::from(block.credit);
        if self.credit.out().saturating_add(credit) > most_out(self.window) {
            return Err(Ended::Protocol("it sends more than it has credit for"));
        }
        if let Some(inflated) = inflated {
            if inflated > block.credit {
                return Err(Ended::Protocol("a block is longer than its credit"));
            }
            let limit = inflated as usize;
            let bodies = self.unpacker.unpack(block.bodies, limit).await;
            block.bodies = bodies.ok_or(Ended::Protocol("a block does not inflate"))?;
            if block.bodies.len() != limit {
                return Err(Ended::Protocol("a block has another length than it says"));
            }
        }
        let items = self.reader.read(&block).map_err(ReadError::Message)?;
        let counts = &self.seat.counts;
        counts.bytes_in.fetch_add(arrived, Ordering::Relaxed);
        counts
            .frames_in
            .fetch_add(items.len() as u64, Ordering::Relaxed);
        let mut rest = credit;
        let mut taken = Vec::with_capacity(items.len());
        for item in items {
            let bytes = match &item {
                Item::Frame(frame) => (frame.size() as u64).min(rest),
                gaps @ Item::Gaps(_) => (item_bytes(gaps) as u64).min(rest),
            };
            rest -= bytes;
            taken.push((item, self.credit.take(bytes)));
        }
        // What a block has beside its frames.
        drop(self.credit.take(rest));
        self.running.receive(taken)?;
        Ok(())
    }
}

struct Outgoing<'a> {
    running: &'a Arc<Running>,
    seat: &'a Seat,
    write: &'a mut OwnedWriteHalf,
    told: mpsc::Receiver<Note>,
    /// What the rows here come to. On a channel of its own: however much there is of it, credit and
    /// asks do not wait behind it.
    audits: mpsc::Receiver<Audit>,
    /// When something was last sent.
    said: Instant,
    credit: &'a Arc<LinkCredit>,
    window: u64,
    encoder: Encoder,
    writer: BlockWriter,
    /// `None` where blocks are not compressed.
    packer: Option<Packer>,
    /// What is shipped: what was asked for, without what can only come from elsewhere.
    wanted: Option<Ask>,
    /// The brokers of whom it was asked for.
    reports_of: BTreeSet<BrokerId>,
    /// Bytes that may still be sent. The block that overdrew the window leaves a debt, or the window
    /// would grow by each of those.
    left: i64,
    /// What is before this in the log was sent, or is not wanted.
    position: Position,
}

impl Outgoing<'_> {
    async fn run(mut self) -> Ended {
        match self.steps().await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn steps(&mut self) -> Result<std::convert::Infallible, Ended> {
        let mut asks = self.seat.asks.clone();
        asks.mark_changed();
        let mut durable = self.running.durable();
        let mut heard = self.running.regions.heard();
        heard.mark_changed();
        let mut telling = Telling {
            told: Told::default(),
            next: Instant::now(),
            next_of_all: Instant::now() + TELL_ALL_EVERY,
        };
        loop {
            let may_ship = self.wanted.is_some() && self.left > 0;
            if may_ship && self.has_more(*durable.borrow_and_update()) {
                self.ship().await?;
                // Asks, reports and credit must not wait until a peer has caught up.
                if asks.has_changed().map_err(|_| Ended::Replaced)? {
                    self.ask(&mut asks).await?;
                }
                self.give_credit().await?;
                if Instant::now() >= telling.next {
                    self.report(&mut telling).await?;
                }
                while let Ok(told) = self.told.try_recv() {
                    self.note(told, &mut heard);
                }
                // Much may be read of which nothing is sent.
                if self.said.elapsed() >= PING_EVERY {
                    self.say(&PeerMessage::Ping).await?;
                }
                continue;
            }
            // Not from now on: what wakes this up often says nothing where nothing is new.
            let ping_at = self.said + PING_EVERY;
            tokio::select! {
                changed = asks.changed() => {
                    gone(changed)?;
                    self.ask(&mut asks).await?;
                }
                Some(told) = self.told.recv() => self.note(told, &mut heard),
                Some(audit) = self.audits.recv() => self.say(&PeerMessage::Audit(audit)).await?,
                changed = durable.changed(), if may_ship => gone(changed)?,
                changed = async {
                    tokio::time::sleep_until(telling.next).await;
                    heard.changed().await
                } => {
                    gone(changed)?;
                    self.report(&mut telling).await?;
                }
                () = tokio::time::sleep_until(telling.next_of_all) => self.report(&mut telling).await?,
                () = self.credit.arrived() => self.give_credit().await?,
                () = tokio::time::sleep_until(ping_at) => self.say(&PeerMessage::Ping).await?,
            }
        }
    }

    /// Whether there may be something to ship. Most of what becomes durable came from others and is
    /// not asked for: that is passed over here, without another thread.
    fn has_more(&mut self, durable: Position) -> bool {
        if let Some(ask) = &self.wanted
            && self.position < durable
        {
            self.position = self.running.pass_over(self.position, ask);
        }
        self.position < durable
    }

    fn note(&mut self, told: Note, heard: &mut watch::Receiver<u64>) {
        match told {
            Note::Credit(bytes) => self.left = self.left.saturating_add(signed(bytes)),
            Note::Wanted(Wanted { ask, window }) => {
                self.position = self.running.shipping_from(&ask);
                self.reports_of.clone_from(&ask.of);
                // Reports of other brokers are wanted as well, though nothing may be new.
                heard.mark_changed();
                // What is on its way keeps its credit: it comes back as it would have.
                if self.wanted.replace(ask).is_none() {
                    self.left = signed(window);
                }
            }
        }
    }

    async fn ask(&mut self, asks: &mut watch::Receiver<Ask>) -> Result<(), Ended> {
        let (ask, window) = (asks.borrow_and_update().clone(), self.window);
        self.say(&PeerMessage::Ask { ask, window }).await
    }

    async fn say(&mut self, message: &PeerMessage) -> Result<(), Ended> {
        let mut bytes = BytesMut::new();
        self.encoder.encode(message, &mut bytes);
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.write.write_all(bytes).await?;
        self.said = Instant::now();
        Ok(())
    }

    async fn give_credit(&mut self) -> Result<(), Ended> {
        // Not with every frame: an eighth of the window is soon enough to keep a link busy.
        match self.credit.give_back(self.window / 8) {
            Some(bytes) => self.say(&PeerMessage::Credit(bytes)).await,
            None => Ok(()),
        }
    }

    /// Tells what is new: of the brokers whose frames are asked for here, and now and then of all.
    async fn report(&mut self, telling: &mut Telling) -> Result<(), Ended> {
        let is_of_all = Instant::now() >= telling.next_of_all;
        let of = (!is_of_all).then_some(&self.reports_of);
        let mut bytes = BytesMut::new();
        for message in telling.told.say(self.running.regions.news(of)) {
            self.encoder.encode(&message, &mut bytes);
        }
        if !bytes.is_empty() {
            self.write(&bytes).await?;
        }
        telling.next = Instant::now() + pause_after(bytes.len() as u64);
        if is_of_all {
            telling.next_of_all = telling.next + TELL_ALL_EVERY;
        }
        Ok(())
    }

    /// Sends one block of what is wanted.
    async fn ship(&mut self) -> Result<(), Ended> {
        let Some(ask) = self.wanted.clone() else {
            return Ok(());
        };
        let (running, from) = (Arc::clone(self.running), self.position);
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let (mut packer, to) = (self.packer.take(), self.seat.peer.clone());
        let mut writer = std::mem::take(&mut self.writer);
        let made = tokio::task::spawn_blocking(move || {
            let out = (&mut writer, packer.as_mut());
            let made = make_block(&running, (&to, ask), from, most.min(BLOCK_BYTES), out);
            (writer, packer, made)
        });
        let (writer, packer, made) = made
            .await
            .map_err(|_| Ended::Log("reading panicked".to_owned()))?;
        (self.writer, self.packer) = (writer, packer);
        let Made {
            block,
            ask,
            stops,
            next,
        } = made.map_err(Ended::Log)?;
        if let Some(block) = block {
            self.write(&block.message).await?;
            self.left = self.left.saturating_sub(signed(block.credit));
            let counts = &self.seat.counts;
            counts.frames_out.fetch_add(block.frames, Ordering::Relaxed);
            counts
                .bytes_out
                .fetch_add(block.message.len() as u64, Ordering::Relaxed);
        }
        for (origin, from) in stops {
            self.say(&PeerMessage::Withheld(origin, from)).await?;
        }
        self.wanted = Some(ask);
        self.position = next;
        Ok(())
    }
}

/// How long after reports of so many bytes there are none.
fn pause_after(bytes: u64) -> Duration {
    REPORT_EVERY.max(Duration::from_millis(bytes / REPORT_BYTES_PER_MS))
}

/// Bytes that may be here at most whose credit was not given back. A block is sent while any credit
/// is left, so the last one may overdraw the window by as much as a message holds.
fn most_out(window: u64) -> u64 {
    window.saturating_add(MAX_MESSAGE_BYTES as u64)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn gone(changed: Result<(), watch::error::RecvError>) -> Result<(), Ended> {
    changed.map_err(|_| Ended::Replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_brokers_report_often_and_many_never_fill_a_link() {
        assert_eq!(pause_after(0), REPORT_EVERY);
        assert_eq!(pause_after(100), REPORT_EVERY);
        let second = 1000 * REPORT_BYTES_PER_MS;
        assert_eq!(pause_after(second), Duration::from_secs(1));
    }
}
