//! Commits as the log would give them.

use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchBuilder, Compression, NewRecord, Operation};
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
        self.frame(vec![(id(stream), batch(writes, Compression::None))])
    }

    pub(crate) fn create(&mut self, name: &str, merge: MergeMode) -> Durable<Arc<Commit>> {
        let definition = StreamDefinition::new(StreamName::parse(name).unwrap(), merge);
        let json = definition.to_json().to_string();
        self.put(SYSTEM_STREAM, &[(name.as_bytes(), Some(json.as_bytes()))])
    }

    pub(crate) fn delete(&mut self, name: &str) -> Durable<Arc<Commit>> {
        self.put(SYSTEM_STREAM, &[(name.as_bytes(), None)])
    }
}
