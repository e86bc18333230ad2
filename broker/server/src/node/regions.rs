//! The brokers of other regions, as far as they are known here: who is linked, who is asked for
//! what, what each has applied, and what follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::exchange::{Ask, Peers};
use anabranch_core::id::{BrokerId, Origin, Position, RegionName, Sequence};
use anabranch_core::stability::{Report, Stability};
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::Hello;
use anabranch_storage::tables::Tables;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Error;
use super::residents::Peer;

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

/// Bytes that a peer may send before it waits, and those that it may send again.
#[derive(Debug)]
pub(crate) struct LinkCredit {
    from: Peer,
    returned: AtomicU64,
    arrived: Notify,
}

/// Bytes of credit that go back once what they were taken for is durable, or was not needed.
#[derive(Debug)]
pub(crate) struct Ticket {
    bytes: u64,
    credit: Arc<LinkCredit>,
}

impl Ticket {
    /// Over whose link it was taken.
    pub(super) fn from(&self) -> &Peer {
        &self.credit.from
    }
}

impl LinkCredit {
    /// Of a link to this peer.
    pub(crate) fn of(peer: &Peer) -> Self {
        Self {
            from: peer.clone(),
            returned: AtomicU64::new(0),
            arrived: Notify::new(),
        }
    }

    /// Takes note of bytes that have come.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Ticket {
        Ticket {
            bytes,
            credit: Arc::clone(self),
        }
    }

    /// Waits until something can be given back.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// What can be given back, once it is at least this much.
    pub(crate) fn give_back(&self, at_least: u64) -> Option<u64> {
        let enough = |held: u64| (held >= at_least.max(1)).then_some(0);
        let taken = self
            .returned
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enough);
        taken.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.credit.returned.fetch_add(self.bytes, Ordering::AcqRel);
        self.credit.arrived.notify_one();
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
    origin: Origin,
    region: RegionName,
    dialled: Dialled,
    since: Instant,
    asks: watch::Sender<Ask>,
    counts: Arc<LinkCounts>,
    /// Tells an older link that it was replaced.
    replaced: watch::Sender<bool>,
}

/// A link's place among the others. When it is dropped, the link is down.
pub(crate) struct Seat {
    regions: Arc<Regions>,
    pub(crate) peer: Peer,
    number: u64,
    /// What to ask the peer for.
    pub(crate) asks: watch::Receiver<Ask>,
    pub(crate) counts: Arc<LinkCounts>,
    pub(crate) replaced: watch::Receiver<bool>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.regions.lose(self.peer.broker, self.number);
    }
}

/// What is shown of a link.
#[derive(Clone, Debug)]
pub(crate) struct LinkStatus {
    pub(crate) origin: Origin,
    pub(crate) region: RegionName,
    pub(crate) dialled: Dialled,
    pub(crate) up_seconds: u64,
    pub(crate) holds: VersionVector,
    pub(crate) asked_of: BTreeSet<BrokerId>,
    pub(crate) counts: Arc<LinkCounts>,
}

struct State {
    peers: Peers,
    links: BTreeMap<BrokerId, Link>,
    next_number: u64,
    stability: Stability,
    /// The newest report of each broker, own one included.
    reports: BTreeMap<BrokerId, Report>,
    /// Brokers that have written, or were linked.
    members: BTreeSet<BrokerId>,
    /// What is before this in the log is in the reports.
    durable: Position,
    /// A watermark, and up to where the tables have to be applied before it is theirs.
    ahead: Option<(HybridTimestamp, Position)>,
    forks: Vec<String>,
}

/// All of it.
pub(crate) struct Regions {
    own: Origin,
    region: RegionName,
    state: Mutex<State>,
    /// Raised with every report, own ones included.
    heard: watch::Sender<u64>,
    tables: Tables,
    /// Brokers that have to be met before anything counts as stable; `None` where this broker is
    /// alone.
    expected: Option<usize>,
}

/// What is there when a broker starts.
pub(crate) struct Begin {
    pub(crate) own: Origin,
    pub(crate) region: RegionName,
    pub(crate) report: Report,
    pub(crate) durable: Position,
    pub(crate) tables: Tables,
    /// How many other brokers are named; `None` where this one is alone and takes no links.
    pub(crate) expected: Option<usize>,
}

impl Regions {
    /// A broker that has met nobody since its start.
    pub(crate) fn new(begin: Begin) -> Self {
        let Begin {
            own,
            region,
            report,
            durable,
            tables,
            expected,
        } = begin;
        let mut state = State {
            peers: Peers::default(),
            links: BTreeMap::new(),
            next_number: 0,
            stability: Stability::new(own.broker),
            reports: BTreeMap::new(),
            members: BTreeSet::from([own.broker]),
            durable,
            ahead: None,
            forks: Vec::new(),
        };
        state.advance(report, durable);
        Self {
            own,
            region,
            state: Mutex::new(state),
            heard: watch::Sender::new(0),
            tables,
            expected,
        }
    }

    /// Where this broker stands.
    pub(crate) fn region(&self) -> &RegionName {
        &self.region
    }

    /// Raised with every report that says something new.
    pub(crate) fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// A link is up. Of two links between the same brokers, the one that the smaller id dialled
    /// stays, on both sides.
    ///
    /// # Errors
    /// When the link is one too many, or the peer may not be linked.
    pub(crate) fn take_seat(
        self: &Arc<Self>,
        hello: &Hello,
        dialled: Dialled,
    ) -> Result<Seat, Error> {
        let peer = hello.origin.broker;
        if peer == self.own.broker {
            let why = match hello.origin == self.own {
                true => "a broker cannot be its own peer; check --peer".to_owned(),
                false => format!(
                    "the peer has this broker's id {peer}: its data directory is a copy of this one; give one of them an empty directory"
                ),
            };
            return Err(Error::new(Code::LinkRefused, why));
        }
        let mut state = self.state.lock();
        if let Some(held) = state.links.get(&peer) {
            let keeps_held = held.dialled != dialled
                && (held.dialled == Dialled::Here) == (self.own.broker < peer);
            if keeps_held {
                return Err(Error::new(
                    Code::DuplicateLink,
                    "this link exists already, dialled from the other side",
                ));
            }
            held.replaced.send_replace(true);
        }
        let number = state.next_number;
        state.next_number += 1;
        let holds = hello.vector();
        let asks = watch::Sender::new(Ask {
            held: VersionVector::EMPTY,
            of: BTreeSet::new(),
        });
        let link = Link {
            number,
            origin: hello.origin,
            region: hello.region.clone(),
            dialled,
            since: Instant::now(),
            asks,
            counts: Arc::default(),
            replaced: watch::Sender::new(false),
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
            replaced: link.replaced.subscribe(),
        };
        state.links.insert(peer, link);
        state.join(peer);
        state.peers.reach(peer, holds);
        state.ask_anew();
        Ok(seat)
    }

    fn lose(&self, peer: BrokerId, number: u64) {
        let mut state = self.state.lock();
        if state
            .links
            .get(&peer)
            .is_some_and(|link| link.number == number)
        {
            state.links.remove(&peer);
            state.peers.lose(peer);
            state.ask_anew();
        }
    }

    /// A peer holds a stub of this frame, which may be held here: somebody else is to be asked.
    pub(crate) fn note_withheld(&self, peer: BrokerId, origin: Origin, from: Sequence) {
        tracing::info!(%peer, %origin, %from, "a peer may not hold a part of what it was asked for");
        let mut state = self.state.lock();
        state.peers.withhold(peer, origin, from);
        state.ask_anew();
    }

    /// Everything in the report, and everything before the position, is durable here.
    pub(crate) fn advance(&self, report: Report, durable: Position) {
        if self.expected.is_some() {
            let mut state = self.state.lock();
            state.advance(report, durable);
            self.settle(state);
        }
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
            if report.broker == self.own.broker {
                continue;
            }
            if state.links.contains_key(&report.broker) {
                state.peers.reach(report.broker, report.applied.clone());
            }
            state.stability.hear(report.clone());
            let newer = state
                .reports
                .get(&report.broker)
                .is_none_or(|held| report.applied.covers(&held.applied));
            if newer {
                state.reports.insert(report.broker, report);
            }
        }
        state.ask_anew();
        self.settle(state);
    }

    /// Who is named as a peer and was never met may have written anything.
    fn settle(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let others = state.members.len() - 1;
        if self
            .expected
            .is_some_and(|expected| others >= expected.max(1))
        {
            state.ahead = Some((state.stability.watermark(), state.durable));
            state.raise(&self.tables, self.tables.applied());
        }
        drop(state);
        self.heard.send_modify(|count| *count += 1);
    }

    /// The newest reports of these brokers, and the own one.
    pub(crate) fn reports(&self, of: &BTreeSet<BrokerId>) -> Vec<Report> {
        let state = self.state.lock();
        let wanted = |broker: &BrokerId| *broker == self.own.broker || of.contains(broker);
        let reports = state.reports.iter().filter(|(broker, _)| wanted(broker));
        reports.map(|(_, report)| report.clone()).collect()
    }

    /// Applied by all.
    pub(crate) fn stable(&self) -> VersionVector {
        self.state.lock().stability.stable()
    }

    pub(crate) fn links(&self) -> Vec<LinkStatus> {
        let state = self.state.lock();
        let status = |(peer, link): (&BrokerId, &Link)| LinkStatus {
            origin: link.origin,
            region: link.region.clone(),
            dialled: link.dialled,
            up_seconds: link.since.elapsed().as_secs(),
            holds: state
                .reports
                .get(peer)
                .map(|report| report.applied.clone())
                .unwrap_or_default(),
            asked_of: link.asks.borrow().of.clone(),
            counts: Arc::clone(&link.counts),
        };
        state.links.iter().map(status).collect()
    }

    /// An origin's history contradicts the one that is held. Its frames are not taken any more.
    pub(crate) fn note_fork(&self, origin: Origin, what: String) {
        tracing::error!(%origin, %what, code = Code::Forked.code(), "a broker's log has forked, its frames are not taken over");
        metrics::counter!("anabranch_forked_origins_total").increment(1);
        self.state.lock().forks.push(format!("{origin}: {what}"));
    }

    /// Origins whose histories contradict each other, each with what was found.
    pub(crate) fn forks(&self) -> Vec<String> {
        self.state.lock().forks.clone()
    }
}

impl State {
    fn join(&mut self, broker: BrokerId) {
        if self.members.insert(broker) {
            self.stability.join(broker);
        }
    }

    fn advance(&mut self, report: Report, durable: Position) {
        // Whoever has written is waited for, whether or not there was ever a link.
        for (origin, _) in report.applied.iter() {
            self.join(origin.broker);
        }
        self.stability.advance(&report.applied, report.promise);
        self.reports.insert(report.broker, report);
        self.durable = durable;
    }

    /// Gives the tables a watermark once they hold what it was found with: what is on its way to
    /// them may be stamped earlier.
    fn raise(&mut self, tables: &Tables, applied: Position) {
        if let Some((watermark, from)) = self.ahead
            && from <= applied
        {
            tables.raise_watermark(watermark);
            self.ahead = None;
        }
    }

    /// Tells the links whose peers are to be asked for something else from now on.
    fn ask_anew(&mut self) {
        let held = self.stability.applied().clone();
        for (peer, ask) in self.peers.asks(&held) {
            if let Some(link) = self.links.get(&peer) {
                link.asks.send_if_modified(|asked| {
                    let differs = asked.of != ask.of;
                    if differs {
                        *asked = ask;
                    }
                    differs
                });
            }
        }
    }
}

/// Why a peer's hello is not the one of a peer.
///
/// # Errors
/// When it is of another cluster, or its history contradicts ours.
pub(crate) fn check_hello(own: &Hello, hello: &Hello) -> Result<(), Error> {
    if hello.cluster != own.cluster {
        return Err(Error::new(
            Code::OtherCluster,
            "the peer belongs to another cluster; give both the same --cluster",
        ));
    }
    match hello.fork(&own.heads) {
        Some(origin) => Err(Error::new(
            Code::Forked,
            format!(
                "the two brokers hold different histories of {origin}: a data directory was copied or rolled back; restart the broker that was, with an empty directory"
            ),
        )),
        None => Ok(()),
    }
}
