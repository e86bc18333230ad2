//! Logs of which frames were dropped, and a broker that begins with nothing and asks each of
//! several for its own frames.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::batch::{BatchBuilder, NewRecord};
use crate::gap::{Gap, GapBuilder};
use crate::id::{BrokerId, Epoch};
use crate::limits::MAX_CLOCK_AHEAD_MS;

fn origin(broker: usize) -> Origin {
    Origin {
        broker: BrokerId::new(broker as u64),
        epoch: Epoch::new(1),
    }
}

fn write(writer: &mut Sequencer, now_ms: u64) -> Commit {
    let mut builder = BatchBuilder::default();
    builder.push(&NewRecord::default()).unwrap();
    let publish = Publish {
        stream: StreamId::new(5),
        partition: PartitionId::new(0),
        batch: builder.finish(None).unwrap(),
    };
    let mut frame = writer.open();
    frame.add(&[publish], &mut Vec::new()).unwrap();
    frame.close(now_ms).unwrap()
}

/// What a log may hold.
#[derive(Clone, Debug)]
enum Item {
    Frame(Commit),
    Gaps(Vec<Gap>),
}

/// What is left of a log once the frames at these places are dropped.
fn cleaned(log: &[Commit], dropped: &[bool]) -> Vec<Item> {
    let mut builder = GapBuilder::default();
    let mut items = Vec::new();
    for (number, commit) in log.iter().enumerate() {
        if dropped[number % dropped.len()] {
            let mut commit = commit.clone();
            for part in &mut commit.parts {
                part.batch = None;
            }
            builder.add(&commit);
            continue;
        }
        if !builder.is_empty() {
            items.push(Item::Gaps(builder.take()));
        }
        items.push(Item::Frame(commit.clone()));
    }
    if !builder.is_empty() {
        items.push(Item::Gaps(builder.take()));
    }
    items
}

/// Just what a broker wrote itself.
fn own(items: &[Item], broker: usize) -> Vec<Item> {
    let of_it = items.iter().filter_map(|item| match item {
        Item::Frame(commit) => {
            (commit.header.origin == origin(broker)).then(|| Item::Frame(commit.clone()))
        }
        Item::Gaps(gaps) => {
            let gap = gaps.iter().find(|gap| gap.origin == origin(broker))?;
            Some(Item::Gaps(vec![gap.clone()]))
        }
    });
    of_it.collect()
}

type Truth = BTreeMap<(Origin, Sequence), VersionVector>;

/// Logs of three brokers that write and take over all that they lack of another.
fn histories(steps: &[(usize, usize)]) -> (Vec<(Sequencer, Vec<Commit>)>, Truth) {
    let mut brokers: Vec<_> = (0..3)
        .map(|n| (Sequencer::new(origin(n)), Vec::new()))
        .collect();
    let mut truth = Truth::new();
    let ends = [(0, 1), (1, 2), (2, 0), (1, 0), (0, 2), (2, 1)];
    for (now, &(at, from)) in steps.iter().chain(&ends).enumerate() {
        if from == at {
            let (sequencer, log) = &mut brokers[at];
            let known = sequencer.vector();
            let commit = write(sequencer, now as u64);
            truth.insert((commit.header.origin, commit.header.sequence), known);
            log.push(commit);
            continue;
        }
        let theirs = brokers[from].1.clone();
        let (sequencer, log) = &mut brokers[at];
        for commit in theirs {
            if let Ok(accepted) = sequencer.accept(&Foreign::from(&commit), u64::MAX) {
                log.push(accepted);
            }
        }
    }
    (brokers, truth)
}

/// Takes one item over; whether there was nothing to wait for.
fn take(joined: &mut Sequencer, log: &mut Vec<Item>, item: &Item, truth: &Truth) -> bool {
    let before = joined.clone();
    let taken = match item {
        Item::Frame(commit) => joined
            .accept(&Foreign::from(commit), u64::MAX)
            .map(|commit| {
                let frame = (commit.header.origin, commit.header.sequence);
                assert!(before.vector().covers(&truth[&frame]), "{frame:?} is early");
                log.push(Item::Frame(commit));
            }),
        Item::Gaps(gaps) => joined.accept_gaps(gaps, u64::MAX).map(|gaps| {
            log.push(Item::Gaps(gaps));
        }),
    };
    if let Err(refused) = taken {
        assert!(
            matches!(refused, AcceptError::Uncovered { .. }),
            "{refused}"
        );
        assert_eq!(*joined, before);
        return false;
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn own_frames_of_each_with_gaps_are_taken_over_whole_and_never_too_early(
        steps in prop::collection::vec((0usize..3, 0usize..3), 1..60),
        dropped in prop::collection::vec(prop::collection::vec(any::<bool>(), 1..60), 3),
        turns in prop::collection::vec((0usize..3, 1usize..5), 1..60),
    ) {
        let (brokers, truth) = histories(&steps);
        let mut left: Vec<_> = (0..3).map(|n| {
            let mut items = own(&cleaned(&brokers[n].1, &dropped[n]), n);
            items.reverse();
            items
        }).collect();
        let (mut joined, mut log) = (Sequencer::new(origin(9)), Vec::new());
        let mut idle = 0;
        for &(from, most) in turns.iter().chain(&[(0, 1), (1, 1), (2, 1)]).cycle() {
            if idle > 200 || left.iter().all(Vec::is_empty) {
                break;
            }
            for _ in 0..most {
                let Some(item) = left[from].last() else { break };
                idle += 1;
                if !take(&mut joined, &mut log, item, &truth) {
                    break;
                }
                left[from].pop();
                idle = 0;
            }
        }
        prop_assert!(left.iter().all(Vec::is_empty), "each waits for another");
        prop_assert_eq!(joined.vector(), brokers[0].0.vector());
        for origin in (0..3).map(origin) {
            prop_assert_eq!(joined.head(origin), brokers[0].0.head(origin));
        }
        prop_assert!(joined.awaited.is_empty());
        // The log leads to the same state again, and from any place in it a checkpoint does.
        let mut replayed = Sequencer::new(origin(9));
        for item in &log {
            match item {
                Item::Frame(commit) => replayed.replay(commit).unwrap(),
                Item::Gaps(gaps) => {
                    for gap in gaps {
                        replayed.pass_over(gap).unwrap();
                    }
                }
            }
            let restored = Sequencer::restore(&replayed.checkpoint()).unwrap();
            prop_assert_eq!(&restored, &replayed);
        }
        prop_assert_eq!(replayed, joined);
    }
}

/// A gap for frames of one broker, which followed those of another.
fn gap(broker: usize, (first, frames): (u64, u64), context: (usize, u64)) -> Gap {
    Gap {
        position: Position::new(70),
        origin: origin(broker),
        first: Sequence::new(first),
        frames,
        timestamp: HybridTimestamp::from_millis(1000),
        chain: Chain::new([broker as u8; 32]),
        context: [(origin(context.0), Sequence::new(context.1))]
            .into_iter()
            .collect(),
        parts: Vec::new(),
    }
}

#[test]
fn gaps_that_name_each_others_frames_do_not_wait_but_what_follows_them_does() {
    let mut state = Sequencer::new(origin(9));
    let placed = state.accept_gaps(&[gap(1, (1, 10), (2, 5))], 1000).unwrap();
    assert_eq!(placed[0].position, Position::new(0));
    let mut header = FrameHeader {
        origin: origin(1),
        sequence: Sequence::new(11),
        timestamp: HybridTimestamp::from_millis(1000),
        context: VersionVector::EMPTY,
        chain: Chain::START,
        parts: Vec::new(),
    };
    let header_bytes = header.seal(Chain::new([1; 32]));
    let frame = Foreign::new(header, header_bytes, Vec::new()).unwrap();
    let missing = [(origin(2), Sequence::new(5))].into_iter().collect();
    assert_eq!(
        state.accept(&frame, 1000),
        Err(AcceptError::Uncovered { missing })
    );
    state.accept_gaps(&[gap(2, (1, 4), (1, 3))], 1000).unwrap();
    assert!(state.accept(&frame, 1000).is_err());
    let placed = state.accept_gaps(&[gap(2, (1, 6), (1, 3))], 1000).unwrap();
    assert_eq!((placed[0].first.get(), placed[0].frames), (5, 2));
    assert_eq!(placed[0].position, Position::new(14));
    state.accept(&frame, 1000).unwrap();
}

#[test]
fn a_gap_that_is_early_ahead_or_of_a_fork_is_refused_and_one_that_is_known_changes_nothing() {
    let mut state = Sequencer::new(origin(9));
    state.accept_gaps(&[gap(1, (1, 3), (2, 1))], 1000).unwrap();
    let before = state.clone();
    let early = state.accept_gaps(&[gap(2, (1, 1), (1, 1)), gap(1, (5, 1), (2, 1))], 1000);
    assert!(matches!(early, Err(AcceptError::Early { .. })), "{early:?}");
    let ahead = state.accept_gaps(&[gap(1, (4, 1), (2, 1))], 999 - MAX_CLOCK_AHEAD_MS);
    assert!(matches!(ahead, Err(AcceptError::Ahead { .. })), "{ahead:?}");
    let fork = Gap {
        chain: Chain::new([7; 32]),
        ..gap(1, (2, 2), (2, 1))
    };
    let fork = state.accept_gaps(&[fork], 1000);
    assert!(matches!(fork, Err(AcceptError::Chain { .. })), "{fork:?}");
    let known = state.accept_gaps(&[gap(1, (1, 3), (2, 1)), gap(1, (2, 1), (2, 1))], 1000);
    assert_eq!(known, Ok(Vec::new()));
    assert_eq!(state, before);
}
