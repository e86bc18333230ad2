//! The writer thread: sequences, appends, syncs, and only then tells anybody.
//!
//! ```text
//! inbox → sequencer (frames) → log.append … log.sync → Durable → { tail, acks, applier, links }
//! ```
//!
//! A publish is sequenced into an own frame. A frame of another region is taken over as it is, once
//! all that it follows is here; until then it waits in [`Holding`].
//!
//! Whatever arrived while the last group was being synced becomes the next group, so groups grow
//! with the load and a lone publish waits for nobody.

mod gathered;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anabranch_core::frame::Commit;
use anabranch_core::holding::{Holding, Settled};
use anabranch_core::id::{BrokerId, Position};
use anabranch_core::sequencer::{AcceptError, Foreign, OpenFrame, Publish, Sequencer};
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::Heads;
use anabranch_protocol::peer::block::Item;
use anabranch_protocol::ws::{AckLevel, Durability};
use anabranch_storage::durable::Durable;
use anabranch_storage::log::{Log, WriteError, most_entry_bytes, most_gap_bytes};
use anabranch_storage::tables::{StreamMap, Tables};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gathered::{Gathered, Waiting};
use tokio::sync::{oneshot, watch};

use super::metrics::WriterMetrics;
use super::publish::{AckRow, Answer, Numbered, Outcome, Reply, Submission};
use super::regions::{Fault, Group, Regions, Ticket};
use super::residents::Residents;
use super::tail::Tail;
use super::{Error, Failure, error, wall_clock_ms};

/// Bytes gathered before a sync, even if more is waiting. Groups of about 1 MiB reach the disk's
/// full rate; four times that keeps latency in the milliseconds under overload.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How often it is tried again to get room for more of the log.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How often frames are looked at again that are stamped ahead of the clock here.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long frames of other regions may wait for each other before one peer alone is asked for all.
const STALLED: Duration = Duration::from_secs(2);

/// A run of durable frames on its way to the tables.
pub(crate) type Run = Vec<Durable<Arc<Commit>>>;

/// What the writer is asked to do.
pub(crate) enum Request {
    /// Append these.
    Publish(Submission),
    /// Take over these frames of other regions.
    Foreign(Vec<(Item, Ticket)>),
    /// Say what is held once everything that came before is durable.
    Pass(oneshot::Sender<Heads>),
    /// Append what came before this, then end.
    Stop,
}

pub(crate) struct Writer {
    pub(crate) sequencer: Sequencer,
    pub(crate) log: Log,
    pub(crate) inbox: Receiver<Request>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) applier: Sender<(Run, Position)>,
    pub(crate) metrics: WriterMetrics,
    /// Set while there is no room for more of the log; publishes are refused meanwhile.
    pub(crate) no_segment: Arc<AtomicBool>,
    /// Says which streams there are.
    pub(crate) streams: Tables,
    /// Frames of other regions that came before what they follow.
    pub(crate) holding: Holding<Ticket>,
    pub(crate) regions: Arc<Regions>,
    pub(crate) residents: Arc<Residents>,
    /// First position that is not durable, for those who follow the log.
    pub(crate) durable: Arc<watch::Sender<Position>>,
    /// When a frame of another region was last taken over, or nothing waited.
    pub(crate) moved: Instant,
}

impl Writer {
    /// Runs until it is told to stop or its last sender is gone. When the disk fails, says so to
    /// `failed`, and from then on refuses what comes.
    pub(crate) fn run(mut self, failed: &dyn Fn(Failure)) {
        let mut gathered = Gathered::default();
        while !gathered.stop {
            let first = match self.next_request(gathered.more_held) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(failure) = self.try_again() {
                        failed(failure.clone());
                        return refuse_until_stopped(&self.inbox, &failure);
                    }
                    None
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(failure) = self.one_group(first, &mut gathered) {
                failed(failure.clone());
                gathered.refuse_all(&failure);
                return refuse_until_stopped(&self.inbox, &failure);
            }
        }
        let checkpoint = self.sequencer.checkpoint();
        if let Err(error) = self.log.close(&checkpoint) {
            failed(Failure::of_write(error));
        }
    }

    /// Waits for work, but only so long until it is time to look again: for room for more of the
    /// log, or at frames that wait for the clock.
    fn next_request(&self, at_once: bool) -> Result<Request, RecvTimeoutError> {
        let patience = match () {
            () if at_once => Duration::ZERO,
            () if self.no_segment.load(Ordering::Relaxed) => TRY_AGAIN,
            () if !self.holding.is_empty() => LOOK_AGAIN,
            () => {
                let request = self.inbox.recv();
                return request.map_err(|_| RecvTimeoutError::Disconnected);
            }
        };
        self.inbox.recv_timeout(patience)
    }

    fn one_group(
        &mut self,
        first: Option<Request>,
        gathered: &mut Gathered,
    ) -> Result<(), Failure> {
        match self.gather(first, gathered) {
            Ok(()) => {}
            Err(Stopped::NoRoom(error)) => self.note_room(Err(error))?,
            Err(Stopped::Lost(error)) => return Err(self.lost(&error)),
        }
        let started = Instant::now();
        let bytes = self.log.pending_bytes();
        self.log.write().map_err(Failure::of_write)?;
        // With the operating system, if not on the disk: what a killed process wrote is found
        // again at the next start, so the place in the log that this names is not given twice.
        gathered.tell(self.sequencer.origin(), Durability::Memory, &self.regions);
        let run = self.log.sync().map_err(Failure::of_write)?;
        self.metrics.group(started.elapsed(), bytes, &run);
        self.tail.push(&run);
        let through = self.sequencer.next_position();
        self.tail.pass(&gathered.gaps, through);
        gathered.tell(self.sequencer.origin(), Durability::Disk, &self.regions);
        let is_empty = run.is_empty() && gathered.gaps.is_empty();
        if !is_empty {
            self.advance(through, bytes as u64);
        }
        gathered.clear(&self.sequencer);
        if !is_empty && self.applier.send((run, through)).is_err() {
            return Err(Failure::of_write("the applier ended"));
        }
        if self.log.wants_roll() && !self.no_segment.load(Ordering::Relaxed) {
            self.roll()?;
        }
        Ok(())
    }

    /// Others hold what was written under this name and is not here. What can be had back is had back
    /// by the next start, under another identity.
    fn lost(&mut self, error: &AcceptError) -> Failure {
        if matches!(error, AcceptError::OwnFork { .. }) {
            return Failure::of_fork(error);
        }
        match self.log.doubt() {
            Ok(()) => Failure::of_lost_log(error),
            Err(failed) => Failure::of_write(format!("{failed}, after this was found: {error}")),
        }
    }

    /// Tells who follows the log that all of it is durable.
    fn advance(&mut self, through: Position, bytes: u64) {
        let (report, members) = (self.sequencer.report(), self.sequencer.members());
        let group = Group {
            durable: through,
            bytes,
            waiting: (self.holding.frames(), self.holding.bytes()),
        };
        let fences = self.regions.advance(report, members, &group);
        self.durable.send_replace(through);
        if fences {
            // What a parked broker has shipped waits among the rest, and must not be taken any more.
            // What others have of it they ship again.
            self.holding.clear();
            self.regions.ask_again();
        }
    }

    /// Goes on in the next segment. Without room for one, publishes are refused until there is; what
    /// is on its way still goes into this one.
    fn roll(&mut self) -> Result<(), Failure> {
        let rolled = self.log.roll(self.sequencer.checkpoint());
        self.note_room(rolled)
    }

    /// Looks whether there is room again: for the next segment, or for a group in this one.
    fn try_again(&mut self) -> Result<(), Failure> {
        if !self.no_segment.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.log.wants_roll() {
            return self.roll();
        }
        let made = self.log.make_room(GROUP_BYTES);
        self.note_room(made)
    }

    fn note_room(&self, made: Result<(), WriteError>) -> Result<(), Failure> {
        match made {
            Ok(()) => {
                self.no_segment.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error @ WriteError::NoSpace { .. }) => {
                if !self.no_segment.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "disk full: writes are refused");
                }
                Ok(())
            }
            Err(error) => Err(Failure::of_write(error)),
        }
    }

    /// Sequences what is waiting, up to [`GROUP_BYTES`], into frames that are appended but not
    /// durable. What the log has no room for is refused before it is sequenced, and so is all that
    /// comes after it; frames of other regions wait instead.
    fn gather(&mut self, first: Option<Request>, gathered: &mut Gathered) -> Result<(), Stopped> {
        let Self {
            sequencer,
            log,
            inbox,
            streams,
            holding,
            residents,
            ..
        } = self;
        let mut streams = Known::of(streams, residents);
        // Only the first frame of a group tells of what others wrote.
        let (mut bytes, mut log_bytes) = (0, sequencer.context_bytes());
        let mut frame = sequencer.open();
        let mut room = Ok(());
        let mut next = first;
        while let Some(request) = next {
            match request {
                Request::Publish(submission) => {
                    bytes += submission.budget.permits;
                    log_bytes += submission.most_log_bytes();
                    if room.is_ok() {
                        room = log.make_room(log_bytes);
                    }
                    match &room {
                        Ok(()) => {
                            frame = add_submission(frame, log, &mut streams, submission, gathered);
                        }
                        Err(error) => refuse(submission, &refusal(error)),
                    }
                }
                Request::Foreign(items) => {
                    for (item, ticket) in items {
                        if frame.members().has_ended(ticket.from().broker) {
                            // It was on its way when its sender was parked.
                            continue;
                        }
                        match item {
                            Item::Frame(frame) => {
                                bytes += frame.size();
                                holding.offer(frame, ticket);
                            }
                            Item::Gaps(gaps) => holding.offer_gaps(gaps, ticket),
                        }
                    }
                }
                Request::Pass(passed) => gathered.passed.push(passed),
                Request::Stop => gathered.stop = true,
            }
            next = match gathered.stop || bytes >= GROUP_BYTES {
                true => None,
                false => inbox.try_recv().ok(),
            };
        }
        let _ = turn(frame, log, residents, gathered);
        match room {
            Ok(()) => self.take_over(log_bytes, gathered),
            full => full.map_err(Stopped::from),
        }
    }

    /// Lets go of frames that wait, if nothing has moved for too long.
    fn has_given_up(&mut self) -> bool {
        if self.moved.elapsed() <= STALLED {
            return false;
        }
        // What a relay may not pass on comes with the link that is cut, and not before.
        let patience = match self.regions.is_withheld() {
            true => STALLED * 15,
            false => STALLED,
        };
        let (sequencer, now) = (&self.sequencer, wall_clock_ms());
        if self.moved.elapsed() <= patience || !self.holding.is_stuck(sequencer, now) {
            return false;
        }
        // Those that wait take up their links' credit, so that what they wait for cannot come.
        self.holding.clear();
        self.regions.ask_one();
        true
    }

    /// Makes room on links whose frames wait for what only the same link can bring. Its peer was asked
    /// for more brokers' frames meanwhile, since another link was cut, and may have no credit to ship
    /// those. Whether others' frames go on being taken says nothing of that.
    fn make_way(&mut self) {
        let patience = match self.regions.is_withheld() {
            true => STALLED * 15,
            false => STALLED,
        };
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let overdue = (self.holding).overdue(&self.sequencer, wall_clock_ms(), patience);
        let mut clogged: Vec<BrokerId> = Vec::new();
        for (ticket, lacking) in overdue {
            let peer = ticket.from().broker;
            if !clogged.contains(&peer) && self.regions.asks_of(peer, &lacking) {
                clogged.push(peer);
            }
        }
        for peer in clogged {
            tracing::warn!(%peer, "frames wait for others that the same peer is asked for: it ships them again, in order");
            self.holding.forget(|ticket| ticket.from().broker == peer);
            self.regions.ask_peer_again(peer);
        }
    }

    /// Takes over the frames that wait for nothing any more, after the group's own ones.
    fn take_over(&mut self, mut log_bytes: usize, gathered: &mut Gathered) -> Result<(), Stopped> {
        gathered.more_held = false;
        self.make_way();
        if self.holding.is_empty() || self.has_given_up() {
            self.moved = Instant::now();
            return Ok(());
        }
        let Self {
            sequencer,
            log,
            holding,
            regions,
            residents,
            ..
        } = self;
        log_bytes += sequencer.context_bytes();
        log_bytes += holding.gaps().map(most_gap_bytes).sum::<usize>();
        log.make_room(log_bytes)?;
        let now = wall_clock_ms();
        let mut room = Ok(());
        loop {
            // The longest frame fits into a group that has nothing else.
            let full = log.pending_bytes() >= GROUP_BYTES;
            let mut fits = |frame: &Foreign| {
                gathered.more_held = full;
                let entry = most_entry_bytes(frame.batches().len(), frame.size());
                if !full {
                    room = log.make_room(log_bytes + entry);
                }
                let fits = !full && room.is_ok();
                log_bytes += if fits { entry } else { 0 };
                fits
            };
            match holding.next(sequencer, now, &**residents, &mut fits) {
                None => return Ok(room?),
                Some(Settled::Gaps(gaps, ticket)) => {
                    gathered
                        .gaps
                        .extend(gaps.iter().map(|gap| (gap.origin, gap.last())));
                    log.append_gaps(gaps, now);
                    gathered.tickets.push(ticket);
                }
                Some(Settled::Known(ticket)) => drop(ticket),
                Some(Settled::Withheld(origin, ticket)) => residents.note_refused(origin, &ticket),
                Some(Settled::Refused(_, error, ticket)) => {
                    let peer = ticket.from().broker;
                    match regions.refuse(peer, &error) {
                        Fault::OwnLog => return Err(Stopped::Lost(error)),
                        Fault::Origin(_) => {}
                        Fault::Peer => holding.forget(|ticket| ticket.from().broker == peer),
                    }
                }
                Some(Settled::Taken(commit, ticket)) => {
                    self.moved = Instant::now();
                    residents.learn(&commit);
                    log.append(commit, now);
                    gathered.tickets.push(ticket);
                }
            }
        }
    }
}

/// Why gathering ended before all was sequenced.
enum Stopped {
    /// There is no room for more of the log.
    NoRoom(WriteError),
    /// Peers hold frames of this broker that its log has lost. Writing on would give their
    /// sequences twice.
    Lost(AcceptError),
}

impl From<WriteError> for Stopped {
    fn from(error: WriteError) -> Self {
        Self::NoRoom(error)
    }
}

fn refusal(error: &WriteError) -> Error {
    match error {
        WriteError::NoSpace { path } => {
            let why = "what is free is too little for more of the log";
            error::disk_full(why, &path.display().to_string())
        }
        error => error::failed(error),
    }
}

/// The streams that there are, looked up anew only where one is missing: a group may be gathered for
/// longer than it takes to make a stream.
struct Known<'a> {
    tables: &'a Tables,
    residents: &'a Residents,
    streams: Arc<StreamMap>,
}

impl<'a> Known<'a> {
    fn of(tables: &'a Tables, residents: &'a Residents) -> Self {
        Self {
            tables,
            residents,
            streams: tables.streams(),
        }
    }

    /// A surface has checked the publish against the streams of its time; the stream may be gone since.
    fn still_there(&mut self, publish: &Publish) -> Result<(), Error> {
        if self.has(publish) {
            return Ok(());
        }
        self.streams = self.tables.streams();
        if self.has(publish) {
            return Ok(());
        }
        Err(Error::new(
            Code::NoSuchStream,
            "the stream was deleted while the publish was on its way; create it, then publish again",
        ))
    }

    fn has(&self, publish: &Publish) -> bool {
        let held = self.streams.get(publish.stream);
        held.is_some_and(|definition| publish.partition.get() < definition.partitions)
    }
}

/// Nobody waits for an answer that never comes.
fn refuse_until_stopped(inbox: &Receiver<Request>, failure: &Failure) {
    let error = error::failed(failure);
    for request in inbox {
        match request {
            Request::Publish(submission) => refuse(submission, &error),
            Request::Foreign(_) | Request::Pass(_) => {}
            Request::Stop => break,
        }
    }
}

fn refuse(submission: Submission, error: &Error) {
    match submission.reply {
        Reply::Connection(sink) => {
            let refused = |publish: &Numbered| Outcome::Refused {
                id: publish.id,
                error: error.clone(),
            };
            sink.push(&mut submission.publishes.iter().map(refused).collect());
        }
        Reply::Once(sender) => {
            // Whoever asked may have given up.
            let _ = sender.send(Err(error.clone()));
        }
    }
}

/// Ends the frame, appends what it holds, and begins the next. A frame of duplicates alone is
/// never made: their originals are in an earlier one.
fn turn<'a>(
    frame: OpenFrame<'a>,
    log: &mut Log,
    residents: &Residents,
    gathered: &mut Gathered,
) -> OpenFrame<'a> {
    let now = wall_clock_ms();
    let (commit, next) = frame.turn(now);
    if let Some(commit) = commit {
        residents.learn(&commit);
        log.append(commit, now);
    }
    gathered.frames.push(next.head().sequence);
    next
}

fn add_submission<'a>(
    mut frame: OpenFrame<'a>,
    log: &mut Log,
    streams: &mut Known<'_>,
    submission: Submission,
    gathered: &mut Gathered,
) -> OpenFrame<'a> {
    let Submission {
        publishes,
        reply,
        budget,
    } = submission;
    let mut once = None;
    let connection = match reply {
        Reply::Connection(sink) => Some(sink),
        Reply::Once(sender) => {
            once = Some(sender);
            None
        }
    };
    for publish in publishes {
        let answer = match (&connection, once.take()) {
            (Some(sink), _) => Answer::Connection(Arc::clone(sink), publish.id),
            (None, Some(sender)) => Answer::Once(sender),
            (None, None) => continue,
        };
        let group = publish.group.as_slice();
        if let Err(error) = group
            .iter()
            .try_for_each(|publish| streams.still_there(publish))
        {
            answer.refuse(error);
            continue;
        }
        if !frame.has_room(publish.group.bytes(), group.len()) {
            frame = turn(frame, log, streams.residents, gathered);
        }
        gathered.placed.clear();
        if let Err(error) = frame.add(group, &mut gathered.placed) {
            answer.refuse(Error::from(error));
            continue;
        }
        let from = gathered.rows.len();
        for (publish, &placed) in group.iter().zip(&gathered.placed) {
            gathered.rows.push(AckRow {
                stream: publish.stream,
                partition: publish.partition,
                records: publish.batch.count(),
                placed,
            });
        }
        let waits_longer = matches!(publish.wish.level, AckLevel::Regions(_));
        gathered.waiting.push(Waiting {
            reply: answer,
            wish: publish.wish,
            rows: from..gathered.rows.len(),
            frame: gathered.frames.len(),
            window: budget.window.clone().filter(|_| waits_longer),
        });
    }
    gathered.budgets.push(budget);
    frame
}
