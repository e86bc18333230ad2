//! From segment files to the state that writer and readers share.

use std::sync::Arc;

use anabranch_core::id::{Epoch, Origin, Position};
use anabranch_core::sequencer::Sequencer;

use super::super::index::{SegmentIndex, Summary};
use super::super::mark::Proof;
use super::super::room::reserve;
use super::super::scan::{Found, Scanner, look_behind, read_range};
use super::super::seal::{begin_segment, write_seal};
use super::super::segment::{FIRST_ENTRY_AT, Footer};
use super::super::shared::{Active, LoadError, Segment, State, load_sealed};
use super::super::trims::Trims;
use super::inspect::{Inspected, Seal};
use super::{Context, Damage, OpenError, io_at};

/// Brings back the segments that begin at these positions.
pub(super) fn recover(
    context: &mut Context<'_>,
    firsts: &[Position],
    trims: Trims,
) -> Result<(State, Sequencer), OpenError> {
    let mut all = Vec::with_capacity(firsts.len());
    for &first in firsts {
        all.push(context.inspect(first)?);
    }
    context.finish_merging(&mut all)?;
    context.finish_dropping(&mut all, trims.floor().position())?;
    if let Some(last) = all.last_mut() {
        context.doubt_last_index(last)?;
    }
    let (from, sequencer) = context.last_checkpoint(&mut all)?;
    let unsealed = all[from..].iter();
    context.total = unsealed.map(|segment| segment.length).sum();
    let mut walk = Walk {
        context,
        sequencer,
        segments: Vec::new(),
        active: None,
        forgot: None,
    };
    let count = all.len();
    let firsts: Vec<_> = all.iter().map(|segment| segment.first).collect();
    for (number, segment) in all.into_iter().enumerate() {
        let next = firsts.get(number + 1).copied();
        walk.check_joint(&segment)?;
        match segment.seal {
            Seal::Whole(_, ref summary) if number < from => walk.believe(&segment, summary.clone()),
            Seal::Whole(footer, ref summary) => {
                walk.restore(&segment, &footer, summary.clone(), number + 1 == count)?;
            }
            Seal::None | Seal::Damaged(_) => walk.scan(segment, next)?,
        }
    }
    walk.finish(trims)
}

impl Context<'_> {
    /// Removes segments that a cleaner has put together with the one before, and did not get to
    /// remove.
    fn finish_merging(&self, all: &mut Vec<Inspected>) -> Result<(), OpenError> {
        let mut at = 0;
        while let [before, segment, ..] = &all[at..] {
            let held = match &before.seal {
                Seal::Whole(footer, _) | Seal::Damaged(footer) => footer.next,
                Seal::None => before.first,
            };
            if segment.first >= held {
                at += 1;
                continue;
            }
            self.disk
                .remove(&segment.path)
                .and_then(|()| self.disk.sync_dir(&self.dir))
                .map_err(segment.io("remove"))?;
            all.remove(at + 1);
        }
        Ok(())
    }

    /// Removes segments below the floor that a cleaner did not get to remove.
    fn finish_dropping(&self, all: &mut Vec<Inspected>, floor: Position) -> Result<(), OpenError> {
        while let [first, second, ..] = all.as_slice()
            && second.first <= floor
        {
            self.disk.remove(&first.path).map_err(first.io("remove"))?;
            self.disk
                .sync_dir(&self.dir)
                .map_err(io_at("sync", &self.dir))?;
            all.remove(0);
        }
        let start = all.first().map(|segment| segment.first);
        match start.or(self.mark.map(|mark| mark.position)) {
            Some(start) if start > floor => Err(OpenError::Missing {
                path: self.dir.clone(),
                from: floor,
                to: start,
            }),
            _ => Ok(()),
        }
    }

    /// The last segment may be written on, for which its whole index is needed.
    fn doubt_last_index(&self, last: &mut Inspected) -> Result<(), OpenError> {
        let Seal::Whole(footer, _) = last.seal else {
            return Ok(());
        };
        match load_sealed(self.disk, &last.path, last.id) {
            Ok(_) => Ok(()),
            Err(LoadError::Io(error)) => Err(last.io("read")(error)),
            Err(LoadError::Replaced | LoadError::Index(_)) => {
                last.seal = Seal::Damaged(footer);
                Ok(())
            }
        }
    }

    /// The first segment that cannot be taken by its seal alone, and the state before it. A
    /// checkpoint that is damaged makes its segment one of those.
    fn last_checkpoint(&self, all: &mut [Inspected]) -> Result<(usize, Sequencer), OpenError> {
        let whole = |segment: &Inspected| matches!(segment.seal, Seal::Whole(..));
        let mut from = all.iter().take_while(|segment| whole(segment)).count();
        while let Some(segment) = from.checked_sub(1).map(|before| &mut all[before]) {
            if let Seal::Whole(footer, _) = segment.seal {
                if let Some(state) = segment.checkpoint(&footer)? {
                    return Ok((from, state));
                }
                segment.seal = Seal::Damaged(footer);
            }
            from -= 1;
        }
        match all.first() {
            Some(first) if first.first > Position::default() => Err(first.damage(
                0,
                first.first,
                "the state before it is lost, since no checkpoint before the first segment to be scanned reads well",
            )),
            _ => Ok((0, Sequencer::new(self.origin_of(Epoch::new(1))))),
        }
    }

    fn origin_of(&self, epoch: Epoch) -> Origin {
        let broker = self.identity.broker;
        Origin { broker, epoch }
    }
}

/// The walk over all segments, in order.
struct Walk<'a, 'b> {
    context: &'a mut Context<'b>,
    /// The state at the end of the segments that were scanned or restored.
    sequencer: Sequencer,
    segments: Vec<Arc<Segment>>,
    active: Option<Active>,
    /// The segment of which a gap was replayed, if no checkpoint came after it: what the frames in
    /// the gap told of producers is not in the state.
    forgot: Option<Damage>,
}

impl Walk<'_, '_> {
    /// A segment begins where the one before ends.
    fn check_joint(&self, segment: &Inspected) -> Result<(), OpenError> {
        let Some(before) = self.segments.last().map(|before| &before.summary) else {
            return Ok(());
        };
        if before.next < segment.first {
            return Err(OpenError::Missing {
                path: self.context.dir.clone(),
                from: before.next,
                to: segment.first,
            });
        }
        let joined = match &segment.seal {
            Seal::Whole(_, summary) => summary.base == before.vector_after(),
            Seal::None | Seal::Damaged(_) => true,
        };
        if before.next == segment.first && joined {
            return Ok(());
        }
        Err(segment.damage(
            0,
            segment.first,
            "the segment does not continue the one before",
        ))
    }

    fn believe(&mut self, segment: &Inspected, summary: Summary) {
        let sealed = Segment::sealed(segment.id, segment.path.clone(), summary);
        self.segments.push(Arc::new(sealed));
    }

    /// Takes a sealed segment that follows one that was scanned, or is the last.
    fn restore(
        &mut self,
        segment: &Inspected,
        footer: &Footer,
        summary: Summary,
        is_last: bool,
    ) -> Result<(), OpenError> {
        match segment.checkpoint(footer)? {
            Some(state) => {
                self.sequencer = state;
                self.forgot = None;
            }
            None => return self.rescan(segment, is_last),
        }
        self.believe(segment, summary);
        Ok(())
    }

    fn rescan(&mut self, segment: &Inspected, is_last: bool) -> Result<(), OpenError> {
        let again = Inspected {
            path: segment.path.clone(),
            file: Arc::clone(&segment.file),
            seal: match segment.seal {
                Seal::Whole(footer, _) | Seal::Damaged(footer) => Seal::Damaged(footer),
                Seal::None => Seal::None,
            },
            ..*segment
        };
        let next = match &again.seal {
            Seal::Damaged(footer) if !is_last => Some(footer.next),
            _ => None,
        };
        self.scan(again, next)
    }

    /// Reads a segment entry by entry. `next` is where the following segment begins.
    fn scan(&mut self, segment: Inspected, next: Option<Position>) -> Result<(), OpenError> {
        let (index, fault) = self.replay(&segment)?;
        self.take_checkpoint(&segment)?;
        let (at, position) = (index.end(), index.next());
        let behind = look_behind(&*segment.file, segment.id, at, segment.length)
            .map_err(segment.io("read"))?;
        let sealed_to = match segment.seal {
            Seal::Damaged(footer) => footer.next,
            _ => Position::default(),
        };
        // A following segment is begun only when everything before it is durable.
        let marked = next.unwrap_or_else(|| self.context.marked());
        let durable = behind.durable.max(sealed_to).max(marked);
        if durable > position {
            let what = format!("{fault}; everything below position {durable} was durable");
            return Err(segment.damage(at, position, what));
        }
        if next.is_some_and(|next| next != position) {
            let what = "the following segment begins before this entry";
            return Err(segment.damage(at, position, what));
        }
        if matches!(segment.seal, Seal::Damaged(_)) {
            tracing::warn!(path = %segment.path.display(), "the index was damaged and is rebuilt from the entries");
            self.context.recovery.rebuilt.push(segment.path.clone());
        }
        match next {
            Some(_) => self.seal(segment, &index),
            None => self.go_on_in(segment, index, behind.written_end),
        }
    }

    fn replay(&mut self, segment: &Inspected) -> Result<(SegmentIndex, String), OpenError> {
        let base = self.sequencer.vector();
        let mut index = SegmentIndex::new(segment.first, base, FIRST_ENTRY_AT);
        let end = match segment.seal {
            Seal::Damaged(footer) => footer.entries_end,
            _ => segment.length,
        };
        let mut scanner = Scanner::new(&*segment.file, segment.id, FIRST_ENTRY_AT, end);
        while !scanner.is_at_end() {
            let at = scanner.at();
            let position = index.next();
            let found = match scanner.next(position).map_err(segment.io("read"))? {
                Ok(found) => found,
                Err(fault) => return Ok((index, fault.to_string())),
            };
            match &found {
                Found::Entry(entry) => {
                    self.adopt(entry.commit.header.origin);
                    self.sequencer.replay(&entry.commit)
                }
                Found::Gap(stored) => {
                    // Where frames were dropped here, offsets are gone. Of what a peer has dropped
                    // nothing was known here.
                    if !stored.gap.parts.is_empty() {
                        self.forgot = Some(segment.forgot(at, position));
                    }
                    self.sequencer.pass_over(&stored.gap)
                }
            }
            .map_err(|error| segment.damage(at, position, error))?;
            found.push_to(&mut index);
            self.context.scanned(scanner.at() - at);
        }
        Ok((index, "the entries end there".to_owned()))
    }

    /// An identity that the broker took after the checkpoint was made.
    fn adopt(&mut self, origin: Origin) {
        let taken = self.context.mark.map(|m| self.context.origin_of(m.epoch));
        let proven = self.context.proof.is_whole();
        if proven && taken == Some(origin) && self.sequencer.origin() != origin {
            self.sequencer.take_origin(origin);
        }
    }

    fn seal(&mut self, segment: Inspected, index: &SegmentIndex) -> Result<(), OpenError> {
        // What was cut off by a crash is there, but perhaps only in memory.
        segment.file.sync_data().map_err(segment.io("sync"))?;
        let checkpoint = match self.forgot {
            None => self.sequencer.checkpoint(),
            // Behind a gap it cannot be made anew. No later start is to believe what is left.
            Some(_) => Vec::new(),
        };
        let summary = write_seal(&*segment.file, segment.id, index, &checkpoint)
            .map_err(segment.io("seal"))?;
        self.believe(&segment, summary);
        Ok(())
    }

    /// Takes the checkpoint of a segment that was replayed because something else of its seal is
    /// damaged: it knows the producers of batches that are no longer there.
    fn take_checkpoint(&mut self, segment: &Inspected) -> Result<(), OpenError> {
        let Seal::Damaged(footer) = &segment.seal else {
            return Ok(());
        };
        let state = segment.checkpoint(footer)?;
        if let Some(state) = state.filter(|s| s.vector() == self.sequencer.vector()) {
            self.sequencer = state;
            self.forgot = None;
        }
        Ok(())
    }

    /// Makes the last segment the one that is written, without what lies behind its entries.
    fn go_on_in(
        &mut self,
        segment: Inspected,
        index: SegmentIndex,
        written_end: u64,
    ) -> Result<(), OpenError> {
        let end = index.end();
        if let Seal::None = segment.seal {
            self.context.recovery.cut_bytes += written_end - end;
        }
        self.rewrite_tail(&segment, end)?;
        let Inspected { path, file, .. } = segment;
        let bytes = self.context.options.segment_bytes;
        if written_end > end {
            file.truncate(end).map_err(io_at("cut", &path))?;
        }
        reserve(&*file, bytes.max(end))
            .and_then(|_| file.sync_data())
            .map_err(io_at("preallocate", &path))?;
        self.active = Some(Active {
            id: segment.id,
            path,
            file,
            index,
        });
        Ok(())
    }

    /// Writes again what the mark does not know to be durable. After a sync that failed, the
    /// page cache says that it is clean what never reached the disk; only a new write makes the
    /// next sync mean something.
    fn rewrite_tail(&self, segment: &Inspected, end: u64) -> Result<(), OpenError> {
        let from = match self.context.mark {
            Some(mark) if mark.segment == segment.id => mark.offset.clamp(FIRST_ENTRY_AT, end),
            _ => FIRST_ENTRY_AT,
        };
        if self.context.proof != Proof::SameBoot || from == end {
            return Ok(());
        }
        let tail = read_range(&*segment.file, from, end - from).map_err(segment.io("read"))?;
        segment
            .file
            .write_at(&tail, from)
            .map_err(segment.io("write"))
    }

    fn finish(mut self, trims: Trims) -> Result<(State, Sequencer), OpenError> {
        if let Some(damage) = self.forgot {
            return Err(damage.into());
        }
        let active = match self.active.take() {
            Some(active) => active,
            None => self.begin_active()?,
        };
        let next = active.index.next();
        let marked = self.context.marked();
        if marked > next {
            return Err(OpenError::Missing {
                path: self.context.dir.clone(),
                from: next,
                to: marked,
            });
        }
        let mut offsets: hashbrown::HashMap<_, _> = self.sequencer.next_offsets().collect();
        // The sequencer is at the end of the active segment; wanted is its beginning.
        for list in active.index.lists() {
            let first = list.extents.first().map(|extent| extent.base_offset);
            offsets.insert(list.key, first.unwrap_or_default());
        }
        let state = State {
            segments: self.segments,
            active,
            trims: Arc::new(trims),
            offsets,
        };
        Ok((state, self.sequencer))
    }

    /// Opens the last segment again if it was sealed early by a shutdown, or begins a new one.
    fn begin_active(&mut self) -> Result<Active, OpenError> {
        if let [.., before, last] = self.segments.as_slice() {
            // The one before holds the checkpoint from which the reopened one is replayed.
            let (before, last) = (Arc::clone(before), Arc::clone(last));
            return match self.is_short(&last) && before.is_sealed() {
                true => self.reopen(&last),
                false => self.begin_segment(),
            };
        }
        match self.segments.first().cloned() {
            Some(only) if only.summary.first == Position::default() && self.is_short(&only) => {
                self.reopen(&only)
            }
            _ => self.begin_segment(),
        }
    }

    fn is_short(&self, segment: &Segment) -> bool {
        segment.summary.entries_end < self.context.options.segment_bytes / 2
    }

    fn reopen(&mut self, last: &Segment) -> Result<Active, OpenError> {
        self.segments.pop();
        let failed = |source| OpenError::Io {
            action: "reopen",
            path: last.path.clone(),
            source,
        };
        let loaded = match load_sealed(self.context.disk, &last.path, last.id) {
            Ok(loaded) => loaded,
            Err(LoadError::Io(source)) => return Err(failed(source)),
            Err(LoadError::Replaced | LoadError::Index(_)) => {
                return Err(failed(std::io::ErrorKind::InvalidData.into()));
            }
        };
        let end = loaded.index.end();
        let bytes = self.context.options.segment_bytes;
        loaded
            .file
            .truncate(end)
            .and_then(|()| reserve(&*loaded.file, bytes))
            .and_then(|_| loaded.file.sync_data())
            .map_err(failed)?;
        Ok(Active {
            id: loaded.id,
            path: loaded.path,
            file: loaded.file,
            index: loaded.index,
        })
    }

    fn begin_segment(&mut self) -> Result<Active, OpenError> {
        let context = &*self.context;
        let base = self.sequencer.vector();
        let index = SegmentIndex::new(self.sequencer.next_position(), base, FIRST_ENTRY_AT);
        let temp = context.dir.join("first.temp");
        // Without room it begins small: writes are refused until it can grow, reads go on.
        context
            .disk
            .create(&temp)
            .and_then(|file| {
                reserve(&*file, context.options.segment_bytes)?;
                file.sync_data()?;
                let prepared = (temp.as_path(), file);
                begin_segment(
                    context.disk,
                    &context.dir,
                    prepared,
                    context.identity,
                    index,
                )
            })
            .map_err(io_at("begin a segment in", &context.dir))
    }
}
