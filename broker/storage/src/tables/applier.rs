//! Folds durable commits into the active image. One thread owns it.

use std::sync::Arc;
use std::thread::JoinHandle;

use anabranch_core::batch::Compression;
use anabranch_core::frame::Commit;
use anabranch_core::id::{Position, StreamId};
use anabranch_core::lww::{self, Folded, Row, Stability};
use anabranch_core::stream::{MergeMode, StreamDefinition};
use parking_lot::RwLockWriteGuard;

use super::error::TablesError;
use super::image::Image;
use super::plan::{Against, Opened, Part, Write, Writes};
use super::shared::{Shared, State};
use super::store::Mark;
use super::stream_map::StreamMap;
use crate::durable::Durable;

/// Writes folded under one lock: whole frames until there are this many. Readers wait for as long
/// as that takes, some 0.1 ms, and what was touched ahead is still in the second-level cache.
const RUN_WRITES: u32 = 1024;

/// Writes that are touched ahead together. Twice as many would not stay in the cache.
const TOUCHED: usize = 2048;

/// The half that writes. Dropping it ends the flusher without flushing.
pub struct Applier {
    shared: Arc<Shared>,
    mark: Mark,
    streams: Arc<StreamMap>,
    history: Option<Box<ReadHistory>>,
    flusher: Option<JoinHandle<()>>,
}

/// Reads the log again from a position on, some of it at a time: frames of a stream, and the
/// position after them.
pub type ReadHistory =
    dyn FnMut(StreamId, Position) -> Result<(Vec<Durable<Arc<Commit>>>, Position), String> + Send;

impl Applier {
    pub(super) fn new(
        shared: Arc<Shared>,
        streams: Arc<StreamMap>,
        flusher: JoinHandle<()>,
    ) -> Self {
        let mark = shared.state.read().mark;
        Self {
            shared,
            mark,
            streams,
            history: None,
            flusher: Some(flusher),
        }
    }

    /// Folds commits. Each frame becomes visible as a whole, before the call returns. Waits for
    /// the flusher when too many images are on their way to it.
    ///
    /// # Errors
    /// When a batch does not read or the store fails. The rest of the run is not applied then,
    /// and neither will anything else be.
    ///
    /// # Panics
    /// When a commit was applied before.
    pub fn apply(&mut self, run: &[Durable<Arc<Commit>>]) -> Result<(), TablesError> {
        let mut rest = run;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(together(rest));
            self.fold(now)?;
            rest = later;
        }
        Ok(())
    }

    fn fold(&mut self, run: &[Durable<Arc<Commit>>]) -> Result<(), TablesError> {
        let streams = Arc::clone(&self.streams);
        let opened = Opened::of(run, self.mark, streams, &self.shared)?;
        if !opened.anew.is_empty() {
            return self.fold_anew(run, opened);
        }
        self.fold_opened(opened)
    }

    fn fold_opened(&mut self, opened: Opened) -> Result<(), TablesError> {
        let writes = opened.writes(self.shared.hasher)?;
        let is_full = loop {
            let ahead = Ahead::of(&self.shared, &opened, &writes)?;
            if let Some(is_full) = self.fold_ahead(&opened, &writes, ahead) {
                break is_full;
            }
        };
        self.mark = opened.mark;
        self.streams = opened.streams;
        if is_full {
            drop(self.shared.freeze()?);
        }
        Ok(())
    }

    /// Folds commits of which one changes how a stream merges, or which of two streams a name means:
    /// the rows of that stream are dropped, and its records before the commit folded again. Until that is done the tables say that they
    /// are where the commit begins; so a start after a crash does it again.
    fn fold_anew(
        &mut self,
        run: &[Durable<Arc<Commit>>],
        opened: Opened,
    ) -> Result<(), TablesError> {
        if run.len() > 1 {
            return run.chunks(1).try_for_each(|commit| self.fold(commit));
        }
        let (streams, end) = (Arc::clone(&opened.streams), opened.mark.applied);
        let dropped = opened.parts.iter().flat_map(|part| part.dropped.iter());
        // One that lost to another of its name may have won again in the same commit.
        let gone = dropped.filter(|&&stream| streams.get(stream).is_none());
        let dropped: Vec<_> = gone.copied().collect();
        self.shared.hold_watermark(true);
        for &stream in &opened.anew {
            tracing::info!(%stream, position = %self.mark.applied, "a stream merges otherwise than it did, or is another one: its rows are folded anew");
            self.shared.state.write().active.drop_stream(stream);
            let folds = |d: &Arc<StreamDefinition>| d.merge != MergeMode::Append;
            if streams.get(stream).is_some_and(folds) {
                self.fold_again(stream, &streams, end)?;
            }
        }
        self.shared.hold_watermark(false);
        // The commit itself may hold records of the stream before its definition.
        let mut opened = Opened::of(run, self.mark, streams, &self.shared)?;
        opened.drop_also(dropped);
        self.fold_opened(opened)
    }

    /// Folds what the log has of a stream before a position.
    fn fold_again(
        &mut self,
        stream: StreamId,
        streams: &Arc<StreamMap>,
        end: Position,
    ) -> Result<(), TablesError> {
        let mut at = Position::default();
        while at < end {
            let Some(history) = &mut self.history else {
                return Err(TablesError::History {
                    what: "nobody reads it".to_owned(),
                });
            };
            let (run, next) = history(stream, at).map_err(|what| TablesError::History { what })?;
            let before = run.partition_point(|commit| commit.position.next() < end);
            let streams = Arc::clone(streams);
            let again = Opened::again(&run[..before], stream, self.mark, streams)?;
            self.fold_opened(again)?;
            at = next;
        }
        Ok(())
    }

    /// Where frames come from that have to be folded again.
    pub fn read_history_with(&mut self, read: Box<ReadHistory>) {
        self.history = Some(read);
    }

    /// Folds a run and tells whether the image is full. `None` when a reader froze the image
    /// since the look ahead: look again.
    pub(super) fn fold_ahead(
        &self,
        opened: &Opened,
        writes: &Writes<'_>,
        ahead: Ahead,
    ) -> Option<bool> {
        let mut state = self.shared.state.write();
        if state.freezes != ahead.freezes {
            return None;
        }
        let active = &mut state.active;
        if let Some(slots) = ahead.slots {
            active.adopt(slots);
        }
        let mut from = 0;
        for (part, &end) in opened.parts.iter().zip(&writes.ends) {
            fold_part(&self.shared, active, part, writes, from..end, &ahead.below);
            from = end;
        }
        active.folded += writes.writes.len();
        active.log_bytes += opened.log_bytes;
        let is_full = self.is_full(active);
        self.publish(state, opened);
        Some(is_full)
    }

    fn publish(&self, mut state: RwLockWriteGuard<'_, State>, opened: &Opened) {
        if !Arc::ptr_eq(&self.streams, &opened.streams) {
            self.shared.streams.store(Arc::clone(&opened.streams));
        }
        self.shared.publish(&mut state, opened.mark);
        // Under load the lock is wanted again at once; readers must not starve.
        RwLockWriteGuard::unlock_fair(state);
    }

    fn is_full(&self, image: &Image) -> bool {
        let options = &self.shared.options;
        image.folded >= options.image_rows
            || image.bytes() >= options.image_bytes
            || image.log_bytes >= options.log_bytes
    }

    /// Notes that the log holds nothing but gaps from what was applied last up to here.
    pub fn pass_to(&mut self, position: Position) {
        if position > self.mark.applied {
            self.mark.applied = position;
            let mut state = self.shared.state.write();
            self.shared.publish(&mut state, self.mark);
        }
    }

    /// Writes everything applied so far into the store and waits for it. For an orderly end, and
    /// for giving memory back when nothing has come for a while.
    ///
    /// # Errors
    /// When the store fails.
    pub fn flush(&mut self) -> Result<(), TablesError> {
        if self.shared.state.read().active.log_bytes > 0 {
            drop(self.shared.freeze()?);
        }
        self.shared.drain()
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.shared.stop();
        if self
            .flusher
            .take()
            .is_some_and(|flusher| flusher.join().is_err())
        {
            tracing::error!("the flusher of the tables panicked");
        }
    }
}

/// How many of these commits to fold under one lock. One that has to be inflated stays alone, since
/// all that is folded together is in memory together.
fn together(run: &[Durable<Arc<Commit>>]) -> usize {
    let mut writes = 0;
    for (n, commit) in run.iter().enumerate() {
        if is_compressed(commit) {
            return n.max(1);
        }
        writes += commit.header.record_count();
        if writes >= RUN_WRITES {
            return n + 1;
        }
    }
    run.len()
}

fn is_compressed(commit: &Commit) -> bool {
    let mut batches = commit.parts.iter().filter_map(|part| part.batch.as_ref());
    batches.any(|batch| batch.compression() != Compression::None)
}

/// What is found out about the image before it is locked for writing.
pub(super) struct Ahead {
    freezes: u64,
    /// Larger slots, if the writes might not fit.
    slots: Option<super::image::Slots>,
    /// Rows below the active image, for the writes that have to be compared; else empty.
    below: Vec<Option<Vec<u8>>>,
}

impl Ahead {
    pub(super) fn of(
        shared: &Shared,
        opened: &Opened,
        writes: &Writes<'_>,
    ) -> Result<Self, TablesError> {
        let state = shared.state.read();
        let freezes = state.freezes;
        let slots = state.active.slots_for(writes.writes.len());
        state.active.touch(&writes.hashes);
        drop(state);
        let mut below = Vec::new();
        if opened.parts.iter().any(|part| part.against == Against::Any) {
            for (write, &hash) in writes.writes.iter().zip(&writes.hashes) {
                let row = shared.stored_below(hash, write.key)?;
                row.as_deref().map(|row| shared.row(row)).transpose()?;
                below.push(row);
            }
        }
        Ok(Self {
            freezes,
            slots,
            below,
        })
    }
}

/// Folds the writes of one part.
fn fold_part(
    shared: &Shared,
    active: &mut Image,
    part: &Part,
    writes: &Writes<'_>,
    range: std::ops::Range<usize>,
    below: &[Option<Vec<u8>>],
) {
    for from in range.clone().step_by(TOUCHED) {
        let to = range.end.min(from + TOUCHED);
        let hashes = &writes.hashes[from..to];
        if writes.hashes.len() > TOUCHED {
            active.touch(hashes);
        }
        for (n, write) in writes.writes[from..to].iter().enumerate() {
            let held = match part.against {
                Against::Older | Against::Settled => None,
                Against::Any => held(active, hashes[n], write, below.get(from + n)),
            };
            let stamp = part.stamp(write);
            let stability = match part.against {
                Against::Settled => Stability::Stable,
                Against::Older | Against::Any => shared.stability(stamp),
            };
            match lww::fold(held, write.value, stamp, stability) {
                Folded::Unchanged => {}
                Folded::Store(row) => active.put(hashes[n], write.key, Some(row)),
                Folded::Remove => active.put(hashes[n], write.key, None),
            }
        }
    }
    for &stream in &part.dropped {
        active.drop_stream(stream);
    }
}

/// The row that a write has to be compared with.
fn held<'a>(
    active: &'a Image,
    hash: super::image::Hash,
    write: &Write<'_>,
    below: Option<&'a Option<Vec<u8>>>,
) -> Option<Row<'a>> {
    let stored = match active.find(hash, write.key) {
        Some(entry) => entry.stored,
        None if active.drops(write.key.stream) => None,
        None => below.and_then(Option::as_deref),
    };
    stored.map(|row| Row::decode(row).expect("images hold what was encoded or checked before"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::history::{History, Write, batch, id};
    use super::*;

    /// Runs of one frame: what is in memory together is bounded.
    #[test]
    fn a_commit_that_has_to_be_inflated_is_folded_alone() {
        let mut history = History::of(1);
        let write: [Write<'_>; 1] = [(b"key", Some(b"value"))];
        let mut frame = |compression| history.frame(vec![(id("rows"), batch(&write, compression))]);
        let run = [
            frame(Compression::None),
            frame(Compression::None),
            frame(Compression::Zstd),
            frame(Compression::Gzip),
            frame(Compression::None),
        ];
        let mut rest = &run[..];
        let mut sizes = Vec::new();
        while !rest.is_empty() {
            let n = together(rest);
            sizes.push(n);
            rest = &rest[n..];
        }
        assert_eq!(sizes, [2, 1, 1, 1]);
    }

    #[test]
    fn frames_are_folded_together_up_to_a_number_of_writes() {
        let mut history = History::of(1);
        let half: Vec<Write<'_>> = vec![(b"key", Some(b"value")); RUN_WRITES as usize / 2];
        let run: Vec<_> = (0..5).map(|_| history.put("rows", &half)).collect();
        assert_eq!(together(&run), 2);
        assert_eq!(together(&run[..1]), 1);
        assert_eq!(together(&[history.create("more", MergeMode::Lww)]), 1);
    }
}
