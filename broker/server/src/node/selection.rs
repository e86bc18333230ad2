//! Which records of a stream a subscriber wants.

use std::collections::BTreeSet;

use anabranch_core::batch::{BatchError, Record};
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::{Offset, PartitionId};
use anabranch_core::partitioner::partition_of;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::ws::KeyFilter;
use anabranch_storage::log::Filter;

use super::subscription::SubscribeRequest;
use super::{Error, error};

/// Which records of a stream a subscriber wants.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    partitions: Option<BTreeSet<PartitionId>>,
    keys: KeyFilter<'static>,
}

impl Selection {
    pub(super) fn new(
        definition: &StreamDefinition,
        request: &SubscribeRequest,
    ) -> Result<Self, Error> {
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

    pub(super) fn filter(&self, definition: &StreamDefinition) -> Filter {
        match &self.partitions {
            None => Filter::Stream(definition.id()),
            Some(wanted) => Filter::Partitions(definition.id(), wanted.clone()),
        }
    }

    pub(super) fn row_prefix(&self) -> Vec<u8> {
        match &self.keys {
            KeyFilter::All => Vec::new(),
            KeyFilter::Key(key) | KeyFilter::Prefix(key) => key.to_vec(),
        }
    }

    pub(super) fn wants_row(&self, key: &[u8], partitions: u16) -> bool {
        let partition = partition_of(key, partitions);
        let asked = self.partitions.as_ref();
        self.keys.passes(Some(key)) && asked.is_none_or(|asked| asked.contains(&partition))
    }
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
