//! What the writer has gathered for one sync, and whom to tell once it is done.

use std::ops::Range;
use std::sync::Arc;

use anabranch_core::id::{Origin, Sequence};
use anabranch_core::sequencer::{Placed, Sequencer};
use anabranch_protocol::peer::Heads;
use anabranch_protocol::ws::{AckLevel, Durability};
use tokio::sync::oneshot;

use super::super::error;
use super::super::failure::Failure;
use super::super::publish::{Ack, AckRow, AckSink, Answer, Budget, Outcome, Window, Wish};
use super::super::regions::{Expected, Regions, Ticket};

/// A publish whose group is not durable yet.
pub(super) struct Waiting {
    pub(super) reply: Answer,
    pub(super) wish: Wish,
    pub(super) rows: Range<usize>,
    pub(super) frame: usize,
    /// What it takes of its connection's window, if it waits for longer than its group.
    pub(super) window: Option<Arc<Window>>,
}

/// What has been gathered for one sync.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) waiting: Vec<Waiting>,
    pub(super) rows: Vec<AckRow>,
    /// The sequences of the group's frames, by number.
    pub(super) frames: Vec<Sequence>,
    pub(super) budgets: Vec<Budget>,
    pub(super) placed: Vec<Placed>,
    pub(super) passed: Vec<oneshot::Sender<Heads>>,
    /// The last frames of gaps that came over links.
    pub(super) gaps: Vec<(Origin, Sequence)>,
    /// Given back with the group's end.
    pub(super) tickets: Vec<Ticket>,
    /// Whether frames that wait could not be looked at for want of room in the group.
    pub(super) more_held: bool,
    pub(super) stop: bool,
}

impl Gathered {
    /// Answers those who wait for this durability. Those who wait for other regions as well are
    /// passed on to where reports of others come.
    pub(super) fn tell(&mut self, origin: Origin, durability: Durability, regions: &Regions) {
        let mut outcomes = Vec::new();
        let mut current: Option<Arc<AckSink>> = None;
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.wish.level.here() != durability {
                self.waiting.push(waiting);
                continue;
            }
            let sequence = self.frames[waiting.frame];
            let rows = &self.rows[waiting.rows.clone()];
            if let AckLevel::Regions(quorum) = waiting.wish.level {
                regions.expect(Expected {
                    sequence,
                    quorum,
                    patience: waiting.wish.patience,
                    answer: waiting.reply,
                    rows: rows.to_vec(),
                    window: waiting.window,
                });
                continue;
            }
            match waiting.reply {
                answer @ Answer::Once(_) => answer.acknowledge(Ack {
                    origin,
                    sequence,
                    durability,
                    regions: Vec::new(),
                    rows: rows.to_vec(),
                }),
                Answer::Connection(sink, id) => {
                    let same = current
                        .as_ref()
                        .is_some_and(|held| Arc::ptr_eq(held, &sink));
                    if !same && let Some(held) = current.replace(sink) {
                        held.push(&mut outcomes);
                    }
                    outcomes.extend(rows.iter().map(|&row| Outcome::Row {
                        id,
                        sequence,
                        durability,
                        row,
                    }));
                }
            }
        }
        if let Some(held) = current {
            held.push(&mut outcomes);
        }
    }

    pub(super) fn refuse_all(&mut self, failure: &Failure) {
        for waiting in self.waiting.drain(..) {
            waiting.reply.refuse(error::failed(failure));
        }
    }

    pub(super) fn clear(&mut self, sequencer: &Sequencer) {
        debug_assert!(self.waiting.is_empty(), "everybody was told");
        self.rows.clear();
        self.frames.clear();
        self.budgets.clear();
        self.gaps.clear();
        self.tickets.clear();
        for passed in self.passed.drain(..) {
            let heads = sequencer.heads();
            let heads = heads.map(|(origin, head)| (origin, (head.sequence, head.chain)));
            // Whoever waited may have given up.
            let _ = passed.send(heads.collect());
        }
    }
}
