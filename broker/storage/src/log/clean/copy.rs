//! The copy of segments that is being written.

use std::io;

use anabranch_core::frame::Commit;
use anabranch_core::gap::GapBuilder;

use super::super::entry::{self, Entry};
use super::super::fields::length;
use super::super::gap::{self, StoredGap};
use super::super::index::{NewEntry, SegmentIndex, Summary};
use super::super::segment::{FIRST_ENTRY_AT, Footer, SegmentId, read_block};
use crate::disk::DiskFile;

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 4 << 20;

/// The bytes of a sealed segment's checkpoint; `None` when they are damaged.
pub(super) fn checkpoint_of(file: &dyn DiskFile) -> io::Result<Option<Vec<u8>>> {
    match Footer::read(file, file.length()?)? {
        Ok(footer) => read_block(file, footer.checkpoint_at(), footer.checkpoint),
        Err(_) => Ok(None),
    }
}

/// The entries of the copy.
pub(super) struct Copy<'a> {
    file: &'a dyn DiskFile,
    id: SegmentId,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    written: u64,
    index: SegmentIndex,
    /// Whether entries of which nothing is left become gaps.
    with_gaps: bool,
    gaps: GapBuilder,
    /// When the newest frame in `gaps` was appended.
    appended_at: u64,
}

impl<'a> Copy<'a> {
    /// A copy that begins where this segment does.
    pub(super) fn new(
        file: &'a dyn DiskFile,
        id: SegmentId,
        from: &Summary,
        with_gaps: bool,
    ) -> Self {
        Self {
            file,
            id,
            buffer: Vec::new(),
            written: FIRST_ENTRY_AT,
            index: SegmentIndex::new(from.first, from.base.clone(), FIRST_ENTRY_AT),
            with_gaps,
            gaps: GapBuilder::default(),
            appended_at: 0,
        }
    }

    /// Adds what is left of an entry.
    pub(super) fn add(&mut self, entry: &Entry, commit: &Commit) -> io::Result<()> {
        let appended_at = entry.header.appended_at;
        if self.with_gaps && commit.parts.iter().all(|part| part.batch.is_none()) {
            self.gaps.add(commit);
            return self.added_to_gaps(appended_at);
        }
        self.put_gaps()?;
        let before = self.buffer.len();
        let (seed, durable) = (self.id.seed(), entry.header.durable);
        entry::encode(&mut self.buffer, seed, commit, appended_at, durable);
        self.index.push(NewEntry {
            commit,
            appended_at,
            length: self.buffer.len() - before,
        });
        self.flush_if_full()
    }

    /// Adds a gap.
    pub(super) fn pass_over(&mut self, stored: &StoredGap) -> io::Result<()> {
        self.gaps.join(stored.gap.clone());
        self.added_to_gaps(stored.appended_at)
    }

    fn added_to_gaps(&mut self, appended_at: u64) -> io::Result<()> {
        self.appended_at = self.appended_at.max(appended_at);
        if self.gaps.is_full() {
            self.put_gaps()?;
        }
        Ok(())
    }

    fn put_gaps(&mut self) -> io::Result<()> {
        if self.gaps.is_empty() {
            return Ok(());
        }
        let appended_at = std::mem::take(&mut self.appended_at);
        for gap in self.gaps.take() {
            let bytes = gap::encode(&mut self.buffer, self.id.seed(), &gap, appended_at);
            self.index.push_gap(&gap, appended_at, bytes);
        }
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
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

    /// Writes what is left. Returns the index of all.
    pub(super) fn finish(mut self) -> io::Result<SegmentIndex> {
        self.put_gaps()?;
        self.flush()?;
        Ok(self.index)
    }
}
