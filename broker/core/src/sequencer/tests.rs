//! Placing, refusing, replaying.

use super::*;
use crate::batch::{BatchBuilder, NewRecord};
use crate::gap::Gap;
use crate::id::{BrokerId, Epoch, RegionName};
use crate::limits::MAX_ORIGINS;
use crate::members::{self, Standing};
use crate::producer::ProducerStamp;
use crate::stream::StreamDefinition;
use proptest::prelude::*;

fn origin() -> Origin {
    Origin {
        broker: BrokerId::new(1),
        epoch: Epoch::new(1),
    }
}

fn publish(stream: u64, records: usize, producer: Option<ProducerStamp>) -> Publish {
    let mut builder = BatchBuilder::default();
    for _ in 0..records {
        builder
            .push(&NewRecord {
                value: Some(b"v"),
                ..NewRecord::default()
            })
            .unwrap();
    }
    let batch = builder.finish(producer).unwrap();
    Publish {
        stream: StreamId::new(stream),
        partition: PartitionId::new(0),
        batch,
    }
}

proptest! {
    /// The state is a fold of the log: replayed, restored or lived through, it is the same.
    #[test]
    fn replaying_the_commits_leads_to_the_state_that_made_them(
        publishes in prop::collection::vec((0u64..3, 1usize..4, any::<bool>(), 0u64..1000), 1..30),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut lived = Sequencer::new(origin());
        let mut numbers = [0u32; 3];
        let mut commits = Vec::new();
        for (stream, records, idempotent, now) in publishes {
            let next = &mut numbers[stream as usize];
            let stamp = ProducerStamp { id: 5, epoch: 0, sequence: *next };
            *next += records as u32;
            let producer = idempotent.then_some(stamp);
            let mut frame = lived.open();
            let added = frame.add(&[publish(stream, records, producer)], &mut Vec::new());
            // Mixing stamped and plain publishes leaves gaps in the producer's numbers.
            if added.is_ok() {
                commits.extend(frame.close(now));
            }
        }
        let cut = cut.index(commits.len() + 1);
        let mut replayed = Sequencer::new(origin());
        for (n, commit) in commits.iter().enumerate() {
            if n == cut {
                replayed = Sequencer::restore(&replayed.checkpoint()).unwrap();
            }
            replayed.replay(commit).unwrap();
        }
        prop_assert_eq!(replayed, lived);
    }
}

#[test]
fn one_frame_holds_many_publishes_with_dense_offsets_and_indexes() {
    let mut sequencer = Sequencer::new(origin());
    let mut placed = Vec::new();
    let mut frame = sequencer.open();
    frame.add(&[publish(1, 3, None)], &mut placed).unwrap();
    frame
        .add(&[publish(2, 2, None), publish(1, 1, None)], &mut placed)
        .unwrap();
    let commit = frame.close(1000).unwrap();
    let at = |base_offset, first_index| Placed::Appended {
        base_offset: Offset::new(base_offset),
        first_index,
    };
    assert_eq!(placed, [at(0, 0), at(0, 3), at(3, 5)]);
    assert_eq!(
        (commit.header.record_count(), commit.header.sequence),
        (6, Sequence::new(1))
    );
    assert_eq!(sequencer.last_timestamp(), commit.header.last_timestamp());
}

#[test]
fn a_retry_is_placed_where_it_was_and_makes_no_frame() {
    let mut sequencer = Sequencer::new(origin());
    let stamp = Some(ProducerStamp {
        id: 1,
        epoch: 0,
        sequence: 0,
    });
    let mut placed = Vec::new();
    for _ in 0..2 {
        let mut frame = sequencer.open();
        frame.add(&[publish(1, 2, stamp)], &mut placed).unwrap();
        let _ = frame.close(5);
    }
    assert_eq!(
        placed[1],
        Placed::Duplicate {
            base_offset: Some(Offset::new(0))
        }
    );
    assert_eq!(sequencer.next_position(), Position::new(1));
}

#[test]
fn a_group_with_one_refused_publish_leaves_no_trace() {
    let mut sequencer = Sequencer::new(origin());
    let first = Some(ProducerStamp {
        id: 1,
        epoch: 0,
        sequence: 0,
    });
    let gap = Some(ProducerStamp {
        id: 1,
        epoch: 0,
        sequence: 50,
    });
    let mut frame = sequencer.open();
    frame.add(&[publish(1, 1, first)], &mut Vec::new()).unwrap();
    let _ = frame.close(5);
    let before = sequencer.clone();
    let mut frame = sequencer.open();
    let refused = frame.add(&[publish(2, 1, None), publish(1, 1, gap)], &mut Vec::new());
    assert!(matches!(
        refused,
        Err(SequenceError::Producer(ProducerError::Gap { .. }))
    ));
    assert!(frame.close(6).is_none());
    assert_eq!(sequencer, before);
}

#[test]
fn a_commit_out_of_turn_or_of_a_fork_is_not_replayed() {
    let commit_of = |sequencer: &mut Sequencer, records| {
        let mut frame = sequencer.open();
        frame
            .add(&[publish(1, records, None)], &mut Vec::new())
            .unwrap();
        frame.close(5).unwrap()
    };
    let mut ours = Sequencer::new(origin());
    let first = commit_of(&mut ours, 1);
    let second = commit_of(&mut ours, 1);
    let mut fork = Sequencer::new(origin());
    let _ = commit_of(&mut fork, 2);
    let forked = commit_of(&mut fork, 1);
    let mut replayed = Sequencer::new(origin());
    assert!(matches!(
        replayed.replay(&second),
        Err(ReplayError::Position { .. })
    ));
    replayed.replay(&first).unwrap();
    assert!(matches!(
        replayed.replay(&forked),
        Err(ReplayError::Chain(_))
    ));
    replayed.replay(&second).unwrap();
}

fn other(number: usize) -> Origin {
    Origin {
        broker: BrokerId::new(100 + number as u64),
        epoch: Epoch::new(1),
    }
}

/// The next frame that a broker writes.
fn write(writer: &mut Sequencer, now_ms: u64) -> Foreign {
    let mut frame = writer.open();
    frame.add(&[publish(1, 1, None)], &mut Vec::new()).unwrap();
    Foreign::from(&frame.close(now_ms).unwrap())
}

#[test]
fn an_own_frame_that_was_lost_is_told_from_one_that_contradicts() {
    let mut whole = Sequencer::new(origin());
    write(&mut whole, 1000);
    let mut rolled_back = whole.clone();
    let (second, third) = (write(&mut whole, 2000), write(&mut whole, 3000));
    let lost = rolled_back.judge(&second, 9000);
    assert!(matches!(lost, Err(AcceptError::Own { .. })), "{lost:?}");
    let later = rolled_back.judge(&third, 9000);
    assert!(matches!(later, Err(AcceptError::Early { .. })), "{later:?}");

    let own = write(&mut rolled_back, 4000);
    for contradicts in [&second, &third] {
        let forked = rolled_back.judge(contradicts, 9000);
        let is_fork = matches!(forked, Err(AcceptError::OwnFork { .. }));
        assert!(is_fork, "{forked:?}");
    }
    let known = rolled_back.judge(&own, 9000);
    assert!(matches!(known, Err(AcceptError::Known { .. })), "{known:?}");
}

#[test]
fn frames_of_more_origins_than_a_context_has_room_for_are_refused() {
    let mut state = Sequencer::new(origin());
    for number in 1..=MAX_ORIGINS {
        let first = write(&mut Sequencer::new(other(number)), 1);
        state.accept(&first, 10).unwrap();
    }
    let mut one_more = Sequencer::new(other(MAX_ORIGINS + 1));
    for frame in [write(&mut one_more, 1), write(&mut one_more, 2)] {
        let refused = state.judge(&frame, 10);
        let too_many = matches!(refused, Err(AcceptError::TooManyOrigins { .. }));
        assert!(too_many, "{refused:?}");
    }
    assert_eq!(state.vector().len(), MAX_ORIGINS);
    // A member is no stranger.
    let broker = one_more.origin().broker;
    let region = RegionName::parse("far").unwrap();
    let batch = members::batch(broker, Standing::Active, &region, 1).unwrap();
    let member = Publish {
        stream: StreamDefinition::members().id(),
        partition: PartitionId::new(0),
        batch,
    };
    let mut frame = state.open();
    frame.add(&[member], &mut Vec::new()).unwrap();
    let told = frame.close(3).unwrap();
    assert_eq!(told.header.context.len(), MAX_ORIGINS);
    let mut joined = Sequencer::new(other(MAX_ORIGINS + 1));
    state.accept(&write(&mut joined, 1), 10).unwrap();
    let refused = state.judge(&write(&mut Sequencer::new(other(0)), 1), 10);
    assert!(refused.is_err(), "another stranger");
    // Those that are known go on, and so does what is written here.
    let mut known = Sequencer::new(other(MAX_ORIGINS));
    write(&mut known, 1);
    state.accept(&write(&mut known, 2), 10).unwrap();
    let own = write(&mut state, 3);
    assert_eq!(own.header().context.len(), 2, "since the frame before");
}

#[test]
fn gaps_count_as_origins_too() {
    let gap = |number| Gap {
        position: Position::new(0),
        origin: other(number),
        first: Sequence::new(1),
        frames: 2,
        timestamp: HybridTimestamp::from_millis(1),
        chain: Chain::new([7; 32]),
        context: VersionVector::EMPTY,
        parts: Vec::new(),
    };
    let mut state = Sequencer::new(origin());
    let too_many: Vec<Gap> = (0..=MAX_ORIGINS).map(gap).collect();
    let refused = state.accept_gaps(&too_many, 10);
    let is_refused = matches!(refused, Err(AcceptError::TooManyOrigins { .. }));
    assert!(is_refused, "{refused:?}");
    let placed = state.accept_gaps(&too_many[1..], 10).unwrap();
    assert_eq!(placed.len(), MAX_ORIGINS);
    assert!(state.accept_gaps(&too_many[..1], 10).is_err());
}
