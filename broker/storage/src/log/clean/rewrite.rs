//! Writing a segment again without what is dead.

use std::io;
use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchBuilder};
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::Position;

use super::super::entry::{self, Entry};
use super::super::fields::length;
use super::super::index::{NewEntry, SegmentIndex};
use super::super::scan::Scanner;
use super::super::seal::write_seal;
use super::super::segment::{FIRST_ENTRY_AT, Footer, SegmentHeader, SegmentId, read_block};
use super::super::shared::{Loaded, Segment};
use super::compact::{Fate, Newest, stamp_of};
use super::{CleanError, REPLACED_PERCENT, Run, TRIMMED_PERCENT};
use crate::disk::DiskFile;

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 4 << 20;

/// What is dead in a segment, in bytes.
#[derive(Clone, Copy, Default)]
struct Dead {
    trimmed: u64,
    replaced: u64,
}

impl Run<'_> {
    /// Rewrites the segments of which enough is dead.
    pub(super) fn rewrite_where_due(&mut self, newest: &Newest) -> Result<(), CleanError> {
        for segment in self.sealed() {
            let dead = self.dead_in(&segment, newest)?;
            let all = segment.summary.entries_end;
            let due = dead.trimmed * 100 >= all * TRIMMED_PERCENT
                || (dead.replaced > 0
                    && (dead.trimmed + dead.replaced) * 100 >= all * REPLACED_PERCENT);
            if due {
                self.rewrite(&segment, newest)?;
            }
        }
        Ok(())
    }

    fn dead_in(&self, segment: &Arc<Segment>, newest: &Newest) -> Result<Dead, CleanError> {
        let mut dead = Dead::default();
        let summary = &segment.summary;
        for partition in summary.partitions.iter().filter(|p| p.bytes > 0) {
            let trim = self.trims.of(partition.key.0);
            if trim >= summary.next {
                dead.trimmed += partition.bytes;
            } else if trim > summary.first {
                let loaded = self.loaded(segment)?;
                let list = loaded.index.list(partition.key);
                let entry = loaded.index.entry_of(trim);
                let extents = list.map_or(&[][..], |list| &list.extents);
                let before = extents.iter().take_while(|extent| extent.entry < entry);
                dead.trimmed += before.map(|extent| u64::from(extent.bytes)).sum::<u64>();
            }
        }
        let compacted = summary.partitions.iter().filter(|p| newest.covers(p.key.0));
        let at_most = dead.trimmed + compacted.map(|p| p.bytes).sum::<u64>();
        if at_most > dead.trimmed && at_most * 100 >= summary.entries_end * REPLACED_PERCENT {
            let loaded = self.loaded(segment)?;
            self.each_entry(&loaded, &mut |entry| {
                for part in &entry.commit.parts {
                    dead.replaced += replaced_in(entry, part, newest);
                }
                Ok(())
            })?;
        }
        Ok(dead)
    }

    /// Reads a segment entry by entry.
    fn each_entry(
        &self,
        loaded: &Loaded,
        each: &mut dyn FnMut(&Entry) -> io::Result<()>,
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
            let entry = scanner.next(position).map_err(failed)?;
            let entry = entry.map_err(|fault| super::ReadError::Damaged {
                path: loaded.path.clone(),
                offset,
                position,
                next: position.next(),
                what: fault.to_string(),
            })?;
            each(&entry).map_err(failed)?;
            position = position.next();
        }
        Ok(())
    }

    /// Replaces a segment by what is alive of it.
    fn rewrite(&mut self, segment: &Arc<Segment>, newest: &Newest) -> Result<(), CleanError> {
        let loaded = self.loaded(segment)?;
        let temp = segment.path.with_extension("temp");
        let failed = |source| CleanError::Io {
            action: "rewrite",
            path: segment.path.clone(),
            source,
        };
        let disk = &self.shared.disk;
        let checkpoint = checkpoint_of(&*loaded.file).map_err(failed)?;
        let Some(checkpoint) = checkpoint else {
            tracing::warn!(path = %segment.path.display(), "not rewritten, since its checkpoint is damaged");
            return Ok(());
        };
        let id = SegmentId(disk.random().map_err(failed)?);
        let file = disk.create(&temp).map_err(failed)?;
        let mut copy = Copy {
            file: &*file,
            id,
            buffer: Vec::new(),
            written: FIRST_ENTRY_AT,
            index: SegmentIndex::new(
                segment.summary.first,
                segment.summary.base.clone(),
                FIRST_ENTRY_AT,
            ),
        };
        self.each_entry(&loaded, &mut |entry| {
            let commit = self.alive(entry, newest);
            copy.add(entry, &commit)
        })?;
        let index = copy.finish().map_err(failed)?;
        let freed = self
            .put_in_place(segment, (&*file, id), &index, &checkpoint)
            .map_err(failed)?;
        self.report.rewritten += 1;
        self.report.freed_bytes += freed;
        Ok(())
    }

    /// Seals the copy and lets it take the old file's place, first on the disk, then for readers.
    /// Those who have the old file open go on reading it.
    fn put_in_place(
        &self,
        segment: &Arc<Segment>,
        (file, id): (&dyn DiskFile, SegmentId),
        index: &SegmentIndex,
        checkpoint: &[u8],
    ) -> io::Result<u64> {
        let disk = &self.shared.disk;
        let old = SegmentHeader::read(&*disk.open(&segment.path)?)?.map_err(io::Error::other)?;
        assert_eq!(old.id, segment.id, "only the cleaner replaces segments");
        let header = SegmentHeader { id, ..old };
        file.write_at(&header.encode(), 0)?;
        let summary = write_seal(file, id, index, checkpoint)?;
        disk.rename(&segment.path.with_extension("temp"), &segment.path)?;
        disk.sync_dir(&self.shared.dir)?;
        let freed = segment
            .summary
            .entries_end
            .saturating_sub(summary.entries_end);
        let new = Arc::new(Segment::sealed(id, segment.path.clone(), summary));
        let mut state = self.shared.state.write();
        let held = state.segments.iter_mut().find(|held| held.id == segment.id);
        *held.expect("only the cleaner removes segments") = new;
        drop(state);
        self.shared.forget(segment.id);
        Ok(freed)
    }

    /// An entry's commit without what is dead.
    fn alive(&self, entry: &Entry, newest: &Newest) -> Commit {
        let mut commit = entry.commit.clone();
        for part in &mut commit.parts {
            let stream = part.header.stream;
            if commit.position < self.trims.of(stream) {
                part.batch = None;
            } else if newest.covers(stream)
                && let Some(batch) = part.batch.take()
            {
                part.batch = surviving(entry, part, batch, newest);
            }
        }
        commit
    }
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
fn surviving(entry: &Entry, part: &CommitPart, batch: Batch, newest: &Newest) -> Option<Batch> {
    let Ok(records) = batch.records() else {
        return Some(batch);
    };
    let mut builder = BatchBuilder::default();
    for record in records.iter() {
        let Ok(record) = record else {
            return Some(batch);
        };
        let kept = fate(entry, part, &record, newest) == Fate::Alive;
        if kept && builder.push_surviving(&record).is_err() {
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

/// The bytes of a sealed segment's checkpoint; `None` when they are damaged.
fn checkpoint_of(file: &dyn DiskFile) -> io::Result<Option<Vec<u8>>> {
    match Footer::read(file, file.length()?)? {
        Ok(footer) => read_block(file, footer.checkpoint_at(), footer.checkpoint),
        Err(_) => Ok(None),
    }
}

/// The copy of a segment that is being written.
struct Copy<'a> {
    file: &'a dyn DiskFile,
    id: SegmentId,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    written: u64,
    index: SegmentIndex,
}

impl Copy<'_> {
    fn add(&mut self, entry: &Entry, commit: &Commit) -> io::Result<()> {
        let before = self.buffer.len();
        let appended_at = entry.header.appended_at;
        entry::encode(
            &mut self.buffer,
            self.id.seed(),
            commit,
            appended_at,
            entry.header.durable,
        );
        self.index.push(NewEntry {
            commit,
            appended_at,
            length: self.buffer.len() - before,
        });
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.written)?;
        self.written += length(self.buffer.len());
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<SegmentIndex> {
        self.flush()?;
        Ok(self.index)
    }
}
