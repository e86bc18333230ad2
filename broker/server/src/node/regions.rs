//! The brokers of other regions, as far as they are known here: who is linked, who is asked for
//! what, what each has applied, and what follows from that.

mod asking;
mod credit;
mod entry;
mod expecting;
mod refusing;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::entry::Greeting;
use anabranch_core::exchange::Ask;
use anabranch_core::id::{BrokerId, ClusterId, Origin, Position, RegionName};
use anabranch_core::lag::Lag;
use anabranch_core::members::{Member, Members};
use anabranch_core::mesh::{Mesh, News};
use anabranch_core::recall::Recall;
use anabranch_core::stability::{Report, Rising};
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::{Heads, Hello};
use anabranch_storage::tables::Tables;
use parking_lot::Mutex;
use tokio::sync::watch;

pub(crate) use credit::{LinkCredit, Ticket};
pub(crate) use entry::Entry;
pub(super) use expecting::Expected;
pub(super) use refusing::Fault;
pub(crate) use status::{LinkStatus, Status};

use super::membership::parked_error;
use super::residents::Peer;
use super::{Error, wall_clock_ms};

/// Who dialled a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialled {
    /// This broker.
    Here,
    /// The other one.
    There,
}

impl std::fmt::Display for Dialled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Here => "here",
            Self::There => "there",
        })
    }
}

/// What has gone over a link.
#[derive(Debug, Default)]
pub(crate) struct LinkCounts {
    pub(crate) frames_in: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) frames_out: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
}

/// A link that is up.
struct Link {
    number: u64,
    dialled: Dialled,
    since: Instant,
    asks: watch::Sender<Ask>,
    counts: Arc<LinkCounts>,
    /// How far the peer is behind this broker, and this broker behind the peer.
    ahead: Lag,
    behind: Lag,
    /// What the peer said of itself first.
    greeting: Greeting,
    /// The last frames that it held then.
    heads: Heads,
    /// Ends the link, with the reason.
    ended: watch::Sender<Option<Error>>,
}

/// A link's place among the others. When it is dropped, the link is down.
pub(crate) struct Seat {
    regions: Arc<Regions>,
    pub(crate) peer: Peer,
    number: u64,
    /// What to ask the peer for.
    pub(crate) asks: watch::Receiver<Ask>,
    pub(crate) counts: Arc<LinkCounts>,
    pub(crate) ended: watch::Receiver<Option<Error>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.regions.lose(self.peer.broker, self.number);
    }
}

struct State {
    mesh: Mesh,
    /// Who was met at which address of a peer.
    named_met: BTreeMap<String, BrokerId>,
    links: BTreeMap<BrokerId, Link>,
    next_number: u64,
    /// What is before this in the log is in the own report.
    durable: Position,
    /// Bytes appended since the start.
    appended: u64,
    /// How much of what was written here is held nowhere else.
    only_here: Lag,
    /// Frames of other regions that wait for what they follow, and their bytes.
    waiting: (usize, usize),
    /// Publishes that other regions have to hold before they are acknowledged.
    expecting: expecting::Expecting,
    /// Watermarks that the tables get once they hold what those were found with.
    rising: Rising,
    /// Origins whose frames are not taken any more, and why.
    forks: BTreeMap<Origin, String>,
    /// The start could not prove the log whole: peers may hold frames of this broker that it has lost.
    fetching: bool,
}

/// All of it.
pub(crate) struct Regions {
    own: Origin,
    region: RegionName,
    cluster: ClusterId,
    /// How long a publish waits for other regions, unless it says so itself.
    patience: Duration,
    /// Nothing waits for other regions any more.
    stops: AtomicBool,
    state: Mutex<State>,
    /// Raised with every report, own ones included.
    heard: watch::Sender<u64>,
    /// Everything that is stamped at or below this is durable here.
    watermark: watch::Sender<HybridTimestamp>,
    entry: watch::Sender<Entry>,
    /// Raised when links or members change.
    changed: watch::Sender<u64>,
    tables: Tables,
    /// How many peers are named; `None` where this broker is alone and takes no links.
    expected: Option<usize>,
    /// Where they are.
    named: Vec<String>,
}

/// What the writer has made durable at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Everything before this is durable.
    pub(crate) durable: Position,
    /// Its bytes in the log.
    pub(crate) bytes: u64,
    /// Frames of other regions that wait after it, and their bytes.
    pub(crate) waiting: (usize, usize),
}

/// What is there when a broker starts.
pub(crate) struct Begin {
    pub(crate) own: Origin,
    pub(crate) region: RegionName,
    pub(crate) cluster: ClusterId,
    /// How long a publish waits for other regions, unless it says so itself.
    pub(crate) patience: Duration,
    pub(crate) report: Report,
    pub(crate) durable: Position,
    pub(crate) tables: Tables,
    /// How many other brokers are named; `None` where this one is alone and takes no links.
    pub(crate) expected: Option<usize>,
    /// Where they are.
    pub(crate) named: Vec<String>,
    /// What the log says of who belongs to the cluster.
    pub(crate) members: Members,
    /// Whether the log may have lost its end.
    pub(crate) is_unproven: bool,
}

impl Regions {
    /// A broker that has met nobody since its start.
    pub(crate) fn new(begin: Begin) -> Self {
        let Begin {
            own,
            region,
            cluster,
            patience,
            report,
            durable,
            tables,
            expected,
            named,
            members,
            is_unproven,
        } = begin;
        let watermark = watch::Sender::new(HybridTimestamp::ZERO);
        let mut mesh = Mesh::new(own.broker, region.clone());
        if expected.is_none_or(|named| named == 0) {
            mesh.know_all();
        }
        let fetching = is_unproven && expected.is_some();
        if fetching && members.is_active(own.broker) {
            mesh.recall(own);
        }
        let state = State::new(mesh, durable, fetching);
        let entry = match expected {
            None => Entry::Open,
            Some(_) => Entry::Waiting("it has not met its peers yet"),
        };
        let regions = Self {
            own,
            region,
            cluster,
            patience,
            stops: AtomicBool::new(false),
            state: Mutex::new(state),
            heard: watch::Sender::new(0),
            watermark,
            entry: watch::Sender::new(entry),
            changed: watch::Sender::new(0),
            tables,
            expected,
            named,
        };
        let nothing = Group {
            durable,
            bytes: 0,
            waiting: (0, 0),
        };
        regions.advance(report, &members, &nothing);
        if regions.tables.watermark() > HybridTimestamp::ZERO {
            // What was stable before had been so for a cluster that was founded.
            regions.state.lock().mesh.resume();
        }
        regions
    }

    /// Where this broker stands.
    pub(crate) fn region(&self) -> &RegionName {
        &self.region
    }

    /// Raised with every report that says something new.
    pub(crate) fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// Follows the watermark: everything that is stamped at or below it is durable here, and nothing
    /// more will be stamped so anywhere.
    pub(crate) fn watermark(&self) -> watch::Receiver<HybridTimestamp> {
        self.watermark.subscribe()
    }

    /// Whether this broker takes no links, so that there is nobody to wait for.
    pub(crate) fn is_alone(&self) -> bool {
        self.expected.is_none()
    }

    /// Whether a cluster that was founded apart must not be joined with this one.
    pub(crate) fn may_have_dropped(&self) -> bool {
        self.state.lock().mesh.may_have_dropped()
    }

    /// What the log says of who belongs to the cluster.
    pub(crate) fn members(&self) -> Members {
        self.state.lock().mesh.members().clone()
    }

    /// A link is up. Of two links between the same brokers, the one that the smaller id dialled
    /// stays, on both sides.
    ///
    /// # Errors
    /// When the link is one too many, or the peer may not be linked.
    pub(crate) fn take_seat(
        self: &Arc<Self>,
        own: &Hello,
        hello: &Hello,
        dialled: Dialled,
    ) -> Result<Seat, Error> {
        let peer = hello.origin.broker;
        if peer == self.own.broker {
            return Err(self.is_itself(hello));
        }
        let mut state = self.state.lock();
        let greeting = hello.greeting();
        state.check_seat(&own.greeting(), &greeting)?;
        if let Some(held) = state.links.get(&peer) {
            let keeps_held = held.dialled != dialled
                && (held.dialled == Dialled::Here) == (self.own.broker < peer);
            if keeps_held {
                return Err(Error::new(
                    Code::DuplicateLink,
                    "this link exists already, dialled from the other side",
                ));
            }
            held.ended.send_replace(Some(Error::new(
                Code::DuplicateLink,
                "another link to the same broker took its place",
            )));
        }
        let number = state.next_number;
        state.next_number += 1;
        let asks = watch::Sender::new(Ask {
            held: VersionVector::EMPTY,
            of: BTreeSet::new(),
        });
        let is_fetching = state.fetching;
        state.mesh.greet(self.own, &greeting, is_fetching);
        let link = Link {
            number,
            ahead: Lag::default(),
            behind: Lag::default(),
            greeting,
            heads: hello.heads.clone(),
            dialled,
            since: Instant::now(),
            asks,
            counts: Arc::default(),
            ended: watch::Sender::new(None),
        };
        let seat = Seat {
            regions: Arc::clone(self),
            peer: Peer {
                broker: peer,
                region: hello.region.clone(),
            },
            number,
            asks: link.asks.subscribe(),
            counts: Arc::clone(&link.counts),
            ended: link.ended.subscribe(),
        };
        state.links.insert(peer, link);
        state.mesh.link(peer, hello.region.clone(), hello.vector());
        state.ask_anew();
        drop(state);
        self.note_change();
        Ok(seat)
    }

    fn is_itself(&self, hello: &Hello) -> Error {
        let why = match hello.origin == self.own {
            true => "a broker cannot be its own peer; check --peer".to_owned(),
            false => format!(
                "the peer has this broker's id {}: its data directory is a copy of this one; give one of them an empty directory",
                self.own.broker
            ),
        };
        Error::new(Code::LinkRefused, why)
    }

    fn lose(&self, peer: BrokerId, number: u64) {
        let mut state = self.state.lock();
        if state
            .links
            .get(&peer)
            .is_some_and(|link| link.number == number)
        {
            state.links.remove(&peer);
            state.mesh.unlink(peer);
            state.ask_anew();
            drop(state);
            self.note_change();
        }
    }

    fn note_change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Everything in the report is durable here, these are the members, and so on. Says whether from
    /// now on frames are refused that were welcome before.
    pub(crate) fn advance(&self, report: Report, members: &Members, group: &Group) -> bool {
        if self.expected.is_none() {
            // Alone, its own promise is all there is to know.
            self.watermark.send_replace(report.promise);
            return false;
        }
        let mut state = self.state.lock();
        let others = state.mesh.members() != members;
        let fences = others && members.ended() > state.mesh.members().ended();
        state.mesh.advance(report, members);
        state.durable = group.durable;
        state.appended += group.bytes;
        state.waiting = group.waiting;
        state.note_lag(self.own);
        if fences {
            state.end_links_of_parked();
        }
        if others || state.fetching {
            self.note_change();
        }
        if state.mesh.may_resume() {
            state.ask_anew();
        }
        self.settle(state);
        fences
    }

    /// The tables hold everything before this position.
    pub(crate) fn note_applied(&self, applied: Position) {
        if self.expected.is_some() {
            self.state.lock().raise(&self.tables, applied);
        }
    }

    /// Brokers have said what they have applied.
    pub(crate) fn hear(&self, reports: Vec<Report>) {
        let mut state = self.state.lock();
        for report in reports {
            state.mesh.hear(report);
        }
        state.note_lag(self.own);
        state.ask_anew();
        self.settle(state);
    }

    fn settle(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        // Own frames that were lost here are still to come, and may be stamped earlier.
        let watermark = match state.fetching {
            true => HybridTimestamp::ZERO,
            false => state.mesh.watermark(),
        };
        if state.mesh.others() > 0 {
            let durable = state.durable;
            state.rising.note(watermark, durable);
            state.raise(&self.tables, self.tables.applied());
        }
        let settled = state.settle_expected(self.own, &self.tables);
        drop(state);
        self.answer(settled);
        self.watermark.send_if_modified(|held| {
            let rises = *held < watermark;
            *held = watermark.max(*held);
            rises
        });
        self.heard.send_modify(|count| *count += 1);
    }

    /// What there is to tell a peer that asks for the frames of these brokers, or for once of all.
    pub(crate) fn news(&self, of: Option<&BTreeSet<BrokerId>>) -> News {
        let state = self.state.lock();
        state.mesh.news(of, state.fetching)
    }

    /// Brokers ask what they may have forgotten, or somebody has answered.
    pub(crate) fn hear_recalls(&self, recalls: Vec<Recall>) {
        let mut state = self.state.lock();
        let mut is_news = false;
        for recall in recalls {
            is_news |= state.mesh.hear_recall(recall);
        }
        drop(state);
        if is_news {
            self.heard.send_modify(|count| *count += 1);
            self.note_change();
        }
    }

    /// A peer that fetches what it has lost says what it holds.
    pub(crate) fn hear_held(&self, peer: BrokerId, held: VersionVector) {
        let mut state = self.state.lock();
        state.mesh.hear_held(peer, held);
        state.ask_anew();
    }

    /// An origin's history contradicts the one that is held. Its frames are not taken any more.
    pub(crate) fn note_fork(&self, origin: Origin, what: String) {
        let mut state = self.state.lock();
        // Each of its frames that still comes is refused.
        if state.forks.contains_key(&origin) {
            return;
        }
        tracing::error!(%origin, %what, code = Code::Forked.code(), "a broker's log has forked, its frames are not taken over");
        metrics::counter!("anabranch_forked_origins_total").increment(1);
        state.forks.insert(origin, format!("{origin}: {what}"));
        state.give_up_forked();
    }
}

impl State {
    /// What is known before anybody was met.
    fn new(mesh: Mesh, durable: Position, fetching: bool) -> Self {
        Self {
            mesh,
            named_met: BTreeMap::new(),
            links: BTreeMap::new(),
            next_number: 0,
            durable,
            appended: 0,
            only_here: Lag::default(),
            waiting: (0, 0),
            expecting: expecting::Expecting::default(),
            rising: Rising::default(),
            forks: BTreeMap::new(),
            fetching,
        }
    }

    /// Gives the tables a watermark once they hold what it was found with.
    fn raise(&mut self, tables: &Tables, applied: Position) {
        if let Some(watermark) = self.rising.arrive(applied) {
            tables.raise_watermark(watermark);
        }
    }

    /// Notes what others lack of what is here, and this broker of what is there.
    fn note_lag(&mut self, own: Origin) {
        let Self { mesh, links, .. } = self;
        let (now, held) = (wall_clock_ms(), mesh.applied());
        for (peer, link) in links {
            let Some(report) = mesh.report(*peer) else {
                continue;
            };
            link.ahead.note(now, self.appended, held);
            link.ahead.reach(&report.applied);
            let received = link.counts.bytes_in.load(Ordering::Relaxed);
            link.behind.note(now, received, &report.applied);
            link.behind.reach(held);
        }
        let own_frames = |sequence| VersionVector::from_iter([(own, sequence)]);
        self.only_here
            .note(now, self.appended, &own_frames(held.get(own)));
        self.only_here.reach(&own_frames(mesh.elsewhere(own)));
    }

    /// Ends the links to brokers that were parked.
    fn end_links_of_parked(&mut self) {
        let members = self.mesh.members();
        let parked = |peer: &BrokerId| members.get(*peer).is_some_and(Member::has_ended);
        let parked = self.links.iter().filter(|(peer, _)| parked(peer));
        for (peer, link) in parked {
            link.ended.send_replace(Some(parked_error(*peer)));
        }
    }
}
