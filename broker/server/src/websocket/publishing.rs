//! From publish messages to checked batches, and on to the writer.

use std::sync::Arc;

use anabranch_core::batch::Batch;
use anabranch_core::id::PartitionId;
use anabranch_core::sequencer::Publish;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::Problem;
use anabranch_protocol::record::{Placement, build_batches};
use anabranch_protocol::ws::{self, Payload};
use bytes::Bytes;

use crate::node::{
    AckSink, Group, Numbered, Running, StreamMap, Wish, check_batch, check_keys, check_partition,
    wall_clock_ms,
};

/// Publishes gathered before they are passed on, if more messages are waiting.
const BATCH_PUBLISHES: usize = 512;

/// The same in bytes.
const BATCH_BYTES: usize = 512 * 1024;

/// One connection's way into the writer.
pub(super) struct Publisher {
    running: Arc<Running>,
    sink: Arc<AckSink>,
    gathered: Vec<Numbered>,
    gathered_bytes: usize,
    /// The stream that was published to last, as of this state of all streams.
    last: Option<(Arc<StreamMap>, Arc<StreamDefinition>)>,
    /// Where the next records without key go.
    keyless: u16,
}

impl Publisher {
    pub(super) fn new(running: Arc<Running>, sink: Arc<AckSink>) -> Self {
        Self {
            running,
            sink,
            gathered: Vec::new(),
            gathered_bytes: 0,
            last: None,
            keyless: 0,
        }
    }

    /// Waits until everything that was passed on has been answered.
    pub(super) async fn all_answered(&self) {
        self.sink.all_delivered().await;
    }

    /// Checks a publish and keeps it until [`Publisher::pass_on`].
    ///
    /// # Errors
    /// When it is refused; others are not concerned.
    pub(super) fn add(&mut self, publish: ws::Publish<'_>, message: &Bytes) -> Result<(), Problem> {
        let definition = self.definition(&publish.stream)?;
        let streams = std::iter::once(definition.id());
        self.running.check_level(&publish.ack, streams)?;
        let group = match publish.payload {
            Payload::Batch(bytes) => {
                // The batch stays where it is: in the message.
                let batch = check_batch(&definition, ws::shared(bytes, message))?;
                let partition = publish.partition.unwrap_or_default();
                Group::One(Publish {
                    stream: definition.id(),
                    partition: check_partition(&definition, partition)?,
                    batch,
                })
            }
            Payload::Records(records) => {
                let placement = Placement {
                    partition: publish.partition,
                    keyless: PartitionId::new(self.keyless % definition.partitions),
                    producer: publish.producer,
                    ..Placement::new(definition.partitions, wall_clock_ms().cast_signed())
                };
                self.keyless = self.keyless.wrapping_add(1);
                check_keys(&definition, records.iter().map(|r| r.key.is_some()))?;
                group_of(&definition, build_batches(&records, &placement)?)
            }
        };
        self.gathered_bytes += group.bytes();
        self.gathered.push(Numbered {
            id: publish.id,
            group,
            wish: Wish {
                level: publish.ack,
                patience: None,
            },
        });
        Ok(())
    }

    /// Whether enough is gathered to pass it on.
    pub(super) fn is_full(&self) -> bool {
        self.gathered.len() >= BATCH_PUBLISHES || self.gathered_bytes >= BATCH_BYTES
    }

    /// Passes on what was gathered. Waits while too much is on its way; meanwhile nothing is read
    /// from the connection, which is how the client is told to slow down.
    ///
    /// # Errors
    /// With the numbers of what was refused, when no writes are taken.
    pub(super) async fn pass_on(&mut self) -> Result<(), (Vec<u64>, Problem)> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        self.gathered_bytes = 0;
        let publishes = std::mem::take(&mut self.gathered);
        let ids: Vec<u64> = publishes.iter().map(|publish| publish.id).collect();
        self.running
            .submit(publishes, &self.sink)
            .await
            .map_err(|problem| (ids, problem))
    }

    fn definition(&mut self, name: &str) -> Result<Arc<StreamDefinition>, Problem> {
        let streams = self.running.tables.streams();
        if let Some((held, definition)) = &self.last
            && Arc::ptr_eq(held, &streams)
            && definition.name.as_str() == name
        {
            return Ok(Arc::clone(definition));
        }
        let definition = self.running.writable_stream(name)?;
        self.last = Some((streams, Arc::clone(&definition)));
        Ok(definition)
    }
}

fn group_of(definition: &StreamDefinition, batches: Vec<(PartitionId, Batch)>) -> Group {
    let publishes: Vec<_> = batches
        .into_iter()
        .map(|(partition, batch)| Publish {
            stream: definition.id(),
            partition,
            batch,
        })
        .collect();
    Group::from(publishes)
}
