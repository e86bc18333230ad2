//! A connection that publishes, pipelined, and remembers what was acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anabranch_core::id::{Dot, Offset, Origin, PartitionId, Sequence};
use anabranch_core::producer::ProducerStamp;
use anabranch_protocol::codec::Codec;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{
    AckLevel, AckRow, ClientMessage, Durability, Payload, Publish, ServerMessage,
};
use anabranch_tests::condition::soon;
use anabranch_tests::wire::Wire;

use super::mark::Mark;

/// What a writer does.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) stream: &'static str,
    pub(crate) partition: PartitionId,
    pub(crate) codec: Codec,
    /// The keys it writes to; none in streams of events.
    pub(crate) keys: Vec<String>,
    /// One record in so many deletes; 0 for none.
    pub(crate) delete_every: u32,
    /// Whether a publish that was not answered is sent again, as the same.
    pub(crate) retries: bool,
    /// Records in one publish, at most.
    pub(crate) batch: u32,
    /// Publishes on their way.
    pub(crate) window: usize,
}

/// Records that were sent together.
#[derive(Clone, Debug)]
struct Batch {
    first: u32,
    count: u32,
}

/// A batch that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// Offset of its first record, unless it was a duplicate whose offset is forgotten.
    pub(crate) offset: Option<Offset>,
    /// Global name of its first record, unless it was a duplicate.
    pub(crate) dot: Option<Dot>,
}

/// What all writers of a round look at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Round {
    /// Batches acknowledged in this round.
    pub(crate) acknowledged: Arc<AtomicU64>,
    /// Whether to send nothing new, and end when everything is acknowledged.
    pub(crate) last: Arc<AtomicBool>,
}

/// A writer, which outlives the broker.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) number: u32,
    pub(crate) manner: Manner,
    rng: fastrand::Rng,
    /// Number of the next record.
    pub(crate) next: u32,
    unanswered: VecDeque<Batch>,
    /// Acknowledged and not audited yet.
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// How far the audit has come.
    pub(crate) audited: Audited,
}

/// How far the audit of a writer has come, so that no round looks at everything again.
#[derive(Debug, Default)]
pub(crate) struct Audited {
    /// Records of its partition that were looked at.
    pub(crate) places: usize,
    /// The writer's own record that is due next among them.
    pub(crate) due: u32,
    /// What was acknowledged last for each key, of those below `due`.
    pub(crate) latest: BTreeMap<String, u32>,
}

impl Writer {
    pub(crate) fn new(number: u32, manner: Manner, seed: u64) -> Self {
        Self {
            number,
            manner,
            rng: fastrand::Rng::with_seed(seed ^ u64::from(number)),
            next: 0,
            unanswered: VecDeque::new(),
            acknowledged: Vec::new(),
            audited: Audited::default(),
        }
    }

    /// Publishes until the broker is gone, or everything is acknowledged in the last round.
    pub(crate) async fn run(&mut self, address: SocketAddr, round: &Round) {
        if let Ok(wire) = Wire::try_connect(address, self.manner.codec).await {
            self.publish(wire, round).await;
        }
        if !self.manner.retries {
            // They may be in the log or not; nobody was told.
            self.unanswered.clear();
        }
    }

    async fn publish(&mut self, mut wire: Wire, round: &Round) {
        let again: Vec<Batch> = self.unanswered.iter().cloned().collect();
        for batch in again {
            if self.send(&mut wire, &batch).await.is_err() {
                return;
            }
        }
        loop {
            let last = round.last.load(Ordering::Relaxed);
            while !last && self.unanswered.len() < self.manner.window {
                let batch = self.new_batch();
                self.unanswered.push_back(batch.clone());
                if self.send(&mut wire, &batch).await.is_err() {
                    return;
                }
            }
            if self.unanswered.is_empty() {
                return;
            }
            let next = soon("an acknowledgement", wire.next_unhurried());
            let Ok(incoming) = next.await else { return };
            match incoming.message() {
                ServerMessage::Ack(ack) => {
                    assert_eq!(ack.durability, Durability::Disk);
                    for row in &ack.rows {
                        self.take(row, ack.origin, ack.sequence);
                        round.acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // Only a broker that is about to stop refuses what is sent here.
                ServerMessage::Error(error) => {
                    assert!(error.problem.retryable, "{error:?}");
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn new_batch(&mut self) -> Batch {
        let batch = Batch {
            first: self.next,
            count: self.rng.u32(1..=self.manner.batch),
        };
        self.next += batch.count;
        batch
    }

    async fn send(&self, wire: &mut Wire, batch: &Batch) -> Result<(), String> {
        let Manner {
            stream, partition, ..
        } = self.manner;
        let numbers = batch.first..batch.first + batch.count;
        let producer = self.manner.retries.then_some(ProducerStamp {
            id: u64::from(self.number) + 1000,
            epoch: 0,
            sequence: batch.first,
        });
        let message = ClientMessage::Publish(Publish {
            id: u64::from(batch.first),
            stream: stream.into(),
            partition: Some(partition),
            payload: Payload::Records(numbers.map(|number| self.record(number)).collect()),
            producer,
            ack: AckLevel::Disk,
        });
        wire.try_send(&message).await
    }

    /// The record with this number, always the same.
    fn record(&self, number: u32) -> Record<'static> {
        let value = self.mark(number).value().into_bytes();
        match self.key(number) {
            None => Record::value(value),
            Some(key) if self.deletes(number) => Record::delete(key.as_bytes().to_vec()),
            Some(key) => Record::put(key.as_bytes().to_vec(), value),
        }
        .with_header("number", number.to_string().into_bytes())
    }

    pub(crate) fn mark(&self, number: u32) -> Mark {
        Mark {
            writer: self.number,
            number,
        }
    }

    /// The key that this record is about.
    pub(crate) fn key(&self, number: u32) -> Option<&str> {
        let keys = &self.manner.keys;
        let spread = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let chosen = usize::try_from(spread).unwrap() % keys.len().max(1);
        keys.get(chosen).map(String::as_str)
    }

    pub(crate) fn deletes(&self, number: u32) -> bool {
        self.manner.delete_every > 0 && number.is_multiple_of(self.manner.delete_every)
    }

    fn take(&mut self, row: &AckRow, origin: Origin, sequence: Sequence) {
        let batch = self.unanswered.pop_front().expect("nothing was asked");
        assert_eq!(row.id, u64::from(batch.first), "answers keep the order");
        assert_eq!(row.records, batch.count);
        assert_eq!(row.partition, self.manner.partition);
        self.acknowledged.push(Acknowledged {
            first: batch.first,
            count: batch.count,
            offset: row.offset,
            dot: row.index.map(|index| Dot {
                origin,
                sequence,
                index,
            }),
        });
    }
}
