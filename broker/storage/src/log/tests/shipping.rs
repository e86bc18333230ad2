//! What a link takes from the log.

use std::collections::BTreeSet;

use anabranch_core::exchange::Ask;
use anabranch_core::id::{Origin, Sequence};
use anabranch_core::sequencer::Foreign;
use anabranch_core::vector::VersionVector;
use proptest::prelude::*;

use super::*;
use crate::log::{Shipment, Shipped};

/// A log with frames of three brokers, in this order.
fn mixed(disk: &MemoryDisk, writers: &[u8]) -> Broker {
    let mut broker = open(disk).unwrap();
    let origin = |n| Origin {
        broker: BrokerId::new(n),
        epoch: broker.sequencer.origin().epoch,
    };
    let mut others = [1, 2].map(|n| Sequencer::new(origin(n)));
    for (number, &writer) in writers.iter().enumerate() {
        let group = [filler(1 + number as u64 % 2, number as u64, 90)];
        match usize::from(writer).checked_sub(1) {
            None => drop(broker.put(&group)),
            Some(other) => {
                let mut frame = others[other].open();
                frame.add(&group, &mut Vec::new()).unwrap();
                let commit = frame.close(broker.now).unwrap();
                let foreign = Foreign::from(&commit);
                let accepted = broker.sequencer.accept(&foreign, u64::MAX).unwrap();
                broker.log.append(accepted, broker.now);
                broker.sync().unwrap();
            }
        }
    }
    broker
}

/// All that is asked for, in parts of this size, and how often the log was looked at.
pub(super) fn ship_all(reader: &LogReader, ask: &Ask, max_bytes: usize) -> (Vec<Shipped>, usize) {
    let mut at = reader.ship_from(ask);
    let (mut all, mut looks) = (Vec::new(), 0);
    while at < reader.next_position() {
        let Shipment { items, next } = reader.ship(at, ask, &|_| true, max_bytes).unwrap();
        assert!(next > at);
        all.extend(items);
        looks += 1;
        at = next;
    }
    (all, looks)
}

proptest! {
    #[test]
    fn just_the_frames_asked_for_are_shipped_and_in_order(
        writers in prop::collection::vec(0u8..3, 1..120),
        of in prop::collection::btree_set(0u8..3, 0..3),
        held in prop::collection::vec((0u8..3, 0u64..60), 0..3),
        max_bytes in 1usize..3000,
    ) {
        let disk = MemoryDisk::new(5);
        let broker = mixed(&disk, &writers);
        let id = |n: u8| match n { 0 => IDENTITY.broker, n => BrokerId::new(n.into()) };
        let epoch = broker.sequencer.origin().epoch;
        let held = held.iter().map(|&(n, sequence)| {
            (Origin { broker: id(n), epoch }, Sequence::new(sequence))
        });
        let ask = Ask {
            held: held.collect(),
            of: of.iter().map(|&n| id(n)).collect(),
        };
        let all = broker.all();
        let expected: Vec<_> = all.iter().filter(|c| ask.wants(&c.header)).collect();
        let first = expected.first().map_or(broker.reader.next_position(), |c| c.position);
        prop_assert_eq!(broker.reader.ship_from(&ask), first);
        let end = broker.reader.next_position();
        let active = broker.reader.shared().state.read().active.index.first();
        for from in (0..=end.get()).map(Position::new) {
            let wanted = expected.iter().map(|c| c.position).find(|&at| at >= from);
            let passed = broker.reader.pass_over(from, &ask);
            let expected = if from < active { from } else { wanted.unwrap_or(end) };
            prop_assert_eq!(passed, expected);
        }
        let (items, looks) = ship_all(&broker.reader, &ask, max_bytes);
        prop_assert!(looks <= expected.len() + 1);
        prop_assert_eq!(items.len(), expected.len());
        for (item, commit) in items.iter().zip(expected) {
            let Shipped::Frame(shipped) = item else { panic!("{item:?}") };
            prop_assert_eq!(&**shipped, commit);
        }
    }

    #[test]
    fn the_frames_of_one_origin_are_read_as_if_there_were_no_others(
        writers in prop::collection::vec(0u8..3, 1..120),
        of in 0u8..3,
        narrow in 0u8..3,
    ) {
        let disk = MemoryDisk::new(5);
        let broker = mixed(&disk, &writers);
        let of = match of { 0 => IDENTITY.broker, n => BrokerId::new(n.into()) };
        let origin = Origin { broker: of, ..broker.sequencer.origin() };
        let stream = StreamId::new(1);
        let inner = match narrow {
            0 => Filter::All,
            1 => Filter::Stream(stream),
            _ => Filter::Partitions(stream, BTreeSet::from([0, 2].map(PartitionId::new))),
        };
        let mut expected = read_all(&broker.reader, &inner);
        expected.retain(|commit| commit.header.origin == origin);
        let filter = Filter::OfOrigin(origin, Box::new(inner));
        prop_assert_eq!(read_all(&broker.reader, &filter), expected);
    }
}

/// With the other entries' bytes damaged, nobody notices: they are not looked at.
#[test]
fn what_is_not_asked_for_is_not_read() {
    let disk = MemoryDisk::new(5);
    let broker = mixed(&disk, &[0, 1, 2].repeat(40));
    let ask = Ask {
        held: VersionVector::EMPTY,
        of: BTreeSet::from([BrokerId::new(1)]),
    };
    let before = ship_all(&broker.reader, &ask, 1).0.len();
    let all = broker.all();
    for commit in all.iter().filter(|c| !ask.wants(&c.header)) {
        let state = broker.reader.shared().state.read();
        let (path, at) = match state.segment_of(commit.position) {
            Some(segment) => {
                let loaded = broker.reader.shared().load(segment).unwrap();
                let entry = loaded.index.entry_of(commit.position);
                (segment.path.clone(), loaded.index.place(entry as usize).0)
            }
            None => {
                let index = &state.active.index;
                let entry = index.entry_of(commit.position);
                (state.active.path.clone(), index.place(entry as usize).0)
            }
        };
        drop(state);
        disk.flip(&path, usize::try_from(at).unwrap() + 20, 1);
    }
    assert_eq!(ship_all(&broker.reader, &ask, 1).0.len(), before);
    assert_eq!(before, 40);
    assert!(try_read_all(&broker.reader, &Filter::All).is_err());
}
