//! Sealing segments and preparing the next one, beside the writer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anabranch_core::id::Position;
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::index::{SegmentIndex, Summary};
use super::segment::{Block, Footer, SegmentHeader, SegmentId, path_of};
use super::shared::{Active, Segment, Shared};
use super::{Background, LogOptions};
use crate::alarm::Alarm;
use crate::data_dir::Identity;
use crate::disk::{Disk, DiskFile};

/// Writes index, checkpoint and footer behind the entries and cuts the file there.
///
/// What the footer speaks of is synced before the footer is written: so a footer that reads well
/// means that the seal is whole, and one that does not, that the segment is scanned.
pub(crate) fn write_seal(
    file: &dyn DiskFile,
    id: SegmentId,
    index: &SegmentIndex,
    checkpoint: &[u8],
) -> io::Result<Summary> {
    let summary = index.summary();
    let mut blocks = summary.encode();
    let summary_block = Block::of(&blocks);
    let encoded = index.encode(&summary);
    let footer = Footer {
        id,
        next: summary.next,
        entries_end: summary.entries_end,
        summary: summary_block,
        index: Block::of(&encoded),
        checkpoint: Block::of(checkpoint),
    };
    blocks.extend_from_slice(&encoded);
    blocks.extend_from_slice(checkpoint);
    file.write_at(&blocks, summary.entries_end)?;
    file.sync_data()?;
    let footer_at = summary.entries_end + super::fields::length(blocks.len());
    file.truncate(footer_at)?;
    file.write_at(&footer.encode(), footer_at)?;
    file.sync_data()?;
    Ok(summary)
}

/// A file that is ready to become the next segment.
#[derive(Debug)]
struct Prepared {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

/// Name of files that are to become segments.
pub(crate) const PREPARED: &str = "prepared-";

/// Why sealing failed, if a mistake was met.
const PANICKED: &str = "the sealing thread panicked";

/// The worker beside the writer.
#[derive(Debug)]
pub(crate) struct Sealer {
    inner: Arc<Inner>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    identity: Identity,
    options: LogOptions,
    prepared: Mutex<Option<Prepared>>,
    number: Mutex<u64>,
    /// Segments for whose seal there was no room, with their checkpoints.
    postponed: Mutex<Vec<(Arc<Segment>, Vec<u8>)>>,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

#[derive(Debug)]
enum Job {
    Seal(Arc<Segment>, Vec<u8>),
    Prepare,
    /// Panic, as a mistake in here would.
    #[cfg(test)]
    Panic,
}

impl Sealer {
    /// Starts the worker.
    pub(crate) fn start(
        shared: Arc<Shared>,
        identity: Identity,
        options: LogOptions,
    ) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            shared,
            identity,
            options,
            prepared: Mutex::new(None),
            number: Mutex::new(0),
            postponed: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        let mut sealer = Self {
            inner,
            jobs: None,
            thread: None,
        };
        if options.background == Background::Thread {
            let (jobs, inbox) = unbounded();
            let inner = Arc::clone(&sealer.inner);
            let thread = std::thread::Builder::new()
                .name("log-sealer".to_owned())
                .spawn(move || {
                    let _alarm = Alarm(|| inner.fail(PANICKED.to_owned()));
                    inner.run(&inbox);
                })?;
            sealer.jobs = Some(jobs);
            sealer.thread = Some(thread);
        }
        Ok(sealer)
    }

    /// Seals a segment, soon.
    pub(crate) fn seal(&self, segment: Arc<Segment>, checkpoint: Vec<u8>) {
        self.hand_over(Job::Seal(segment, checkpoint));
    }

    /// Prepares the next segment, soon.
    pub(crate) fn prepare(&self) {
        self.hand_over(Job::Prepare);
    }

    /// Makes the worker panic.
    #[cfg(test)]
    pub(crate) fn break_worker(&self) {
        self.hand_over(Job::Panic);
    }

    fn hand_over(&self, job: Job) {
        match &self.jobs {
            // The worker only ends after this sender is gone.
            Some(jobs) => drop(jobs.send(job)),
            None => self.inner.work(job),
        }
    }

    /// Why sealing failed, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        if self.inner.failed.load(Ordering::Acquire) {
            self.inner.failure.lock().clone()
        } else {
            None
        }
    }

    /// Makes the prepared file the segment that begins with this entry.
    pub(crate) fn next_segment(&self, index: SegmentIndex) -> io::Result<Active> {
        self.inner.next_segment(index)
    }

    /// Waits until everything is sealed.
    pub(crate) fn stop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.inner.fail(PANICKED.to_owned());
        }
        self.inner.seal_postponed();
    }

    /// Removes the prepared file, which nobody needs any more.
    pub(crate) fn discard_prepared(&self) -> io::Result<()> {
        match self.inner.prepared.lock().take() {
            Some(prepared) => self.inner.shared.disk.remove(&prepared.path),
            None => Ok(()),
        }
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn run(&self, inbox: &Receiver<Job>) {
        for job in inbox {
            self.work(job);
        }
    }

    fn work(&self, job: Job) {
        match job {
            Job::Seal(segment, checkpoint) => {
                self.postponed.lock().push((segment, checkpoint));
                self.seal_postponed();
            }
            // Whoever needs the next segment tries again and meets the error then.
            Job::Prepare => drop(self.prepare()),
            #[cfg(test)]
            Job::Panic => panic!("injected"),
        }
    }

    fn fail(&self, what: String) {
        tracing::error!(failure = %what, "sealing a segment of the log failed");
        self.failure.lock().get_or_insert(what);
        self.failed.store(true, Ordering::Release);
    }

    /// Seals what is to be sealed, in order. Without room it is left for later: the entries are
    /// durable, and a start would scan them.
    fn seal_postponed(&self) {
        let mut postponed = self.postponed.lock();
        while let Some((segment, checkpoint)) = postponed.first() {
            match self.seal(segment, checkpoint) {
                Ok(()) => drop(postponed.remove(0)),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::warn!(path = %segment.path.display(), "no room to seal a segment of the log, trying again later");
                    return;
                }
                Err(error) => {
                    let path = segment.path.display();
                    return self.fail(format!("cannot seal {path}: {error}"));
                }
            }
        }
    }

    fn seal(&self, segment: &Segment, checkpoint: &[u8]) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        // Only this worker seals, so what is not sealed is held in memory.
        if let Ok(loaded) = self.shared.load(segment) {
            write_seal(&*loaded.file, loaded.id, &loaded.index, checkpoint)?;
            self.shared.note_sealed(segment);
        }
        Ok(())
    }

    fn prepare(&self) -> io::Result<()> {
        let mut prepared = self.prepared.lock();
        if prepared.is_none() {
            *prepared = Some(self.create()?);
        }
        Ok(())
    }

    fn create(&self) -> io::Result<Prepared> {
        let number = {
            let mut number = self.number.lock();
            *number += 1;
            *number
        };
        let path = self.shared.dir.join(format!("{PREPARED}{number}"));
        create_preallocated(&*self.shared.disk, &path, self.options.segment_bytes)
            .map(|file| Prepared { path, file })
    }

    fn next_segment(&self, index: SegmentIndex) -> io::Result<Active> {
        let taken = self.prepared.lock().take();
        let prepared = match taken {
            Some(prepared) => prepared,
            None => self.create()?,
        };
        begin_segment(
            &*self.shared.disk,
            &self.shared.dir,
            (&prepared.path, prepared.file),
            self.identity,
            index,
        )
    }
}

/// Creates a file of this length. When it does not fit, nothing of it stays.
pub(crate) fn create_preallocated(
    disk: &dyn Disk,
    path: &Path,
    bytes: u64,
) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(path)?;
    let reserved = file.preallocate(bytes).and_then(|()| file.sync_data());
    match reserved {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = disk.remove(path);
            Err(error)
        }
    }
}

/// Writes the header and gives the file its name, durably and in this order: a segment's name
/// means that its header is whole and that everything before its first position is durable.
pub(crate) fn begin_segment(
    disk: &dyn Disk,
    dir: &Path,
    (prepared, file): (&Path, Arc<dyn DiskFile>),
    identity: Identity,
    index: SegmentIndex,
) -> io::Result<Active> {
    let first: Position = index.first();
    let header = SegmentHeader {
        identity,
        id: SegmentId(disk.random()?),
        first,
    };
    file.write_at(&header.encode(), 0)?;
    file.sync_data()?;
    let path = path_of(dir, first);
    disk.rename(prepared, &path)?;
    disk.sync_dir(dir)?;
    Ok(Active {
        id: header.id,
        path,
        file,
        index,
    })
}
