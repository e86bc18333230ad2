//! Making, changing and deleting streams: writes to the system stream, one at a time.

use std::sync::Arc;

use anabranch_core::batch::{BatchBuilder, NewRecord, Operation};
use anabranch_core::definition;
use anabranch_core::id::{Offset, PartitionId, StreamName};
use anabranch_core::sequencer::Publish;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::Code;
use serde_json::Value;

use super::publish::{Ack, Group, Wish};
use super::{Error, Running, error, wall_clock_ms};

/// What is written of a definition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    /// The stream is this.
    Is,
    /// The stream was this.
    IsGone,
}

/// What became of the wish for a stream.
#[derive(Clone, Debug)]
pub(crate) enum Created {
    /// It is there now.
    New(Arc<StreamDefinition>),
    /// It was there already, defined the same.
    Same(Arc<StreamDefinition>),
}

/// Where the partitions of a stream begin and end.
#[derive(Clone, Debug)]
pub(crate) struct PartitionStatus {
    pub(crate) partition: PartitionId,
    /// Offset of the oldest record kept.
    pub(crate) first: Offset,
    /// Offset of the next record.
    pub(crate) next: Offset,
}

impl Running {
    /// The stream of this name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn stream(&self, name: &str) -> Result<Arc<StreamDefinition>, Error> {
        let streams = self.tables.streams();
        streams
            .by_name(name)
            .cloned()
            .ok_or_else(|| match StreamName::parse(name) {
                Ok(_) => error::no_such_stream(name),
                Err(error) => Error::new(Code::BadStreamName, error.to_string()),
            })
    }

    /// The stream of this name, if its records may be here.
    ///
    /// # Errors
    /// When there is none, or other regions hold it.
    pub(crate) fn held_stream(&self, name: &str) -> Result<Arc<StreamDefinition>, Error> {
        let definition = self.stream(name)?;
        self.residents.check(&definition)?;
        Ok(definition)
    }

    /// The stream of this name, if clients may write to it here.
    ///
    /// # Errors
    /// When there is none, it belongs to the broker, or other regions hold it.
    pub(crate) fn writable_stream(&self, name: &str) -> Result<Arc<StreamDefinition>, Error> {
        let definition = self.changeable_stream(name)?;
        self.residents.check(&definition)?;
        Ok(definition)
    }

    /// The stream of this name, if clients may change it.
    ///
    /// # Errors
    /// When there is none, or it belongs to the broker.
    pub(crate) fn changeable_stream(&self, name: &str) -> Result<Arc<StreamDefinition>, Error> {
        let definition = self.stream(name)?;
        if definition.name.is_system() {
            return Err(Error::new(
                Code::NotPossible,
                format!(
                    "stream {name} belongs to the broker; streams are changed through /v1/streams"
                ),
            ));
        }
        Ok(definition)
    }

    pub(crate) fn partitions(&self, definition: &StreamDefinition) -> Vec<PartitionStatus> {
        (0..definition.partitions)
            .map(PartitionId::new)
            .map(|partition| {
                let (first, next) = self.reader.bounds(definition.id(), partition);
                PartitionStatus {
                    partition,
                    first,
                    next,
                }
            })
            .collect()
    }

    /// Creates a stream, or finds it there as wished.
    pub(crate) async fn create_stream(&self, mut wish: StreamDefinition) -> Result<Created, Error> {
        let _one_at_a_time = self.defining.lock().await;
        let streams = self.tables.streams();
        wish.generation = streams.next_generation(wish.name.as_str());
        if let Some(held) = streams.by_name(wish.name.as_str()) {
            wish.generation = held.generation;
            if **held == wish {
                return Ok(Created::Same(Arc::clone(held)));
            }
            return Err(Error::new(
                Code::StreamExists,
                format!(
                    "stream {} exists and is defined differently: {}; alter the stream, or choose another name",
                    wish.name,
                    held.to_json()
                ),
            ));
        }
        self.write_definition(&wish, Said::Is).await?;
        Ok(Created::New(self.stream(wish.name.as_str())?))
    }

    /// Changes what can change of a stream.
    pub(crate) async fn change_stream(
        &self,
        name: &str,
        change: &Value,
    ) -> Result<Arc<StreamDefinition>, Error> {
        let _one_at_a_time = self.defining.lock().await;
        let held = self.changeable_stream(name)?;
        let changed = held.changed_by(change)?;
        if changed != *held {
            self.write_definition(&changed, Said::Is).await?;
        }
        self.stream(name)
    }

    /// Deletes a stream with its rows; its records go when their segments are cleaned.
    ///
    /// It goes on to its end even if whoever asked for it goes away.
    pub(crate) async fn delete_stream(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let (running, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move { running.delete_to_the_end(&name).await })
            .await
            .map_err(|_| error::internal("deleting a stream panicked"))?
    }

    async fn delete_to_the_end(&self, name: &str) -> Result<(), Error> {
        let _one_at_a_time = self.defining.lock().await;
        let held = self.changeable_stream(name)?;
        self.write_definition(&held, Said::IsGone).await?;
        // The writer refuses publishes to it from here on; what it took before is durable after
        // this, and dropped with the rest.
        self.pass_the_writer().await;
        self.trims.lock().remove(&held.id());
        self.drop_records(held.id()).await;
        // Those who follow it must notice that it is gone.
        self.tail.wake_all();
        Ok(())
    }

    async fn write_definition(
        &self,
        definition: &StreamDefinition,
        said: Said,
    ) -> Result<Ack, Error> {
        let value = definition::put_value(definition);
        let header = definition::delete_header(definition.generation);
        let header = header
            .as_ref()
            .map(|(name, value)| (*name, Some(value.as_bytes())));
        let record = NewRecord {
            timestamp: wall_clock_ms().cast_signed(),
            key: Some(definition.name.as_str().as_bytes()),
            ..NewRecord::default()
        };
        let record = match said {
            Said::Is => NewRecord {
                operation: Operation::Put,
                value: Some(value.as_bytes()),
                ..record
            },
            Said::IsGone => NewRecord {
                operation: Operation::Delete,
                headers: header.as_slice(),
                ..record
            },
        };
        let mut batch = BatchBuilder::default();
        batch.push(&record)?;
        let publish = Publish {
            stream: StreamDefinition::system().id(),
            partition: PartitionId::new(0),
            batch: batch.finish(None)?,
        };
        let group = Group::One(publish);
        let ack = match said {
            Said::Is => self.publish(group, Wish::default()).await?,
            Said::IsGone => self.publish_into_reserve(group, Wish::default()).await?,
        };
        self.wait_applied(self.reader.next_position()).await;
        Ok(ack)
    }
}
