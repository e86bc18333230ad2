//! Cleaning: what retention and compaction no longer keep is dropped, while the log is served.
//!
//! 1. `append` streams are trimmed: from then on readers do not see the records, though they are
//!    still there.
//! 2. Of keyed streams, records that a later one of their key has replaced are found.
//! 3. Sealed segments of which enough is dead are rewritten beside the old file, which the new one
//!    then replaces. Entries stay while something of them does; neighbours of which nothing is
//!    left become a gap, which keeps positions dense and chains connected.
//! 4. Segments at the front of the log that hold nothing alive are removed; what follows knows by
//!    its base vector which frames are gone.
//! 5. Small segments that follow each other are put together.
//!
//! Each step is durable before the next relies on it, so a crash at any moment loses nothing.

mod compact;
mod copy;
mod dropped;
mod merge;
mod rewrite;
mod trim;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::id::{Position, StreamId};
use anabranch_core::sequencer::Sequencer;
use anabranch_core::stream::{MergeMode, Retention};
use hashbrown::HashMap;

use super::floor::Floor;
use super::shared::{Segment, Shared};
use super::trims::Trims;
use super::{LogReader, ReadError};
use compact::Newest;
use copy::checkpoint_of;

/// Segments at the end of the log that are never removed, and keep all entries: each can be
/// rebuilt from the checkpoint of the one before, should its own be damaged.
const KEPT_SEGMENTS: usize = 2;

/// A segment is rewritten when this much of it is dead by trims, in percent. Less would copy more
/// than it frees.
const TRIMMED_PERCENT: u64 = 50;

/// The same where replaced records have been found. Lower, since what is not dropped now has to be
/// found again.
const REPLACED_PERCENT: u64 = 20;

/// What may be dropped of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How the stream folds.
    pub merge: MergeMode,
    /// How long its records are kept.
    pub retention: Retention,
    /// `append` streams: drop what was appended before this, in milliseconds since 1970.
    pub trim_before_ms: Option<u64>,
}

/// What a run has done.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// Streams whose trim moved, and where it is now.
    pub trimmed: Vec<(StreamId, Position)>,
    /// Segments that were rewritten.
    pub rewritten: usize,
    /// Segments that were put together with others.
    pub merged: usize,
    /// Segments that were removed.
    pub removed: usize,
    /// Bytes that were freed.
    pub freed_bytes: u64,
    /// The log's new first position, if it moved.
    pub floor: Option<Position>,
}

impl Report {
    /// Whether nothing was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} streams trimmed, {} segments rewritten, {} put together, {} removed, {} bytes freed",
            self.trimmed.len(),
            self.rewritten,
            self.merged,
            self.removed,
            self.freed_bytes
        )?;
        match self.floor {
            Some(floor) => write!(f, ", the log begins at position {floor}"),
            None => Ok(()),
        }
    }
}

/// Why cleaning stopped. What was done until then is done; nothing alive was touched.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// What was to be cleaned cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}; the log goes on without being cleaned")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Cleans a log. There should be one per log.
#[derive(Debug)]
pub struct Cleaner {
    reader: LogReader,
    shared: Arc<Shared>,
    /// What streams keep that nobody says anything of.
    none: HashMap<StreamId, Policy>,
}

/// What one run works with.
struct Run<'a> {
    reader: &'a LogReader,
    shared: &'a Shared,
    policies: &'a HashMap<StreamId, Policy>,
    now_ms: u64,
    trims: Trims,
    report: Report,
}

impl Cleaner {
    /// A cleaner of the reader's log.
    #[must_use]
    pub fn new(reader: LogReader) -> Self {
        let shared = Arc::clone(reader.shared());
        Self {
            reader,
            shared,
            none: HashMap::new(),
        }
    }

    /// Drops what these policies do not keep. Streams without a policy are kept whole. `now_ms` is
    /// the wall clock.
    ///
    /// # Errors
    /// When something cannot be read or written. It may be tried again.
    pub fn run_once(
        &mut self,
        policies: &HashMap<StreamId, Policy>,
        now_ms: u64,
    ) -> Result<Report, CleanError> {
        let trims = Trims::clone(&self.shared.state.read().trims);
        let mut run = Run {
            reader: &self.reader,
            shared: &self.shared,
            policies,
            now_ms,
            trims,
            report: Report::default(),
        };
        run.trim()?;
        run.drop_front()?;
        let newest = run.find_replaced()?;
        run.rewrite_where_due(&newest)?;
        run.note_cleaned(&newest)?;
        run.drop_front()?;
        run.merge_small()?;
        Ok(run.report)
    }
}

impl Run<'_> {
    /// The sealed segments at the front: what may be cleaned.
    fn sealed(&self) -> Vec<Arc<Segment>> {
        let state = self.shared.state.read();
        let sealed = state.segments.iter().take_while(|s| s.is_sealed());
        sealed.cloned().collect()
    }

    /// Makes the trims durable, then lets readers see them.
    fn save_trims(&self) -> Result<(), CleanError> {
        self.trims
            .store(&*self.shared.disk, &self.shared.dir)
            .map_err(|source| CleanError::Io {
                action: "write",
                path: self.shared.dir.join("trims"),
                source,
            })?;
        self.shared.state.write().trims = Arc::new(self.trims.clone());
        Ok(())
    }

    fn note_cleaned(&mut self, newest: &Newest) -> Result<(), CleanError> {
        let mut moved = false;
        for (stream, position) in newest.cleaned() {
            moved |= self.trims.raise_cleaned(stream, position);
        }
        if moved { self.save_trims() } else { Ok(()) }
    }

    /// Whether nothing in the segment is alive.
    fn is_dead(&self, segment: &Segment) -> bool {
        let trimmed = |stream| self.trims.of(stream) >= segment.summary.next;
        let mut partitions = segment.summary.partitions.iter();
        partitions.all(|p| p.bytes == 0 || trimmed(p.key.0))
    }

    /// Removes the dead segments at the front of the log.
    fn drop_front(&mut self) -> Result<(), CleanError> {
        let sealed = self.sealed();
        let most = sealed.len().saturating_sub(KEPT_SEGMENTS);
        let dead: Vec<_> = sealed[..most]
            .iter()
            .take_while(|segment| self.is_dead(segment))
            .collect();
        let Some(last) = dead.last() else {
            return Ok(());
        };
        let floor = last.summary.next;
        let Some(state) = self.state_after(last)? else {
            tracing::warn!(path = %last.path.display(), "not removed, since its checkpoint is damaged");
            return Ok(());
        };
        // A peer that lacks these frames learns from it what they were.
        self.trims.raise_floor(Floor::at(&state));
        self.save_trims()?;
        self.shared.state.write().segments.drain(..dead.len());
        for segment in &dead {
            self.shared.forget(segment.id);
            // One after the other: a gap would look like damage.
            self.remove(segment).map_err(|source| CleanError::Io {
                action: "remove",
                path: segment.path.clone(),
                source,
            })?;
        }
        self.report.floor = Some(floor);
        Ok(())
    }

    /// The state at the end of a segment; `None` if its checkpoint is damaged.
    fn state_after(&self, segment: &Arc<Segment>) -> Result<Option<Sequencer>, CleanError> {
        let checkpoint = checkpoint_of(&*self.loaded(segment)?.file);
        let checkpoint = checkpoint.map_err(|source| CleanError::Io {
            action: "read",
            path: segment.path.clone(),
            source,
        })?;
        Ok(checkpoint.and_then(|bytes| Sequencer::restore(&bytes).ok()))
    }

    fn remove(&mut self, segment: &Segment) -> io::Result<()> {
        let disk = &self.shared.disk;
        let bytes = disk.open(&segment.path)?.length()?;
        disk.remove(&segment.path)?;
        disk.sync_dir(&self.shared.dir)?;
        self.report.removed += 1;
        self.report.freed_bytes += bytes;
        Ok(())
    }
}
