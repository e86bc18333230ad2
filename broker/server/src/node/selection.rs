//! Which records of a stream a subscriber wants.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchError, Record, Records, Walk};
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::{Offset, PartitionId};
use anabranch_core::partitioner::partition_of;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::ws::KeyFilter;
use anabranch_storage::durable::Durable;
use anabranch_storage::log::Filter;
use parking_lot::Mutex;

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

/// A frame whose records can be had from its midst on, again and again.
pub(crate) struct Opened {
    pub(crate) commit: Durable<Arc<Commit>>,
    /// The part of which records of its midst were wanted last, and its number.
    part: Mutex<Option<(usize, Arc<OpenedPart>)>>,
}

struct OpenedPart {
    records: Records,
    /// Offset delta of every record, and where it begins.
    starts: Vec<(u32, usize)>,
}

/// Records of a part, from some place on.
pub(crate) struct PartRecords {
    records: Records,
    place: usize,
}

impl PartRecords {
    pub(crate) fn walk(&self) -> Walk<'_> {
        self.records.iter_from(self.place)
    }
}

impl Opened {
    pub(crate) fn new(commit: Durable<Arc<Commit>>) -> Self {
        Self {
            commit,
            part: Mutex::new(None),
        }
    }

    /// Records of a part that has a batch: all whose index in the frame is among these, and perhaps
    /// some before and behind them.
    ///
    /// # Errors
    /// When the batch does not inflate, or a record in it is malformed.
    pub(crate) fn records(
        &self,
        number: usize,
        batch: &Batch,
        indexes: &Range<u32>,
    ) -> Result<PartRecords, BatchError> {
        let part = &self.commit.parts[number];
        let mut held = self.part.lock();
        let is_held = held.as_ref().is_some_and(|(held, _)| *held == number);
        if !is_held {
            let records = batch.records()?;
            if indexes.end >= part.first_index + part.header.records {
                // The last that is wanted of it, most often all.
                return Ok(PartRecords { records, place: 0 });
            }
            *held = Some((number, Arc::new(OpenedPart::new(records)?)));
        }
        let opened = held.as_ref().map(|(_, opened)| Arc::clone(opened));
        drop(held);
        let opened = opened.expect("it is held since above");
        let first = indexes.start.saturating_sub(part.first_index);
        let at = opened.starts.partition_point(|(delta, _)| *delta < first);
        let place = opened.starts.get(at).map(|(_, place)| *place);
        Ok(PartRecords {
            place: place.unwrap_or(opened.records.bytes().len()),
            records: opened.records.clone(),
        })
    }
}

impl OpenedPart {
    fn new(records: Records) -> Result<Self, BatchError> {
        let mut starts = Vec::new();
        let mut walk = records.iter();
        loop {
            let place = walk.place();
            match walk.next() {
                Some(record) => starts.push((record?.offset_delta, place)),
                None => break,
            }
        }
        Ok(Self { records, starts })
    }
}

/// One record that a subscriber wants, with its place.
pub(crate) struct Selected<'a> {
    pub(crate) partition: PartitionId,
    pub(crate) offset: Offset,
    /// Index in its frame.
    pub(crate) index: u32,
    pub(crate) record: Record<'a>,
}

/// Calls `each` with every wanted record of a frame whose index is among these.
///
/// # Errors
/// When a record on disk is malformed.
pub(crate) fn each_selected(
    frame: &Opened,
    definition: &StreamDefinition,
    selection: &Selection,
    indexes: &Range<u32>,
    each: &mut dyn FnMut(&Selected<'_>),
) -> Result<(), Error> {
    let id = definition.id();
    for (number, part) in frame.commit.parts.iter().enumerate() {
        let is_of_it = part.header.stream == id && selection.wants_part(part);
        if !is_of_it || !touches(part, indexes) {
            continue;
        }
        let Some(batch) = &part.batch else { continue };
        let records = match frame.records(number, batch, indexes) {
            Ok(records) => records,
            Err(error) => {
                unreadable_batch(&frame.commit, &error);
                continue;
            }
        };
        for record in records.walk() {
            let record = record.map_err(Error::from)?;
            let index = part.first_index + record.offset_delta;
            if index >= indexes.end {
                break;
            }
            if index < indexes.start || !selection.wants(&record) {
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

/// Whether some of these records of a frame lie in a part.
pub(crate) fn touches(part: &CommitPart, indexes: &Range<u32>) -> bool {
    let end = part.first_index + part.header.records;
    part.first_index < indexes.end && indexes.start < end
}
