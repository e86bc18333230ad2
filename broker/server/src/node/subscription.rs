//! A subscription: where it stands, and what comes next.
//!
//! It reads from the shared tail while it keeps up and from the log while it does not. Nothing is
//! queued for it: a subscriber that stops asking costs nothing but its place.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::batch::{BatchError, Record};
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::{Offset, PartitionId, Position};
use anabranch_core::partitioner::partition_of;
use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_core::vector::{Cursor, VersionVector};
use anabranch_protocol::error::Code;
use anabranch_protocol::position::From;
use anabranch_protocol::ws::KeyFilter;
use anabranch_storage::log::Filter;
use anabranch_storage::tables::Page;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::tail::{Delivered, Look, StreamTail};
use super::{Error, Running, error};

/// Bytes taken from tail or log at once.
const STEP_BYTES: usize = 1024 * 1024;

/// Pages of a table that are read ahead of a subscriber.
const PAGES_AHEAD: usize = 2;

/// How long a subscriber may take for a page. Meanwhile a moment of the table is held for it.
const ROWS_PATIENCE: Duration = Duration::from_secs(30);

/// Tables that are read whole at the same time; more wait for their turn.
pub(super) const SNAPSHOTS: usize = 4;

/// What to follow.
#[derive(Clone, Debug)]
pub(crate) struct SubscribeRequest {
    pub(crate) stream: String,
    pub(crate) partitions: Option<BTreeSet<PartitionId>>,
    pub(crate) keys: KeyFilter<'static>,
    pub(crate) from: From,
}

/// Which records of a stream a subscriber wants.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    partitions: Option<BTreeSet<PartitionId>>,
    keys: KeyFilter<'static>,
}

impl Selection {
    fn new(definition: &StreamDefinition, request: &SubscribeRequest) -> Result<Self, Error> {
        let count = definition.partitions;
        let beyond = |p: &&PartitionId| p.get() >= count;
        let asked = request.partitions.as_ref();
        if let Some(partition) = asked.and_then(|asked| asked.iter().find(beyond)) {
            return Err(error::no_such_partition(definition, *partition));
        }
        // A key does not tell the partition: whoever publishes may name another than its hash.
        Ok(Self {
            partitions: asked.cloned(),
            keys: request.keys.clone(),
        })
    }

    /// Whether everything of the stream is wanted, so that messages can be shared.
    pub(crate) fn is_everything(&self) -> bool {
        self.partitions.is_none() && self.keys == KeyFilter::All
    }

    /// Which keys are wanted.
    pub(crate) fn keys(&self) -> &KeyFilter<'static> {
        &self.keys
    }

    /// Whether a part may hold something wanted.
    pub(crate) fn wants_part(&self, part: &CommitPart) -> bool {
        let partitions = self.partitions.as_ref();
        partitions.is_none_or(|wanted| wanted.contains(&part.header.partition))
    }

    /// Whether a record is wanted.
    pub(crate) fn wants(&self, record: &Record<'_>) -> bool {
        self.keys.passes(record.key)
    }

    fn filter(&self, definition: &StreamDefinition) -> Filter {
        match &self.partitions {
            None => Filter::Stream(definition.id()),
            Some(wanted) => Filter::Partitions(definition.id(), wanted.clone()),
        }
    }

    fn row_prefix(&self) -> Vec<u8> {
        match &self.keys {
            KeyFilter::All => Vec::new(),
            KeyFilter::Key(key) | KeyFilter::Prefix(key) => key.to_vec(),
        }
    }
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
    /// Frames that the client has seen; those from `position` on are skipped.
    seen: VersionVector,
    /// Records of the frame at this place that the client has seen.
    skip: Option<(Position, u32)>,
    /// When this place is reached, everything that was there at the start has been given.
    live_at: Option<Position>,
    tail: Arc<StreamTail>,
    changed: watch::Receiver<Position>,
}

impl Subscription {
    pub(crate) fn start(running: &Arc<Running>, request: &SubscribeRequest) -> Result<Self, Error> {
        let definition = running.stream(&request.stream)?;
        let selection = Selection::new(&definition, request)?;
        let (tail, changed) = running.tail.follow(definition.id());
        let mut subscription = Self {
            running: Arc::clone(running),
            selection,
            stage: Stage::Frames,
            position: Position::new(0),
            seen: VersionVector::default(),
            skip: None,
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
                let cursor = self.running.cursor(text)?;
                self.position = reader.resume(&cursor.seen);
                self.check_seen(&cursor)?;
                self.skip = Some((self.position, cursor.index)).filter(|(_, index)| *index > 0);
                self.seen = cursor.seen;
            }
        }
        Ok(())
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
            true => Err(self.too_old()?),
            false => Ok(()),
        }
    }

    /// The same for a place that was fallen behind of.
    fn check_place(&self) -> Result<(), Error> {
        match self.position < self.running.reader.gone_to(self.definition.id()) {
            true => Err(self.too_old()?),
            false => Ok(()),
        }
    }

    fn too_old(&self) -> Result<Error, Error> {
        let mut seen = self.running.vector_before(self.earliest())?;
        seen.merge(&self.running.reader.gone(self.definition.id()));
        let oldest = Cursor { seen, index: 0 };
        let name = &self.definition.name;
        let what = match self.definition.merge {
            MergeMode::Append => format!(
                "the cursor lies before what retention has kept of stream {name}; go on from the oldest cursor, or from=table"
            ),
            MergeMode::Lww => format!(
                "deletes that the cursor has not seen are gone from stream {name}; begin again with from=table"
            ),
        };
        let error = Error::new(Code::CursorTooOld, what);
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
                    let sent = handle.block_on(timeout(ROWS_PATIENCE, sender.send(event)));
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
        let mut seen = self.running.vector_before(self.position)?;
        seen.merge(&self.seen);
        Ok(Cursor {
            seen,
            index: self.skip.map_or(0, |(_, index)| index),
        })
    }

    /// How many records of a frame the client has seen; to be asked once for every frame.
    pub(crate) fn skip_in(&mut self, frame: &Delivered) -> u32 {
        match self.skip.take() {
            Some((place, index)) if place == frame.position() => index,
            _ => 0,
        }
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
                return Ok(Some(Event::Frames(frames)));
            }
        }
    }

    /// Whether records or rows may be there that were not given.
    ///
    /// # Errors
    /// As [`Subscription::next`].
    pub(crate) fn is_behind(&mut self) -> Result<bool, Error> {
        self.changed.mark_unchanged();
        self.running.check_phase()?;
        self.check_stream()?;
        if matches!(self.stage, Stage::Rows(_)) {
            return Ok(true);
        }
        match self.tail.look(self.position, 1) {
            Look::Frames(..) => Ok(true),
            Look::TooOld => self.log_goes_on(),
            Look::Empty => Ok(false),
        }
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
                self.position = position;
                Ok(Some(Event::Live(self.cursor()?)))
            }
            Some(RowsEvent::Failed(error)) => Err(error),
            None => Err(Error::new(
                Code::SlowSubscriber,
                format!(
                    "rows of the table were not taken for {} s; begin again from the table",
                    ROWS_PATIENCE.as_secs()
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
        self.check_place()?;
        let running = Arc::clone(&self.running);
        let filter = self.selection.filter(&self.definition);
        let from = self.position.max(running.reader.start_position());
        let (frames, next) =
            tokio::task::spawn_blocking(move || read_delivered(&running, from, &filter))
                .await
                .map_err(|_| error::internal("reading the log panicked"))??;
        self.position = next;
        Ok(frames)
    }

    /// Leaves out what the client has seen by its cursor.
    fn unseen(&mut self, mut frames: Vec<Arc<Delivered>>) -> Vec<Arc<Delivered>> {
        if !self.seen.is_empty() {
            frames.retain(|frame| {
                let header = &frame.commit.header;
                !self.seen.contains(header.origin, header.sequence)
            });
        }
        frames
    }
}

impl Selection {
    fn wants_row(&self, key: &[u8], partitions: u16) -> bool {
        let partition = partition_of(key, partitions);
        let asked = self.partitions.as_ref();
        self.keys.passes(Some(key)) && asked.is_none_or(|asked| asked.contains(&partition))
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

/// A compressed batch that its producer filled with something else than records. Nobody can read
/// it, so it is left out, and must not keep anybody from what follows.
pub(crate) fn unreadable_batch(commit: &Commit, error: &BatchError) {
    metrics::counter!("anabranch_unreadable_batches_total").increment(1);
    tracing::debug!(%error, position = %commit.position, "a batch does not inflate and is left out");
}

/// One record that a subscriber wants, with its place.
pub(crate) struct Selected<'a> {
    pub(crate) partition: PartitionId,
    pub(crate) offset: Offset,
    /// Index in its frame.
    pub(crate) index: u32,
    pub(crate) record: Record<'a>,
}

/// Calls `each` with every wanted record of a frame, after the first `skip` of the frame.
///
/// # Errors
/// When a batch on disk does not inflate.
pub(crate) fn each_selected(
    commit: &Commit,
    definition: &StreamDefinition,
    selection: &Selection,
    skip: u32,
    each: &mut dyn FnMut(&Selected<'_>),
) -> Result<(), Error> {
    let id = definition.id();
    for part in &commit.parts {
        if part.header.stream != id || !selection.wants_part(part) {
            continue;
        }
        let Some(batch) = &part.batch else { continue };
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => {
                unreadable_batch(commit, &error);
                continue;
            }
        };
        for record in records.iter() {
            let record = record.map_err(Error::from)?;
            let index = part.first_index + record.offset_delta;
            if index < skip || !selection.wants(&record) {
                continue;
            }
            each(&Selected {
                partition: part.header.partition,
                offset: part.base_offset.advance(u64::from(record.offset_delta)),
                index,
                record,
            });
        }
    }
    Ok(())
}
