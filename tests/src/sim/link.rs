//! One end of a link: what the program's links say, and what they do with what they are told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_core::entry::{Greeting, Unfit};
use anabranch_core::exchange::Ask;
use anabranch_core::id::{BrokerId, Position};
use anabranch_core::stability::Report;
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::block::{Block, BlockReader, BlockWriter, Item, item_bytes};
use anabranch_protocol::peer::{Decoder, Encoder, Hello, PeerMessage, Told};
use anabranch_storage::log::Shipped;

use super::agenda::{MS, SECOND, Time};
use super::broker::{Down, Request, Running, Ticket};
use super::mutant::{self, Mutant};
use super::verdict::Violation;

/// Bytes that may be on their way. Small, so that links wait for credit.
const WINDOW: u64 = 3000;

/// Bytes of a block. Small, so that a frame is often alone.
const BLOCK_BYTES: usize = 600;

/// Reports go out no more often than this while nothing else does.
const REPORT_EVERY: Time = 2 * MS;

/// All reports are told that often, not only those of brokers whose frames are asked for.
const TELL_ALL_EVERY: Time = SECOND;

/// Who dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialled {
    Here,
    There,
}

/// An end of a link.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) peer: usize,
    pub(super) dialled: Dialled,
    /// What was said first.
    hello: Hello,
    /// What the peer said of itself, since the link is up.
    greeting: Option<Greeting>,
    asks: Option<Ask>,
    asked_anew: bool,
    wanted: Option<Ask>,
    /// Bytes that may still be sent.
    left: u64,
    position: Position,
    told: Told,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    writer: BlockWriter,
    reader: BlockReader,
    heard: u64,
    next_report: Time,
    told_of_all: u64,
    next_of_all: Time,
    wakes_at: Time,
    /// Credit that can go back.
    pub(super) returned: Arc<AtomicU64>,
}

/// What becomes of a link after a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoesOn,
    /// It is up; another link to the same broker is not needed any more.
    Up(Option<u64>),
    /// It ends here, and the peer is told why.
    Refused(Code),
    Ends,
}

impl Side {
    pub(super) fn new(peer: usize, dialled: Dialled, hello: Hello) -> Self {
        Self {
            peer,
            dialled,
            hello,
            greeting: None,
            asks: None,
            asked_anew: false,
            wanted: None,
            left: 0,
            position: Position::default(),
            told: Told::default(),
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            writer: BlockWriter::default(),
            reader: BlockReader::default(),
            heard: 0,
            next_report: 0,
            told_of_all: 0,
            next_of_all: 0,
            wakes_at: 0,
            returned: Arc::default(),
        }
    }

    pub(super) fn is_seated(&self) -> bool {
        self.greeting.is_some()
    }

    /// What the peer said of itself, if the link is up.
    pub(super) fn greeting(&self) -> Option<&Greeting> {
        self.greeting.as_ref()
    }

    /// Who it is, if the link is up.
    pub(super) fn broker(&self) -> Option<BrokerId> {
        self.greeting.as_ref().map(|peer| peer.origin.broker)
    }

    /// The peer is to be asked for this from now on.
    pub(super) fn ask(&mut self, ask: Ask, again: bool) {
        if again || self.asks.as_ref().is_none_or(|asked| asked.of != ask.of) {
            self.asks = Some(ask);
            self.asked_anew = true;
        }
    }

    /// Says what there is to say, and when there may be more.
    fn speak(
        &mut self,
        broker: &Running,
        now: Time,
        said: &mut Vec<PeerMessage>,
    ) -> Result<Option<Time>, Down> {
        if self.asked_anew
            && let Some(ask) = self.asks.clone()
        {
            self.asked_anew = false;
            said.push(PeerMessage::Ask {
                ask,
                window: WINDOW,
            });
        }
        while self.left > 0 && self.position < broker.reader.next_position() {
            let Some(ask) = self.wanted.clone() else {
                break;
            };
            self.ship(broker, &ask, said)?;
            self.give_credit(said);
            self.report(broker, false, said);
        }
        self.give_credit(said);
        if self.heard != broker.heard {
            if now < self.next_report {
                return Ok(Some(self.next_report));
            }
            self.next_report = now + REPORT_EVERY;
            self.report(broker, false, said);
        }
        if self.told_of_all == broker.heard {
            return Ok(None);
        }
        if now < self.next_of_all {
            // It is woken once for that, however often it speaks before.
            let is_told = std::mem::replace(&mut self.wakes_at, self.next_of_all);
            return Ok((is_told != self.next_of_all).then_some(self.next_of_all));
        }
        self.next_of_all = now + TELL_ALL_EVERY;
        self.told_of_all = broker.heard;
        self.report(broker, true, said);
        Ok(None)
    }

    fn ship(
        &mut self,
        broker: &Running,
        ask: &Ask,
        said: &mut Vec<PeerMessage>,
    ) -> Result<(), Down> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let shipment = broker
            .reader
            .ship(self.position, ask, &|_| true, most.min(BLOCK_BYTES));
        let shipment = shipment.map_err(|_| Down::Disk)?;
        self.position = shipment.next;
        for item in &shipment.items {
            match item {
                Shipped::Frame(commit) => self.writer.put_frame(commit),
                Shipped::Gaps(gaps) => self.writer.put_gaps(gaps),
            }
        }
        if let Some(block) = self.writer.take() {
            self.left = self.left.saturating_sub(u64::from(block.credit));
            said.push(PeerMessage::Block {
                compressed: false,
                inflated: u32::try_from(block.bodies.len()).expect("blocks are short"),
                block,
            });
        }
        Ok(())
    }

    fn give_credit(&mut self, said: &mut Vec<PeerMessage>) {
        if self.returned.load(Ordering::Relaxed) >= WINDOW / 8 {
            let returned = self.returned.swap(0, Ordering::Relaxed);
            said.push(PeerMessage::Credit(returned));
        }
    }

    fn report(&mut self, broker: &Running, of_all: bool, said: &mut Vec<PeerMessage>) {
        self.heard = broker.heard;
        let of: BTreeSet<BrokerId> = self.wanted.iter().flat_map(|ask| ask.of.clone()).collect();
        let of = (!of_all).then_some(&of);
        said.extend(self.told.say(broker.mesh.news(of, broker.fetching)));
    }
}

impl Running {
    /// What an end of a link has to say now, and when it may have more.
    pub(super) fn speak(
        &mut self,
        link: u64,
        now: Time,
    ) -> Result<(Vec<PeerMessage>, Option<Time>), Down> {
        let mut said = Vec::new();
        let Some(mut side) = self.sides.remove(&link) else {
            return Ok((said, None));
        };
        let wake = match side.is_seated() {
            true => side.speak(self, now, &mut said),
            false => Ok(None),
        };
        self.sides.insert(link, side);
        Ok((said, wake?))
    }

    /// Takes a message in.
    pub(super) fn hear(&mut self, link: u64, message: PeerMessage) -> Result<Then, Down> {
        let Some(side) = self.sides.get_mut(&link) else {
            return Ok(Then::GoesOn);
        };
        match message {
            PeerMessage::Hello(_) if side.is_seated() => return Ok(Then::Ends),
            PeerMessage::Hello(hello) => return self.take_seat(link, &hello),
            PeerMessage::Bye { code, .. } => {
                // Said by one of the same cluster, whose hello was taken.
                if side.is_seated() && code == Code::Parked {
                    self.note_parked();
                }
                return Ok(Then::Ends);
            }
            _ if !side.is_seated() => return Ok(Then::Ends),
            PeerMessage::Ask { ask, window } => {
                side.position = self.reader.ship_from(&ask);
                // Reports of other brokers are wanted as well, though nothing may be new.
                side.heard = 0;
                if side.wanted.replace(ask).is_none() {
                    side.left = window;
                }
            }
            PeerMessage::Credit(bytes) => side.left = side.left.saturating_add(bytes),
            PeerMessage::Block { block, .. } => return Ok(self.take_block(link, &block)),
            PeerMessage::Reports(reports) => self.take_reports(reports),
            PeerMessage::Held(held) => {
                if let Some(peer) = side.broker() {
                    self.mesh.hear_held(peer, held);
                }
                self.ask_anew();
            }
            PeerMessage::Recalls(recalls) => {
                for recall in recalls {
                    let is_news = self.mesh.hear_recall(recall);
                    self.heard += u64::from(is_news);
                    self.entrance.changed |= is_news;
                }
            }
            PeerMessage::Ping | PeerMessage::Withheld(..) | PeerMessage::Audit(_) => {}
        }
        Ok(Then::GoesOn)
    }

    fn take_reports(&mut self, reports: Vec<Report>) {
        for report in reports {
            self.mesh.hear(match self.mutant {
                Some(Mutant::EarlyReport) => mutant::without_own_frames(report),
                _ => report,
            });
        }
        self.ask_anew();
        self.settle();
    }

    fn take_block(&mut self, link: u64, block: &Block) -> Then {
        let Some(side) = self.sides.get_mut(&link) else {
            return Then::GoesOn;
        };
        let Ok(items) = side.reader.read(block) else {
            return Then::Ends;
        };
        let (Some(from), returned) = (side.broker(), &side.returned) else {
            return Then::Ends;
        };
        let mut rest = u64::from(block.credit);
        let mut taken = Vec::with_capacity(items.len());
        for item in items {
            let bytes = match &item {
                Item::Frame(frame) => (frame.size() as u64).min(rest),
                gaps @ Item::Gaps(_) => (item_bytes(gaps) as u64).min(rest),
            };
            rest -= bytes;
            let ticket = Ticket {
                from,
                bytes,
                returned: Arc::clone(returned),
                frame: None,
            };
            taken.push((item, ticket));
        }
        returned.fetch_add(rest, Ordering::Relaxed);
        self.inbox.push_back(Request::Foreign(taken));
        Then::GoesOn
    }

    /// Takes a link up, unless the peer may not be linked, or there is one already: of two links
    /// between the same brokers, the one that the smaller id dialled stays.
    fn take_seat(&mut self, link: u64, hello: &Hello) -> Result<Then, Down> {
        let (own, peer) = (self.who.id, hello.origin.broker);
        let Some(side) = self.sides.get(&link) else {
            return Ok(Then::GoesOn);
        };
        let (said, theirs) = (side.hello.greeting(), hello.greeting());
        if said.knows_parked(&theirs) {
            return Ok(Then::Refused(Code::Parked));
        }
        if let Some(origin) = hello.fork(&side.hello.heads) {
            let what = format!("{origin} has two histories");
            return Err(Down::Wrong(Violation(what)));
        }
        if said.is_founded_apart(&theirs) {
            return Ok(Then::Refused(Code::OtherFounding));
        }
        let (at, dialled) = (side.peer, side.dialled);
        if dialled == Dialled::Here {
            self.entrance.meet(at, peer);
        }
        if peer == own {
            return Ok(Then::Refused(Code::LinkRefused));
        }
        match self.mesh.check_link(&said, &theirs) {
            Ok(()) => {}
            Err(Unfit::Parked | Unfit::BringsBack { for_good: true, .. }) => {
                return Ok(Then::Refused(Code::Parked));
            }
            Err(Unfit::BringsBack { .. }) => return Ok(Then::Refused(Code::LinkRefused)),
            Err(Unfit::Outdated) => return Ok(Then::Refused(Code::Joining)),
        }
        let held = self.linked().get(&peer).copied();
        let kept = held.and_then(|number| self.sides.get(&number));
        if let Some(kept) = kept
            && kept.dialled != dialled
            && (kept.dialled == Dialled::Here) == (own < peer)
        {
            return Ok(Then::Refused(Code::DuplicateLink));
        }
        let origin = self.sequencer.origin();
        self.mesh.greet(origin, &theirs, self.fetching);
        if let Some(side) = self.sides.get_mut(&link) {
            side.greeting = Some(theirs);
        }
        if let Some(replaced) = held {
            self.sides.remove(&replaced);
        }
        self.mesh.link(peer, hello.region.clone(), hello.vector());
        self.ask_anew();
        self.entrance.changed = true;
        Ok(Then::Up(held))
    }

    /// An end of a link is gone. Whose it was.
    pub(super) fn lose(&mut self, link: u64) -> Option<Side> {
        let side = self.sides.remove(&link)?;
        if let Some(peer) = side.broker() {
            self.mesh.unlink(peer);
            self.ask_anew();
            self.entrance.changed = true;
        }
        Some(side)
    }
}
