//! A place in this broker's log.
//!
//! It reads from the shared tail while it keeps up and from the log while it does not. Nothing is
//! queued for it: a subscriber that stops asking costs nothing but its place.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;

use anabranch_core::cursor::{Cursor, Order, Resumed};
use anabranch_core::id::{Offset, PartitionId, Position};
use anabranch_core::stream::MergeMode;
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::position::From;
use anabranch_storage::log::Filter;
use anabranch_storage::tables::Page;
use metrics::{Gauge, gauge};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::{Ahead, Event, Followed, Given, STEP_BYTES};
use crate::node::tail::{Delivered, Look};
use crate::node::{Error, Running, error};

/// Pages of a table that are read ahead of a subscriber.
const PAGES_AHEAD: usize = 2;

enum Stage {
    /// Rows come through here from a thread that reads the table.
    Rows(mpsc::Receiver<RowsEvent>),
    Frames,
}

/// One of the few that may read whole tables at the same time.
struct Reading {
    _permit: OwnedSemaphorePermit,
    readers: Gauge,
}

impl Reading {
    fn begin(permit: OwnedSemaphorePermit) -> Self {
        let readers = gauge!("anabranch_table_readers");
        readers.increment(1.0);
        Self {
            _permit: permit,
            readers,
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.readers.decrement(1.0);
    }
}

enum RowsEvent {
    Page(Page),
    End(Position),
    Failed(Error),
}

/// A place in this broker's log.
pub(crate) struct Local {
    pub(super) followed: Followed,
    stage: Stage,
    /// Next place in the log to look at.
    position: Position,
    /// What the client has seen of frames that are not here yet, or lie from `position` on.
    resumed: Resumed,
    /// Whether the client was told of a place: from then on nothing may be missing.
    begun: bool,
    /// When this place is reached, everything that was there at the start has been given.
    live_at: Option<Position>,
}

impl Local {
    pub(super) fn start(followed: Followed, from: &From) -> Result<Self, Error> {
        let mut local = Self {
            followed,
            stage: Stage::Frames,
            position: Position::new(0),
            resumed: Resumed::default(),
            begun: false,
            live_at: None,
        };
        local.seek(from)?;
        Ok(local)
    }

    fn seek(&mut self, from: &From) -> Result<(), Error> {
        let reader = &self.followed.running.reader;
        match from {
            From::Earliest => self.position = self.followed.earliest(),
            From::Latest => {
                self.position = reader.next_position();
                self.begun = true;
                // So that the client knows where to resume before anything comes.
                self.live_at = Some(self.position);
            }
            From::Time(ms) => {
                self.position = reader.at_timestamp(*ms).max(self.followed.earliest())
            }
            From::Table if self.followed.definition.merge == MergeMode::Append => {
                self.position = self.followed.earliest();
                // The tail's end, not the log's: what lies between is about to be pushed.
                self.live_at = Some(self.followed.running.tail.next());
            }
            From::Table => self.stage = Stage::Rows(self.read_table()),
            From::Cursor(text) => {
                self.begun = true;
                let cursor = self.followed.cursor(text, Order::Local)?;
                self.position = reader.resume(&cursor.seen);
                self.check_seen(&cursor)?;
                // All else lies before the position, and cannot come any more.
                let before = self.followed.running.vector_before(self.position)?;
                self.resumed = Resumed::at(&cursor, &before);
            }
        }
        Ok(())
    }

    /// A cursor of who has not seen all that is gone is refused: a gap is never passed over
    /// silently.
    fn check_seen(&self, cursor: &Cursor) -> Result<(), Error> {
        match self.followed.misses(&cursor.seen) {
            true => Err(self.followed.too_old(cursor)?),
            false => Ok(()),
        }
    }

    /// The same for a place that was fallen behind of.
    fn check_place(&self) -> Result<(), Error> {
        let reader = &self.followed.running.reader;
        if self.position >= reader.gone_to(self.followed.definition.id()) {
            return Ok(());
        }
        let cursor = self.cursor()?;
        // Where the log begins later by now, the cursor says more than was given.
        let is_exact = self.position >= reader.start_position();
        match is_exact && !self.followed.misses(&cursor.seen) {
            // Who comes from elsewhere may have been given there what is gone here.
            true => Ok(()),
            false => Err(self.followed.too_old(&cursor)?),
        }
    }

    /// Reads the whole table at one moment, on a thread of its own since RocksDB blocks.
    fn read_table(&self) -> mpsc::Receiver<RowsEvent> {
        let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
        let running = Arc::clone(&self.followed.running);
        let stream = self.followed.definition.id();
        let prefix = self.followed.selection.row_prefix();
        let selection = self.followed.selection.clone();
        let partitions = self.followed.definition.partitions;
        let handle = tokio::runtime::Handle::current();
        tokio::spawn(async move {
            // Each holds a thread and a moment of the table, so only so many read at once.
            let Ok(permit) = Arc::clone(&running.snapshots).acquire_owned().await else {
                return;
            };
            let reading = Reading::begin(permit);
            running.wait_applied(running.reader.next_position()).await;
            let read = move || {
                let too_slow = Cell::new(false);
                let pass_on = |event| {
                    let sent = handle.block_on(timeout(running.rows_patience, sender.send(event)));
                    too_slow.set(too_slow.get() || sent.is_err());
                    match sent {
                        Ok(Ok(())) => ControlFlow::Continue(()),
                        // Too slow, or the subscriber has left.
                        Err(_) | Ok(Err(_)) => ControlFlow::Break(()),
                    }
                };
                let result = running.tables.snapshot(stream, &prefix, &mut |mut page| {
                    page.rows
                        .retain(|(key, _)| selection.wants_row(key, partitions));
                    pass_on(RowsEvent::Page(page))
                });
                let last = match result {
                    Ok(position) => RowsEvent::End(position),
                    Err(error) => RowsEvent::Failed(error::tables(&error)),
                };
                // Without an end the subscriber is told that it was too slow.
                if !too_slow.get() {
                    let _ = pass_on(last);
                }
                drop(reading);
            };
            if tokio::task::spawn_blocking(read).await.is_err() {
                tracing::error!("reading a table panicked");
            }
        });
        receiver
    }

    /// The cursor that stands for the current place.
    pub(super) fn cursor(&self) -> Result<Cursor, Error> {
        let before = self.followed.running.vector_before(self.position)?;
        Ok(self.resumed.cursor(before))
    }

    /// Passes a frame that is about to be given: how many of its records the client has seen. To be
    /// asked once for every frame, in order.
    pub(super) fn pass(&mut self, frame: &Delivered) -> u32 {
        if self.resumed.is_empty() {
            return 0;
        }
        let begun = self.begun(frame);
        self.resumed.pass(&frame.seen());
        begun
    }

    fn begun(&self, frame: &Delivered) -> u32 {
        let header = &frame.commit().header;
        self.resumed.begun(header.origin, header.sequence)
    }

    /// Whether the messages of others do for this one, since it stands where its place says.
    pub(super) fn is_like_others(&self) -> bool {
        self.resumed.is_empty() && self.followed.selection.is_everything()
    }

    /// The text of the cursor behind the frame that was passed last.
    pub(super) fn cursor_after<'f>(&self, frame: &'f Delivered) -> Cow<'f, str> {
        if self.resumed.is_empty() {
            return frame.cursor().into();
        }
        let cursor = self.resumed.cursor(frame.seen());
        cursor.encode(self.followed.running.cluster()).into()
    }

    /// The cursor inside the frame that was passed last, behind its first records.
    pub(super) fn cursor_within(&self, frame: &Delivered, records: u32) -> Cursor {
        let mut cursor = self.resumed.cursor(frame.seen_before());
        cursor.begun.insert(frame.commit().header.origin, records);
        cursor
    }

    /// The cursor before a frame that is not passed.
    pub(super) fn cursor_before(&self, frame: &Delivered) -> Cursor {
        self.resumed.cursor(frame.seen_before())
    }

    pub(super) async fn next_held(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.rows().await? {
                return Ok(Some(event));
            }
            if self.live_at.is_some_and(|live| self.position >= live) {
                self.live_at = None;
                return Ok(Some(Event::Live(self.cursor()?)));
            }
            self.followed.changed.mark_unchanged();
            self.followed.running.check_phase()?;
            self.followed.check_stream()?;
            let frames = match self.followed.tail.look(self.position, STEP_BYTES) {
                Look::Frames(frames, next) => {
                    self.position = next;
                    frames
                }
                Look::TooOld => self.read_log().await?,
                // Nothing of the stream is left between here and the end of the log.
                Look::Empty => match self.live_at {
                    Some(live) => {
                        self.position = self.position.max(live);
                        continue;
                    }
                    None => return Ok(None),
                },
            };
            let frames = self.unseen(frames);
            if !frames.is_empty() {
                self.begun = true;
                let frames = frames.into_iter().map(Given::Frame);
                return Ok(Some(Event::Frames(frames.collect())));
            }
        }
    }

    pub(super) async fn ahead(&mut self) -> Result<Ahead, Error> {
        self.followed.changed.mark_unchanged();
        self.followed.running.check_phase()?;
        self.followed.check_stream()?;
        if matches!(self.stage, Stage::Rows(_)) {
            return Ok(Ahead::Something);
        }
        if !self.followed.selection.is_everything() {
            return self.pass_over().await;
        }
        let goes_on = match self.followed.tail.look(self.position, 1) {
            Look::Frames(..) => true,
            Look::TooOld => self.log_goes_on()?,
            Look::Empty => false,
        };
        Ok(match goes_on {
            true => Ahead::Something,
            false => Ahead::Nothing,
        })
    }

    /// Goes on to the first wanted record of the next step.
    async fn pass_over(&mut self) -> Result<Ahead, Error> {
        let (frames, next) = match self.followed.tail.look(self.position, STEP_BYTES) {
            Look::Frames(frames, next) => (frames, next),
            Look::TooOld => self.step_of_log().await?,
            Look::Empty => return Ok(Ahead::Nothing),
        };
        for frame in self.unseen(frames) {
            let records = self.begun(&frame)..u32::MAX;
            if self.followed.wants_of(&frame.opened, &records)? {
                self.position = frame.position();
                return Ok(Ahead::Something);
            }
        }
        self.position = next;
        Ok(Ahead::Unknown)
    }

    /// Whether the log holds anything of the stream from here on.
    fn log_goes_on(&self) -> Result<bool, Error> {
        let reader = &self.followed.running.reader;
        let stream = self.followed.definition.id();
        for partition in (0..self.followed.definition.partitions).map(PartitionId::new) {
            let (first, next) = reader.bounds(stream, partition);
            if first == next {
                continue;
            }
            let last = Offset::new(next.get() - 1);
            let position = reader.at_offset(stream, partition, last);
            let position = position.map_err(|error| error::unreadable(&error))?;
            if position.is_some_and(|position| position >= self.position) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn rows(&mut self) -> Result<Option<Event>, Error> {
        let Stage::Rows(rows) = &mut self.stage else {
            return Ok(None);
        };
        match rows.recv().await {
            Some(RowsEvent::Page(page)) => Ok(Some(Event::Rows(page))),
            Some(RowsEvent::End(position)) => {
                self.stage = Stage::Frames;
                self.begun = true;
                self.position = position;
                Ok(Some(Event::Live(self.cursor()?)))
            }
            Some(RowsEvent::Failed(error)) => Err(error),
            None => Err(Error::new(
                Code::SlowSubscriber,
                format!(
                    "rows of the table were not taken for {} s; begin again from the table",
                    self.followed.running.rows_patience.as_secs()
                ),
            )),
        }
    }

    async fn read_log(&mut self) -> Result<Vec<Arc<Delivered>>, Error> {
        let (frames, next) = self.step_of_log().await?;
        self.position = next;
        Ok(frames)
    }

    /// What the log holds next, and where to go on after it.
    async fn step_of_log(&self) -> Result<(Vec<Arc<Delivered>>, Position), Error> {
        let running = Arc::clone(&self.followed.running);
        let filter = self.followed.selection.filter(&self.followed.definition);
        let from = self.position.max(running.reader.start_position());
        let read = tokio::task::spawn_blocking(move || read_delivered(&running, from, &filter))
            .await
            .map_err(|_| error::internal("reading the log panicked"))??;
        // Afterwards, since a trim may come between a look before and the reading.
        if self.begun {
            self.check_place()?;
        }
        Ok(read)
    }

    /// Leaves out what the client has seen by its cursor.
    fn unseen(&self, mut frames: Vec<Arc<Delivered>>) -> Vec<Arc<Delivered>> {
        if !self.resumed.is_empty() {
            frames.retain(|frame| {
                let header = &frame.commit().header;
                !self.resumed.has_seen(header.origin, header.sequence)
            });
        }
        frames
    }
}

fn read_delivered(
    running: &Running,
    from: Position,
    filter: &Filter,
) -> Result<(Vec<Arc<Delivered>>, Position), Error> {
    let chunk = running.read_log(from, filter, STEP_BYTES)?;
    let mut frames = Vec::with_capacity(chunk.commits.len());
    let mut before: Option<(Position, VersionVector)> = None;
    for commit in chunk.commits {
        // One look-up for the first frame; after that the vector is carried along where frames
        // are neighbours, and looked up where others lie between.
        let position = commit.position;
        let others = match before.take() {
            Some((next, vector)) if next == position => vector,
            _ => running.vector_before(position)?,
        };
        let mut after = others.clone();
        after.advance(commit.header.origin, commit.header.sequence);
        before = Some((position.next(), after));
        let delivered = Delivered::new(commit, Arc::new(others), running.cluster());
        frames.push(Arc::new(delivered));
    }
    Ok((frames, chunk.next))
}
