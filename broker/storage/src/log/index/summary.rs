//! What is kept in memory of every segment, to know which index is worth reading.

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::exchange::Ask;
use anabranch_core::id::{Offset, Origin, PartitionId, Position, Sequence, StreamId};
use anabranch_core::vector::VersionVector;

use super::{Key, OriginRange, SegmentIndex};

/// What a sealed segment holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) first: Position,
    pub(crate) next: Position,
    /// The frames at positions before the first.
    pub(crate) base: VersionVector,
    pub(crate) entries_end: u64,
    /// Entries and gaps.
    pub(crate) entries: u64,
    /// Bytes of entries, not gaps, of which no batch is left.
    pub(crate) hollow: u64,
    pub(crate) origins: Vec<OriginRange>,
    pub(crate) last_timestamp: HybridTimestamp,
    /// When its newest entry was appended.
    pub(crate) last_appended: u64,
    /// Sorted by key.
    pub(crate) partitions: Vec<PartitionSummary>,
}

/// What a segment holds of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartitionSummary {
    pub(crate) key: Key,
    pub(crate) first_offset: Offset,
    pub(crate) next_offset: Offset,
    /// Bytes still stored.
    pub(crate) bytes: u64,
}

impl SegmentIndex {
    /// The summary of the segment as it is now.
    pub(crate) fn summary(&self) -> Summary {
        let partition = |list: &super::ExtentList| PartitionSummary {
            key: list.key,
            first_offset: list.extents[0].base_offset,
            next_offset: list.next_offset(),
            bytes: list.bytes,
        };
        let mut partitions: Vec<_> = self.lists.iter().map(partition).collect();
        partitions.sort_unstable_by_key(|partition| partition.key);
        Summary {
            first: self.first(),
            next: self.next(),
            base: self.base.clone(),
            entries_end: self.end,
            entries: super::super::fields::length(self.len()),
            hollow: self.hollow,
            origins: self.origins.clone(),
            last_timestamp: HybridTimestamp::new(
                self.timestamps.iter().copied().max().unwrap_or(0),
            ),
            last_appended: self.appended.iter().copied().max().unwrap_or(0),
            partitions,
        }
    }
}

impl Summary {
    /// The frames up to its end.
    pub(crate) fn vector_after(&self) -> VersionVector {
        let mut vector = self.base.clone();
        for range in &self.origins {
            vector.advance(range.origin, range.last);
        }
        vector
    }

    /// Whether a frame is in it.
    pub(crate) fn holds(&self, origin: Origin, sequence: Sequence) -> bool {
        self.origins
            .iter()
            .any(|range| range.origin == origin && (range.first..=range.last).contains(&sequence))
    }

    /// Whether it holds a frame that is not in `seen`.
    pub(crate) fn has_unseen(&self, seen: &VersionVector) -> bool {
        self.origins
            .iter()
            .any(|range| range.last > seen.get(range.origin))
    }

    /// Whether it holds a frame that is asked for.
    pub(crate) fn has_asked(&self, ask: &Ask) -> bool {
        self.origins.iter().any(|range| range.has_asked(ask))
    }

    /// The partitions of a stream.
    pub(crate) fn stream(&self, stream: StreamId) -> &[PartitionSummary] {
        let from = self.partitions.partition_point(|p| p.key.0 < stream);
        let to = self.partitions.partition_point(|p| p.key.0 <= stream);
        &self.partitions[from..to]
    }

    /// One partition.
    pub(crate) fn partition(
        &self,
        stream: StreamId,
        partition: PartitionId,
    ) -> Option<&PartitionSummary> {
        let at = self
            .partitions
            .binary_search_by_key(&(stream, partition), |p| p.key)
            .ok()?;
        self.partitions.get(at)
    }
}
