//! The narrow waist: everything that a surface may ask of the broker.
//!
//! | file | holds |
//! |---|---|
//! | `check` | what every surface checks before it publishes |
//! | `publish` | what goes into the writer and what comes back |
//! | `writer` | the thread that sequences, appends and syncs |
//! | `applier` | the thread that folds into the tables |
//! | `tail` | the newest frames, shared by subscribers |
//! | `subscription` | a place in a stream, in either order, and what comes next |
//! | `selection` | which records of a stream a subscriber wants |
//! | `regions` | brokers of other regions: links, reports, what all have applied |
//! | `residents` | where the payload of which streams may be |
//! | `membership` | founding, joining, parking, removing |
//! | `audit` | whether brokers that hold the same frames have the same rows |
//! | `reads` | rows |
//! | `streams` | making, changing and deleting streams |
//! | `upkeep` | retention, disk space, gauges: what is done now and then |
//! | `start` | from a data directory to a running broker, and back |
//! | `failure` | why a broker ends by itself, and what notices a thread that panics |
//! | `error` | the one error that surfaces see |

mod applier;
mod audit;
mod check;
mod error;
mod failure;
mod membership;
mod metrics;
mod publish;
mod reads;
mod regions;
mod residents;
mod selection;
mod start;
mod streams;
mod subscription;
mod tail;
mod upkeep;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anabranch_core::cursor::Cursor;
use anabranch_core::exchange::Ask;
use anabranch_core::id::{BrokerId, ClusterId, Origin, Position, RegionName, StreamId};
use anabranch_core::vector::{Token, VersionVector};
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::block::Item;
use anabranch_protocol::peer::{Heads, Hello};
use anabranch_protocol::ws::AckLevel;
use anabranch_storage::log::LogReader;
use anabranch_storage::tables::Tables;
use crossbeam_channel::Sender;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot, watch};

pub(crate) use anabranch_storage::log::{Shipment, Shipped};
pub(crate) use anabranch_storage::tables::{KeyRange, Page, StreamMap};
pub(crate) use check::{check_batch, check_keys, check_partition};
pub(crate) use error::Error;
pub(crate) use failure::{Alarm, Failure};
pub(crate) use membership::{check_hello, keep as keep_membership, keep_patience};
pub(crate) use publish::{Ack, AckRow, AckSink, Group, Left, Numbered, Outcome, Wish, token_of};
pub(crate) use reads::{Read, ReadAt};
pub(crate) use regions::{Dialled, Entry, LinkCredit, LinkStatus, Regions, Seat, Status, Ticket};
pub(crate) use residents::{Peer, Residents};
pub(crate) use selection::{each_selected, touches, unreadable_batch};
pub(crate) use start::{StartError, Stopper, start};
pub(crate) use streams::Created;
pub(crate) use subscription::{Ahead, Event, Given, SubscribeRequest, Subscription};
pub(crate) use tail::MessageKey;

use publish::{Budget, Reply, Submission, Window};
use tail::Tail;
use upkeep::Chore;
use writer::Request;

use crate::config::Limits;

/// Where the broker is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Reading its log. Text for people: what is being done and how far it is.
    Starting(String),
    /// Serving.
    Ready,
    /// Finishing what was begun; new work is refused.
    Stopping,
    /// The disk, the tables or a thread failed: nothing can be promised any more, and the process
    /// ends.
    Failed(Failure),
}

impl Phase {
    pub(crate) fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

/// Who this broker is.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) cluster_name: String,
    pub(crate) cluster: ClusterId,
    pub(crate) region: RegionName,
}

/// A broker, from before it has read its log until after it has stopped.
pub(crate) struct Node {
    info: NodeInfo,
    limits: Limits,
    phase: Arc<watch::Sender<Phase>>,
    running: OnceLock<Arc<Running>>,
}

impl Node {
    pub(crate) fn new(info: NodeInfo, limits: Limits) -> Self {
        let phase = Phase::Starting("opening the data directory".to_owned());
        Self {
            info,
            limits,
            phase: Arc::new(watch::Sender::new(phase)),
            running: OnceLock::new(),
        }
    }

    pub(crate) fn info(&self) -> &NodeInfo {
        &self.info
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// For a task that the broker cannot do without.
    pub(crate) fn alarm(&self, name: &'static str) -> Alarm {
        Alarm::new(&self.phase, name)
    }

    /// The running broker.
    ///
    /// # Errors
    /// While it is starting.
    pub(crate) fn running(&self) -> Result<&Arc<Running>, Error> {
        match self.running.get() {
            Some(running) => Ok(running),
            None => Err(phase_error(&self.phase.borrow())
                .unwrap_or_else(|| error::internal("ready, but not running"))),
        }
    }
}

fn phase_error(phase: &Phase) -> Option<Error> {
    match phase {
        Phase::Ready => None,
        Phase::Starting(what) => Some(Error::new(
            Code::Starting,
            format!("the broker is starting ({what}); retry in a moment, or watch /readyz"),
        )),
        Phase::Stopping => Some(Error::new(
            Code::ShuttingDown,
            "the broker is shutting down; connect again in a moment",
        )),
        Phase::Failed(failure) => Some(error::failed(failure)),
    }
}

/// A broker that has read its log.
pub(crate) struct Running {
    pub(crate) reader: LogReader,
    pub(crate) tables: Tables,
    pub(crate) tail: Arc<Tail>,
    pub(crate) regions: Arc<Regions>,
    pub(crate) audits: audit::Audits,
    pub(crate) residents: Arc<Residents>,
    durable: Arc<watch::Sender<Position>>,
    phase: Arc<watch::Sender<Phase>>,
    origin: Origin,
    cluster: ClusterId,
    inbox: Mutex<Option<Sender<Request>>>,
    applied: Arc<watch::Sender<Position>>,
    /// Bytes of publishes that may be on their way to the disk.
    in_flight: Arc<Semaphore>,
    in_flight_limit: usize,
    /// Whole tables that may be read at the same time.
    snapshots: Arc<Semaphore>,
    /// How long a subscriber may take for a page. Meanwhile a moment of the table is held for it.
    rows_patience: Duration,
    disk_full: AtomicBool,
    /// There is no room for more of the log; the writer tries again until there is.
    no_segment: Arc<AtomicBool>,
    disk_free: AtomicU64,
    disk_reserve: u64,
    data_dir: String,
    /// Held while a stream is made, changed or deleted.
    defining: tokio::sync::Mutex<()>,
    /// Streams that were trimmed by hand: everything before this time goes.
    trims: Mutex<HashMap<StreamId, u64>>,
    /// The way to upkeep; gone once the broker stops.
    chores: Mutex<Option<Sender<Chore>>>,
    /// Whether cleaning was asked for and has not begun.
    clean_asked: AtomicBool,
}

/// Longest that a single publish waits for its share of the in-flight budget.
const ADMISSION_BUDGET: Duration = Duration::from_secs(5);

impl Running {
    /// Under which identity it writes.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn broker(&self) -> BrokerId {
        self.origin.broker
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Everything that is durable here.
    pub(crate) fn vector(&self) -> VersionVector {
        self.tail.seen()
    }

    /// Free bytes on the data directory's file system, as of the last look.
    pub(crate) fn disk_free(&self) -> u64 {
        self.disk_free.load(Ordering::Relaxed)
    }

    fn check_phase(&self) -> Result<(), Error> {
        phase_error(&self.phase.borrow()).map_or(Ok(()), Err)
    }

    /// Whether writes are taken at the moment.
    ///
    /// # Errors
    /// When the broker stops or has failed, or its disk is full.
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        self.check_phase()?;
        self.check_member()?;
        if self.disk_full.load(Ordering::Relaxed) {
            let reserve = upkeep::show_bytes(self.disk_reserve);
            return Err(self.disk_full_error(&format!("less than the reserve of {reserve}")));
        }
        if self.no_segment.load(Ordering::Relaxed) {
            return Err(self.disk_full_error("too little for more of the log"));
        }
        Ok(())
    }

    fn disk_full_error(&self, why: &str) -> Error {
        let free = upkeep::show_bytes(self.disk_free());
        error::disk_full(&format!("{free} free is {why}"), &self.data_dir)
    }

    /// Publishes one group: all of it in one frame, or nothing.
    ///
    /// # Errors
    /// When it is refused, or the disk fails.
    pub(crate) async fn publish(&self, group: Group, wish: Wish) -> Result<Ack, Error> {
        self.check_writable()?;
        let streams = group.as_slice().iter().map(|publish| publish.stream);
        self.check_level(&wish.level, streams)?;
        self.publish_into_reserve(group, wish).await
    }

    /// Whether an acknowledgement of this level can be had of a write to these streams.
    ///
    /// # Errors
    /// When it asks for regions that there are not, or that may not hold all of it.
    pub(crate) fn check_level(
        &self,
        level: &AckLevel,
        streams: impl Iterator<Item = StreamId> + Clone,
    ) -> Result<(), Error> {
        match level {
            AckLevel::Disk | AckLevel::Memory => Ok(()),
            AckLevel::Regions(quorum) => self.regions.check_quorum(quorum, streams),
        }
    }

    /// The same, even below the disk's reserve: for what gives space back.
    async fn publish_into_reserve(&self, group: Group, wish: Wish) -> Result<Ack, Error> {
        self.check_member()?;
        self.publish_unchecked(group, wish).await
    }

    /// The same, even while this broker is no member: for what makes it one.
    async fn publish_unchecked(&self, group: Group, wish: Wish) -> Result<Ack, Error> {
        self.check_phase()?;
        let budget = self.admit(group.bytes()).await?;
        let (sender, receiver) = oneshot::channel();
        let numbered = Numbered { id: 0, group, wish };
        self.send(Submission {
            publishes: vec![numbered],
            reply: Reply::Once(sender),
            budget,
        })?;
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => Err(error::failed(&"the writer ended")),
        }
    }

    /// Passes on many publishes of a connection; outcomes come through its sink. Waits while the
    /// broker's or the connection's in-flight budget is used up.
    ///
    /// # Errors
    /// When no writes are taken; then nothing of it was passed on.
    pub(crate) async fn submit(
        &self,
        publishes: Vec<Numbered>,
        sink: &Arc<AckSink>,
    ) -> Result<(), Error> {
        self.check_writable()?;
        let bytes: usize = publishes.iter().map(|p| p.group.bytes()).sum();
        let permits = bytes.clamp(1, self.in_flight_limit.min(sink.window_bytes));
        take(&sink.window, permits).await;
        take(&self.in_flight, permits).await;
        self.send(Submission {
            publishes,
            reply: Reply::Connection(Arc::clone(sink)),
            budget: Budget {
                broker: Arc::clone(&self.in_flight),
                window: Some(Arc::new(Window {
                    connection: Arc::clone(sink),
                    permits,
                })),
                permits,
            },
        })
    }

    async fn admit(&self, bytes: usize) -> Result<Budget, Error> {
        let permits = bytes.clamp(1, self.in_flight_limit);
        if tokio::time::timeout(ADMISSION_BUDGET, take(&self.in_flight, permits))
            .await
            .is_err()
        {
            return Err(Error::new(
                Code::Overloaded,
                "more is being published than the disk takes; retry with back-off",
            ));
        }
        Ok(Budget {
            broker: Arc::clone(&self.in_flight),
            window: None,
            permits,
        })
    }

    fn send(&self, submission: Submission) -> Result<(), Error> {
        self.pass_on(Request::Publish(submission))
    }

    fn pass_on(&self, request: Request) -> Result<(), Error> {
        let inbox = self.inbox.lock();
        let sent = inbox
            .as_ref()
            .is_some_and(|inbox| inbox.send(request).is_ok());
        drop(inbox);
        if sent {
            return Ok(());
        }
        self.check_phase()?;
        Err(error::failed(&"the writer ended"))
    }

    /// Waits until everything that the writer was given before is durable; tells what is held
    /// then, or nothing where the writer is gone.
    async fn pass_the_writer(&self) -> Option<Heads> {
        let (passed, waited) = oneshot::channel();
        if let Some(inbox) = &*self.inbox.lock() {
            // A writer that is gone takes nothing any more.
            let _ = inbox.send(Request::Pass(passed));
        }
        waited.await.ok()
    }

    /// What a peer is told first.
    ///
    /// # Errors
    /// When the broker stops.
    pub(crate) async fn hello(&self) -> Result<Hello, Error> {
        self.check_phase()?;
        let heads = self.pass_the_writer().await;
        Ok(Hello {
            cluster: self.cluster,
            origin: self.origin,
            region: self.regions.region().clone(),
            heads: heads.ok_or_else(|| error::failed(&"the writer ended"))?,
            members: self.regions.members().standings(),
            complete: self.regions.may_have_dropped(),
        })
    }

    /// Takes frames of other regions over, once all that they follow is here.
    ///
    /// # Errors
    /// When the broker stops.
    pub(crate) fn receive(&self, items: Vec<(Item, Ticket)>) -> Result<(), Error> {
        self.pass_on(Request::Foreign(items))
    }

    /// Where the frames begin that a peer asks for.
    pub(crate) fn shipping_from(&self, ask: &Ask) -> Position {
        self.reader.ship_from(ask)
    }

    /// Past what a peer does not ask for, as far as that is known without reading.
    pub(crate) fn pass_over(&self, from: Position, ask: &Ask) -> Position {
        self.reader.pass_over(from, ask)
    }

    /// What a peer asks for, in the order of this log, without the batches that may not go to it, and
    /// where to go on. Blocks.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn shipment(
        &self,
        (to, ask): (&Peer, &Ask),
        from: Position,
        max_bytes: usize,
    ) -> Result<Shipment, Error> {
        let may_go = |stream| self.residents.may_go(stream, to);
        let shipment = self.reader.ship(from, ask, &may_go, max_bytes);
        shipment.map_err(|error| error::unreadable(&error))
    }

    /// Follows the log: the first position that is not durable.
    pub(crate) fn durable(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }

    /// Waits until the tables hold everything before this place.
    pub(crate) async fn wait_applied(&self, target: Position) {
        let mut applied = self.applied.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = applied.wait_for(|&applied| applied >= target).await;
    }

    /// Waits until the log holds everything in this vector.
    ///
    /// # Errors
    /// When the broker stops.
    async fn wait_durable(&self, seen: &VersionVector) -> Result<(), Error> {
        let mut applied = self.applied.subscribe();
        while !self.tail.seen().covers(seen) {
            self.check_phase()?;
            applied
                .changed()
                .await
                .map_err(|_| error::internal("the applier is gone"))?;
        }
        Ok(())
    }

    /// Reads a cursor of this cluster.
    ///
    /// # Errors
    /// When it is malformed or of another cluster.
    pub(crate) fn cursor(&self, text: &str) -> Result<Cursor, Error> {
        Ok(Cursor::decode(text, self.cluster)?)
    }

    /// Reads a token of this cluster.
    ///
    /// # Errors
    /// When it is malformed or of another cluster.
    pub(crate) fn token(&self, text: &str) -> Result<Token, Error> {
        Ok(Token::decode(text, self.cluster)?)
    }

    /// Begins a subscription.
    ///
    /// # Errors
    /// When the stream is unknown, or the place it asks for is gone or not a place.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        request: &SubscribeRequest,
    ) -> Result<Subscription, Error> {
        self.check_phase()?;
        Subscription::start(self, request)
    }
}

/// Takes permits that [`Budget`] gives back.
async fn take(semaphore: &Semaphore, permits: usize) {
    let permits = u32::try_from(permits).expect("budgets are below 4 GiB");
    semaphore
        .acquire_many(permits)
        .await
        .expect("the budget's semaphore is never closed")
        .forget();
}

/// Milliseconds since 1970.
pub(crate) fn wall_clock_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
