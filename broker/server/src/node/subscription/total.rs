//! A place in the order of all records, which is the same in every region.
//!
//! ```text
//! log ──read by origin, a chunk at a time──▶ Merge ──up to the watermark──▶ slices of frames
//! ```
//!
//! Of each origin only one chunk is in memory, however long a silent region keeps the others
//! waiting.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::cursor::{Cursor, Order};
use anabranch_core::id::{Origin, Position, Sequence};
use anabranch_core::total::{self, Merge, Whole};
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::position::From;
use anabranch_storage::log::{Chunk, Filter};
use tokio::sync::watch;

use super::{Ahead, Event, Followed, Given, STEP_BYTES};
use crate::node::selection::Opened;
use crate::node::tail::Look;
use crate::node::{Error, Running, error};

/// Bytes of one origin's frames that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// How long before a moment frames may be stamped that hold records stamped after it, in
/// milliseconds. A frame of the longest batches spans a tenth of that.
const FRAME_SPAN_MS: u64 = 1_000;

type Slice = total::Slice<Arc<Opened>>;

/// A place in the order of all.
pub(crate) struct Total {
    pub(super) followed: Followed,
    merge: Merge<Arc<Opened>>,
    /// Where each origin's frames are read on.
    reading: BTreeMap<Origin, Position>,
    /// Where those of an origin are read from that has not been met.
    unmet: Position,
    /// Whether it is to be said that what was there has been given.
    live: bool,
    /// Whether the client was told of a place: from then on nothing may be missing.
    begun: bool,
    /// What is next, where it was looked at already.
    ready: VecDeque<Slice>,
    /// What was passed, but for the last slice.
    passed: Cursor,
    last: Option<Slice>,
    /// `None` where this broker is alone: then there is nobody to wait for.
    watermark: Option<watch::Receiver<HybridTimestamp>>,
}

impl Total {
    pub(super) fn start(followed: Followed, from: &From) -> Result<Self, Error> {
        let regions = &followed.running.regions;
        let watermark = (!regions.is_alone()).then(|| regions.watermark());
        let mut total = Self {
            followed,
            merge: Merge::after(&Cursor::default()),
            reading: BTreeMap::new(),
            unmet: Position::default(),
            live: false,
            begun: false,
            ready: VecDeque::new(),
            passed: Cursor::default(),
            last: None,
            watermark,
        };
        let cursor = total.seek(from)?;
        total.merge = Merge::after(&cursor);
        total.passed = total.merge.cursor();
        Ok(total)
    }

    /// Finds the place, and says what lies before it.
    fn seek(&mut self, from: &From) -> Result<Cursor, Error> {
        let reader = &self.followed.running.reader;
        let after = match from {
            From::Table => {
                return Err(Error::new(
                    Code::BadFrom,
                    "a table is of one moment of this broker's log, which the order total does not have; begin with order=total from earliest, latest, a time or a cursor, or take order=local",
                ));
            }
            From::Cursor(text) => {
                self.begun = true;
                let cursor = self.followed.cursor(text, Order::Total)?;
                if self.followed.misses(&cursor.seen) {
                    return Err(self.followed.too_old(&cursor)?);
                }
                self.unmet = reader.resume(&cursor.seen);
                return Ok(cursor);
            }
            From::Earliest => HybridTimestamp::ZERO,
            From::Latest => {
                // So that the client knows where to resume before anything comes.
                self.live = true;
                let watermark = self.watermark.as_ref().map(|watermark| *watermark.borrow());
                // Since its start this broker may not have heard of all yet: nothing is known to be the
                // last then but what is here.
                let known = watermark.filter(|watermark| *watermark > HybridTimestamp::ZERO);
                let Some(watermark) = known else {
                    let (end, seen) = self.followed.running.tail.end();
                    self.unmet = end;
                    return Ok(Cursor::after(seen));
                };
                watermark
            }
            From::Time(ms) => {
                let first = HybridTimestamp::from_millis((*ms).min(u64::MAX >> 16)).get();
                HybridTimestamp::new(first.saturating_sub(1))
            }
        };
        let first = after.millis().saturating_sub(FRAME_SPAN_MS);
        self.unmet = reader.at_timestamp(first).max(self.followed.earliest());
        let seen = self.followed.running.vector_before(self.unmet)?;
        Ok(Cursor {
            after,
            ..Cursor::after(seen)
        })
    }

    /// The cursor that stands for the current place, when all of what came was given.
    pub(super) fn cursor(&self) -> Cursor {
        match self.ready.is_empty() {
            true => self.merge.cursor(),
            false => self.passed(),
        }
    }

    /// Passes what is about to be given.
    pub(super) fn pass(&mut self, slice: &Slice) -> Range<u32> {
        if let Some(last) = self.last.replace(slice.clone()) {
            last.note(&mut self.passed, last.records.end);
        }
        slice.records.clone()
    }

    /// The cursor behind what was passed.
    pub(super) fn passed(&self) -> Cursor {
        let mut cursor = self.passed.clone();
        if let Some(last) = &self.last {
            last.note(&mut cursor, last.records.end);
        }
        cursor
    }

    /// The cursor inside the frame of the slice that was passed last, behind its first records.
    pub(super) fn passed_within(&self, slice: &Slice, records: u32) -> Cursor {
        let mut cursor = self.passed.clone();
        slice.note(&mut cursor, records);
        cursor
    }

    pub(super) async fn next_held(&mut self) -> Result<Option<Event>, Error> {
        if std::mem::take(&mut self.live) {
            self.begun = true;
            return Ok(Some(Event::Live(self.cursor())));
        }
        self.look(STEP_BYTES).await?;
        if self.ready.is_empty() {
            return Ok(None);
        }
        self.begun = true;
        let slices = self.ready.drain(..).map(Given::Slice);
        Ok(Some(Event::Frames(slices.collect())))
    }

    pub(super) async fn ahead(&mut self) -> Result<Ahead, Error> {
        // Where all is wanted, one will do.
        let most = match self.followed.selection.is_everything() {
            true => 1,
            false => STEP_BYTES,
        };
        self.look(most).await?;
        let mut dropped = false;
        while let Some(slice) = self.ready.pop_front() {
            if self.followed.wants_of(&slice.item, &slice.records)? {
                self.ready.push_front(slice);
                return Ok(Ahead::Something);
            }
            self.pass(&slice);
            dropped = true;
        }
        Ok(match dropped {
            true => Ahead::Unknown,
            false => Ahead::Nothing,
        })
    }

    /// Waits until the watermark has moved, or the broker stops. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        match &mut self.watermark {
            None => self.followed.wait().await,
            Some(watermark) => tokio::select! {
                // The sender lives in the broker's regions, so this cannot fail.
                _ = watermark.changed() => {}
                () = self.followed.wait() => {}
            },
        }
    }

    /// Gets about so many bytes ready, if there are any and none are. Cancel-safe: what was read
    /// and not taken in is read again.
    async fn look(&mut self, most: usize) -> Result<(), Error> {
        self.followed.changed.mark_unchanged();
        self.followed.running.check_phase()?;
        self.followed.check_stream()?;
        if !self.ready.is_empty() {
            return Ok(());
        }
        // All that was ready has been given.
        self.passed = self.merge.cursor();
        self.last = None;
        let watermark = match &mut self.watermark {
            None => HybridTimestamp::new(u64::MAX),
            Some(watermark) => *watermark.borrow_and_update(),
        };
        // Afterwards, so that it holds everything up to the watermark.
        let (end, here) = self.followed.running.tail.end();
        self.pass_others(end, &here);
        let mut left = most;
        while left > 0 {
            self.read_on(end, &here).await?;
            if !self.take(watermark, &here, &mut left) {
                break;
            }
        }
        Ok(())
    }

    /// Passes frames that came since the last look, where none of them is of the stream: nothing has
    /// to be read to know that.
    fn pass_others(&mut self, end: Position, here: &VersionVector) {
        // Looked at afterwards, so that every frame before the end was there to be seen.
        if !matches!(self.followed.tail.look(self.unmet, 1), Look::Empty) {
            return;
        }
        for (origin, here) in here.iter() {
            if !self.reading.contains_key(&origin) {
                self.merge.pass(origin, here);
            }
        }
        self.unmet = self.unmet.max(end);
    }

    /// Takes slices until some more has to be read, or it is enough; says whether there may be more.
    fn take(&mut self, watermark: HybridTimestamp, here: &VersionVector, left: &mut usize) -> bool {
        while *left > 0 {
            let Some(slice) = self.merge.next(watermark) else {
                return false;
            };
            let origin = slice.origin;
            // A frame counts once, in however many slices it comes.
            let frame = match slice.records.start {
                0 => slice.item.commit.size(),
                _ => 0,
            };
            *left = left.saturating_sub(frame + size_of::<Slice>());
            self.ready.push_back(slice);
            if self.lacks(origin, here.get(origin)) {
                break;
            }
        }
        true
    }

    /// Whether there may be frames of an origin that were not read, and none that were.
    fn lacks(&self, origin: Origin, here: Sequence) -> bool {
        self.merge.lacks(origin) && self.merge.read(origin) < here
    }

    /// Reads until of every origin a frame waits, or none is left.
    async fn read_on(&mut self, end: Position, here: &VersionVector) -> Result<(), Error> {
        loop {
            let lacking = here
                .iter()
                .filter(|&(origin, here)| self.lacks(origin, here));
            let lacking: Vec<_> = lacking
                .map(|(origin, _)| (origin, *self.reading.get(&origin).unwrap_or(&self.unmet)))
                .collect();
            if lacking.is_empty() {
                // Of whom no frame waits, none is left before the end.
                self.reading.retain(|&origin, _| !self.merge.lacks(origin));
                self.unmet = self.unmet.max(end);
                return Ok(());
            }
            let before = self.merge.frontier();
            let running = Arc::clone(&self.followed.running);
            let stream = Filter::Stream(self.followed.definition.id());
            let read = move || read_chunks(&running, &stream, lacking);
            let chunks = tokio::task::spawn_blocking(read)
                .await
                .map_err(|_| error::internal("reading the log panicked"))??;
            // Afterwards, since a trim may come between a look before and the reading.
            if self.begun && self.followed.misses(&before) {
                return Err(self.followed.too_old(&self.passed)?);
            }
            for (origin, chunk) in chunks {
                self.take_in(origin, chunk, end, here.get(origin));
            }
        }
    }

    fn take_in(&mut self, origin: Origin, chunk: Chunk, end: Position, here: Sequence) {
        for commit in chunk.commits {
            let header = &commit.header;
            let parts = header.parts.iter();
            let whole = Whole {
                sequence: header.sequence,
                timestamp: header.timestamp,
                records: parts.map(|part| part.records).sum(),
                item: Arc::new(Opened::new(commit)),
            };
            self.merge.push(origin, whole);
        }
        if chunk.next >= end {
            self.merge.pass(origin, here);
        }
        self.reading.insert(origin, chunk.next);
    }
}

/// Reads on in the frames of these origins.
fn read_chunks(
    running: &Running,
    stream: &Filter,
    origins: Vec<(Origin, Position)>,
) -> Result<Vec<(Origin, Chunk)>, Error> {
    let read = |(origin, from): (Origin, Position)| {
        let filter = Filter::OfOrigin(origin, Box::new(stream.clone()));
        let from = from.max(running.reader.start_position());
        Ok((origin, running.read_log(from, &filter, CHUNK_BYTES)?))
    };
    origins.into_iter().map(read).collect()
}
