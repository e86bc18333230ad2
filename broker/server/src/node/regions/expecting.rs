//! Publishes that are acknowledged once other regions hold them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anabranch_core::id::{Origin, RegionName, Sequence, StreamId};
use anabranch_core::quorum::Quorum;
use anabranch_protocol::error::Code;
use anabranch_protocol::ws::Durability;
use anabranch_storage::tables::{StreamMap, Tables};

use super::super::Error;
use super::super::publish::{Ack, AckRow, Answer, Budget, token_of};
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
    /// Given back once it is answered, so that only so many wait.
    pub(in crate::node) budget: Option<Arc<Budget>>,
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
        if self.expected.is_none() {
            // Alone, it asked for nothing but this region, or it would have been refused.
            return self.answer(vec![Settled {
                expected,
                regions: vec![self.region.clone()],
                in_time: true,
            }]);
        }
        let patience = expected.patience.unwrap_or(self.patience);
        // Nobody waits for a broker that stops.
        let until = match self.stops.load(Ordering::Acquire) {
            false => Instant::now() + patience,
            true => Instant::now(),
        };
        // It is looked at once its own group is in this broker's report, which is next.
        let waiting = Waiting { expected, until };
        self.state.lock().expecting.push_back(waiting);
    }

    /// Refuses those that have waited for long enough. To be called now and then.
    pub(crate) fn look_at_expected(&self) {
        let settled = self.state.lock().settle_expected(self.own, &self.tables);
        self.answer(settled);
    }

    /// Says to all that wait how far it has come: the broker stops.
    pub(in crate::node) fn give_up_expected(&self) {
        self.stops.store(true, Ordering::Release);
        let mut state = self.state.lock();
        let now = Instant::now();
        state.expecting.iter_mut().for_each(|one| one.until = now);
        let settled = state.settle_expected(self.own);
        drop(state);
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
                budget,
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
            drop(budget);
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

impl State {
    /// Takes out those that others hold by now, and those that have waited for long enough.
    pub(super) fn settle_expected(&mut self, own: Origin, tables: &Tables) -> Vec<Settled> {
        if self.expecting.is_empty() {
            return Vec::new();
        }
        let (now, defined) = (Instant::now(), tables.streams());
        let mut settled = Vec::new();
        // Who does not hold a frame does not hold a later one: of many that wait for the same, most
        // need no look.
        let mut unmet: Vec<Quorum> = Vec::new();
        let mut waiting = std::collections::VecDeque::with_capacity(self.expecting.len());
        for one in self.expecting.drain(..) {
            if one.until > now && unmet.contains(&one.expected.quorum) {
                waiting.push_back(one);
                continue;
            }
            let mut held = self.mesh.holding(own, one.expected.sequence);
            if !one.expected.quorum.is_met(&held) && !unmet.contains(&one.expected.quorum) {
                unmet.push(one.expected.quorum.clone());
            }
            // Who has a stub of it says that it has the frame.
            let streams = one.expected.rows.iter().map(|row| row.stream);
            held.retain(|region| may_hold(region, &defined, streams.clone()));
            let in_time = one.expected.quorum.is_met(&held);
            if in_time || one.until <= now {
                settled.push(Settled {
                    expected: one.expected,
                    regions: held.into_iter().cloned().collect(),
                    in_time,
                });
            } else {
                waiting.push_back(one);
            }
        }
        self.expecting = waiting;
        settled
    }
}
