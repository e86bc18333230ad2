//! Placing, refusing, replaying.

use super::*;
use crate::batch::{BatchBuilder, NewRecord};
use crate::id::{BrokerId, Epoch};
use crate::producer::ProducerStamp;
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
