//! What is done now and then: retention, a look at the disk, gauges.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anabranch_core::id::{Position, StreamId};
use anabranch_storage::ballast::{BALLAST_BYTES, Ballast};
use anabranch_storage::log::{CleanError, Cleaner, Policy};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use hashbrown::HashMap;
use metrics::{describe_gauge, gauge};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{Alarm, Error, Running, wall_clock_ms};
use crate::config::Config;

/// How often the disk is looked at and gauges are set.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the thread can be asked to do at once.
pub(crate) enum Chore {
    /// Clean, though it is not time yet.
    Clean,
    /// Drop all that a deleted stream has before a position, then say so.
    Drop(StreamId, Position, oneshot::Sender<()>),
    /// Panic, as a mistake in here would.
    #[cfg(test)]
    Panic,
}

/// The thread that does it.
pub(crate) struct Upkeep {
    thread: JoinHandle<()>,
    running: Arc<Running>,
}

impl Upkeep {
    pub(crate) fn start(
        running: &Arc<Running>,
        cleaner: Cleaner,
        chores: Receiver<Chore>,
        config: &Config,
        data_dir: &Path,
    ) -> std::io::Result<Self> {
        let work = Work {
            cleaner,
            ballast: Ballast::of(data_dir),
            running: Arc::clone(running),
            path: data_dir.to_owned(),
            clean_every: config.log.retention_interval_seconds,
            next_clean: Instant::now() + config.log.retention_interval_seconds,
        };
        describe();
        let thread = std::thread::Builder::new()
            .name("upkeep".to_owned())
            .spawn({
                let alarm = Alarm::new(&running.phase, "upkeep");
                move || {
                    work.run(&chores);
                    drop(alarm);
                }
            })?;
        Ok(Self {
            thread,
            running: Arc::clone(running),
        })
    }

    /// Ends after what is being done.
    pub(crate) fn stop(self) {
        drop(self.running.chores.lock().take());
        if self.thread.join().is_err() {
            error!("upkeep panicked");
        }
    }
}

struct Work {
    cleaner: Cleaner,
    ballast: Ballast,
    running: Arc<Running>,
    path: PathBuf,
    clean_every: Duration,
    next_clean: Instant,
}

impl Work {
    fn run(mut self, chores: &Receiver<Chore>) {
        loop {
            self.look_at_disk();
            self.set_gauges();
            self.running.tail.sweep();
            if Instant::now() >= self.next_clean {
                self.clean();
            }
            match chores.recv_timeout(LOOK_EVERY) {
                Ok(Chore::Clean) => self.clean(),
                Ok(Chore::Drop(stream, before, done)) => {
                    self.drop_stream(stream, before);
                    // Whoever asked may have given up.
                    let _ = done.send(());
                }
                #[cfg(test)]
                Ok(Chore::Panic) => panic!("injected"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn drop_stream(&mut self, stream: StreamId, before: Position) {
        if let Err(error) = self.clean_with(|cleaner| cleaner.drop_stream(stream, before)) {
            // It is done at the next start, unless a stream of the same name has been made by then.
            warn!(%error, %stream, "the records of a deleted stream were not dropped");
        }
    }

    fn look_at_disk(&self) {
        let running = &self.running;
        let free = match rustix::fs::statvfs(&self.path) {
            Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
            Err(error) => {
                warn!(%error, path = %self.path.display(), "cannot see how much disk is free");
                return;
            }
        };
        running.disk_free.store(free, Ordering::Relaxed);
        if free > running.disk_reserve.saturating_add(BALLAST_BYTES)
            && let Err(error) = self.ballast.take_on()
        {
            warn!(%error, "there is no ballast for a disk that is full to the last byte");
        }
        let full = free < running.disk_reserve;
        if running.disk_full.swap(full, Ordering::Relaxed) != full {
            let free = show_bytes(free);
            if full {
                error!(%free, reserve = %show_bytes(running.disk_reserve), "disk full: writes are refused");
            } else {
                info!(%free, "disk has room again: writes are taken");
            }
        }
    }

    fn clean(&mut self) {
        self.running.clean_asked.store(false, Ordering::Release);
        self.next_clean = Instant::now() + self.clean_every;
        let policies = self.policies();
        let now = wall_clock_ms();
        match self.clean_with(|cleaner| cleaner.run_once(&policies, now)) {
            Ok(report) if report.is_empty() => {}
            Ok(report) => info!(%report, "log cleaned"),
            Err(error) => warn!(%error, "the log was not cleaned"),
        }
    }

    /// Cleaning gives space back, but has to write before. Without a byte free for that, the
    /// ballast goes.
    fn clean_with<T>(
        &mut self,
        clean: impl Fn(&mut Cleaner) -> Result<T, CleanError>,
    ) -> Result<T, CleanError> {
        match clean(&mut self.cleaner) {
            Err(CleanError::Io { source, .. })
                if source.kind() == ErrorKind::StorageFull
                    && self.ballast.throw_off().is_ok_and(|thrown| thrown) =>
            {
                warn!("disk full: the ballast was given up for cleaning");
                clean(&mut self.cleaner)
            }
            done => done,
        }
    }

    fn policies(&self) -> HashMap<StreamId, Policy> {
        let trims = self.running.trims.lock();
        let streams = self.running.tables.streams();
        streams
            .iter()
            .map(|definition| {
                let policy = Policy {
                    merge: definition.merge,
                    retention: definition.retention,
                    trim_before_ms: trims.get(&definition.id()).copied(),
                };
                (definition.id(), policy)
            })
            .collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    fn set_gauges(&self) {
        let running = &self.running;
        let next = running.reader.next_position().get();
        let applied = running.tables.applied().get();
        gauge!("anabranch_applied_lag_frames").set(next.saturating_sub(applied) as f64);
        gauge!("anabranch_log_frames").set(next as f64);
        gauge!("anabranch_disk_free_bytes").set(running.disk_free() as f64);
        gauge!("anabranch_writable").set(f64::from(u8::from(running.check_writable().is_ok())));
        let waiting = running
            .in_flight_limit
            .saturating_sub(running.in_flight.available_permits());
        gauge!("anabranch_in_flight_bytes").set(waiting as f64);
        let stats = running.tables.stats();
        gauge!("anabranch_table_image_rows").set(stats.image_rows as f64);
        gauge!("anabranch_table_image_bytes").set(stats.image_bytes as f64);
        gauge!("anabranch_table_disk_bytes").set(stats.stored_bytes as f64);
        if running.regions.has_links() {
            super::metrics::set_regions(&running.regions.status());
        }
    }
}

fn describe() {
    super::metrics::describe_regions();
    describe_gauge!(
        "anabranch_applied_lag_frames",
        "Durable frames that are not in the tables yet"
    );
    describe_gauge!("anabranch_log_frames", "Frames ever appended to this log");
    describe_gauge!(
        "anabranch_disk_free_bytes",
        "Free bytes where the data directory is"
    );
    describe_gauge!("anabranch_writable", "1 while writes are taken, else 0");
    describe_gauge!(
        "anabranch_in_flight_bytes",
        "Bytes of publishes that are not durable yet"
    );
    describe_gauge!(
        "anabranch_table_image_rows",
        "Rows in the image above the tables' files"
    );
    describe_gauge!(
        "anabranch_table_image_bytes",
        "Bytes of the image above the tables' files"
    );
    describe_gauge!("anabranch_table_disk_bytes", "Bytes of the tables' files");
    describe_gauge!(
        "anabranch_table_readers",
        "Subscribers that are reading a whole table now"
    );
}

impl Running {
    /// Drops what was appended to a stream before a time. In a keyed stream only records that a
    /// later one has replaced are dropped.
    ///
    /// # Errors
    /// When there is no such stream.
    pub(crate) async fn trim_stream(&self, name: &str, before_ms: u64) -> Result<(), Error> {
        let definition = self.stream(name)?;
        // A time to come would drop what is published until then.
        let before_ms = before_ms.min(wall_clock_ms());
        let mut trims = self.trims.lock();
        let held = trims.entry(definition.id()).or_default();
        *held = before_ms.max(*held);
        drop(trims);
        // One run does for all who asked before it began.
        if !self.clean_asked.swap(true, Ordering::AcqRel) {
            self.ask_upkeep(Chore::Clean);
        }
        Ok(())
    }

    /// Drops what a deleted stream has in the log, so that a new one of its name begins empty.
    pub(super) async fn drop_records(&self, stream: StreamId) {
        let (done, waited) = oneshot::channel();
        self.ask_upkeep(Chore::Drop(stream, self.reader.next_position(), done));
        // Gone while the broker stops: then it is done at the next start.
        let _ = waited.await;
    }

    /// A stream is gone: so is what it has in the log, and those who follow it must notice.
    pub(super) fn forget_stream(&self, stream: StreamId) {
        self.trims.lock().remove(&stream);
        let (done, _) = oneshot::channel();
        self.ask_upkeep(Chore::Drop(stream, self.reader.next_position(), done));
        self.tail.wake_all();
    }

    /// Makes upkeep panic.
    #[cfg(test)]
    pub(crate) fn break_upkeep(&self) {
        self.ask_upkeep(Chore::Panic);
    }

    fn ask_upkeep(&self, chore: Chore) {
        if let Some(chores) = &*self.chores.lock() {
            // The thread ends only after its sender is gone.
            let _ = chores.send(chore);
        }
    }
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(crate) fn show_bytes(bytes: u64) -> String {
    let units = [
        (1u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, name)) => format!("{:.1} {name}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}
