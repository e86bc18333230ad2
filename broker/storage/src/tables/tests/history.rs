//! Commits as the log would give them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchBuilder, Compression, NewRecord, Operation};
use anabranch_core::definition;
use anabranch_core::frame::Commit;
use anabranch_core::id::{BrokerId, Epoch, Origin, PartitionId, StreamId, StreamName};
use anabranch_core::sequencer::{Publish, Sequencer};
use anabranch_core::stream::{MergeMode, SYSTEM_STREAM, StreamDefinition};

use crate::durable::Durable;

pub(crate) type Write<'a> = (&'a [u8], Option<&'a [u8]>);

pub(crate) fn id(name: &str) -> StreamId {
    StreamName::parse(name).unwrap().id()
}

pub(crate) fn batch(writes: &[Write<'_>], compression: Compression) -> Batch {
    let mut builder = BatchBuilder::default();
    for &(key, value) in writes {
        let operation = match value {
            Some(_) => Operation::Put,
            None => Operation::Delete,
        };
        let record = NewRecord {
            operation,
            key: Some(key),
            value,
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    builder.finish_compressed(compression, None).unwrap()
}

/// Writes frames as a broker does.
pub(crate) struct History {
    sequencer: Sequencer,
    /// How many streams of a name were deleted.
    deleted: BTreeMap<String, u32>,
    now_ms: u64,
}

impl History {
    pub(crate) fn of(broker: u64) -> Self {
        let origin = Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        };
        Self {
            sequencer: Sequencer::new(origin),
            deleted: BTreeMap::new(),
            now_ms: 1_000,
        }
    }

    pub(crate) fn frame(&mut self, parts: Vec<(StreamId, Batch)>) -> Durable<Arc<Commit>> {
        self.now_ms += 1;
        let publish = |(stream, batch)| Publish {
            stream,
            partition: PartitionId::new(0),
            batch,
        };
        let group: Vec<_> = parts.into_iter().map(publish).collect();
        let mut open = self.sequencer.open();
        open.add(&group, &mut Vec::new()).unwrap();
        let commit = open.close(self.now_ms).expect("something was added");
        Durable::new(Arc::new(commit))
    }

    pub(crate) fn put(&mut self, stream: &str, writes: &[Write<'_>]) -> Durable<Arc<Commit>> {
        self.frame(vec![(self.id(stream), batch(writes, Compression::None))])
    }

    fn generation(&self, name: &str) -> u32 {
        self.deleted.get(name).copied().unwrap_or(0)
    }

    /// The id of the stream that has the name now.
    pub(crate) fn id(&self, name: &str) -> StreamId {
        let generation = self.generation(name);
        StreamName::parse(name)
            .unwrap()
            .id_of_generation(generation, &[])
    }

    pub(crate) fn create(&mut self, name: &str, merge: MergeMode) -> Durable<Arc<Commit>> {
        let batch = creation(name, merge, self.generation(name));
        self.frame(vec![(id(SYSTEM_STREAM), batch)])
    }

    pub(crate) fn delete(&mut self, name: &str) -> Durable<Arc<Commit>> {
        let batch = deletion(name, self.generation(name));
        *self.deleted.entry(name.to_owned()).or_default() += 1;
        self.frame(vec![(id(SYSTEM_STREAM), batch)])
    }
}

/// The record that makes a stream.
pub(crate) fn creation(name: &str, merge: MergeMode, generation: u32) -> Batch {
    let definition = StreamDefinition {
        generation,
        ..StreamDefinition::new(StreamName::parse(name).unwrap(), merge)
    };
    let value = definition::put_value(&definition);
    batch(
        &[(name.as_bytes(), Some(value.as_bytes()))],
        Compression::None,
    )
}

/// The record that deletes a stream.
pub(crate) fn deletion(name: &str, generation: u32) -> Batch {
    let header = definition::delete_header(generation);
    let header = header
        .as_ref()
        .map(|(name, value)| (*name, Some(value.as_bytes())));
    let mut builder = BatchBuilder::default();
    let record = NewRecord {
        operation: Operation::Delete,
        key: Some(name.as_bytes()),
        headers: header.as_slice(),
        ..NewRecord::default()
    };
    builder.push(&record).unwrap();
    builder.finish(None).unwrap()
}
