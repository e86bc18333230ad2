//! A simulated broker: the real log, sequencer, holding and mesh, put together as the program puts
//! them together.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::entry::is_unused;
use anabranch_core::exchange::Ask;
use anabranch_core::frame::Commit;
use anabranch_core::holding::{Everything, Holding, Settled};
use anabranch_core::id::{BrokerId, ClusterId, Position, RegionName};
use anabranch_core::members::Standing;
use anabranch_core::mesh::Mesh;
use anabranch_core::sequencer::{AcceptError, Foreign, Publish, Sequencer};
use anabranch_core::stability::Rising;
use anabranch_core::vector::VersionVector;
use anabranch_protocol::peer::block::Item;
use anabranch_protocol::peer::{Heads, Hello};
use anabranch_storage::data_dir::Identity;
use anabranch_storage::disk::MemoryDisk;
use anabranch_storage::durable::Durable;
use anabranch_storage::log::{
    Background, Filter, Log, LogOptions, LogReader, Opened, Recovery, WriteError, most_entry_bytes,
    most_gap_bytes,
};

use super::agenda::{SECOND, Time};
use super::entrance::Entrance;
use super::founders::said;
use super::link::Side;
use super::mutant::{self, Mutant};
use super::table::Table;
use super::truth::{Name, Truth, name_of};
use super::verdict::{Checked, Violation};

/// The data directory.
pub(super) const DIR: &str = "/data";

/// So small that a run rolls now and then.
const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 6000,
    background: Background::Inline,
};

/// Bytes of log that one group may take.
const GROUP_BYTES: usize = 4096;

/// How long frames of other brokers may wait for each other.
const STALLED: Time = 2 * SECOND;

/// All brokers' cluster.
pub(super) fn cluster() -> ClusterId {
    ClusterId::of("simulated")
}

pub(super) fn id_of(at: usize) -> BrokerId {
    BrokerId::new(at as u64 + 1)
}

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Request {
    /// Append these, for a client.
    Publish(Vec<Publish>, Option<usize>),
    /// Append what says where a broker stands.
    Member(BrokerId, Standing, RegionName),
    /// Take over these frames of others.
    Foreign(Vec<(Item, Ticket)>),
}

/// Bytes that came over a link, and take credit of it until this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    /// Who has sent them.
    pub(super) from: BrokerId,
    pub(super) bytes: u64,
    /// What can go back.
    pub(super) returned: Arc<AtomicU64>,
    /// Only kept for a mistake.
    pub(super) frame: Option<Foreign>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.returned.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// What is being synced.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Own frames, and who waits for each.
    pub(super) own: Vec<(Name, Option<usize>)>,
    pub(super) tickets: Vec<Ticket>,
    pub(super) gaps: bool,
    /// How many of the own frames say where a broker stands.
    members: usize,
}

/// Why a broker stopped.
#[derive(Debug)]
pub(super) enum Down {
    /// The disk failed, or lost its power.
    Disk,
    /// Something that must never be.
    Wrong(Violation),
}

impl From<Violation> for Down {
    fn from(wrong: Violation) -> Self {
        Self::Wrong(wrong)
    }
}

/// What a broker is told when it starts.
#[derive(Clone, Debug)]
pub(super) struct Who {
    /// On which machine.
    pub(super) at: usize,
    pub(super) id: BrokerId,
    pub(super) region: RegionName,
    /// How many peers are named to it.
    pub(super) named: usize,
    /// Until when it waits for those that do not answer, if not for ever.
    pub(super) deadline: Option<Time>,
}

/// A process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) who: Who,
    pub(super) sequencer: Sequencer,
    pub(super) log: Log,
    pub(super) reader: LogReader,
    pub(super) holding: Holding<Ticket>,
    pub(super) mesh: Mesh,
    /// How far it is with becoming a member.
    pub(super) entrance: Entrance,
    /// Raised with every report.
    pub(super) heard: u64,
    pub(super) table: Table,
    pub(super) inbox: VecDeque<Request>,
    pub(super) syncing: Option<Group>,
    /// Durable commits that are not folded yet, and the position behind them.
    pub(super) runs: VecDeque<(Vec<Arc<Commit>>, Position)>,
    /// The ends of links, by the link's number.
    pub(super) sides: BTreeMap<u64, Side>,
    /// The last frames that are durable.
    pub(super) heads: Heads,
    /// Watermarks that the table gets once it holds what those were found with.
    rising: Rising,
    /// When a frame of another broker was last taken over, or nothing waited.
    moved: Time,
    /// The start could not prove the log whole: peers may hold what it has lost.
    pub(super) fetching: bool,
    pub(super) mutant: Option<Mutant>,
}

/// The log of a disk, opened, with every commit in it.
pub(super) fn open(disk: &MemoryDisk, broker: BrokerId) -> Result<Opened, String> {
    let identity = Identity {
        cluster: cluster(),
        broker,
    };
    let disk = Arc::new(disk.clone());
    Log::open_at(disk, Path::new(DIR), identity, OPTIONS, &mut |_| {}).map_err(|e| e.to_string())
}

/// Everything that a log holds.
pub(super) fn read_all(reader: &LogReader, from: Position) -> Result<Vec<Arc<Commit>>, String> {
    let mut at = from.max(reader.start_position());
    let mut all = Vec::new();
    while at < reader.next_position() {
        let chunk = reader.read(at, &Filter::All, 64 << 10);
        let chunk = chunk.map_err(|error| error.to_string())?;
        all.extend(chunk.commits.into_iter().map(Durable::into_inner));
        at = chunk.next;
    }
    Ok(all)
}

pub(super) fn region_of(at: usize) -> RegionName {
    RegionName::parse(&format!("r{at}")).expect("it is in the alphabet")
}

impl Running {
    pub(super) fn new(
        who: Who,
        opened: Opened,
        table: Table,
        mutant: Option<Mutant>,
    ) -> (Self, Recovery) {
        let Opened {
            log,
            reader,
            mut sequencer,
            recovery,
        } = opened;
        if mutant == Some(Mutant::ReuseSequence)
            && !recovery.proof.is_whole()
            && let Some(epoch) = mutant::last_epoch(&sequencer)
        {
            sequencer = mutant::with_epoch(&sequencer, epoch);
        }
        let mut mesh = Mesh::new(who.id, who.region.clone());
        if who.named == 0 {
            mesh.know_all();
        }
        let fetching = recovery.new_origin.is_some() || is_unused(&sequencer);
        if fetching && sequencer.members().is_active(who.id) {
            mesh.recall(sequencer.origin());
        }
        mesh.advance(sequencer.report(), sequencer.members());
        if table.watermark() > HybridTimestamp::ZERO {
            // What was stable before had been so for a cluster that was founded.
            mesh.resume();
        }
        let mut running = Self {
            entrance: Entrance::default(),
            who,
            heads: Heads::new(),
            sequencer,
            log,
            reader,
            holding: Holding::default(),
            mesh,
            // What it asks the others is to be said.
            heard: u64::from(fetching),
            table,
            inbox: VecDeque::new(),
            syncing: None,
            runs: VecDeque::new(),
            sides: BTreeMap::new(),
            rising: Rising::default(),
            moved: 0,
            fetching,
            mutant,
        };
        running.note_heads();
        (running, recovery)
    }

    fn note_heads(&mut self) {
        let heads = self.sequencer.heads();
        self.heads = heads
            .map(|(origin, head)| (origin, (head.sequence, head.chain)))
            .collect();
    }

    /// What is durable.
    pub(super) fn vector(&self) -> VersionVector {
        let heads = self.heads.iter();
        heads
            .map(|(&origin, &(sequence, _))| (origin, sequence))
            .collect()
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            cluster: cluster(),
            origin: self.sequencer.origin(),
            region: self.who.region.clone(),
            heads: self.heads.clone(),
            members: self.mesh.members().standings(),
            complete: self.mesh.may_have_dropped(),
        }
    }

    /// Sequences what waits into a group and hands it to the operating system, as the writer does.
    /// `None` when there is nothing to sync.
    pub(super) fn gather(
        &mut self,
        (now, now_ms): (Time, u64),
        written: bool,
        truth: &mut Truth,
    ) -> Result<bool, Down> {
        if self.syncing.is_some() {
            return Ok(false);
        }
        let mut group = Group::default();
        while self.log.pending_bytes() < GROUP_BYTES
            && let Some(request) = self.inbox.pop_front()
        {
            match request {
                Request::Publish(publishes, client) => {
                    if self.has_room(&publishes)? {
                        let name = self.sequence(&publishes, now_ms, truth)?;
                        group.own.push((name, client));
                    }
                }
                Request::Member(broker, standing, region) => {
                    let says = [said(broker, standing, &region, now_ms)];
                    if self.has_room(&says)? {
                        let name = self.sequence(&says, now_ms, truth)?;
                        group.own.push((name, None));
                        group.members += 1;
                    } else {
                        self.entrance.note_said(1);
                    }
                }
                Request::Foreign(items) => self.offer(items),
            }
        }
        self.take_over((now, now_ms), &mut group)?;
        let is_empty = self.log.pending_bytes() == 0;
        if is_empty {
            return Ok(false);
        }
        if written {
            self.log.write().map_err(|_| Down::Disk)?;
        }
        self.syncing = Some(group);
        Ok(true)
    }

    fn has_room(&mut self, publishes: &[Publish]) -> Result<bool, Down> {
        let bytes = publishes.iter().map(|publish| publish.batch.len()).sum();
        let most = self.sequencer.context_bytes() + most_entry_bytes(publishes.len(), bytes);
        room(self.log.make_room(self.log.pending_bytes() + most))
    }

    fn sequence(
        &mut self,
        publishes: &[Publish],
        now_ms: u64,
        truth: &mut Truth,
    ) -> Result<Name, Down> {
        let known = self.sequencer.vector();
        let mut frame = self.sequencer.open();
        let added = frame.add(publishes, &mut Vec::new());
        added.map_err(|error| Violation(error.to_string()))?;
        let commit = frame.close(now_ms).expect("it holds something new");
        truth.sequenced(&commit, known)?;
        let name = name_of(&commit);
        self.log.append(commit, now_ms);
        Ok(name)
    }

    fn offer(&mut self, items: Vec<(Item, Ticket)>) {
        for (item, mut ticket) in items {
            if self.sequencer.members().has_ended(ticket.from) {
                // It was on its way when its sender was parked.
                continue;
            }
            match item {
                Item::Frame(frame) => {
                    if self.mutant == Some(Mutant::DoubleApply) {
                        ticket.frame = Some(frame.clone());
                    }
                    let frame = match self.mutant {
                        Some(Mutant::NoCausalGate) => mutant::without_context(&frame),
                        _ => frame,
                    };
                    self.holding.offer(frame, ticket);
                }
                Item::Gaps(gaps) => self.holding.offer_gaps(gaps, ticket),
            }
        }
    }

    /// Takes over the frames that wait for nothing any more.
    fn take_over(&mut self, (now, now_ms): (Time, u64), group: &mut Group) -> Result<(), Down> {
        if self.holding.is_empty() {
            self.moved = now;
            return Ok(());
        }
        if now > self.moved + STALLED && self.holding.is_stuck(&self.sequencer, now_ms) {
            self.holding.clear();
            self.ask_one();
            self.moved = now;
            return Ok(());
        }
        let Self {
            sequencer,
            log,
            holding,
            ..
        } = self;
        let mut known = Vec::new();
        loop {
            let gaps = holding.gaps().map(most_gap_bytes).sum::<usize>();
            let mut made = Ok(false);
            let mut fits = |frame: &Foreign| {
                let pending = log.pending_bytes();
                let entry = most_entry_bytes(frame.batches().len(), frame.size());
                made = match pending < GROUP_BYTES {
                    true => room(log.make_room(pending + gaps + entry)),
                    false => Ok(false),
                };
                matches!(made, Ok(true))
            };
            let settled = holding.next(sequencer, now_ms, &Everything, &mut fits);
            made?;
            match settled {
                None => break,
                Some(Settled::Taken(commit, ticket)) => {
                    self.moved = now;
                    log.append(commit, now_ms);
                    group.tickets.push(ticket);
                }
                Some(Settled::Gaps(gaps, ticket)) => {
                    log.append_gaps(gaps, now_ms);
                    group.gaps = true;
                    group.tickets.push(ticket);
                }
                Some(Settled::Known(ticket) | Settled::Withheld(_, ticket)) => known.push(ticket),
                Some(Settled::Refused(origin, error, _)) => {
                    return Err(refused(self.who.at, origin.to_string(), &error));
                }
            }
        }
        self.fold_again(&known);
        Ok(())
    }

    /// The mistake of folding what came twice.
    fn fold_again(&mut self, known: &[Ticket]) {
        let through = self.reader.next_position();
        for frame in known.iter().filter_map(|ticket| ticket.frame.as_ref()) {
            let again = mutant::commit_of(frame, self.table.applied());
            self.runs.push_back((vec![Arc::new(again)], through));
        }
    }

    /// The group is durable. What of it was written, and who is to be told.
    pub(super) fn synced(&mut self) -> Result<(Vec<Arc<Commit>>, Group), Down> {
        let Some(group) = self.syncing.take() else {
            return Ok((Vec::new(), Group::default()));
        };
        let run = self.log.sync().map_err(|_| Down::Disk)?;
        let run: Vec<_> = run.into_iter().map(Durable::into_inner).collect();
        self.note_heads();
        Ok((run, group))
    }

    /// Tells the mesh and the table, after what was found in the run has been checked.
    pub(super) fn advance(&mut self, run: Vec<Arc<Commit>>, group: &Group) -> Result<(), Down> {
        self.entrance.note_said(group.members);
        let members = self.sequencer.members();
        let others = self.mesh.members() != members;
        let fences = others && members.ended() > self.mesh.members().ended();
        self.mesh.advance(self.sequencer.report(), members);
        if others || self.fetching {
            self.entrance.changed = true;
        }
        if fences {
            self.fence();
        }
        if self.mesh.may_resume() {
            self.ask_anew();
        }
        self.settle();
        self.runs.push_back((run, self.reader.next_position()));
        if self.log.wants_roll() {
            room(self.log.roll(self.sequencer.checkpoint()))?;
        }
        Ok(())
    }

    /// What is stable has perhaps changed; the table gets the watermark once it holds what that
    /// was found with.
    pub(super) fn settle(&mut self) {
        self.heard += 1;
        let watermark = match self.mutant {
            Some(Mutant::PruneByTime) => mutant::a_while_ago(&self.sequencer),
            // Own frames that were lost here are still to come, and may be stamped earlier.
            _ if self.fetching => HybridTimestamp::ZERO,
            _ => self.mesh.watermark(),
        };
        // Alone, nothing is dropped: others may still come.
        if self.mesh.others() > 0 {
            self.rising.note(watermark, self.reader.next_position());
            self.raise();
        }
    }

    fn raise(&mut self) {
        if let Some(watermark) = self.rising.arrive(self.table.applied()) {
            self.table.raise(watermark);
        }
    }

    /// Folds the next run.
    pub(super) fn fold(&mut self) -> Checked {
        if let Some((run, through)) = self.runs.pop_front() {
            run.iter().try_for_each(|commit| self.table.apply(commit))?;
            self.table.pass_to(through);
            self.raise();
        }
        Ok(())
    }

    /// Brokers to which a link is up, with its number.
    pub(super) fn linked(&self) -> BTreeMap<BrokerId, u64> {
        let sides = self.sides.iter();
        sides
            .filter_map(|(&number, side)| Some((side.broker()?, number)))
            .collect()
    }

    /// The links that are to ask for something else from now on.
    pub(super) fn ask_anew(&mut self) {
        let asks = self.mesh.asks();
        self.tell_asks(asks, false);
    }

    /// Nothing moves: one peer is asked for everything, since what several ship may wait for each
    /// other.
    fn ask_one(&mut self) {
        self.mesh.ask_one();
        let asks = self.mesh.asks();
        self.tell_asks(asks, true);
    }

    pub(super) fn tell_asks(&mut self, asks: BTreeMap<BrokerId, Ask>, again: bool) {
        let linked = self.linked();
        for (peer, ask) in asks {
            let number = linked.get(&peer);
            if let Some(side) = number.and_then(|number| self.sides.get_mut(number)) {
                side.ask(ask, again);
            }
        }
    }
}

/// Whether there is room.
fn room(made: Result<(), WriteError>) -> Result<bool, Down> {
    match made {
        Ok(()) => Ok(true),
        Err(WriteError::NoSpace { .. }) => Ok(false),
        Err(_) => Err(Down::Disk),
    }
}

fn refused(at: usize, origin: String, error: &AcceptError) -> Down {
    Down::Wrong(Violation(format!(
        "broker {at} refuses a frame of {origin}: {error}"
    )))
}
