//! Entries that wait for the next write, as they will lie in the file.
//!
//! Large batches are not copied: the group refers to the bytes that came from the socket, and one
//! vectored write gathers them.

use std::io::{self, IoSlice};
use std::ops::Range;

use anabranch_core::batch::Batch;
use anabranch_core::frame::Commit;
use anabranch_core::gap::Gap;
use anabranch_core::id::Position;
use bytes::Bytes;

use super::{entry, gap};
use crate::disk::DiskFile;

/// A batch of at least this size is referred to; a smaller one is copied, since a slice of a
/// vectored write costs about as much as copying this many bytes.
const REFERRED_BYTES: usize = 4 * 1024;

/// Capacity that the buffer keeps between groups.
const KEPT_BYTES: usize = 8 << 20;

/// Entries, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Everything that is copied.
    copied: Vec<u8>,
    pieces: Vec<Piece>,
    /// Bytes of all pieces before `open`.
    closed: usize,
    /// Where the copied bytes begin that are in no piece yet.
    open: usize,
}

#[derive(Debug)]
enum Piece {
    Copied(Range<usize>),
    Referred(Bytes),
}

impl Group {
    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.closed + self.copied.len() - self.open
    }

    /// Adds an entry and returns its length.
    pub(super) fn push(
        &mut self,
        seed: u32,
        commit: &Commit,
        appended_at: u64,
        durable: Position,
    ) -> usize {
        let before = self.len();
        let length = entry::encode_front(&mut self.copied, seed, commit, appended_at, durable);
        for part in &commit.parts {
            if let Some(batch) = &part.batch {
                let prefix = batch.stored_prefix(part.base_offset);
                self.copied.extend_from_slice(&prefix);
                self.push_stored(batch);
            }
        }
        let padding = before + length - self.len();
        self.copied.resize(self.copied.len() + padding, 0);
        length
    }

    /// Adds a gap and returns its length.
    pub(super) fn push_gap(
        &mut self,
        seed: u32,
        gap: &Gap,
        appended_at: u64,
        durable: Position,
    ) -> usize {
        gap::encode(&mut self.copied, seed, gap, appended_at, durable)
    }

    fn push_stored(&mut self, batch: &Batch) {
        let stored = batch.bytes().slice(entry::BATCH_PREFIX_BYTES..);
        if stored.len() < REFERRED_BYTES {
            self.copied.extend_from_slice(&stored);
            return;
        }
        self.close_piece();
        self.closed += stored.len();
        self.pieces.push(Piece::Referred(stored));
    }

    fn close_piece(&mut self) {
        let copied = self.open..self.copied.len();
        if !copied.is_empty() {
            self.closed += copied.len();
            self.open = copied.end;
            self.pieces.push(Piece::Copied(copied));
        }
    }

    /// Writes all of it.
    pub(super) fn write(&mut self, file: &dyn DiskFile, offset: u64) -> io::Result<()> {
        self.close_piece();
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Copied(range) => IoSlice::new(&self.copied[range.clone()]),
            Piece::Referred(bytes) => IoSlice::new(bytes),
        });
        let mut pieces: Vec<_> = pieces.collect();
        file.write_pieces_at(&mut pieces, offset)
    }

    /// Makes it empty.
    pub(super) fn clear(&mut self) {
        self.copied.clear();
        self.copied.shrink_to(KEPT_BYTES);
        self.pieces.clear();
        self.closed = 0;
        self.open = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anabranch_core::batch::{BatchBuilder, NewRecord};
    use anabranch_core::id::{BrokerId, Epoch, Origin, PartitionId, StreamId};
    use anabranch_core::sequencer::{Publish, Sequencer};

    use super::*;
    use crate::disk::{Disk, MemoryDisk, RealDisk};

    /// A commit with batches whose only record has a value of these sizes.
    fn commit(sequencer: &mut Sequencer, sizes: &[usize]) -> Commit {
        let mut frame = sequencer.open();
        for (n, &size) in (0u64..).zip(sizes) {
            let mut builder = BatchBuilder::default();
            let value = vec![b'v'; size];
            let record = NewRecord {
                value: Some(&value),
                ..NewRecord::default()
            };
            builder.push(&record).unwrap();
            let publish = Publish {
                stream: StreamId::new(n),
                partition: PartitionId::new(0),
                batch: builder.finish(None).unwrap(),
            };
            frame.add(&[publish], &mut Vec::new()).unwrap();
        }
        frame.close(7).unwrap()
    }

    fn check(disk: &dyn Disk, path: &Path, entries: &[&[usize]]) {
        let origin = Origin {
            broker: BrokerId::new(1),
            epoch: Epoch::new(1),
        };
        let mut sequencer = Sequencer::new(origin);
        let file = disk.create(path).unwrap();
        let mut group = Group::default();
        let mut at = 0;
        // Twice, since a group is used again.
        for _ in 0..2 {
            let mut expected = Vec::new();
            for sizes in entries {
                let commit = commit(&mut sequencer, sizes);
                let length = group.push(3, &commit, 5, Position::new(0));
                let before = expected.len();
                entry::encode(&mut expected, 3, &commit, 5, Position::new(0));
                assert_eq!(length, expected.len() - before, "{sizes:?}");
            }
            assert_eq!(group.len(), expected.len());
            group.write(&*file, at).unwrap();
            let mut found = vec![0; expected.len()];
            file.read_at(&mut found, at).unwrap();
            assert!(found == expected, "{entries:?}");
            at += group.len() as u64;
            group.clear();
            assert_eq!(group.len(), 0);
        }
    }

    #[test]
    fn a_group_lies_in_the_file_as_its_entries_one_behind_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let many: &[usize] = &[REFERRED_BYTES; 240];
        let groups: [&[&[usize]]; 6] = [
            &[&[1]],
            &[&[100_000]],
            &[&[REFERRED_BYTES - 1, REFERRED_BYTES], &[1, 50_000, 3, 2]],
            &[&[50_000, 50_001, 50_002], &[9], &[50_003]],
            // More pieces than one call to the operating system takes.
            &[many, &[1], many, many],
            &[&[3 << 20], &[1], &[3 << 20]],
        ];
        for entries in groups {
            check(&MemoryDisk::new(1), Path::new("/group"), entries);
            check(&RealDisk, &dir.path().join("group"), entries);
        }
    }
}
