//! The writing half: group commit.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_core::frame::Commit;
use anabranch_core::gap::Gap;
use anabranch_core::id::Position;

use super::LogOptions;
use super::group::Group;
use super::hurried::Hurried;
use super::index::{NewEntry, SegmentIndex};
use super::mark::MarkFile;
use super::recover::{self, OpenError, Opened, Progress};
use super::room::reserve;
use super::seal::{Sealer, write_seal};
use super::segment::{FIRST_ENTRY_AT, SegmentId};
use super::shared::Shared;
use crate::data_dir::{DataDir, Identity};
use crate::disk::{Disk, DiskFile};
use crate::durable::Durable;

/// Why something could not be made durable.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no room for the next segment, or for more of this one. Nothing has failed yet: the
    /// log can go on when there is room again, and be read meanwhile.
    #[error("no space left for more of the log in {path}; free some space")]
    NoSpace {
        /// Where the segments are.
        path: PathBuf,
    },
    /// A write or sync failed. Nothing can be written any more until the log is opened again.
    #[error(
        "cannot {action} {path}: {source}; nothing more is written, restart the broker once the disk is well"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something failed before.
    #[error("nothing more is written since an earlier failure: {0}")]
    Poisoned(String),
}

/// The writing half of a log. Owned by one thread.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    sealer: Sealer,
    marks: MarkFile,
    options: LogOptions,
    target: Target,
    /// Entries that are not written yet, as they will lie in the file.
    group: Group,
    /// What of the log need not stay in the page cache.
    hurried: Hurried,
    pending: Vec<Pending>,
    /// Whether the group is with the operating system already.
    written: bool,
    /// First position that is not durable.
    durable: Position,
    /// The position behind the group.
    next: Position,
    poison: Option<String>,
}

/// The file that is written.
#[derive(Debug)]
struct Target {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    id: SegmentId,
    first: Position,
    /// Where the next entry goes.
    end: u64,
    /// Up to where there is room in it.
    reserved: u64,
    /// Whether the segment after it is being prepared.
    has_successor: bool,
}

impl Target {
    fn of(shared: &Shared) -> io::Result<Self> {
        let state = shared.state.read();
        Ok(Self {
            file: Arc::clone(&state.active.file),
            path: state.active.path.clone(),
            id: state.active.id,
            first: state.active.index.first(),
            end: state.active.index.end(),
            reserved: state.active.file.length()?,
            has_successor: false,
        })
    }
}

/// What is in the group, in order.
#[derive(Debug)]
struct Pending {
    what: Appended,
    appended_at: u64,
    length: usize,
}

#[derive(Debug)]
enum Appended {
    Commit(Arc<Commit>),
    Gap(Gap),
}

impl Log {
    /// Opens the log of a data directory, or makes one; see [`Log::open_at`].
    ///
    /// # Errors
    /// As [`Log::open_at`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &DataDir,
        options: LogOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Opened, OpenError> {
        Self::open_at(disk, dir.path(), dir.identity(), options, progress)
    }

    /// Opens the log in `dir`, the data directory, or makes one. This is also the recovery:
    /// whatever state the log was left in, this is how it is brought back.
    ///
    /// # Errors
    /// When something durable is damaged or missing, when the log belongs to another broker or a
    /// later version, or as the operating system says.
    pub fn open_at(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: LogOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Opened, OpenError> {
        recover::open(disk, dir, identity, options, progress)
    }

    pub(super) fn new(
        shared: Arc<Shared>,
        marks: MarkFile,
        identity: Identity,
        options: LogOptions,
    ) -> io::Result<Self> {
        let sealer = Sealer::start(Arc::clone(&shared), identity, options)?;
        let target = Target::of(&shared)?;
        let hurried = Hurried::new(&target.path, target.end);
        let durable = shared.state.read().next();
        Ok(Self {
            shared,
            sealer,
            marks,
            options,
            target,
            group: Group::default(),
            hurried,
            pending: Vec::new(),
            written: false,
            durable,
            next: durable,
            poison: None,
        })
    }

    /// Adds a commit to the group that the next [`Log::sync`] writes. `now_ms` is the wall clock,
    /// by which retention goes.
    ///
    /// # Panics
    /// When the commit's position is not the next one.
    pub fn append(&mut self, commit: Commit, now_ms: u64) {
        let seed = self.begin_entry(commit.position, commit.position.next());
        let length = self.group.push(seed, &commit, now_ms, self.durable);
        self.pending.push(Pending {
            what: Appended::Commit(Arc::new(commit)),
            appended_at: now_ms,
            length,
        });
    }

    /// Adds gaps that came from a peer (`Sequencer::accept_gaps`) to the group that the next
    /// [`Log::sync`] writes; [`most_gap_bytes`] says how much room they take. `now_ms` is the wall
    /// clock.
    ///
    /// # Panics
    /// When their positions are not the next ones, or they name offsets, which would be those of
    /// another log.
    ///
    /// [`most_gap_bytes`]: super::most_gap_bytes
    pub fn append_gaps(&mut self, gaps: Vec<Gap>, now_ms: u64) {
        for gap in gaps {
            assert!(gap.parts.is_empty(), "a peer's gap has no offsets here");
            let seed = self.begin_entry(gap.position, gap.next_position());
            let length = self.group.push_gap(seed, &gap, now_ms, self.durable);
            self.pending.push(Pending {
                what: Appended::Gap(gap),
                appended_at: now_ms,
                length,
            });
        }
    }

    /// Takes the next positions; returns the seed of checksums.
    fn begin_entry(&mut self, position: Position, next: Position) -> u32 {
        assert_eq!(position, self.next, "positions are dense");
        assert!(!self.written, "a group that is written is closed");
        self.next = next;
        self.target.id.seed()
    }

    /// Sees to it that a group of this many bytes finds room; see [`most_entry_bytes`]. To be called
    /// before anything of it is sequenced, since what is sequenced has to be written.
    ///
    /// [`most_entry_bytes`]: super::most_entry_bytes
    ///
    /// # Errors
    /// [`WriteError::NoSpace`] leaves everything as it was: it may be tried again. Any other error
    /// is final.
    pub fn make_room(&mut self, bytes: usize) -> Result<(), WriteError> {
        let needed = self.target.end + super::fields::length(bytes);
        if needed <= self.target.reserved {
            return Ok(());
        }
        self.check()?;
        for length in [needed.max(self.options.segment_bytes), needed] {
            let reserved = reserve(&*self.target.file, length);
            if self.poisoning("reserve room in", reserved)? {
                self.target.reserved = length;
                return Ok(());
            }
        }
        let path = self.shared.dir.clone();
        Err(WriteError::NoSpace { path })
    }

    /// Bytes of the group so far.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.group.len()
    }

    /// Hands the group to the operating system, which is where it outlives this process. Once
    /// written, a group is closed: [`Log::sync`] comes next.
    ///
    /// # Errors
    /// As [`Log::sync`].
    pub fn write(&mut self) -> Result<(), WriteError> {
        self.check()?;
        if self.pending.is_empty() || self.written {
            return Ok(());
        }
        let written = self.group.write(&*self.target.file, self.target.end);
        self.poisoning("write", written)?;
        self.written = true;
        Ok(())
    }

    /// Makes the group durable, with one write and one sync, and lets readers see it. Returns its
    /// commits; gaps, which hold nothing to be read, are durable as well.
    ///
    /// # Errors
    /// When the write or the sync fails; from then on always. A failed sync is never retried: the
    /// kernel may have dropped what it could not write (Rebello et al., ATC 2020).
    pub fn sync(&mut self) -> Result<Vec<Durable<Arc<Commit>>>, WriteError> {
        self.check()?;
        if self.pending.is_empty() {
            return Ok(Vec::new());
        }
        self.write()?;
        self.written = false;
        let synced = self.target.file.sync_data();
        self.poisoning("sync", synced)?;
        self.target.end += super::fields::length(self.group.len());
        self.durable = self.next;
        self.group.clear();
        let moved = self.advance_mark();
        self.poisoning("write the mark of", moved)?;
        self.prepare_in_time();
        self.give_back();
        Ok(self.publish())
    }

    /// Not before half of the segment is full: a broker that is hardly used need not reserve the
    /// space of two.
    fn prepare_in_time(&mut self) {
        let half_full = self.target.end >= self.options.segment_bytes / 2;
        if half_full && !std::mem::replace(&mut self.target.has_successor, half_full) {
            self.sealer.prepare();
        }
    }

    fn give_back(&mut self) {
        if let Some(last) = self.pending.last() {
            let disk = &*self.shared.disk;
            self.hurried
                .advance(disk, self.target.end, last.appended_at);
        }
    }

    fn advance_mark(&mut self) -> io::Result<()> {
        let segment = (self.target.first, self.target.id);
        self.marks.advance(self.durable, segment, self.target.end)
    }

    /// Hands what was synced to the readers.
    fn publish(&mut self) -> Vec<Durable<Arc<Commit>>> {
        let mut state = self.shared.state.write();
        let index = &mut state.active.index;
        let mut published = Vec::with_capacity(self.pending.len());
        for pending in self.pending.drain(..) {
            let (appended_at, length) = (pending.appended_at, pending.length);
            match pending.what {
                Appended::Gap(gap) => index.push_gap(&gap, appended_at, length),
                Appended::Commit(commit) => {
                    index.push(NewEntry {
                        commit: &commit,
                        appended_at,
                        length,
                    });
                    published.push(Durable::new(commit));
                }
            }
        }
        published
    }

    /// Whether the segment is full, so that [`Log::roll`] is due before the next append.
    #[must_use]
    pub fn wants_roll(&self) -> bool {
        self.pending.is_empty()
            && self.target.end >= self.options.segment_bytes
            && self.poison.is_none()
    }

    /// Goes on in the next segment. The full one is sealed in the background, with the sequencer's
    /// `checkpoint`, which covers everything appended so far.
    ///
    /// # Errors
    /// [`WriteError::NoSpace`] leaves everything as it was: it may be tried again. Any other error
    /// is final.
    ///
    /// # Panics
    /// When something was appended that is not synced.
    pub fn roll(&mut self, checkpoint: Vec<u8>) -> Result<(), WriteError> {
        self.check()?;
        assert!(self.pending.is_empty(), "rolls happen between groups");
        let base = {
            let state = self.shared.state.read();
            if state.active.index.len() == 0 {
                return Ok(());
            }
            state.active.index.vector_after()
        };
        let index = SegmentIndex::new(self.durable, base, FIRST_ENTRY_AT);
        let next = match self.sealer.next_segment(index) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let path = self.shared.dir.clone();
                return Err(WriteError::NoSpace { path });
            }
            next => self.poisoning("begin the segment after", next)?,
        };
        let segment = self.shared.state.write().roll(next);
        let target = Target::of(&self.shared);
        self.target = self.poisoning("begin the segment after", target)?;
        self.hurried.roll(&self.target.path);
        let moved = self.advance_mark();
        self.poisoning("write the mark of", moved)?;
        self.sealer.seal(segment, checkpoint);
        Ok(())
    }

    /// Seals the log and marks it as closed, so that the next start need not scan anything.
    /// `checkpoint` is the sequencer's, which covers everything appended.
    ///
    /// # Errors
    /// When a write or sync fails. What was acknowledged before is durable all the same.
    pub fn close(mut self, checkpoint: &[u8]) -> Result<(), WriteError> {
        self.sync()?;
        self.sealer.stop();
        self.check()?;
        let removed = self.sealer.discard_prepared();
        self.poisoning("remove the segment after", removed)?;
        let sealed = self.seal_active(checkpoint);
        if let Err(error) = &sealed
            && error.kind() == io::ErrorKind::StorageFull
        {
            tracing::warn!(path = %self.target.path.display(), "no room to seal the log, the next start reads its end");
            return Ok(());
        }
        self.poisoning("seal", sealed)?;
        let closed = self.marks.close();
        self.poisoning("write the mark of", closed)
    }

    /// Peers hold frames that were written here and that this log lacks: the next start must not go on
    /// under the same identity. To be called instead of all that would write.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn doubt(&mut self) -> Result<(), WriteError> {
        let doubted = self.marks.doubt();
        self.poisoning("write the mark of", doubted)
    }

    /// Makes the thread beside this one panic.
    #[cfg(test)]
    pub(crate) fn break_sealer(&self) {
        self.sealer.break_worker();
    }

    fn seal_active(&self, checkpoint: &[u8]) -> io::Result<()> {
        let state = self.shared.state.read();
        if state.active.index.len() > 0 {
            write_seal(
                &*self.target.file,
                self.target.id,
                &state.active.index,
                checkpoint,
            )?;
            return Ok(());
        }
        // Nothing to seal; but a start need not look through empty space either.
        self.target.file.truncate(FIRST_ENTRY_AT)?;
        self.target.file.sync_data()
    }

    fn check(&mut self) -> Result<(), WriteError> {
        if self.poison.is_none() {
            self.poison = self.sealer.failure();
        }
        match &self.poison {
            None => Ok(()),
            Some(why) => Err(WriteError::Poisoned(why.clone())),
        }
    }

    fn poisoning<T>(&mut self, action: &'static str, done: io::Result<T>) -> Result<T, WriteError> {
        done.map_err(|source| {
            let path = self.target.path.clone();
            self.poison = Some(format!("cannot {action} {}: {source}", path.display()));
            WriteError::Io {
                action,
                path,
                source,
            }
        })
    }
}
