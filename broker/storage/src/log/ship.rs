//! What a link takes from the log: the frames that a peer asks for, in the order of this log.
//!
//! Frames of other origins are passed over by the index. With seven regions a log holds seven times
//! of what each of its links ships.

use std::sync::Arc;

use anabranch_core::exchange::Ask;
use anabranch_core::frame::Commit;
use anabranch_core::gap::Gap;
use anabranch_core::id::{BrokerId, Origin, Position, RegionName, Sequence, StreamId};
use anabranch_core::residency::{Outgoing, Residency};

use super::fetch::Wanted;
use super::reader::{LogReader, ReadError};
use super::scan::Found;
use super::shared::Segment;
use crate::durable::Durable;

/// A part of what a peer asked for.
#[derive(Clone, Debug)]
pub struct Shipment {
    /// In the order of the log.
    pub items: Vec<Shipped>,
    /// Where to go on.
    pub next: Position,
}

/// What is shipped at once.
#[derive(Clone, Debug)]
pub enum Shipped {
    /// A frame, with what retention and compaction have left of its batches.
    Frame(Durable<Arc<Commit>>),
    /// What stands for frames of which nothing is left, at most one of each origin: just what was
    /// asked for. Their positions and parts are this log's, and mean nothing elsewhere.
    Gaps(Vec<Gap>),
}

impl Shipment {
    /// Leaves of what a broker has read from its log what may go to a region. An origin of which a
    /// part is a stub here, and may be held there, is not asked for any more: neither that frame nor
    /// what comes behind it is shipped. Returns those origins, each with that frame.
    pub fn limit(
        &mut self,
        known: &Residency,
        (own, to): (BrokerId, &RegionName),
        ask: &mut Ask,
    ) -> Vec<(Origin, Sequence)> {
        let mut stops = Vec::new();
        let mut stop = |ask: &mut Ask, origin: Origin, from| {
            if ask.of.remove(&origin.broker) {
                stops.push((origin, from));
            }
        };
        let mut may_go = Vec::with_capacity(self.items.len());
        for item in self.items.drain(..) {
            match item {
                Shipped::Frame(commit) => {
                    let (origin, sequence) = (commit.header.origin, commit.header.sequence);
                    if !ask.of.contains(&origin.broker) {
                        continue;
                    }
                    match known.outgoing(to, &commit) {
                        Outgoing::Whole => may_go.push(Shipped::Frame(commit)),
                        Outgoing::Stub(stub) => {
                            may_go.push(Shipped::Frame(Durable::new(Arc::new(stub))));
                        }
                        Outgoing::Withheld => stop(ask, origin, sequence),
                    }
                }
                Shipped::Gaps(mut gaps) => {
                    gaps.retain(|gap| {
                        let goes = ask.of.contains(&gap.origin.broker)
                            && known.may_pass(std::slice::from_ref(gap), (own, known.own()), to);
                        if !goes {
                            stop(ask, gap.origin, gap.first);
                        }
                        goes
                    });
                    if !gaps.is_empty() {
                        may_go.push(Shipped::Gaps(gaps));
                    }
                }
            }
        }
        self.items = may_go;
        stops
    }
}

impl LogReader {
    /// The frames from `from` on that are asked for, until they are `max_bytes` together, but at
    /// least one if there is any. Where nothing more follows, the shipment is empty and its `next`
    /// is [`LogReader::next_position`] or near it. Batches of streams that may not go to the peer are
    /// left out.
    ///
    /// # Errors
    /// When what is to be read is damaged or cannot be read.
    pub fn ship(
        &self,
        from: Position,
        ask: &Ask,
        may_go: &dyn Fn(StreamId) -> bool,
        max_bytes: usize,
    ) -> Result<Shipment, ReadError> {
        let fetched = loop {
            if let Some(below) = self.below_floor(from, ask) {
                return Ok(below);
            }
            let fetched = self.fetch(from, &Wanted::Frames(ask, may_go), max_bytes)?;
            if from >= self.start_position() {
                break fetched;
            }
            // The floor has risen meanwhile, perhaps beyond what would have been fetched.
        };
        let mut items = Vec::with_capacity(fetched.found.len());
        for found in fetched.found {
            match found {
                Found::Entry(entry) => {
                    items.push(Shipped::Frame(Durable::new(Arc::new(entry.commit))));
                }
                Found::Gap(stored) => {
                    if let Some(gap) = ask.cut(stored.gap) {
                        add_gap(&mut items, gap);
                    }
                }
            }
        }
        let next = fetched.next;
        Ok(Shipment { items, next })
    }

    /// Where the next frame is that is asked for, as far as the index of the active segment tells; the
    /// place itself where that is in an older one.
    #[must_use]
    pub fn pass_over(&self, from: Position, ask: &Ask) -> Position {
        let state = self.shared().state.read();
        if from < state.start() || state.segment_of(from).is_some() {
            return from;
        }
        let plan = state.active.index.plan_asked(from, ask, 0);
        let first = plan.entries.first().map(|planned| planned.position);
        first.unwrap_or(plan.next).max(from)
    }

    /// What is shipped of a place before the floor: gaps for all that was there.
    fn below_floor(&self, from: Position, ask: &Ask) -> Option<Shipment> {
        let state = self.shared().state.read();
        if from >= state.start() {
            return None;
        }
        let floor = state.trims.floor();
        let gaps = floor.gaps(ask);
        let items = match gaps.is_empty() {
            true => Vec::new(),
            false => vec![Shipped::Gaps(gaps)],
        };
        let next = floor.position();
        Some(Shipment { items, next })
    }

    /// Where the frames begin that are asked for: the smallest position that holds one, 0 if one
    /// is no longer held, [`LogReader::next_position`] if there is none.
    #[must_use]
    pub fn ship_from(&self, ask: &Ask) -> Position {
        let segment = {
            let state = self.shared().state.read();
            if state.trims.floor().has_asked(ask) {
                return Position::default();
            }
            let has_asked = |s: &&Arc<Segment>| s.summary.has_asked(ask);
            match state.segments.iter().find(has_asked) {
                Some(segment) => Arc::clone(segment),
                None => {
                    let index = &state.active.index;
                    return index
                        .first_asked(ask)
                        .map_or_else(|| state.next(), |entry| index.position_of(entry));
                }
            }
        };
        self.found_in(&segment, |loaded| loaded.index.first_asked(ask))
    }
}

/// Adds a gap to those before it, if they are the last item and none of them is of its origin.
fn add_gap(items: &mut Vec<Shipped>, gap: Gap) {
    match items.last_mut() {
        Some(Shipped::Gaps(gaps)) if gaps.iter().all(|held| held.origin != gap.origin) => {
            gaps.push(gap);
        }
        _ => items.push(Shipped::Gaps(vec![gap])),
    }
}
