//! A subscription: where it stands, and what comes next.
//!
//! It reads from the shared tail while it keeps up and from the log while it does not. Nothing is
//! queued for it: a subscriber that stops asking costs nothing but its place.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use anabranch_core::cursor::{Cursor, Resumed};
use anabranch_core::id::{Offset, PartitionId, Position, Sequence};
use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::position::From;
use anabranch_protocol::ws::KeyFilter;
use anabranch_storage::log::Filter;
use anabranch_storage::tables::Page;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::selection::{Selected, Selection, each_selected};
use super::tail::{Delivered, Look, StreamTail};
use super::{Error, Running, error};

/// Bytes taken from tail or log at once.
const STEP_BYTES: usize = 1024 * 1024;

/// Pages of a table that are read ahead of a subscriber.
const PAGES_AHEAD: usize = 2;

/// Tables that are read whole at the same time; more wait for their turn.
pub(super) const SNAPSHOTS: usize = 4;

/// Brokers that a cursor may name though this one has nothing of them. What a cursor has seen of
/// them is kept for as long as its subscription lives.
const UNKNOWN_ORIGINS: usize = 64;

/// What to follow.
#[derive(Clone, Debug)]
pub(crate) struct SubscribeRequest {
    pub(crate) stream: String,
    pub(crate) partitions: Option<BTreeSet<PartitionId>>,
    pub(crate) keys: KeyFilter<'static>,
    pub(crate) from: From,
}

/// What a subscriber is given.
pub(crate) enum Event {
    /// Frames, in the order of this broker's log. What is not selected must be left out.
    Frames(Vec<Arc<Delivered>>),
    /// Rows of the table, at one moment.
    Rows(Page),
    /// What is in the table has been given; from here on it is changes.
    Live(Cursor),
}

/// What lies before a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ahead {
    /// Records or rows that it wants.
    Something,
    /// Nothing yet.
    Nothing,
    /// Nothing as far as was looked; look again.
    Unknown,
}

enum Stage {
    /// Rows come through here from a thread that reads the table.
    Rows(mpsc::Receiver<RowsEvent>),
    Frames,
}

enum RowsEvent {
    Page(Page),
    End(Position),
    Failed(Error),
}

/// A place in a stream.
pub(crate) struct Subscription {
    running: Arc<Running>,
    definition: Arc<StreamDefinition>,
    selection: Selection,
    stage: Stage,
    /// Next place in the log to look at.
    position: Position,
    /// What the client has seen of frames that are not here yet, or lie from `position` on.
    resumed: Resumed,
    /// Whether the client was told of a place: from then on nothing may be missing.
    begun: bool,
    /// When this place is reached, everything that was there at the start has been given.
    live_at: Option<Position>,
    tail: Arc<StreamTail>,
    changed: watch::Receiver<Position>,
}

impl Subscription {
    pub(crate) fn start(running: &Arc<Running>, request: &SubscribeRequest) -> Result<Self, Error> {
        let definition = running.held_stream(&request.stream)?;
        let selection = Selection::new(&definition, request)?;
        let (tail, changed) = running.tail.follow(definition.id());
        let mut subscription = Self {
            running: Arc::clone(running),
            selection,
            stage: Stage::Frames,
            position: Position::new(0),
            resumed: Resumed::default(),
            begun: false,
            live_at: None,
            tail,
            changed,
            definition,
        };
        subscription.seek(&request.from)?;
        Ok(subscription)
    }

    pub(crate) fn definition(&self) -> &Arc<StreamDefinition> {
        &self.definition
    }

    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    fn seek(&mut self, from: &From) -> Result<(), Error> {
        let reader = &self.running.reader;
        match from {
            From::Earliest => self.position = self.earliest(),
            From::Latest => {
                self.position = reader.next_position();
                self.begun = true;
                // So that the client knows where to resume before anything comes.
                self.live_at = Some(self.position);
            }
            From::Time(ms) => self.position = reader.at_timestamp(*ms).max(self.earliest()),
            From::Table if self.definition.merge == MergeMode::Append => {
                self.position = self.earliest();
                // The tail's end, not the log's: what lies between is about to be pushed.
                self.live_at = Some(self.running.tail.next());
            }
            From::Table => self.stage = Stage::Rows(self.read_table()),
            From::Cursor(text) => {
                self.begun = true;
                let cursor = self.running.cursor(text)?;
                self.check_unknown(&cursor)?;
                self.position = reader.resume(&cursor.seen);
                self.check_seen(&cursor)?;
                // All else lies before the position, and cannot come any more.
                let before = self.running.vector_before(self.position)?;
                self.resumed = Resumed::at(&cursor, &before);
            }
        }
        Ok(())
    }

    fn check_unknown(&self, cursor: &Cursor) -> Result<(), Error> {
        let held = self.running.vector();
        let seen = cursor.seen.iter().map(|(origin, _)| origin);
        let begun = cursor.begun.keys().copied();
        let first = begun.filter(|&origin| cursor.seen.get(origin) == Sequence::NONE);
        let unknown = seen
            .chain(first)
            .filter(|&origin| held.get(origin) == Sequence::NONE)
            .count();
        if unknown <= UNKNOWN_ORIGINS {
            return Ok(());
        }
        Err(Error::new(
            Code::BadCursor,
            format!(
                "the cursor names {unknown} writers that are unknown here, more than the {UNKNOWN_ORIGINS} that a cursor may; pass on unchanged what a broker sent, or go on from earliest, latest or the table"
            ),
        ))
    }

    fn earliest(&self) -> Position {
        let reader = &self.running.reader;
        reader
            .trimmed(self.definition.id())
            .max(reader.start_position())
    }

    /// A cursor of who has not seen all that is gone is refused: a gap is never passed over
    /// silently.
    fn check_seen(&self, cursor: &Cursor) -> Result<(), Error> {
        let reader = &self.running.reader;
        match reader.misses(self.definition.id(), &cursor.seen) {
            true => Err(self.too_old(cursor)?),
            false => Ok(()),
        }
    }

    /// The same for a place that was fallen behind of.
    fn check_place(&self) -> Result<(), Error> {
        let (reader, stream) = (&self.running.reader, self.definition.id());
        if self.position >= reader.gone_to(stream) {
            return Ok(());
        }
        let cursor = self.cursor()?;
        // Where the log begins later by now, the cursor says more than was given.
        let is_exact = self.position >= reader.start_position();
        match is_exact && !reader.misses(stream, &cursor.seen) {
            // Who comes from elsewhere may have been given there what is gone here.
            true => Ok(()),
            false => Err(self.too_old(&cursor)?),
        }
    }

    fn too_old(&self, cursor: &Cursor) -> Result<Error, Error> {
        let name = &self.definition.name;
        if self.definition.merge == MergeMode::Lww {
            // A cursor behind the deletes would pass over rows that are still there.
            return Ok(Error::new(
                Code::CursorTooOld,
                format!(
                    "deletes that the cursor has not seen are gone from stream {name}; begin again with from=table"
                ),
            ));
        }
        let mut gone = self.running.vector_before(self.earliest())?;
        gone.merge(&self.running.reader.gone(self.definition.id()));
        // What was given elsewhere and is kept here must not be given again.
        let oldest = Resumed::at(cursor, &gone).cursor(gone);
        let error = Error::new(
            Code::CursorTooOld,
            format!(
                "the cursor lies before what retention has kept of stream {name}; go on from the oldest cursor, or from=table"
            ),
        );
        Ok(error.with_oldest(oldest.encode(self.running.cluster())))
    }

    /// Reads the whole table at one moment, on a thread of its own since RocksDB blocks.
    fn read_table(&self) -> mpsc::Receiver<RowsEvent> {
        let (sender, receiver) = mpsc::channel(PAGES_AHEAD);
        let running = Arc::clone(&self.running);
        let stream = self.definition.id();
        let prefix = self.selection.row_prefix();
        let selection = self.selection.clone();
        let partitions = self.definition.partitions;
        let handle = tokio::runtime::Handle::current();
        tokio::spawn(async move {
            // Each holds a thread and a moment of the table, so only so many read at once.
            let permit = Arc::clone(&running.snapshots).acquire_owned().await;
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
                drop(permit);
            };
            if tokio::task::spawn_blocking(read).await.is_err() {
                tracing::error!("reading a table panicked");
            }
        });
        receiver
    }

    /// The cursor that stands for the current place.
    pub(crate) fn cursor(&self) -> Result<Cursor, Error> {
        let before = self.running.vector_before(self.position)?;
        Ok(self.resumed.cursor(before))
    }

    /// Passes a frame that is about to be given: how many of its records the client has seen. To be
    /// asked once for every frame, in order.
    pub(crate) fn pass(&mut self, frame: &Delivered) -> u32 {
        if self.resumed.is_empty() {
            return 0;
        }
        let begun = self.begun(frame);
        self.resumed.pass(&frame.seen());
        begun
    }

    fn begun(&self, frame: &Delivered) -> u32 {
        let header = &frame.commit.header;
        self.resumed.begun(header.origin, header.sequence)
    }

    /// Whether the messages of others do for this one, since it stands where its place says.
    pub(crate) fn is_like_others(&self) -> bool {
        self.resumed.is_empty() && self.selection.is_everything()
    }

    /// The text of the cursor behind the frame that was passed last.
    pub(crate) fn cursor_after<'f>(&self, frame: &'f Delivered) -> Cow<'f, str> {
        if self.resumed.is_empty() {
            return frame.cursor().into();
        }
        self.encode_cursor(&self.resumed.cursor(frame.seen()))
            .into()
    }

    /// The text of the cursor inside the frame that was passed last, behind its first records.
    pub(crate) fn cursor_within(&self, frame: &Delivered, records: u32) -> String {
        let mut cursor = self.resumed.cursor(frame.seen_before());
        cursor.begun.insert(frame.commit.header.origin, records);
        self.encode_cursor(&cursor)
    }

    /// The text of the cursor before a frame that is not passed.
    pub(crate) fn cursor_before(&self, frame: &Delivered) -> String {
        self.encode_cursor(&self.resumed.cursor(frame.seen_before()))
    }

    /// The opaque text of a cursor.
    pub(crate) fn encode_cursor(&self, cursor: &Cursor) -> String {
        cursor.encode(self.running.cluster())
    }

    /// Waits for what comes next. Cancel-safe.
    ///
    /// # Errors
    /// When the stream was deleted, the place was trimmed away, or the broker stops.
    pub(crate) async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.next_held().await? {
                return Ok(event);
            }
            self.wait().await;
        }
    }

    /// What comes next of what is there already; `None` when all of it was given. Cancel-safe.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub(crate) async fn next_held(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.rows().await? {
                return Ok(Some(event));
            }
            if self.live_at.is_some_and(|live| self.position >= live) {
                self.live_at = None;
                return Ok(Some(Event::Live(self.cursor()?)));
            }
            self.changed.mark_unchanged();
            self.running.check_phase()?;
            self.check_stream()?;
            let frames = match self.tail.look(self.position, STEP_BYTES) {
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
                return Ok(Some(Event::Frames(frames)));
            }
        }
    }

    /// Whether records or rows are there that were not given. Where only some are wanted, goes
    /// on to the first of them, a step at a time. Cancel-safe.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub(crate) async fn ahead(&mut self) -> Result<Ahead, Error> {
        self.changed.mark_unchanged();
        self.running.check_phase()?;
        self.check_stream()?;
        if matches!(self.stage, Stage::Rows(_)) {
            return Ok(Ahead::Something);
        }
        if !self.selection.is_everything() {
            return self.pass_over().await;
        }
        let goes_on = match self.tail.look(self.position, 1) {
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
        let (frames, next) = match self.tail.look(self.position, STEP_BYTES) {
            Look::Frames(frames, next) => (frames, next),
            Look::TooOld => self.step_of_log().await?,
            Look::Empty => return Ok(Ahead::Nothing),
        };
        for frame in self.unseen(frames) {
            if self.is_wanted(&frame)? {
                self.position = frame.position();
                return Ok(Ahead::Something);
            }
        }
        self.position = next;
        Ok(Ahead::Unknown)
    }

    fn is_wanted(&self, frame: &Delivered) -> Result<bool, Error> {
        let skip = self.begun(frame);
        let mut wanted = false;
        let mut each = |_: &Selected<'_>| wanted = true;
        each_selected(
            &frame.commit,
            &self.definition,
            &self.selection,
            skip,
            &mut each,
        )?;
        Ok(wanted)
    }

    /// Whether the log holds anything of the stream from here on.
    fn log_goes_on(&self) -> Result<bool, Error> {
        let (reader, stream) = (&self.running.reader, self.definition.id());
        for partition in (0..self.definition.partitions).map(PartitionId::new) {
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

    /// Waits until there may be something. Cancel-safe.
    pub(crate) async fn wait(&mut self) {
        let mut phase = self.running.phase.subscribe();
        tokio::select! {
            // The sender lives in `self.tail`, so this cannot fail.
            _ = self.changed.changed() => {}
            _ = phase.wait_for(|phase| !phase.is_ready()) => {}
        }
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
                    self.running.rows_patience.as_secs()
                ),
            )),
        }
    }

    fn check_stream(&self) -> Result<(), Error> {
        let streams = self.running.tables.streams();
        match streams.get(self.definition.id()) {
            Some(_) => Ok(()),
            None => Err(error::no_such_stream(self.definition.name.as_str())),
        }
    }

    async fn read_log(&mut self) -> Result<Vec<Arc<Delivered>>, Error> {
        let (frames, next) = self.step_of_log().await?;
        self.position = next;
        Ok(frames)
    }

    /// What the log holds next, and where to go on after it.
    async fn step_of_log(&self) -> Result<(Vec<Arc<Delivered>>, Position), Error> {
        let running = Arc::clone(&self.running);
        let filter = self.selection.filter(&self.definition);
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
                let header = &frame.commit.header;
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
