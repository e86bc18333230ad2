//! The copy of segments that is being written.

use std::io;

use anabranch_core::frame::Commit;
use anabranch_core::gap::GapBuilder;
use anabranch_core::id::Position;

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
        Ok(footer) => {
            let bytes = read_block(file, footer.checkpoint_at(), footer.checkpoint)?;
            // It is empty where a start could not make it anew.
            Ok(bytes.filter(|bytes| !bytes.is_empty()))
        }
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
            self.begin_gap(commit.parts.len(), appended_at)?;
            self.gaps.add(commit);
            return Ok(());
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
        self.begin_gap(stored.gap.parts.len(), stored.appended_at)?;
        self.gaps.join(stored.gap.clone());
        Ok(())
    }

    /// What names so many partitions is about to be added to the gaps.
    fn begin_gap(&mut self, partitions: usize, appended_at: u64) -> io::Result<()> {
        if !self.gaps.fits(partitions) {
            self.put_gaps()?;
        }
        self.appended_at = self.appended_at.max(appended_at);
        Ok(())
    }

    fn put_gaps(&mut self) -> io::Result<()> {
        if self.gaps.is_empty() {
            return Ok(());
        }
        let appended_at = std::mem::take(&mut self.appended_at);
        for gap in self.gaps.take() {
            // Nothing is cut from a sealed segment, so nothing needs to be proven.
            let durable = Position::default();
            let seed = self.id.seed();
            let bytes = gap::encode(&mut self.buffer, seed, &gap, appended_at, durable);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anabranch_core::clock::HybridTimestamp;
    use anabranch_core::frame::Chain;
    use anabranch_core::gap::{Gap, GapPart};
    use anabranch_core::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Sequence, StreamId};
    use anabranch_core::vector::VersionVector;

    use super::*;
    use crate::disk::{Disk, MemoryDisk};
    use crate::log::scan::Scanner;

    /// A gap of one frame with so many partitions, none of which another such gap has.
    fn gap(position: u64, partitions: u64) -> StoredGap {
        let part = |n: u64| GapPart {
            stream: StreamId::new(position * partitions + n),
            partition: PartitionId::new(0),
            base_offset: Offset::new(0),
            records: 1,
        };
        let gap = Gap {
            position: Position::new(position),
            origin: Origin {
                broker: BrokerId::new(1),
                epoch: Epoch::new(1),
            },
            first: Sequence::new(position + 1),
            frames: 1,
            timestamp: HybridTimestamp::new(0),
            chain: Chain::START,
            context: VersionVector::default(),
            parts: (0..partitions).map(part).collect(),
        };
        StoredGap {
            gap,
            appended_at: 0,
            durable: Position::default(),
            length: 0,
        }
    }

    #[test]
    fn gaps_that_name_many_partitions_are_put_together_only_while_they_can_be_read_again() {
        let disk = MemoryDisk::new(1);
        let file = disk.create(Path::new("/copy")).unwrap();
        let id = SegmentId(7);
        let empty = SegmentIndex::new(Position::default(), VersionVector::default(), 0).summary();
        let mut copy = Copy::new(&*file, id, &empty, true);
        for position in 0..5 {
            copy.pass_over(&gap(position, 30_000)).unwrap();
        }
        let index = copy.finish().unwrap();
        assert_eq!((index.next(), index.len()), (Position::new(5), 3));
        let mut scanner = Scanner::new(&*file, id, FIRST_ENTRY_AT, index.end());
        let mut position = Position::default();
        while !scanner.is_at_end() {
            position = scanner.next(position).unwrap().unwrap().next_position();
        }
        assert_eq!(position, index.next());
    }
}
