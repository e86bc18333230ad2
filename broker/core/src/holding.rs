//! Frames that came before what they follow, until that is there.
//!
//! One link ships in an order that causality allows, so only frames of different links overtake
//! each other. What waits here is bounded by whoever sends it: each frame comes with a ticket that
//! is given back when the frame is taken over, or was there already.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::frame::Commit;
use crate::gap::Gap;
use crate::id::{BrokerId, Origin, Sequence};
use crate::sequencer::{AcceptError, Foreign, Sequencer};

/// Frames of other origins that wait, each with its ticket.
#[derive(Debug)]
pub struct Holding<T> {
    waiting: BTreeMap<Origin, VecDeque<(Foreign, T)>>,
    /// The first frame of each origin when it was last looked, and since when it is that.
    since: BTreeMap<Origin, (Sequence, u64)>,
    /// Gaps that belong together.
    gaps: VecDeque<(Vec<Gap>, T)>,
    frames: usize,
    bytes: usize,
}

/// Says what is to be taken over from whom; asked just before that, when all that a frame follows
/// is here.
pub trait Admit<T> {
    /// Takes from a frame what may not be here, and says whether the rest is all of it.
    fn frame(&self, frame: &mut Foreign, ticket: &T) -> bool;

    /// Whether these gaps count.
    fn gaps(&self, gaps: &[Gap], ticket: &T) -> bool;
}

/// Admits everything.
#[derive(Clone, Copy, Debug)]
pub struct Everything;

impl<T> Admit<T> for Everything {
    fn frame(&self, _: &mut Foreign, _: &T) -> bool {
        true
    }

    fn gaps(&self, _: &[Gap], _: &T) -> bool {
        true
    }
}

/// What became of a frame.
#[derive(Debug)]
pub enum Settled<T> {
    /// It is the next commit.
    Taken(Commit, T),
    /// They are the next gaps.
    Gaps(Vec<Gap>, T),
    /// It was there already.
    Known(T),
    /// Something is missing of it that may be here: it is wanted from somebody else.
    Withheld(Origin, T),
    /// It can never be taken over: its origin has forked, or one of the two logs was rolled back.
    Refused(Origin, AcceptError, T),
}

impl<T> Default for Holding<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            since: BTreeMap::new(),
            gaps: VecDeque::new(),
            frames: 0,
            bytes: 0,
        }
    }
}

impl<T> Holding<T> {
    /// Adds a frame; [`Holding::next`] says what became of it.
    pub fn offer(&mut self, frame: Foreign, ticket: T) {
        self.frames += 1;
        self.bytes += frame.size();
        let queue = self.waiting.entry(frame.header().origin).or_default();
        // Links give an origin's frames in order. Only after a change of links an earlier one
        // comes later.
        let sequence = frame.header().sequence;
        let at = queue.partition_point(|(held, _)| held.header().sequence <= sequence);
        queue.insert(at, (frame, ticket));
    }

    /// Adds gaps that belong together.
    pub fn offer_gaps(&mut self, gaps: Vec<Gap>, ticket: T) {
        self.frames += 1;
        self.gaps.push_back((gaps, ticket));
    }

    /// How many frames wait, and gaps that belong together.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Bytes of the frames that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The gaps that wait, those that belong together together.
    pub fn gaps(&self) -> impl Iterator<Item = &[Gap]> {
        self.gaps.iter().map(|(gaps, _)| gaps.as_slice())
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// What waits for nothing any more, taken over by the sequencer. `fits` is
    /// asked before a frame whether there is room for it; nothing is taken over once it says no.
    pub fn next(
        &mut self,
        sequencer: &mut Sequencer,
        now_ms: u64,
        admit: &dyn Admit<T>,
        fits: &mut dyn FnMut(&Foreign) -> bool,
    ) -> Option<Settled<T>> {
        if let Some(settled) = self.next_gaps(sequencer, now_ms, admit) {
            return Some(settled);
        }
        let origins: Vec<Origin> = self.waiting.keys().copied().collect();
        for origin in origins {
            let Some((frame, ticket)) = self.front(origin) else {
                continue;
            };
            if let Err(error) = sequencer.judge(frame, now_ms) {
                if error.may_pass() {
                    continue;
                }
                let (_, ticket) = self.pop(origin)?;
                return Some(match error {
                    AcceptError::Known { .. } => Settled::Known(ticket),
                    error => Settled::Refused(origin, error, ticket),
                });
            }
            let size = frame.size();
            let is_whole = admit.frame(frame, ticket);
            let fits = !is_whole || fits(frame);
            self.bytes -= size - self.front(origin).map_or(0, |(frame, _)| frame.size());
            if !fits {
                return None;
            }
            let (frame, ticket) = self.pop(origin)?;
            if !is_whole {
                return Some(Settled::Withheld(origin, ticket));
            }
            return Some(Settled::Taken(sequencer.take_over(&frame), ticket));
        }
        None
    }

    fn front(&mut self, origin: Origin) -> Option<&mut (Foreign, T)> {
        self.waiting.get_mut(&origin).and_then(VecDeque::front_mut)
    }

    /// There has to be room for all of [`Holding::gaps`].
    fn next_gaps(
        &mut self,
        sequencer: &mut Sequencer,
        now_ms: u64,
        admit: &dyn Admit<T>,
    ) -> Option<Settled<T>> {
        for at in 0..self.gaps.len() {
            let (gaps, ticket) = &self.gaps[at];
            if !admit.gaps(gaps, ticket) {
                let (gaps, ticket) = self.gaps.remove(at)?;
                self.frames -= 1;
                let origin = gaps.first().map_or(sequencer.origin(), |gap| gap.origin);
                return Some(Settled::Withheld(origin, ticket));
            }
            let taken = sequencer.accept_gaps(&self.gaps[at].0, now_ms);
            if taken.as_ref().is_err_and(AcceptError::may_pass) {
                continue;
            }
            let (gaps, ticket) = self.gaps.remove(at)?;
            self.frames -= 1;
            return Some(match taken {
                Ok(taken) if taken.is_empty() => Settled::Known(ticket),
                Ok(taken) => Settled::Gaps(taken, ticket),
                Err(error) => {
                    let origin = gaps.first().map_or(sequencer.origin(), |gap| gap.origin);
                    Settled::Refused(origin, error, ticket)
                }
            });
        }
        None
    }

    /// Whether all that waits waits for frames that have not come. What waits for the clock is taken
    /// in time.
    #[must_use]
    pub fn is_stuck(&self, sequencer: &Sequencer, now_ms: u64) -> bool {
        let fronts = self.waiting.values().filter_map(VecDeque::front);
        let mut waits_for_the_clock = fronts.map(|(frame, _)| {
            let judged = sequencer.judge(frame, now_ms);
            matches!(judged, Err(AcceptError::Ahead { .. }))
        });
        !self.is_empty() && !waits_for_the_clock.any(|waits| waits)
    }

    /// The first frames of origins that have waited for so many milliseconds, while others may have
    /// been taken, for frames of these brokers. To be called now and then: it notes what is first.
    pub fn overdue(
        &mut self,
        sequencer: &Sequencer,
        now_ms: u64,
        patience_ms: u64,
    ) -> Vec<(&T, BTreeSet<BrokerId>)> {
        let Self { waiting, since, .. } = self;
        since.retain(|origin, _| waiting.contains_key(origin));
        let mut overdue = Vec::new();
        for (&origin, queue) in waiting.iter() {
            let Some((frame, ticket)) = queue.front() else {
                continue;
            };
            let sequence = frame.header().sequence;
            let noted = since.entry(origin).or_insert((sequence, now_ms));
            // Clocks are set back, too.
            if noted.0 != sequence || noted.1 > now_ms {
                *noted = (sequence, now_ms);
            }
            if now_ms - noted.1 < patience_ms {
                continue;
            }
            match sequencer.judge(frame, now_ms) {
                Err(AcceptError::Uncovered { missing }) => {
                    let lacking = missing.iter().map(|(origin, _)| origin.broker);
                    overdue.push((ticket, lacking.collect()));
                }
                Err(AcceptError::Early { origin, .. }) => {
                    overdue.push((ticket, BTreeSet::from([origin.broker])));
                }
                _ => {}
            }
        }
        overdue
    }

    /// Forgets what waits under such tickets, and gives those back.
    pub fn forget(&mut self, mut under: impl FnMut(&T) -> bool) {
        for queue in self.waiting.values_mut() {
            queue.retain(|(frame, ticket)| {
                let goes = under(ticket);
                if goes {
                    self.frames -= 1;
                    self.bytes -= frame.size();
                }
                !goes
            });
        }
        self.waiting.retain(|_, queue| !queue.is_empty());
        let before = self.gaps.len();
        self.gaps.retain(|(_, ticket)| !under(ticket));
        self.frames -= before - self.gaps.len();
        self.since.clear();
    }

    fn pop(&mut self, origin: Origin) -> Option<(Foreign, T)> {
        let queue = self.waiting.get_mut(&origin)?;
        let popped = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&origin);
        }
        self.frames -= 1;
        self.bytes -= popped.0.size();
        Some(popped)
    }

    /// Forgets all that waits, and gives the tickets back.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, NewRecord};
    use crate::gap::GapBuilder;
    use crate::id::{BrokerId, Epoch, PartitionId, StreamId};
    use crate::sequencer::Publish;

    fn sequencer(broker: u64) -> Sequencer {
        Sequencer::new(Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        })
    }

    fn write(writer: &mut Sequencer, now: u64) -> Foreign {
        let mut batch = BatchBuilder::default();
        batch.push(&NewRecord::default()).unwrap();
        let publish = Publish {
            stream: StreamId::new(1),
            partition: PartitionId::new(0),
            batch: batch.finish(None).unwrap(),
        };
        let mut frame = writer.open();
        frame.add(&[publish], &mut Vec::new()).unwrap();
        Foreign::from(&frame.close(now).unwrap())
    }

    fn drain(holding: &mut Holding<u32>, into: &mut Sequencer) -> Vec<u32> {
        let mut taken = Vec::new();
        while let Some(settled) = holding.next(into, 10, &Everything, &mut |_| true) {
            match settled {
                Settled::Taken(_, ticket) | Settled::Gaps(_, ticket) | Settled::Known(ticket) => {
                    taken.push(ticket);
                }
                Settled::Refused(origin, error, _) => panic!("{origin}: {error}"),
                Settled::Withheld(origin, _) => panic!("{origin}"),
            }
        }
        taken
    }

    #[test]
    fn a_frame_waits_for_what_it_follows_and_is_taken_once() {
        let (mut a, mut b, mut c) = (sequencer(1), sequencer(2), sequencer(3));
        let first = write(&mut a, 1);
        let second = write(&mut a, 2);
        b.accept(&first, 3).unwrap();
        b.accept(&second, 3).unwrap();
        let after = write(&mut b, 4);
        let mut holding = Holding::default();
        holding.offer(after.clone(), 3);
        assert!(drain(&mut holding, &mut c).is_empty());
        holding.offer(second, 2);
        holding.offer(first.clone(), 1);
        holding.offer(first, 0);
        assert_eq!(holding.frames(), 4);
        let mut taken = drain(&mut holding, &mut c);
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3]);
        assert_eq!((holding.frames(), holding.bytes()), (0, 0));
        assert!(c.vector().covers(&b.vector()));
        holding.offer(after, 4);
        assert_eq!(drain(&mut holding, &mut c), [4], "it is known");
    }

    #[test]
    fn a_fork_is_refused_and_what_has_no_room_waits() {
        let (mut a, mut b) = (sequencer(1), sequencer(2));
        let mut forked = a.clone();
        let mut holding = Holding::default();
        holding.offer(write(&mut a, 1), ());
        let nothing_fits = holding.next(&mut b, 10, &Everything, &mut |_| false);
        assert!(nothing_fits.is_none() && holding.frames() == 1);
        let taken = holding.next(&mut b, 10, &Everything, &mut |_| true);
        assert!(matches!(taken, Some(Settled::Taken(..))));
        // The same sequence with another content, then one more of that history.
        let _ = write(&mut forked, 2);
        holding.offer(write(&mut forked, 3), ());
        let refused = holding.next(&mut b, 10, &Everything, &mut |_| true);
        assert!(matches!(
            refused,
            Some(Settled::Refused(_, AcceptError::Chain { .. }, ()))
        ));
    }

    #[test]
    fn a_frame_is_overdue_though_others_are_taken_and_what_its_sender_shipped_is_forgotten() {
        let (mut q, mut p, mut other) = (sequencer(1), sequencer(2), sequencer(3));
        let mut here = sequencer(4);
        let lacking = write(&mut q, 1);
        p.accept(&lacking, 2).unwrap();
        let mut holding = Holding::default();
        for now in 3..6 {
            holding.offer(write(&mut p, now), 2);
        }
        for now in [10, 20, 30] {
            holding.offer(write(&mut other, now), 3);
            assert_eq!(drain(&mut holding, &mut here), [3]);
            assert!(holding.overdue(&here, now, 25).is_empty());
        }
        let overdue = holding.overdue(&here, 35, 25);
        assert_eq!(overdue, [(&2, BTreeSet::from([BrokerId::new(1)]))]);
        // One that waits as long for the clock is not.
        let mut late = sequencer(5);
        holding.offer(write(&mut late, 10_000_000), 5);
        assert_eq!(holding.overdue(&here, 36, 25).len(), 1);
        assert_eq!(holding.overdue(&here, 90, 25).len(), 1);
        holding.forget(|&ticket| ticket == 2);
        assert_eq!(holding.frames(), 1);
        holding.forget(|_| true);
        assert_eq!((holding.frames(), holding.bytes()), (0, 0));
        // What was forgotten comes again, behind what it follows.
        holding.offer(lacking, 1);
        assert_eq!(drain(&mut holding, &mut here), [1]);
    }

    fn dropped(commits: &[&Foreign], log: &mut Sequencer) -> Vec<Gap> {
        let mut gaps = GapBuilder::default();
        for frame in commits {
            let mut commit = log.accept(frame, 10).unwrap();
            commit.parts.iter_mut().for_each(|part| part.batch = None);
            gaps.add(&commit);
        }
        gaps.take()
    }

    #[test]
    fn gaps_count_together_and_what_is_held_of_them_is_left_out() {
        let (mut a, mut b) = (sequencer(1), sequencer(2));
        let first = write(&mut a, 1);
        b.accept(&first, 2).unwrap();
        let after = write(&mut b, 3);
        a.accept(&after, 4).unwrap();
        let last = write(&mut a, 5);
        // A third log has dropped all of it: one gap for each origin, which follow each other.
        let gaps = dropped(&[&first, &after, &last], &mut sequencer(3));
        assert_eq!(gaps.len(), 2);
        let next = write(&mut a, 6);
        for held in [&[][..], &[&first][..], &[&first, &after][..]] {
            let mut here = sequencer(4);
            for frame in held {
                here.accept(frame, 7).unwrap();
            }
            let mut holding = Holding::default();
            holding.offer(next.clone(), 2);
            assert!(drain(&mut holding, &mut here).is_empty());
            holding.offer_gaps(gaps.clone(), 1);
            assert_eq!(drain(&mut holding, &mut here), [1, 2]);
            assert_eq!(here.vector(), a.vector());
            holding.offer_gaps(gaps.clone(), 3);
            assert_eq!(drain(&mut holding, &mut here), [3], "all of it is known");
        }
    }
}
