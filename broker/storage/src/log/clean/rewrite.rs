//! Writing segments again without what is dead.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchBuilder};
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::{Position, StreamId};
use anabranch_core::vector::VersionVector;
use hashbrown::HashMap;

use super::super::entry::Entry;
use super::super::fields::length;
use super::super::index::SegmentIndex;
use super::super::scan::{Found, Scanner};
use super::super::seal::write_seal;
use super::super::segment::{FIRST_ENTRY_AT, SegmentHeader, SegmentId};
use super::super::shared::{Loaded, Segment};
use super::compact::{Fate, Newest, stamp_of};
use super::copy::{Copy, checkpoint_of};
use super::{CleanError, KEPT_SEGMENTS, REPLACED_PERCENT, Run, TRIMMED_PERCENT};
use crate::disk::DiskFile;

/// What is dead in a segment, in bytes.
#[derive(Clone, Copy, Default)]
struct Dead {
    trimmed: u64,
    replaced: u64,
}

/// Deletes that are dropped: the last frame of each origin that held one.
type Spent = HashMap<StreamId, VersionVector>;

/// What a segment is replaced by.
struct Replacement<'a> {
    file: &'a dyn DiskFile,
    id: SegmentId,
    index: &'a SegmentIndex,
    checkpoint: &'a [u8],
}

impl Run<'_> {
    /// Rewrites the segments of which enough is dead.
    pub(super) fn rewrite_where_due(&mut self, newest: &Newest) -> Result<(), CleanError> {
        let sealed = self.sealed();
        let settled = sealed.len().saturating_sub(KEPT_SEGMENTS);
        for (number, segment) in sealed.iter().enumerate() {
            let is_settled = number < settled;
            let dead = self.dead_in(segment, is_settled, newest)?;
            let all = segment.summary.entries_end;
            let due = dead.trimmed * 100 >= all * TRIMMED_PERCENT
                || (dead.replaced > 0
                    && (dead.trimmed + dead.replaced) * 100 >= all * REPLACED_PERCENT);
            if due && dead.trimmed + dead.replaced > 0 {
                let done = self.rewrite(std::slice::from_ref(segment), is_settled, newest)?;
                self.report.rewritten += usize::from(done);
            }
        }
        Ok(())
    }

    fn dead_in(
        &self,
        segment: &Arc<Segment>,
        is_settled: bool,
        newest: &Newest,
    ) -> Result<Dead, CleanError> {
        let mut dead = Dead::default();
        let summary = &segment.summary;
        let trimmed = summary.partitions.iter().filter(|p| p.bytes > 0);
        let trimmed = trimmed.filter(|p| self.trims.of(p.key.0) > summary.first);
        let trimmed: u64 = trimmed.map(|p| p.bytes).sum();
        let hollow = if is_settled { summary.hollow } else { 0 };
        if trimmed + hollow > 0 {
            let stored: u64 = summary.partitions.iter().map(|p| p.bytes).sum();
            // All but the batches may be dead too, if all of an entry's are.
            let at_most = trimmed + summary.entries_end.saturating_sub(stored);
            if at_most * 100 >= summary.entries_end * TRIMMED_PERCENT {
                dead.trimmed = self.trimmed_in(&self.loaded(segment)?.index, is_settled);
            }
        }
        let compacted = summary.partitions.iter().filter(|p| newest.covers(p.key.0));
        let at_most = dead.trimmed + compacted.map(|p| p.bytes).sum::<u64>();
        if at_most > dead.trimmed && at_most * 100 >= summary.entries_end * REPLACED_PERCENT {
            let loaded = self.loaded(segment)?;
            self.each_found(&loaded, &mut |found| {
                if let Found::Entry(entry) = found {
                    for part in &entry.commit.parts {
                        dead.replaced += replaced_in(entry, part, newest);
                    }
                }
                Ok(())
            })?;
        }
        Ok(dead)
    }

    /// Bytes that are dead by trims: batches, and entries as a whole where they may be dropped.
    fn trimmed_in(&self, index: &SegmentIndex, is_settled: bool) -> u64 {
        let mut alive = vec![!is_settled; index.len()];
        let mut batches = vec![0u64; index.len()];
        for list in index.lists() {
            let kept = index.entry_of(self.trims.of(list.key.0));
            for extent in list.extents.iter().filter(|extent| extent.bytes > 0) {
                let entry = extent.entry as usize;
                if extent.entry < kept {
                    batches[entry] += u64::from(extent.bytes);
                } else {
                    alive[entry] = true;
                }
            }
        }
        let dead = (0u32..).zip(alive.iter().zip(&batches));
        let bytes = dead.map(|(entry, (&alive, &batches))| match alive {
            true => batches,
            false if index.is_gap(entry) => 0,
            false => length(index.place(entry as usize).1),
        });
        bytes.sum()
    }

    /// Reads a segment entry by entry.
    fn each_found(
        &self,
        loaded: &Loaded,
        each: &mut dyn FnMut(&Found) -> io::Result<()>,
    ) -> Result<(), CleanError> {
        let failed = |source| CleanError::Io {
            action: "read",
            path: loaded.path.clone(),
            source,
        };
        let index = &loaded.index;
        let mut scanner = Scanner::new(&*loaded.file, loaded.id, FIRST_ENTRY_AT, index.end());
        let mut position: Position = index.first();
        while !scanner.is_at_end() {
            let offset = scanner.at();
            let found = scanner.next(position).map_err(failed)?;
            let found = found.map_err(|fault| super::ReadError::Damaged {
                path: loaded.path.clone(),
                offset,
                position,
                next: position.next(),
                what: fault.to_string(),
            })?;
            each(&found).map_err(failed)?;
            position = found.next_position();
        }
        Ok(())
    }

    /// Replaces segments that follow each other by one with what is alive of them. Where they are
    /// settled, neighbours of which nothing is left become gaps. Says whether it was done.
    pub(super) fn rewrite(
        &mut self,
        group: &[Arc<Segment>],
        is_settled: bool,
        newest: &Newest,
    ) -> Result<bool, CleanError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(false);
        };
        let failed = |source| CleanError::Io {
            action: "rewrite",
            path: first.path.clone(),
            source,
        };
        let checkpoint = checkpoint_of(&*self.loaded(last)?.file).map_err(failed)?;
        let Some(checkpoint) = checkpoint else {
            tracing::warn!(path = %last.path.display(), "not rewritten, since its checkpoint is damaged");
            return Ok(false);
        };
        let copied = self.copy_and_replace(group, &checkpoint, is_settled, newest);
        if copied.is_err() {
            // Where room was missing, what was written of the copy takes even more of it. Whether
            // it can be removed or not, a start does so.
            let _ = self.shared.disk.remove(&temporary(first));
        }
        copied.map(|()| true)
    }

    fn copy_and_replace(
        &mut self,
        group: &[Arc<Segment>],
        checkpoint: &[u8],
        is_settled: bool,
        newest: &Newest,
    ) -> Result<(), CleanError> {
        let first = &group[0];
        let failed = |source| CleanError::Io {
            action: "rewrite",
            path: first.path.clone(),
            source,
        };
        let disk = &self.shared.disk;
        let id = SegmentId(disk.random().map_err(failed)?);
        let file = disk.create(&temporary(first)).map_err(failed)?;
        let mut copy = Copy::new(&*file, id, &first.summary, is_settled);
        let mut spent = Spent::default();
        for segment in group {
            self.each_found(&*self.loaded(segment)?, &mut |found| match found {
                Found::Gap(gap) => copy.pass_over(gap),
                Found::Entry(entry) => {
                    let commit = self.alive(entry, newest, &mut spent);
                    copy.add(entry, &commit)
                }
            })?;
        }
        let index = copy.finish().map_err(failed)?;
        self.note_deletes(&spent)?;
        let new = Replacement {
            file: &*file,
            id,
            index: &index,
            checkpoint,
        };
        let freed = self.put_in_place(group, &new).map_err(failed)?;
        self.report.freed_bytes += freed;
        Ok(())
    }

    /// Whoever saw what these deletes delete, and not them, is to be told. That has to be on the
    /// disk before the deletes are not.
    fn note_deletes(&mut self, spent: &Spent) -> Result<(), CleanError> {
        let mut moved = false;
        for (&stream, frames) in spent {
            moved |= self.trims.note_deletes(stream, frames);
        }
        if moved { self.save_trims() } else { Ok(()) }
    }

    /// Seals the copy and lets it take the place of the old files. Those who have one of them open
    /// go on reading it. A crash in between leaves files behind whose positions the new one holds
    /// too; a start removes them.
    fn put_in_place(&self, group: &[Arc<Segment>], new: &Replacement<'_>) -> io::Result<u64> {
        let disk = &self.shared.disk;
        let first = &group[0];
        let old = SegmentHeader::read(&*disk.open(&first.path)?)?.map_err(io::Error::other)?;
        assert_eq!(old.id, first.id, "only the cleaner replaces segments");
        let header = SegmentHeader { id: new.id, ..old };
        new.file.write_at(&header.encode(), 0)?;
        let summary = write_seal(new.file, new.id, new.index, new.checkpoint)?;
        let before: u64 = group.iter().map(|s| s.summary.entries_end).sum();
        let freed = before.saturating_sub(summary.entries_end);
        let sealed = Arc::new(Segment::sealed(new.id, first.path.clone(), summary));
        {
            // Together, so that nobody looks for the old file where the new one is.
            let mut state = self.shared.state.write();
            disk.rename(&temporary(first), &first.path)?;
            let at = state.segments.iter().position(|held| held.id == first.id);
            let at = at.expect("only the cleaner removes segments");
            state.segments.splice(at..at + group.len(), [sealed]);
        }
        disk.sync_dir(&self.shared.dir)?;
        for segment in group {
            self.shared.forget(segment.id);
        }
        for segment in &group[1..] {
            disk.remove(&segment.path)?;
        }
        if group.len() > 1 {
            disk.sync_dir(&self.shared.dir)?;
        }
        Ok(freed)
    }

    /// An entry's commit without what is dead.
    fn alive(&self, entry: &Entry, newest: &Newest, spent: &mut Spent) -> Commit {
        let mut commit = entry.commit.clone();
        for part in &mut commit.parts {
            let stream = part.header.stream;
            if commit.position < self.trims.of(stream) {
                part.batch = None;
            } else if newest.covers(stream)
                && let Some(batch) = part.batch.take()
            {
                part.batch = surviving(entry, part, batch, newest, spent);
            }
        }
        commit
    }
}

/// Where a segment's replacement is written.
fn temporary(segment: &Segment) -> PathBuf {
    segment.path.with_extension("temp")
}

/// Bytes of a part's records that are dead by compaction, about.
fn replaced_in(entry: &Entry, part: &CommitPart, newest: &Newest) -> u64 {
    let mut dead = 0;
    let mut all = 0;
    let Some(batch) = part
        .batch
        .as_ref()
        .filter(|_| newest.covers(part.header.stream))
    else {
        return 0;
    };
    let Ok(records) = batch.records() else {
        return 0;
    };
    for record in records.iter() {
        let Ok(record) = record else { return 0 };
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + 8;
        all += bytes;
        if fate(entry, part, &record, newest) != Fate::Alive {
            dead += bytes;
        }
    }
    // Compressed batches are judged by the share that is dead.
    length(batch.len() * dead / all.max(1))
}

fn fate(
    entry: &Entry,
    part: &CommitPart,
    record: &anabranch_core::batch::Record<'_>,
    newest: &Newest,
) -> Fate {
    let place = (part.header.stream, entry.commit.position);
    let stamp = stamp_of(&entry.commit, part, record);
    newest.fate(place, record, stamp, entry.header.appended_at)
}

/// What is left of a batch: itself if all records are alive, or if it cannot be made smaller.
fn surviving(
    entry: &Entry,
    part: &CommitPart,
    batch: Batch,
    newest: &Newest,
    spent: &mut Spent,
) -> Option<Batch> {
    let Ok(records) = batch.records() else {
        return Some(batch);
    };
    let mut builder = BatchBuilder::default();
    for record in records.iter() {
        let Ok(record) = record else {
            return Some(batch);
        };
        let fate = fate(entry, part, &record, newest);
        if fate == Fate::Spent {
            let header = &entry.commit.header;
            let frames = spent.entry(part.header.stream).or_default();
            frames.advance(header.origin, header.sequence);
        }
        if fate == Fate::Alive && builder.push_surviving(&record).is_err() {
            return Some(batch);
        }
    }
    if builder.count() == batch.count() {
        return Some(batch);
    }
    if builder.is_empty() {
        return None;
    }
    Some(builder.finish_compacted(&batch).unwrap_or(batch))
}
