//! What is on its way to the broker, without any connection.
//!
//! Batches of a partition are numbered by their producer's sequence, so the broker takes each
//! once and in order. After a lost connection everything unanswered is sent again, as it was. When
//! a batch is refused, those behind it in its partition are refused too, because their numbers
//! leave a gap: the partition drains until all are answered, then the ones that are left start
//! over under a new producer id. Nothing that the broker has taken is ever sent under a new
//! number.

use std::collections::{BTreeSet, HashMap, VecDeque};

use anabranch_core::batch::{Batch, BatchBuilder, BatchError};
use anabranch_core::id::PartitionId;
use anabranch_core::producer::ProducerStamp;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::record::Record;

use super::gather::Full;

/// Sequences wrap, as in Kafka.
const SEQUENCES: u32 = 1 << 31;

/// The part of a batch that outlives its sending.
pub(super) type Waiting<W> = (PartitionId, W);

/// Batches on their way; `W` is whatever waits for their outcome.
#[derive(Debug)]
pub(super) struct Pipeline<W> {
    lanes: Vec<Lane<W>>,
    /// Which lane a publish belongs to.
    lane_of: HashMap<u64, usize>,
    /// Publishes to be sent, in order.
    outbox: BTreeSet<u64>,
    next_id: u64,
}

#[derive(Debug)]
struct Lane<W> {
    producer: u64,
    /// Sequence of the next batch.
    next: u32,
    queue: VecDeque<Sent<W>>,
    draining: bool,
    /// The broker has taken something of this producer.
    is_known: bool,
    /// Something was refused that may succeed later.
    patient: bool,
}

#[derive(Debug)]
struct Sent<W> {
    id: u64,
    on_its_way: bool,
    batch: Batch,
    waiting: W,
}

/// What to do after a refusal.
#[derive(Debug)]
pub(super) enum Refused<W> {
    /// This batch has failed.
    Failed(Waiting<W>, Problem),
    /// The batch will be sent again.
    Kept,
    /// Nobody waits for it.
    Unknown,
    /// The producer itself is refused: nothing more can be sent.
    Fatal(Problem),
}

impl<W> Pipeline<W> {
    /// An empty one; `producer` makes random ids.
    pub(super) fn new(partitions: u16, mut producer: impl FnMut() -> u64) -> Self {
        let lane = |_| Lane {
            producer: producer(),
            next: 0,
            queue: VecDeque::new(),
            draining: false,
            is_known: false,
            patient: false,
        };
        Self {
            lanes: (0..partitions.max(1)).map(lane).collect(),
            lane_of: HashMap::new(),
            outbox: BTreeSet::new(),
            next_id: 1,
        }
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.lane_of.is_empty()
    }

    /// Takes in a batch.
    pub(super) fn admit(
        &mut self,
        partition: PartitionId,
        builder: BatchBuilder,
        waiting: W,
    ) -> Result<(), BatchError> {
        let at = usize::from(partition.get());
        let lane = &mut self.lanes[at];
        let batch = builder.finish(Some(lane.stamp()))?;
        lane.count(&batch);
        let id = self.next_id;
        self.next_id += 1;
        let to_send = !lane.draining;
        lane.queue.push_back(Sent {
            id,
            on_its_way: false,
            batch,
            waiting,
        });
        self.lane_of.insert(id, at);
        if to_send {
            self.outbox.insert(id);
        }
        Ok(())
    }

    /// Whether something is to be sent.
    pub(super) fn has_next(&self) -> bool {
        self.first_to_send().is_some()
    }

    /// The first that may be sent. Of a producer that the broker does not know yet, one batch goes
    /// ahead: were it refused, the broker could not see the gap before those behind it.
    fn first_to_send(&self) -> Option<u64> {
        let may_go = |&&id: &&u64| {
            let lane = self.lane_of.get(&id).map(|&at| &self.lanes[at]);
            lane.is_some_and(|lane| {
                lane.is_known || lane.queue.front().is_some_and(|first| first.id == id)
            })
        };
        self.outbox.iter().find(may_go).copied()
    }

    /// What is to be sent next; it counts as sent.
    pub(super) fn next(&mut self) -> Option<(u64, PartitionId, Batch)> {
        let id = self.first_to_send()?;
        self.outbox.remove(&id);
        let (at, index) = self.find(id)?;
        let sent = &mut self.lanes[at].queue[index];
        sent.on_its_way = true;
        Some((id, partition(at), sent.batch.clone()))
    }

    /// A publish was acknowledged: it waits no more.
    pub(super) fn acked(&mut self, id: u64) -> Option<Waiting<W>> {
        let &at = self.lane_of.get(&id)?;
        self.lanes[at].is_known = true;
        self.remove(id)
    }

    /// A publish was refused.
    pub(super) fn refused(&mut self, id: u64, problem: Problem) -> Refused<W> {
        let Some((at, index)) = self.find(id) else {
            return Refused::Unknown;
        };
        if problem.code == Code::ProducerFenced {
            return Refused::Fatal(problem);
        }
        let lane = &mut self.lanes[at];
        lane.draining = true;
        lane.queue[index].on_its_way = false;
        // What was sent before, if only on an earlier connection, must still be answered.
        for sent in lane.queue.iter().filter(|sent| !sent.on_its_way) {
            self.outbox.remove(&sent.id);
        }
        if problem.retryable || problem.code == Code::ProducerGap {
            lane.patient |= problem.retryable;
            return Refused::Kept;
        }
        match self.remove(id) {
            Some(waiting) => Refused::Failed(waiting, problem),
            None => Refused::Unknown,
        }
    }

    /// The connection is gone, with the answers that it might have brought: what was on its way is
    /// sent again. Lanes that drain stay as they are until all their batches are answered.
    pub(super) fn disconnected(&mut self) {
        for lane in &mut self.lanes {
            for sent in &mut lane.queue {
                if sent.on_its_way || !lane.draining {
                    self.outbox.insert(sent.id);
                }
                // Still unanswered; a lane only drains when it is sent and answered again.
            }
        }
    }

    /// Whether a partition has drained; and if so, whether to wait before it starts over.
    pub(super) fn drained(&self) -> Option<Pause> {
        let drained = self.lanes.iter().filter(|lane| lane.is_drained());
        drained
            .map(|lane| match lane.patient {
                true => Pause::Backoff,
                false => Pause::None,
            })
            .max()
    }

    /// Starts over in partitions that have drained; `producer` makes random ids.
    pub(super) fn resume(&mut self, mut producer: impl FnMut() -> u64) -> Result<(), BatchError> {
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_drained()) {
            lane.producer = producer();
            lane.next = 0;
            lane.draining = false;
            lane.is_known = false;
            lane.patient = false;
            for index in 0..lane.queue.len() {
                let stamp = lane.stamp();
                let sent = &mut lane.queue[index];
                sent.batch = restamped(&sent.batch, stamp)?;
                let batch = sent.batch.clone();
                self.outbox.insert(sent.id);
                lane.count(&batch);
            }
        }
        Ok(())
    }

    /// Everything, when nothing more can be done.
    pub(super) fn give_up(&mut self) -> Vec<W> {
        self.outbox.clear();
        self.lane_of.clear();
        let lanes = self.lanes.iter_mut();
        lanes
            .flat_map(|lane| lane.queue.drain(..))
            .map(|sent| sent.waiting)
            .collect()
    }

    fn find(&self, id: u64) -> Option<(usize, usize)> {
        let &at = self.lane_of.get(&id)?;
        // Ids rise along a queue.
        let index = self.lanes[at]
            .queue
            .binary_search_by_key(&id, |sent| sent.id);
        Some((at, index.ok()?))
    }

    fn remove(&mut self, id: u64) -> Option<Waiting<W>> {
        let (at, index) = self.find(id)?;
        self.lane_of.remove(&id);
        self.outbox.remove(&id);
        let sent = self.lanes[at].queue.remove(index)?;
        Some((partition(at), sent.waiting))
    }
}

/// Whether to wait before going on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Pause {
    None,
    Backoff,
}

impl<W> Lane<W> {
    fn stamp(&self) -> ProducerStamp {
        ProducerStamp {
            id: self.producer,
            epoch: 0,
            sequence: self.next,
        }
    }

    fn count(&mut self, batch: &Batch) {
        self.next = (self.next + batch.count()) % SEQUENCES;
    }

    fn is_drained(&self) -> bool {
        self.draining && self.queue.iter().all(|sent| !sent.on_its_way)
    }
}

fn partition(lane: usize) -> PartitionId {
    PartitionId::new(u16::try_from(lane).expect("there are at most 65,535 partitions"))
}

/// The same records under another number.
fn restamped(batch: &Batch, stamp: ProducerStamp) -> Result<Batch, BatchError> {
    let mut builder = BatchBuilder::with_capacity(batch.len());
    for record in batch.records()?.iter() {
        Record::from(&record?).push_to(&mut builder, 0)?;
    }
    builder.finish(Some(stamp))
}

/// A batch from callers splits into what is sent and what waits.
pub(super) fn split(full: Full) -> (PartitionId, BatchBuilder, super::worker::Waiter) {
    let waiter = super::worker::Waiter {
        outcome: full.outcome,
        permits: full.permits,
    };
    (full.partition, full.builder, waiter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anabranch_core::id::{Offset, Position, StreamId};
    use anabranch_core::producer::{ProducerTable, Verdict};
    use proptest::prelude::*;

    fn ids() -> impl FnMut() -> u64 {
        let mut next = 100;
        move || {
            next += 1;
            next
        }
    }

    fn builder(text: &str) -> BatchBuilder {
        let mut builder = BatchBuilder::default();
        let record = Record::value(text.as_bytes());
        record.push_to(&mut builder, 1).unwrap();
        builder
    }

    const P0: PartitionId = PartitionId::new(0);

    fn text_of(batch: &Batch) -> String {
        let records = batch.records().unwrap();
        let value = records.iter().next().unwrap().unwrap().value.unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    }

    fn filled(texts: &[&'static str]) -> Pipeline<&'static str> {
        let mut pipeline = Pipeline::new(1, ids());
        pipeline.admit(P0, builder("first"), "first").unwrap();
        let _ = pipeline.next();
        assert!(pipeline.acked(1).is_some());
        for &text in texts {
            pipeline.admit(P0, builder(text), text).unwrap();
        }
        pipeline
    }

    fn sent<W>(pipeline: &mut Pipeline<W>) -> Vec<(u64, ProducerStamp, String)> {
        std::iter::from_fn(|| pipeline.next())
            .map(|(id, _, batch)| (id, batch.producer().unwrap(), text_of(&batch)))
            .collect()
    }

    #[test]
    fn what_is_unanswered_is_sent_again_with_the_same_numbers() {
        let mut pipeline = filled(&["a", "b", "c"]);
        let first = sent(&mut pipeline);
        assert_eq!(pipeline.acked(first[0].0), Some((P0, "a")));
        pipeline.disconnected();
        assert_eq!(sent(&mut pipeline), first[1..]);
        assert!(pipeline.acked(3).is_some() && pipeline.acked(4).is_some());
        assert!(pipeline.is_empty());
        assert_eq!(pipeline.acked(4), None);
    }

    #[test]
    fn a_refused_batch_fails_alone_and_the_rest_starts_over() {
        let mut pipeline = filled(&["a", "b", "c"]);
        let first = sent(&mut pipeline);
        let refused = pipeline.refused(2, Problem::new(Code::KeyMissing, "no key"));
        assert!(matches!(refused, Refused::Failed((P0, "a"), _)));
        pipeline.admit(P0, builder("d"), "d").unwrap();
        assert!(!pipeline.has_next(), "the partition drains first");
        assert_eq!(pipeline.drained(), None);
        let gap = || Problem::new(Code::ProducerGap, "gap");
        assert!(matches!(pipeline.refused(3, gap()), Refused::Kept));
        assert_eq!(pipeline.drained(), None);
        assert!(matches!(pipeline.refused(4, gap()), Refused::Kept));
        assert_eq!(pipeline.drained(), Some(Pause::None));
        pipeline.resume(|| 7).unwrap();
        let mut again = sent(&mut pipeline);
        assert_eq!(again.len(), 1, "one goes ahead of a producer that is new");
        assert!(pipeline.acked(3).is_some());
        again.extend(sent(&mut pipeline));
        let texts: Vec<_> = again.iter().map(|(_, _, text)| text.as_str()).collect();
        assert_eq!(texts, ["b", "c", "d"]);
        let sequences: Vec<_> = again.iter().map(|(_, stamp, _)| stamp.sequence).collect();
        assert_eq!(sequences, [0, 1, 2]);
        assert!(again.iter().all(|(_, stamp, _)| stamp.id == 7));
        assert_ne!(first[0].1.id, 7);
    }

    #[test]
    fn an_overloaded_broker_is_given_time() {
        let mut pipeline = filled(&["a"]);
        let _ = sent(&mut pipeline);
        let refused = pipeline.refused(2, Problem::new(Code::Overloaded, "busy"));
        assert!(matches!(refused, Refused::Kept));
        assert_eq!(pipeline.drained(), Some(Pause::Backoff));
    }

    #[test]
    fn a_batch_that_was_taken_while_its_partition_drains_is_not_sent_again() {
        let mut pipeline = filled(&["a", "b"]);
        let _ = sent(&mut pipeline);
        let _ = pipeline.refused(2, Problem::new(Code::KeyMissing, "no key"));
        // The answer to the second is lost with the connection: it may have been taken.
        pipeline.disconnected();
        let again = sent(&mut pipeline);
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].1.sequence, 2, "under its old number");
        assert!(pipeline.acked(3).is_some());
        assert_eq!(pipeline.drained(), Some(Pause::None));
        pipeline.resume(|| 7).unwrap();
        assert!(!pipeline.has_next());
    }

    /// A broker that judges as the real one does.
    #[derive(Default)]
    struct Broker {
        table: ProducerTable,
        log: Vec<String>,
    }

    impl Broker {
        fn take(&mut self, batch: &Batch, refuse: Option<Code>) -> Result<(), Problem> {
            let (stream, stamp) = (StreamId::new(1), batch.producer().unwrap());
            let verdict = self.table.judge(stream, P0, stamp, batch.count());
            if verdict.map_err(Problem::from)? != Verdict::New {
                return Ok(());
            }
            if let Some(code) = refuse {
                return Err(Problem::new(code, "by chance"));
            }
            let at = self.log.len() as u64;
            let (offset, position) = (Offset::new(at), Position::new(at));
            self.table
                .note(stream, P0, stamp, batch.count(), offset, position);
            self.log.push(text_of(batch));
            Ok(())
        }
    }

    proptest! {
        /// Whatever is refused, lost or cut off: what is acknowledged is in the log once, what
        /// failed is not, and the order holds.
        #[test]
        fn every_batch_counts_once(chances in prop::collection::vec(0u8..20, 1..400)) {
            let mut producer = ids();
            let mut pipeline = Pipeline::new(1, &mut producer);
            let mut broker = Broker::default();
            let (mut acked, mut failed) = (Vec::new(), Vec::new());
            let mut answers = VecDeque::new();
            let mut admitted = 0;
            let mut chances = chances.into_iter();
            loop {
                // When chance has run out, all goes well until everything is answered.
                let chance = chances.next().unwrap_or(if pipeline.is_empty() { 99 } else { 19 });
                if chance < 6 {
                    pipeline.admit(P0, builder(&admitted.to_string()), admitted).unwrap();
                    admitted += 1;
                } else if chance == 6 {
                    answers.clear();
                    pipeline.disconnected();
                } else if chance == 99 {
                    break;
                }
                if let Some((id, _, batch)) = pipeline.next() {
                    let refuse = match chance {
                        7 => Some(Code::KeyMissing),
                        8 => Some(Code::Overloaded),
                        _ => None,
                    };
                    answers.push_back((id, broker.take(&batch, refuse)));
                }
                if chance > 10 && let Some((id, answer)) = answers.pop_front() {
                    match answer {
                        Ok(()) => acked.extend(pipeline.acked(id).map(|(_, w)| w)),
                        Err(problem) => match pipeline.refused(id, problem) {
                            Refused::Failed((_, w), _) => failed.push(w),
                            Refused::Kept => {}
                            other => prop_assert!(false, "{:?}", other),
                        },
                    }
                }
                if pipeline.drained().is_some() {
                    pipeline.resume(&mut producer).unwrap();
                }
            }
            let log: Vec<i32> = broker.log.iter().map(|text| text.parse().unwrap()).collect();
            prop_assert!(log.is_sorted_by(|a, b| a < b), "{:?}", log);
            acked.sort_unstable();
            prop_assert_eq!(&acked, &log);
            prop_assert_eq!(acked.len() + failed.len(), usize::try_from(admitted).unwrap());
        }
    }
}
