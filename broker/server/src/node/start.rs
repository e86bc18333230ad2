//! From a data directory to a running broker, and back. Recovery is this path and no other.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;

use anabranch_core::entry::is_unused;
use anabranch_core::holding::Holding;
use anabranch_core::id::{Origin, Position, RegionName};
use anabranch_core::members::Members;
use anabranch_core::stability::Report;
use anabranch_core::vector::VersionVector;
use anabranch_storage::ballast::{BALLAST_BYTES, Ballast};
use anabranch_storage::data_dir::{DataDir, DataDirError};
use anabranch_storage::disk::RealDisk;
use anabranch_storage::history;
use anabranch_storage::log::{
    CleanError, Cleaner, Filter, Log, LogOptions, LogReader, OpenError, Opened, ReadError,
};
use anabranch_storage::tables::{self, Applier, Tables, TablesError, TablesOptions};
use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use super::failure::{Alarm, Failure, fail};
use super::metrics::WriterMetrics;
use super::regions::{Begin, Regions};
use super::residents::Residents;
use super::subscription::SNAPSHOTS;
use super::tail::Tail;
use super::upkeep::{Chore, Upkeep};
use super::writer::{Request, Run, Writer};
use super::{Node, Phase, Running, applier};
use crate::config::Config;

/// Bytes read from the log at once while replaying it into the tables.
const REPLAY_BYTES: usize = 8 * 1024 * 1024;

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// Reading the log into the tables.
    #[error("the log cannot be read into the tables: {0}")]
    Replay(#[from] ReadError),
    /// The tables.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// It was in another region, which may hold other streams.
    #[error(
        "data directory {path} is of region {found}, and stream {stream:?} may be in one of {found} and {region} only: start the broker with --region {found}, or with an empty directory"
    )]
    OtherRegion {
        /// The directory.
        path: String,
        /// Where it was.
        found: RegionName,
        /// Where it is to be.
        region: RegionName,
        /// A stream that differs.
        stream: String,
    },
    /// Finishing the deletion of streams.
    #[error(transparent)]
    Clean(#[from] CleanError),
    /// A thread could not be started, or no randomness was to be had.
    #[error("the operating system refused: {0}")]
    System(String),
}

/// Ends a running broker gracefully.
pub(crate) struct Stopper {
    running: Arc<Running>,
    writer: JoinHandle<()>,
    applier: JoinHandle<()>,
    upkeep: Upkeep,
    /// Locks the directory until everything is closed.
    _data_dir: DataDir,
}

/// Opens the data directory, recovers, and starts the threads. Blocks; `node`'s phase says how far
/// it is.
///
/// # Errors
/// When the directory is in use, damaged, of a newer format or another cluster, or cannot be read.
pub(crate) fn start(node: &Arc<Node>, config: &Config) -> Result<Stopper, StartError> {
    let seed = getrandom::u64().map_err(|error| StartError::System(error.to_string()))?;
    let cluster = node.info().cluster;
    let data_dir = DataDir::open(&config.data.dir, cluster, seed)?;
    if let Err(error) = data_dir.remove_copy() {
        warn!(%error, "what an interrupted verify has left takes room");
    }
    make_room(&data_dir);
    let opened = open_log(node, &data_dir, config)?;
    let expected = expected_brokers(config, &opened);
    let (tables, mut applier) =
        open_tables(node, &data_dir, config, &opened.reader, expected.is_some())?;
    applier.read_history_with(history::of(opened.reader.clone()));
    replay(node, &opened.reader, &tables, &mut applier)?;
    stay_in_region(node, &data_dir, &tables)?;
    let stopper = run(node, config, data_dir, opened, (tables, applier, expected))?;
    begin_serving(&node.phase);
    Ok(stopper)
}

/// A thread may have failed already: then nothing is served.
fn begin_serving(phase: &watch::Sender<Phase>) {
    phase.send_if_modified(|phase| {
        let starts = matches!(phase, Phase::Starting(_));
        if starts {
            *phase = Phase::Ready;
        }
        starts
    });
}

/// What is in the directory was let in because of where the broker stood. Under another region's
/// name, stubs would be taken for what retention has left, and payloads be where they may not.
fn stay_in_region(node: &Node, data_dir: &DataDir, tables: &Tables) -> Result<(), StartError> {
    let region = &node.info().region;
    let found = data_dir.region()?;
    if found.as_ref() == Some(region) {
        return Ok(());
    }
    if let Some(found) = found {
        let streams = tables.streams();
        let mut restricted = streams.restricted();
        let differs =
            restricted.find(|(_, kept_in)| kept_in.contains(&found) != kept_in.contains(region));
        if let Some((id, _)) = differs {
            let name = streams
                .get(id)
                .map(|definition| definition.name.to_string());
            return Err(StartError::OtherRegion {
                path: data_dir.path().display().to_string(),
                found,
                region: region.clone(),
                stream: name.unwrap_or_else(|| id.to_string()),
            });
        }
    }
    Ok(data_dir.note_region(region)?)
}

/// Log and tables write when they are opened. On a disk without a free byte the ballast makes room
/// for that.
fn make_room(data_dir: &DataDir) {
    let is_full = data_dir.free_bytes().is_ok_and(|free| free < BALLAST_BYTES);
    if !is_full {
        return;
    }
    match Ballast::of(data_dir.path()).throw_off() {
        Ok(true) => warn!("disk full: the ballast was given up for the start"),
        Ok(false) => {}
        Err(error) => warn!(%error, "the ballast cannot be removed"),
    }
}

fn open_log(node: &Node, data_dir: &DataDir, config: &Config) -> Result<Opened, StartError> {
    let options = LogOptions {
        segment_bytes: config.log.segment_bytes.get(),
        ..LogOptions::default()
    };
    let mut progress = |progress: anabranch_storage::log::Progress| {
        node.phase
            .send_replace(Phase::Starting(format!("reading the log: {progress}")));
    };
    let opened = Log::open(Arc::new(RealDisk), data_dir, options, &mut progress)?;
    let recovery = &opened.recovery;
    if recovery.is_clean() {
        info!(%recovery, "log opened");
    } else {
        warn!(%recovery, "log recovered after an unclean end");
    }
    Ok(opened)
}

/// Opens the tables; if they are damaged, or claim more than the log holds, they are made anew.
fn open_tables(
    node: &Node,
    data_dir: &DataDir,
    config: &Config,
    reader: &LogReader,
    with_others: bool,
) -> Result<(Tables, Applier), StartError> {
    let path = data_dir.tables();
    let options = TablesOptions {
        image_bytes: config.tables.image_bytes.in_memory(),
        image_rows: config.tables.image_rows,
        block_cache_bytes: config.tables.cache_bytes.in_memory(),
        with_others,
        ..TablesOptions::default()
    };
    let held: Result<(), String> = match Tables::open(&path, options) {
        Err(error @ TablesError::Damaged { .. }) => Err(error.to_string()),
        Err(error) => return Err(error.into()),
        Ok((tables, applier)) => match usable(&tables, reader) {
            Ok(()) => return Ok((tables, applier)),
            Err(reason) => Err(reason),
        },
    };
    if let Err(reason) = held {
        warn!(%reason, "tables are made anew from the log");
        node.phase
            .send_replace(Phase::Starting("making the tables anew".to_owned()));
    }
    tables::destroy(&path)?;
    Ok(Tables::open(&path, options)?)
}

/// How many brokers this one expects to meet; `None` where it is alone, and has always been.
fn expected_brokers(config: &Config, opened: &Opened) -> Option<usize> {
    let own = opened.sequencer.origin().broker;
    let vector = opened.sequencer.vector();
    let has_met = vector.iter().any(|(origin, _)| origin.broker != own);
    let peers = config.listen.peers.len();
    let takes_links = config.listen.peer_address.address(peers > 0).is_some();
    (has_met || takes_links).then_some(peers)
}

fn usable(tables: &Tables, reader: &LogReader) -> Result<(), String> {
    if tables.lack_stamps() {
        return Err("they were folded while this broker was alone, without stamps".to_owned());
    }
    let applied = tables.applied();
    if applied > reader.next_position() {
        return Err(format!(
            "they hold {applied} entries but the log ends at {}: it is an older copy",
            reader.next_position()
        ));
    }
    Ok(())
}

/// Folds what the tables do not have yet.
fn replay(
    node: &Node,
    reader: &LogReader,
    tables: &Tables,
    applier: &mut Applier,
) -> Result<(), StartError> {
    let end = reader.next_position();
    // What is before the floor was dropped because nothing of it is alive.
    let from = tables.applied().max(reader.start_position());
    let mut at = from;
    while at < end {
        let chunk = reader.read(at, &Filter::All, REPLAY_BYTES)?;
        applier.apply(&chunk.commits)?;
        at = chunk.next;
        node.phase.send_replace(Phase::Starting(format!(
            "folding the log into tables: {} of {} entries",
            at.get() - from.get(),
            end.get() - from.get()
        )));
    }
    applier.pass_to(end);
    Ok(())
}

fn run(
    node: &Arc<Node>,
    config: &Config,
    data_dir: DataDir,
    opened: Opened,
    (tables, applier, expected): (Tables, Applier, Option<usize>),
) -> Result<Stopper, StartError> {
    let Opened {
        log,
        reader,
        sequencer,
        recovery,
    } = opened;
    let cleaner = cleaner(&reader, &tables)?;
    // Bounded by the in-flight budget, which whoever sends has taken from.
    let (inbox, requests) = crossbeam_channel::unbounded();
    let (runs_in, runs) = crossbeam_channel::bounded(applier::RUNS_AHEAD);
    let (chores, asked) = crossbeam_channel::unbounded();
    let log_end = LogEnd {
        reader,
        tables,
        seen: sequencer.vector(),
        origin: sequencer.origin(),
        report: sequencer.report(),
        members: sequencer.members().clone(),
        is_unproven: recovery.new_origin.is_some() || is_unused(&sequencer),
        expected,
    };
    let running = Arc::new(new_running(node, config, &data_dir, log_end, inbox, chores));
    let writer = Writer {
        sequencer,
        log,
        inbox: requests,
        tail: Arc::clone(&running.tail),
        applier: runs_in,
        metrics: WriterMetrics::register(),
        no_segment: Arc::clone(&running.no_segment),
        streams: running.tables.clone(),
        holding: Holding::default(),
        regions: Arc::clone(&running.regions),
        residents: Arc::clone(&running.residents),
        durable: Arc::clone(&running.durable),
        moved: std::time::Instant::now(),
    };
    let writer = spawn_writer(&node.phase, writer)?;
    let folding = spawn_applier(node, &running, applier, runs)?;
    let upkeep = Upkeep::start(&running, cleaner, asked, config, data_dir.path())
        .map_err(|error| StartError::System(error.to_string()))?;
    if node.running.set(Arc::clone(&running)).is_err() {
        return Err(StartError::System(
            "the broker was started twice".to_owned(),
        ));
    }
    Ok(Stopper {
        running,
        writer,
        applier: folding,
        upkeep,
        _data_dir: data_dir,
    })
}

/// The writer, on its thread.
pub(super) fn spawn_writer(
    phase: &Arc<watch::Sender<Phase>>,
    writer: Writer,
) -> Result<JoinHandle<()>, StartError> {
    let phase = Arc::clone(phase);
    spawn("log-writer", move || {
        let _alarm = Alarm::new(&phase, "log-writer");
        writer.run(&|failure| fail(&phase, failure));
    })
}

fn spawn_applier(
    node: &Node,
    running: &Arc<Running>,
    applier: Applier,
    runs: Receiver<(Run, Position)>,
) -> Result<JoinHandle<()>, StartError> {
    let (phase, running) = (Arc::clone(&node.phase), Arc::clone(running));
    spawn("applier", move || {
        let _alarm = Alarm::new(&phase, "applier");
        if let Err(reason) = applier::run(applier, &running, &runs) {
            fail(&phase, Failure::of_write(reason));
        }
    })
}

/// A cleaner, after it has finished the deletions of streams that a crash cut short. Nothing is
/// written to the log yet, so a stream without definition is a deleted one.
fn cleaner(reader: &LogReader, tables: &Tables) -> Result<Cleaner, StartError> {
    let mut cleaner = Cleaner::new(reader.clone());
    let streams = tables.streams();
    let defined = |stream| streams.get(stream).is_some() || streams.is_displaced(stream);
    for stream in cleaner.drop_undefined(&defined)? {
        info!(%stream, "the records of a deleted stream are dropped");
    }
    Ok(cleaner)
}

/// What recovery has led to.
struct LogEnd {
    reader: LogReader,
    tables: Tables,
    seen: VersionVector,
    origin: Origin,
    report: Report,
    members: Members,
    is_unproven: bool,
    expected: Option<usize>,
}

fn new_running(
    node: &Node,
    config: &Config,
    data_dir: &DataDir,
    end: LogEnd,
    inbox: Sender<Request>,
    chores: Sender<Chore>,
) -> Running {
    let LogEnd {
        reader,
        tables,
        seen,
        origin,
        report,
        members,
        is_unproven,
        expected,
    } = end;
    let region = node.info().region.clone();
    let cluster = node.info().cluster;
    let next = reader.next_position();
    let tail_bytes = config.log.tail_bytes.in_memory();
    let in_flight_limit = config.limits.in_flight_bytes.in_memory();
    Running {
        tail: Arc::new(Tail::new(cluster, tail_bytes, seen, next)),
        applied: Arc::new(watch::Sender::new(tables.applied())),
        durable: Arc::new(watch::Sender::new(next)),
        residents: Arc::new(Residents::new(
            origin.broker,
            region.clone(),
            &tables.streams(),
        )),
        regions: Arc::new(Regions::new(Begin {
            own: origin,
            region,
            cluster,
            patience: config.limits.regions_wait_seconds,
            report,
            durable: next,
            tables: tables.clone(),
            expected,
            named: (config.listen.peers.iter())
                .map(|peer| peer.as_str().to_owned())
                .collect(),
            members,
            is_unproven,
        })),
        audits: super::audit::Audits::default(),
        reader,
        tables,
        phase: Arc::clone(&node.phase),
        origin,
        cluster,
        inbox: parking_lot::Mutex::new(Some(inbox)),
        in_flight: Arc::new(Semaphore::new(in_flight_limit)),
        in_flight_limit,
        disk_full: AtomicBool::new(false),
        no_segment: Arc::default(),
        snapshots: Arc::new(Semaphore::new(SNAPSHOTS)),
        rows_patience: config.limits.slow_subscriber_seconds,
        disk_free: AtomicU64::new(data_dir.free_bytes().unwrap_or(u64::MAX)),
        disk_reserve: reserve(config, data_dir.path()),
        data_dir: data_dir.path().display().to_string(),
        defining: tokio::sync::Mutex::new(()),
        chores: parking_lot::Mutex::new(Some(chores)),
        clean_asked: AtomicBool::new(false),
        trims: parking_lot::Mutex::default(),
    }
}

fn reserve(config: &Config, path: &Path) -> u64 {
    let total = rustix::fs::statvfs(path)
        .map(|stat| stat.f_blocks.saturating_mul(stat.f_frsize))
        .unwrap_or_default();
    config.data.reserve_bytes.on_disk_of(total)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| StartError::System(error.to_string()))
}

impl Stopper {
    /// Tells everybody that the broker is stopping; new work is refused from now on.
    pub(crate) fn announce(&self) {
        self.running.phase.send_if_modified(|phase| {
            let serving = phase.is_ready();
            if serving {
                *phase = Phase::Stopping;
            }
            serving
        });
        self.running.tail.wake_all();
        self.running.regions.give_up_expected();
    }

    /// Drains the writer, flushes the tables and marks the log clean. Blocks.
    pub(crate) fn stop(self) {
        self.announce();
        self.upkeep.stop();
        if let Some(inbox) = self.running.inbox.lock().take() {
            // A writer that panicked has gone already.
            let _ = inbox.send(Request::Stop);
        }
        let names = [("log-writer", self.writer), ("applier", self.applier)];
        for (name, thread) in names {
            if thread.join().is_err() {
                tracing::error!(thread = name, "panicked");
            }
        }
        info!(
            entries = self.running.reader.next_position().get(),
            "stopped"
        );
    }
}
