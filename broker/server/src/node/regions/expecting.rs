//! Publishes that are acknowledged once other regions hold them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anabranch_core::id::{Origin, RegionName, Sequence, StreamId};
use anabranch_core::quorum::Quorum;
use anabranch_protocol::error::Code;
use anabranch_protocol::ws::Durability;
use anabranch_storage::tables::{StreamMap, Tables};

use super::super::Error;
use super::super::publish::{Ack, AckRow, Answer, Window, token_of};
use super::{Regions, State};

/// A publish that is durable here.
pub(in crate::node) struct Expected {
    /// Its frame.
    pub(in crate::node) sequence: Sequence,
    /// Where it has to be.
    pub(in crate::node) quorum: Quorum,
    /// How long it waits; `None` as configured.
    pub(in crate::node) patience: Option<Duration>,
    /// Whom to tell.
    pub(in crate::node) answer: Answer,
    /// Where its batches went.
    pub(in crate::node) rows: Vec<AckRow>,
    /// Given back once it is answered, so that only so many of a connection wait.
    pub(in crate::node) window: Option<Arc<Window>>,
}

/// One that waits, until then.
pub(super) struct Waiting {
    expected: Expected,
    until: Instant,
}

/// What became of one.
pub(super) struct Settled {
    expected: Expected,
    regions: Vec<RegionName>,
    in_time: bool,
}

impl Regions {
    /// Acknowledges a publish once other regions have said that they hold it, or refuses it when that
    /// takes too long.
    pub(in crate::node) fn expect(&self, expected: Expected) {
        // Alone, it asked for nothing but this region, or it would have been refused. Of a broker that
        // stops, nobody waits for more than that.
        let is_alone = self.expected.is_none();
        if is_alone || self.stops.load(Ordering::Acquire) {
            let in_time = expected.quorum.is_met(&BTreeSet::from([&self.region]));
            return self.answer(vec![Settled {
                expected,
                regions: vec![self.region.clone()],
                in_time,
            }]);
        }
        let patience = expected.patience.unwrap_or(self.patience);
        let until = Instant::now() + patience;
        // It is looked at once its own group is in this broker's report, which is next.
        self.state
            .lock()
            .expecting
            .push(Waiting { expected, until });
    }

    /// Refuses those that have waited for long enough. To be called now and then.
    pub(crate) fn look_at_expected(&self) {
        let now = Instant::now();
        let settled = (self.state.lock()).expire_expected(self.own, &self.tables, now);
        self.answer(settled);
    }

    /// Says to all that wait how far it has come: the broker stops.
    pub(in crate::node) fn give_up_expected(&self) {
        self.stops.store(true, Ordering::Release);
        // Longer than any patience.
        let end = Instant::now() + Duration::from_secs(86_400);
        let settled = (self.state.lock()).expire_expected(self.own, &self.tables, end);
        self.answer(settled);
    }

    pub(super) fn answer(&self, settled: Vec<Settled>) {
        for Settled {
            expected,
            regions,
            in_time,
        } in settled
        {
            let Expected {
                sequence,
                quorum,
                answer,
                rows,
                window,
                ..
            } = expected;
            if in_time {
                answer.acknowledge(Ack {
                    origin: self.own,
                    sequence,
                    durability: Durability::Regions,
                    regions,
                    rows,
                });
            } else {
                let names: Vec<_> = regions.iter().map(RegionName::as_str).collect();
                let token = token_of(self.own, sequence).encode(self.cluster);
                answer.refuse(Error::new(
                    Code::RegionsNotReached,
                    format!(
                        "{quorum} was not reached in time; the records are on disk in {} and go on to the others (token {token}): do not publish them again, unless with the numbers of an idempotent producer",
                        names.join(", ")
                    ),
                ));
            }
            // After the answer, so that a connection's window counts it until then.
            drop(window);
        }
    }

    /// Whether a quorum can be reached at all, of regions that may hold all of what goes to these
    /// streams.
    ///
    /// # Errors
    /// When there are no such regions.
    pub(in crate::node) fn check_quorum(
        &self,
        quorum: &Quorum,
        streams: impl Iterator<Item = StreamId> + Clone,
    ) -> Result<(), Error> {
        let state = self.state.lock();
        let mut regions: BTreeSet<&RegionName> = state.mesh.regions();
        let defined = self.tables.streams();
        regions.retain(|region| may_hold(region, &defined, streams.clone()));
        if quorum.is_met(&regions) {
            return Ok(());
        }
        let names: Vec<_> = regions.iter().map(|region| region.as_str()).collect();
        Err(Error::new(
            Code::BadParameter,
            format!(
                "ack={quorum}: there are no such regions that may hold it; there are {}",
                names.join(", ")
            ),
        ))
    }
}

/// Whether a region may hold all of what goes to these streams.
fn may_hold(
    region: &RegionName,
    defined: &StreamMap,
    mut streams: impl Iterator<Item = StreamId>,
) -> bool {
    streams.all(|stream| {
        let definition = defined.get(stream);
        definition.is_none_or(|definition| definition.may_be_in(region))
    })
}

/// Those that wait for the same regions, in the order of their frames.
#[derive(Default)]
pub(super) struct Expecting {
    queues: Vec<(Quorum, VecDeque<Waiting>)>,
}

impl Expecting {
    fn push(&mut self, waiting: Waiting) {
        let quorum = &waiting.expected.quorum;
        // Clients ask for few different ones.
        match self.queues.iter_mut().find(|(held, _)| held == quorum) {
            Some((_, queue)) => queue.push_back(waiting),
            None => self
                .queues
                .push((quorum.clone(), VecDeque::from([waiting]))),
        }
    }
}

impl State {
    /// Takes out those that others hold by now. Who does not hold a frame holds no later one, so of
    /// those that wait for the same only the first are looked at.
    pub(super) fn settle_expected(&mut self, own: Origin, tables: &Tables) -> Vec<Settled> {
        let Self {
            expecting, mesh, ..
        } = self;
        let mut settled = Vec::new();
        if expecting.queues.is_empty() {
            return settled;
        }
        let defined = tables.streams();
        for (quorum, queue) in &mut expecting.queues {
            let mut at = 0;
            while let Some(one) = queue.get(at) {
                let held = mesh.holding(own, one.expected.sequence);
                if !quorum.is_met(&held) {
                    break;
                }
                let held = whole(held, &one.expected, &defined);
                if !quorum.is_met(&held) {
                    at += 1;
                    continue;
                }
                let regions = held.into_iter().cloned().collect();
                if let Some(Waiting { expected, .. }) = queue.remove(at) {
                    settled.push(Settled {
                        expected,
                        regions,
                        in_time: true,
                    });
                }
            }
        }
        expecting.queues.retain(|(_, queue)| !queue.is_empty());
        settled
    }

    /// Takes out those that have waited for long enough.
    fn expire_expected(&mut self, own: Origin, tables: &Tables, now: Instant) -> Vec<Settled> {
        let mut settled = self.settle_expected(own, tables);
        let Self {
            expecting, mesh, ..
        } = self;
        let defined = tables.streams();
        for (_, queue) in &mut expecting.queues {
            for one in std::mem::take(queue) {
                if one.until > now {
                    queue.push_back(one);
                    continue;
                }
                let held = mesh.holding(own, one.expected.sequence);
                let held = whole(held, &one.expected, &defined);
                settled.push(Settled {
                    regions: held.into_iter().cloned().collect(),
                    expected: one.expected,
                    in_time: false,
                });
            }
        }
        expecting.queues.retain(|(_, queue)| !queue.is_empty());
        settled
    }
}

/// Without the regions that hold a stub: they say that they have the frame, too.
fn whole<'a>(
    mut held: BTreeSet<&'a RegionName>,
    expected: &Expected,
    defined: &StreamMap,
) -> BTreeSet<&'a RegionName> {
    let streams = expected.rows.iter().map(|row| row.stream);
    held.retain(|region| may_hold(region, defined, streams.clone()));
    held
}
