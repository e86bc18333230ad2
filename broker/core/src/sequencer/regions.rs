//! Several brokers that all write, exchange frames in any order that links allow, restart under
//! new epochs, and must end with the same frames, rows and chains.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::batch::{BatchBuilder, NewRecord};
use crate::exchange::{Ask, Peers};
use crate::id::{BrokerId, Epoch};
use crate::limits::MAX_CLOCK_AHEAD_MS;
use crate::lww::Stamp;
use crate::stability::Stability;

const ROWS: StreamId = StreamId::new(5);

/// What a broker had applied when it wrote a frame: what the frame must follow everywhere.
type Truth = BTreeMap<(Origin, Sequence), VersionVector>;

fn origin(broker: usize, epoch: u32) -> Origin {
    Origin {
        broker: BrokerId::new(broker as u64),
        epoch: Epoch::new(epoch),
    }
}

struct Replica {
    sequencer: Sequencer,
    log: Vec<Commit>,
    stability: Stability,
}

impl Replica {
    fn new(broker: usize) -> Self {
        Self {
            sequencer: Sequencer::new(origin(broker, 1)),
            log: Vec::new(),
            stability: Stability::new(BrokerId::new(broker as u64)),
        }
    }

    fn applied(&mut self) {
        let Report {
            applied, promise, ..
        } = self.sequencer.report();
        self.stability.advance(&applied, promise);
    }

    /// What is stable here is known to whoever wrote what comes only now.
    fn check_stable(&self, commit: &Commit, truth: &Truth) {
        let frame = (commit.header.origin, commit.header.sequence);
        let stable = self.stability.stable();
        assert!(truth[&frame].covers(&stable), "{stable:?} is not stable");
        assert!(commit.header.timestamp > self.stability.watermark());
    }

    fn write(&mut self, partition: u16, now_ms: u64, truth: &mut Truth) {
        let mut builder = BatchBuilder::default();
        for _ in 0..=now_ms % 3 {
            builder.push(&NewRecord::default()).unwrap();
        }
        let batch = builder.finish(None).unwrap();
        let publish = |partition| Publish {
            stream: ROWS,
            partition: PartitionId::new(partition),
            batch: batch.clone(),
        };
        let known = self.sequencer.vector();
        let mut frame = self.sequencer.open();
        let group = [publish(partition), publish(0)];
        frame.add(&group, &mut Vec::new()).unwrap();
        let commit = frame.close(now_ms).unwrap();
        let (origin, sequence) = (commit.header.origin, commit.header.sequence);
        assert!(truth.insert((origin, sequence), known).is_none());
        self.check_stable(&commit, truth);
        self.log.push(commit);
        self.applied();
    }

    /// Takes over up to `most` frames that the other has and this one lacks, in the other's order.
    fn pull(
        &mut self,
        from: &[Commit],
        of: Option<usize>,
        (most, now_ms): (usize, u64),
        truth: &Truth,
    ) -> usize {
        let held = self.sequencer.vector();
        let lacking = from.iter().filter(|commit| {
            let Origin { broker, .. } = commit.header.origin;
            let wanted = of.is_none_or(|of| broker == BrokerId::new(of as u64));
            wanted && !held.contains(commit.header.origin, commit.header.sequence)
        });
        let mut taken = 0;
        for commit in lacking.take(most) {
            let before = self.sequencer.clone();
            match self.sequencer.accept(&Foreign::from(commit), now_ms) {
                Ok(accepted) => {
                    assert_eq!(accepted.header_bytes, commit.header_bytes);
                    self.check_stable(commit, truth);
                    self.log.push(accepted);
                    self.applied();
                    taken += 1;
                }
                // What follows waits behind it.
                Err(refused) => {
                    assert!(refused.may_pass(), "{refused}");
                    assert!(of.is_some() || matches!(refused, AcceptError::Ahead { .. }));
                    assert_eq!(self.sequencer, before);
                    break;
                }
            }
        }
        taken
    }

    fn restart(&mut self) {
        let Origin { broker, epoch } = self.sequencer.origin();
        self.sequencer = Sequencer::restore(&self.sequencer.checkpoint()).unwrap();
        self.sequencer.take_origin(Origin {
            broker,
            epoch: Epoch::new(epoch.get() + 1),
        });
    }

    /// The winner of each row, a row for each partition.
    fn rows(&self) -> BTreeMap<PartitionId, (Stamp, u32)> {
        let mut rows = BTreeMap::new();
        for commit in &self.log {
            for part in &commit.parts {
                for record in 0..part.header.records {
                    let index = part.first_index + record;
                    let stamp = Stamp {
                        timestamp: commit.header.timestamp.of_record(index),
                        origin: commit.header.origin,
                    };
                    let row = rows.entry(part.header.partition).or_insert((stamp, index));
                    *row = (*row).max((stamp, index));
                }
            }
        }
        rows
    }

    /// The log follows causality, by what the frames say and by what was so.
    fn check(&self, truth: &Truth) {
        let mut prefix = VersionVector::default();
        let mut contexts: BTreeMap<Origin, VersionVector> = BTreeMap::new();
        let mut replayed = Sequencer::new(self.sequencer.origin());
        for commit in &self.log {
            let (origin, sequence) = (commit.header.origin, commit.header.sequence);
            let known = &truth[&(origin, sequence)];
            assert!(prefix.covers(known), "{origin} {sequence} came too early");
            let context = contexts.entry(origin).or_default();
            context.merge(&commit.header.context);
            let mut said = context.clone();
            said.advance(origin, Sequence::new(sequence.get() - 1));
            assert_eq!(&said, known, "the context of {origin} {sequence}");
            prefix.advance(origin, sequence);
            replayed.replay(commit).unwrap();
        }
        assert_eq!(replayed.vector(), self.sequencer.vector());
        assert_eq!(replayed.heads, self.sequencer.heads);
        assert_eq!(replayed.offsets, self.sequencer.offsets);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u16),
    /// To, from, how many; whether frames of third brokers come along.
    Pull(usize, usize, usize, bool),
    Restart(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..5, 0u16..4).prop_map(|(at, row)| Step::Write(at, row)),
        8 => (0usize..5, 0usize..5, 1usize..6, any::<bool>())
            .prop_map(|(to, from, most, relay)| Step::Pull(to, from, most, relay)),
        1 => (0usize..5).prop_map(Step::Restart),
        2 => (1u64..400).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

/// Two replicas at once, of which one is changed.
fn pair(replicas: &mut [Replica], to: usize, from: usize) -> (&mut Replica, &[Commit]) {
    assert_ne!(to, from);
    let (low, high) = replicas.split_at_mut(to.max(from));
    match to < from {
        true => (&mut low[to], &high[0].log),
        false => (&mut high[0], &low[from].log),
    }
}

fn run(count: usize, steps: &[Step], skews: &[u64]) -> (Vec<Replica>, Truth) {
    let mut replicas: Vec<_> = (0..count).map(Replica::new).collect();
    for (at, replica) in replicas.iter_mut().enumerate() {
        let others = (0..count).filter(|&other| other != at);
        others.for_each(|other| replica.stability.join(BrokerId::new(other as u64)));
    }
    let (mut truth, mut now) = (Truth::default(), 10_000);
    for step in steps {
        now += 1;
        let clock = |at: usize| now + skews[at % skews.len()];
        match *step {
            Step::Write(at, row) => {
                let at = at % count;
                replicas[at].write(row, clock(at), &mut truth);
            }
            Step::Pull(to, from, most, relay) if to % count != from % count => {
                let (to, from) = (to % count, from % count);
                let of = (!relay).then_some(from);
                // The report comes first, as if it had overtaken the frames that it speaks of.
                let report = replicas[from].sequencer.report();
                let (replica, log) = pair(&mut replicas, to, from);
                replica.stability.hear(report);
                replica.pull(log, of, (most, clock(to)), &truth);
            }
            Step::Pull(..) => {}
            Step::Restart(at) => replicas[at % count].restart(),
            Step::Wait(ms) => now += ms,
        }
    }
    (replicas, truth)
}

/// Every broker asks every other for its own frames, until nobody lacks any.
fn settle(replicas: &mut [Replica], truth: &Truth) {
    let late = 1 << 40;
    loop {
        let mut taken = 0;
        for to in 0..replicas.len() {
            for from in (0..replicas.len()).filter(|&from| from != to) {
                let (replica, log) = pair(replicas, to, from);
                taken += replica.pull(log, Some(from), (usize::MAX, late), truth);
            }
        }
        if taken == 0 {
            break;
        }
    }
    let reports: Vec<_> = replicas.iter().map(|r| r.sequencer.report()).collect();
    for replica in replicas {
        for report in &reports {
            replica.stability.hear(report.clone());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_the_links_do_all_brokers_end_with_the_same(
        count in 2usize..6,
        steps in steps(),
        skews in prop::collection::vec(0u64..1500, 5),
    ) {
        let (mut replicas, truth) = run(count, &steps, &skews);
        for replica in &replicas {
            replica.check(&truth);
        }
        settle(&mut replicas, &truth);
        let [first, others @ ..] = replicas.as_slice() else { unreachable!() };
        first.check(&truth);
        prop_assert_eq!(first.log.len(), truth.len());
        for other in others {
            other.check(&truth);
            prop_assert_eq!(other.sequencer.vector(), first.sequencer.vector());
            prop_assert_eq!(&other.sequencer.heads, &first.sequencer.heads);
            prop_assert_eq!(other.rows(), first.rows());
            prop_assert_eq!(other.stability.stable(), first.sequencer.vector());
            prop_assert_eq!(other.stability.silent().count(), 0);
            let next = |replica: &Replica| replica.sequencer.offsets.clone();
            prop_assert_eq!(next(other), next(first));
        }
    }
}

/// Brokers that are linked as a tree, so that most frames have to be relayed, ask as they should.
fn settle_over(replicas: &mut [Replica], parents: &[usize], truth: &Truth) {
    let count = replicas.len();
    let links: Vec<_> = (1..count).map(|at| (at, parents[at] % at)).collect();
    loop {
        let mut taken = 0;
        for to in 0..count {
            let linked = links.iter().filter_map(|&(a, b)| match to {
                _ if a == to => Some(b),
                _ if b == to => Some(a),
                _ => None,
            });
            let mut peers = Peers::default();
            for peer in linked {
                peers.reach(
                    BrokerId::new(peer as u64),
                    replicas[peer].sequencer.vector(),
                );
            }
            let mut asked = VersionVector::EMPTY;
            for (peer, ask) in peers.asks(&replicas[to].sequencer.vector()) {
                let from = usize::try_from(peer.get()).unwrap();
                taken += give(replicas, (to, from), &ask, &mut asked, truth);
            }
            // Two that relay may each hold back what the other's frames wait for.
            if asked.is_empty()
                && let Some((peer, ask)) = peers.ask_one(&replicas[to].sequencer.vector())
            {
                let from = usize::try_from(peer.get()).unwrap();
                let moved = give(replicas, (to, from), &ask, &mut asked, truth);
                assert!(moved > 0, "one log waits for nothing");
                taken += moved;
            }
        }
        if taken == 0 {
            return;
        }
    }
}

/// Sends what was asked for. Nothing may come twice.
fn give(
    replicas: &mut [Replica],
    (to, from): (usize, usize),
    ask: &Ask,
    asked: &mut VersionVector,
    truth: &Truth,
) -> usize {
    let (replica, log) = pair(replicas, to, from);
    let mut taken = 0;
    for commit in log.iter().filter(|commit| ask.wants(&commit.header)) {
        let (origin, sequence) = (commit.header.origin, commit.header.sequence);
        assert!(
            !asked.contains(origin, sequence),
            "{origin} {sequence} comes twice"
        );
        match replica.sequencer.accept(&Foreign::from(commit), 1 << 40) {
            Ok(accepted) => {
                replica.check_stable(commit, truth);
                replica.log.push(accepted);
                replica.applied();
                asked.advance(origin, sequence);
                taken += 1;
            }
            Err(refused) => {
                assert!(refused.may_pass(), "{refused}");
                break;
            }
        }
    }
    taken
}

proptest! {
    #[test]
    fn frames_are_relayed_over_whatever_links_there_are(
        count in 2usize..6,
        steps in steps(),
        parents in prop::collection::vec(0usize..6, 6),
    ) {
        let (mut replicas, truth) = run(count, &steps, &[0]);
        settle_over(&mut replicas, &parents, &truth);
        for replica in &replicas {
            replica.check(&truth);
            prop_assert_eq!(replica.log.len(), truth.len());
            prop_assert_eq!(replica.rows(), replicas[0].rows());
        }
    }
}

/// Three brokers: 1 writes after it has seen a frame of 0.
fn cause_and_effect() -> [Replica; 3] {
    let mut truth = Truth::default();
    let mut replicas = [0, 1, 2].map(Replica::new);
    replicas[0].write(1, 1000, &mut truth);
    let (one, log) = pair(&mut replicas, 1, 0);
    one.pull(log, None, (1, 1000), &truth);
    replicas[1].write(1, 900, &mut truth);
    replicas
}

#[test]
fn an_effect_waits_for_its_cause() {
    let [zero, one, mut two] = cause_and_effect();
    let effect = Foreign::from(&one.log[1]);
    let cause: VersionVector = std::iter::once((origin(0, 1), Sequence::new(1))).collect();
    let refused = two.sequencer.accept(&effect, 2000).unwrap_err();
    assert_eq!(refused, AcceptError::Uncovered { missing: cause });
    two.sequencer
        .accept(&Foreign::from(&zero.log[0]), 2000)
        .unwrap();
    let placed = two.sequencer.accept(&effect, 2000).unwrap();
    assert_eq!(placed.position, Position::new(1));
    // Stamps follow causality, whatever the clocks say.
    assert!(placed.header.timestamp > zero.log[0].header.last_timestamp());
}

#[test]
fn what_is_known_early_or_ahead_changes_nothing() {
    let [mut zero, mut one, mut two] = cause_and_effect();
    zero.write(2, 5000, &mut Truth::default());
    let (first, second) = (Foreign::from(&zero.log[0]), Foreign::from(&zero.log[1]));
    let known = one.sequencer.accept(&first, 9000).unwrap_err();
    assert!(matches!(known, AcceptError::Known { .. }) && !known.may_pass());
    let early = two.sequencer.accept(&second, 9000).unwrap_err();
    assert!(matches!(early, AcceptError::Early { .. }) && early.may_pass());
    let ahead = one.sequencer.accept(&second, 5000 - MAX_CLOCK_AHEAD_MS - 1);
    assert!(matches!(ahead, Err(AcceptError::Ahead { .. })));
    one.sequencer
        .accept(&second, 5000 - MAX_CLOCK_AHEAD_MS)
        .unwrap();
}

#[test]
fn a_forked_origin_is_noticed() {
    let mut truth = Truth::default();
    let mut original = Replica::new(0);
    original.write(1, 1000, &mut truth);
    let mut copy = Replica {
        sequencer: original.sequencer.clone(),
        log: original.log.clone(),
        stability: original.stability.clone(),
    };
    original.write(1, 2000, &mut truth);
    copy.write(2, 3000, &mut Truth::default());
    copy.write(2, 4000, &mut Truth::default());
    let mut other = Replica::new(1);
    other.pull(&original.log, None, (2, 9000), &truth);
    let forked = other.sequencer.accept(&Foreign::from(&copy.log[2]), 9000);
    assert!(
        matches!(forked, Err(AcceptError::Chain { .. })),
        "{forked:?}"
    );
}

#[test]
fn a_part_that_the_header_does_not_name_is_refused() {
    let [zero, one, _] = cause_and_effect();
    let (good, other) = (&zero.log[0], &one.log[1]);
    let batches = |commit: &Commit| -> Vec<_> {
        commit.parts.iter().map(|part| part.batch.clone()).collect()
    };
    let put = |batches| Foreign::new(good.header.clone(), good.header_bytes.clone(), batches);
    assert!(put(batches(good)).is_ok());
    assert!(put(vec![None, None]).is_ok());
    assert_eq!(put(batches(other)).unwrap_err(), WrongPart { part: 0 });
    assert_eq!(put(vec![None]).unwrap_err(), WrongPart { part: 1 });
}
