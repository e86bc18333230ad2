//! Opening a log, whatever state it was left in. The only recovery path there is.
//!
//! 1. The mark says how far the log was durable, and whether the directory is a copy.
//! 2. Sealed segments are believed by their footers; the sequencer begins at the last checkpoint.
//! 3. Unsealed segments are scanned, every checksum and chain checked, and replayed into it.
//! 4. Where the entries of the last segment end early, the rest is cut if nothing says that it was
//!    durable; if something does, that is damage, and nothing is cut: see [`Damage`].
//! 5. Unless the log is proven to be whole, the broker writes under a new epoch from now on.

mod inspect;
mod segments;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch_core::id::{Epoch, Origin, Position};
use anabranch_core::sequencer::Sequencer;

use super::mark::{self, Mark, MarkFile, Proof};
use super::segment::SegmentFault;
use super::shared::{Shared, State};
use super::trims::Trims;
use super::{Log, LogOptions, LogReader};
use crate::data_dir::Identity;
use crate::disk::Disk;

/// How far a new epoch may jump. Two copies of one directory that both take a new epoch must not
/// take the same one; a million to one is the odds of that, and leaves room for thousands of
/// epochs.
const EPOCH_JUMP: u64 = 1 << 20;

/// An open log.
#[derive(Debug)]
pub struct Opened {
    /// To write.
    pub log: Log,
    /// To read.
    pub reader: LogReader,
    /// The state that goes with the log's end.
    pub sequencer: Sequencer,
    /// How it was brought back.
    pub recovery: Recovery,
}

/// How a log was brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Whether the log was proven whole, and by what.
    pub proof: Proof,
    /// The identity that the broker writes under from now on, if it is new.
    pub new_origin: Option<Origin>,
    /// Segments found.
    pub segments: usize,
    /// Bytes of entries that were read and checked.
    pub scanned_bytes: u64,
    /// Bytes of the unfinished tail that was cut. None of it had been acknowledged.
    pub cut_bytes: u64,
    /// Segments whose index was damaged, and rebuilt from their entries.
    pub rebuilt: Vec<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

impl Recovery {
    /// Whether nothing had to be scanned, cut or rebuilt, and the identity stayed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self.proof, Proof::New | Proof::Clean)
            && self.cut_bytes == 0
            && self.rebuilt.is_empty()
    }
}

impl std::fmt::Display for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}; {} segments, {} bytes scanned, {} cut, in {:.3} s",
            self.proof,
            self.segments,
            self.scanned_bytes,
            self.cut_bytes,
            self.took.as_secs_f64()
        )?;
        if !self.rebuilt.is_empty() {
            write!(f, "; {} indexes rebuilt", self.rebuilt.len())?;
        }
        match self.new_origin {
            Some(origin) => write!(f, "; writes as {origin} from now on"),
            None => Ok(()),
        }
    }
}

/// How far opening has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes scanned.
    pub done: u64,
    /// Bytes to be scanned.
    pub total: u64,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} MiB", self.done >> 20, self.total >> 20)
    }
}

/// A place where the log is not what it was when it became durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log is damaged at position {position} ({} byte {offset}): {what}; nothing was changed, restore the file from a backup or a peer",
    path.display()
)]
pub struct Damage {
    /// In which file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// At which position, as far as that can be told.
    pub position: Position,
    /// What is wrong.
    pub what: String,
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something that was durable is damaged. Nothing was cut.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// Whole segments are missing.
    #[error(
        "the log in {path} lacks positions {from} to {to}; nothing was changed, restore its segment files from a backup or a peer"
    )]
    Missing {
        /// Where the segments are.
        path: PathBuf,
        /// The first position that is not there.
        from: Position,
        /// The next one that is.
        to: Position,
    },
    /// A later version wrote it.
    #[error("{path}: {fault}; run that version, or a later one")]
    NewerFormat {
        /// The segment.
        path: PathBuf,
        /// Its format.
        fault: SegmentFault,
    },
    /// It belongs to another broker.
    #[error("{path} belongs to broker {} of another directory; put back the segments of broker {}", found.broker, expected.broker)]
    OtherBroker {
        /// The segment.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Whose directory this is.
        expected: Identity,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Names the path in an error of the operating system.
fn io_at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// What every step of opening needs.
struct Context<'a> {
    disk: &'a dyn Disk,
    /// The log's directory.
    dir: PathBuf,
    identity: Identity,
    options: LogOptions,
    mark: Option<Mark>,
    proof: Proof,
    recovery: Recovery,
    progress: &'a mut dyn FnMut(Progress),
    total: u64,
}

pub(crate) fn open(
    disk: Arc<dyn Disk>,
    data_dir: &Path,
    identity: Identity,
    options: LogOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Opened, OpenError> {
    let started = Instant::now();
    let dir = data_dir.join("log");
    disk.create_dir(&dir).map_err(io_at("create", &dir))?;
    disk.sync_dir(data_dir).map_err(io_at("sync", data_dir))?;
    let names = inspect::tidy(&*disk, &dir)?;
    // Of the names that are found some may be in memory only, if a sync has failed in this boot.
    disk.sync_dir(&dir).map_err(io_at("sync", &dir))?;
    let trims = load_trims(&*disk, &dir)?;
    let found = mark::find(&*disk, data_dir).map_err(io_at("read the mark in", data_dir))?;
    let proof = mark::judge(&*disk, data_dir, found.mark.as_ref(), !names.is_empty())
        .map_err(io_at("read the witness in", data_dir))?;
    let mut context = Context {
        disk: &*disk,
        dir,
        identity,
        options,
        mark: found.mark,
        proof,
        recovery: Recovery {
            proof,
            new_origin: None,
            segments: names.len(),
            scanned_bytes: 0,
            cut_bytes: 0,
            rebuilt: Vec::new(),
            took: Duration::ZERO,
        },
        progress,
        total: 0,
    };
    let (state, mut sequencer) = segments::recover(&mut context, &names, trims)?;
    context.settle_origin(&mut sequencer)?;
    let marks = context.begin_mark(data_dir, &state, &sequencer)?;
    let Context {
        dir, mut recovery, ..
    } = context;
    let bytes = options.segment_bytes;
    let shared = Arc::new(Shared::new(Arc::clone(&disk), dir.clone(), bytes, state));
    let reader = LogReader::new(Arc::clone(&shared));
    let log = Log::new(shared, marks, identity, options).map_err(io_at("start on", &dir))?;
    recovery.took = started.elapsed();
    Ok(Opened {
        log,
        reader,
        sequencer,
        recovery,
    })
}

fn load_trims(disk: &dyn Disk, dir: &Path) -> Result<Trims, OpenError> {
    let path = dir.join("trims");
    let loaded = Trims::load(disk, dir).map_err(io_at("read", &path))?;
    let Ok((trims, damaged)) = loaded else {
        return Err(OpenError::Damaged(Damage {
            path,
            offset: 0,
            position: Position::default(),
            what: "neither of its two copies reads well".to_owned(),
        }));
    };
    if damaged > 0 {
        tracing::warn!(path = %path.display(), "one of two copies is damaged, the other is whole");
        trims.store(disk, dir).map_err(io_at("write", &path))?;
    }
    Ok(trims)
}

impl Context<'_> {
    /// Chooses the identity that the broker writes under.
    fn settle_origin(&mut self, sequencer: &mut Sequencer) -> Result<(), OpenError> {
        let broker = self.identity.broker;
        let known = self.mark.filter(|_| self.proof.is_whole());
        if let Some(mark) = known {
            let origin = Origin {
                broker,
                epoch: mark.epoch,
            };
            if sequencer.origin() != origin {
                sequencer.take_origin(origin);
            }
            return Ok(());
        }
        if sequencer.next_position() == Position::default() && self.mark.is_none() {
            self.recovery.proof = Proof::New;
            return Ok(());
        }
        let vector = sequencer.vector();
        let ours = vector.iter().filter(|(origin, _)| origin.broker == broker);
        let last = ours
            .map(|(origin, _)| origin.epoch)
            .chain(self.mark.map(|mark| mark.epoch))
            .fold(sequencer.origin().epoch, Epoch::max);
        let random = self.disk.random().map_err(io_at("draw for", &self.dir))?;
        let jump = u32::try_from(random % EPOCH_JUMP).unwrap_or_default();
        let epoch = Epoch::new(last.get().saturating_add(1).saturating_add(jump));
        let origin = Origin { broker, epoch };
        sequencer.take_origin(origin);
        self.recovery.new_origin = Some(origin);
        Ok(())
    }

    fn begin_mark(
        &self,
        data_dir: &Path,
        state: &State,
        sequencer: &Sequencer,
    ) -> Result<MarkFile, OpenError> {
        let mark = Mark {
            counter: self.mark.map_or(0, |mark| mark.counter),
            position: state.next(),
            segment_first: state.active.index.first(),
            segment: state.active.id,
            offset: state.active.index.end(),
            boot: 0,
            witness: crate::disk::FileIdentity::default(),
            epoch: sequencer.origin().epoch,
            clean: false,
        };
        MarkFile::begin(self.disk, data_dir, mark).map_err(io_at("write the mark in", data_dir))
    }

    /// First position that the mark does not know to be durable.
    fn marked(&self) -> Position {
        self.mark
            .map_or_else(Position::default, |mark| mark.position)
    }

    fn scanned(&mut self, bytes: u64) {
        self.recovery.scanned_bytes += bytes;
        (self.progress)(Progress {
            done: self.recovery.scanned_bytes,
            total: self.total.max(self.recovery.scanned_bytes),
        });
    }
}
