//! Logs of several brokers that take over each other's frames.

use std::collections::BTreeMap;

use anabranch_core::exchange::{Ask, Peers};
use anabranch_core::lww::Stamp;
use anabranch_core::sequencer::{AcceptError, Foreign};
use anabranch_core::stream::Retention;
use proptest::prelude::*;

use super::cleaning::{COMPACT, EVENTS, OTHER, TABLE, clean, policies, records};
use super::shipping::ship_all;
use super::*;
use crate::log::{Shipped, most_entry_bytes, most_gap_bytes, verify};

fn identity(broker: usize) -> Identity {
    Identity {
        broker: BrokerId::new(broker as u64),
        ..IDENTITY
    }
}

fn reopened(disk: &MemoryDisk, broker: usize) -> Broker {
    let options = LogOptions {
        segment_bytes: 1500,
        ..SMALL
    };
    let mut reopened = open_as(disk, Path::new(DIR), identity(broker), options).unwrap();
    reopened.now = 1_000_000;
    reopened
}

/// Takes over what was shipped; how much of it was lacking.
fn take(to: &mut Broker, item: Shipped) -> Result<usize, AcceptError> {
    let now = to.now;
    match item {
        Shipped::Frame(commit) => {
            let accepted = to.sequencer.accept(&Foreign::from(&**commit), u64::MAX)?;
            to.log
                .make_room(most_entry_bytes(9, commit.size()))
                .unwrap();
            to.log.append(accepted, now);
            Ok(1)
        }
        Shipped::Gaps(gaps) => {
            let before = to.log.pending_bytes();
            let most = most_gap_bytes(&gaps);
            let accepted = to.sequencer.accept_gaps(&gaps, u64::MAX)?;
            let taken = accepted.len();
            to.log.append_gaps(accepted, now);
            assert!(to.log.pending_bytes() - before <= most);
            Ok(taken)
        }
    }
}

/// Sends what was asked for; how much of it was taken over.
fn give(to: &mut Broker, from: &LogReader, ask: &Ask) -> usize {
    let mut taken = 0;
    for item in ship_all(from, ask, 900).0 {
        match take(to, item) {
            Ok(lacking) => taken += lacking,
            Err(refused) => {
                assert!(refused.may_pass(), "{refused}");
                break;
            }
        }
    }
    to.sync().unwrap();
    taken
}

/// One round in which everybody asks all it can reach.
fn exchange(brokers: &mut [Broker], reaches: &dyn Fn(usize, usize) -> bool) -> usize {
    let mut taken = 0;
    for to in 0..brokers.len() {
        let mut peers = Peers::default();
        for from in (0..brokers.len()).filter(|&from| from != to && reaches(to, from)) {
            let holds = brokers[from].sequencer.vector();
            peers.reach(BrokerId::new(from as u64), holds);
        }
        for (peer, ask) in peers.asks(&brokers[to].sequencer.vector()) {
            let from = brokers[usize::try_from(peer.get()).unwrap()].reader.clone();
            taken += give(&mut brokers[to], &from, &ask);
        }
    }
    taken
}

fn assert_whole(disk: &MemoryDisk, broker: usize) {
    let mut findings = Vec::new();
    verify(disk, Path::new(DIR), identity(broker), &mut |event| {
        if let crate::log::Event::Finding(finding) = event {
            findings.push(finding.to_string());
        }
    })
    .unwrap();
    assert_eq!(findings, Vec::<String>::new(), "broker {broker}");
}

#[derive(Clone, Debug)]
enum Step {
    Event(usize),
    Put(usize, u8),
    /// One round over the links of this bit set.
    Exchange(u16),
    /// In order, or as a machine that loses its power.
    Restart(usize, bool),
    /// What is older than this many seconds goes.
    Clean(usize, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..3).prop_map(Step::Event),
        4 => (0usize..3, 0u8..4).prop_map(|(at, key)| Step::Put(at, key)),
        3 => any::<u16>().prop_map(Step::Exchange),
        1 => (0usize..3, any::<bool>()).prop_map(|(at, closed)| Step::Restart(at, closed)),
        1 => (0usize..3, 0u64..10).prop_map(|(at, seconds)| Step::Clean(at, seconds)),
    ];
    prop::collection::vec(step, 20..90)
}

fn step(disks: &[MemoryDisk], brokers: &mut Vec<Broker>, number: usize, step: &Step) {
    match *step {
        Step::Event(at) => {
            brokers[at].now += 1000;
            let mut group = vec![filler(EVENTS, number as u64, 60)];
            // Most frames are dropped whole.
            if number.is_multiple_of(7) {
                group.push(filler(OTHER, number as u64, 5));
            }
            brokers[at].put(&group);
        }
        Step::Put(at, key) => {
            super::cleaning::put_row(
                &mut brokers[at],
                &format!("k{key}"),
                Some(&number.to_string()),
            );
        }
        Step::Exchange(links) => {
            exchange(brokers, &|to, from| links >> (to * 3 + from) & 1 == 1);
        }
        Step::Clean(at, seconds) => {
            let retention = Retention {
                max_age_seconds: Some(seconds),
                ..Retention::default()
            };
            clean(&brokers[at], &policies(retention, COMPACT)).unwrap();
        }
        Step::Restart(at, closed) => {
            let now = brokers[at].now;
            let old = brokers.remove(at);
            match closed {
                true => old.close().unwrap(),
                false => {
                    drop(old);
                    disks[at].power_cycle();
                }
            }
            brokers.insert(at, reopened(&disks[at], at));
            brokers[at].now = now;
        }
    }
}

/// What the rows would be: they go by stamps, so the order of a log does not matter.
fn winners(broker: &Broker) -> BTreeMap<Vec<u8>, (Stamp, Vec<u8>)> {
    let mut rows = BTreeMap::new();
    for commit in read_all(&broker.reader, &Filter::Stream(StreamId::new(TABLE))) {
        for part in &commit.parts {
            let Some(batch) = &part.batch else { continue };
            for record in batch.records().unwrap().iter() {
                let record = record.unwrap();
                let index = part.first_index + record.offset_delta;
                let stamp = Stamp {
                    timestamp: commit.header.timestamp.of_record(index),
                    origin: commit.header.origin,
                };
                let row = (stamp, record.value.unwrap().to_vec());
                let held = rows.entry(record.key.unwrap().to_vec());
                let held = held.or_insert_with(|| row.clone());
                if row.0 > held.0 {
                    *held = row;
                }
            }
        }
    }
    rows
}

/// The values of a stream that nothing is dropped of.
fn kept(broker: &Broker) -> Vec<String> {
    let others = records(&broker.reader, OTHER).into_iter();
    let mut values: Vec<_> = others.filter_map(|(_, _, value)| value).collect();
    values.sort_unstable();
    values
}

fn assert_same_state(broker: &Broker, like: &Broker) {
    assert_eq!(broker.sequencer.vector(), like.sequencer.vector());
    let heads = |broker: &Broker| broker.sequencer.heads().collect::<Vec<_>>();
    assert_eq!(heads(broker), heads(like));
    assert_eq!(winners(broker), winners(like));
    assert_eq!(kept(broker), kept(like));
    let reader = &broker.reader;
    let held = reader.vector_before(reader.next_position()).unwrap();
    assert_eq!(held, like.sequencer.vector());
}

/// An empty log is made like that of others, by those of them that it reaches.
fn join(others: &mut Vec<Broker>, reaches: &[bool], seed: u64) {
    let disk = MemoryDisk::new(seed);
    others.push(reopened(&disk, 3));
    while exchange(others, &|to, from| to == 3 && reaches[from]) > 0 {}
    let joined = others.pop().unwrap();
    assert_same_state(&joined, &others[0]);
    assert_whole(&disk, 3);
    let (checkpoint, now) = (joined.sequencer.checkpoint(), joined.now);
    drop(joined);
    let again = reopened(&disk, 3);
    assert!(again.sequencer.checkpoint() == checkpoint);
    assert_same_state(&again, &others[0]);
    clean_all(&again, now);
    assert_whole(&disk, 3);
    again.close().unwrap();
    let again = reopened(&disk, 3);
    assert_same_state(&again, &others[0]);
}

fn clean_all(broker: &Broker, now: u64) {
    let retention = Retention {
        max_age_seconds: Some(0),
        ..Retention::default()
    };
    let at_end = policies(retention, COMPACT);
    crate::log::Cleaner::new(broker.reader.clone())
        .run_once(&at_end, now + 3_600_000)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn logs_of_all_brokers_hold_the_same_whatever_is_restarted_and_cleaned(
        steps in steps(),
        seed in any::<u64>(),
        reaches in prop::sample::select(vec![
            [true, true, true], [true, false, false], [false, true, true], [false, true, false],
        ]),
    ) {
        let disks: Vec<_> = (0..3).map(|at| MemoryDisk::new(seed ^ at)).collect();
        let mut brokers: Vec<_> = (0..3).map(|at| reopened(&disks[at], at)).collect();
        for (number, wanted) in steps.iter().enumerate() {
            step(&disks, &mut brokers, number, wanted);
        }
        // A chain of links: what 0 and 2 have of each other is relayed.
        while exchange(&mut brokers, &|to, from| to.abs_diff(from) == 1) > 0 {}
        for (at, broker) in brokers.iter().enumerate() {
            assert_same_state(broker, &brokers[0]);
            assert_whole(&disks[at], at);
        }
        join(&mut brokers, &reaches, seed);
        // Gaps of several origins stand next to each other, and nothing is mistaken.
        let mut cleaned = Vec::new();
        for (at, mut broker) in brokers.into_iter().enumerate() {
            let (rows, others) = (winners(&broker), kept(&broker));
            let held = broker.sequencer.vector();
            broker.log.roll(broker.sequencer.checkpoint()).unwrap();
            let now = broker.now;
            clean_all(&broker, now);
            prop_assert_eq!(records(&broker.reader, EVENTS), Vec::new());
            prop_assert_eq!(kept(&broker), others.clone());
            prop_assert_eq!(winners(&broker), rows);
            assert_whole(&disks[at], at);
            broker.close().unwrap();
            let again = reopened(&disks[at], at);
            prop_assert_eq!(again.sequencer.vector(), held.clone());
            prop_assert_eq!(again.reader.vector_before(again.reader.next_position()).unwrap(), held);
            prop_assert_eq!(kept(&again), others);
            cleaned.push(again);
        }
        join(&mut cleaned, &reaches, seed + 1);
    }
}

/// A log that begins at a floor, with gaps and compacted batches behind it.
#[test]
fn an_empty_log_is_filled_from_one_that_begins_at_a_floor() {
    let disk = MemoryDisk::new(3);
    let mut broker = reopened(&disk, 0);
    for number in 0..200u64 {
        broker.now += 1000;
        let group = [filler(EVENTS, number, 60)];
        broker.put(&group);
        if number >= 60 && number.is_multiple_of(20) {
            let keys = [format!("k{number}"), "always".to_owned()];
            let records: Vec<_> = keys
                .iter()
                .map(|key| (Some(key.as_str()), Some("v")))
                .collect();
            broker.put(&[publish(TABLE, 0, &records), filler(OTHER, number, 5)]);
        }
    }
    broker.log.roll(broker.sequencer.checkpoint()).unwrap();
    let now = broker.now;
    clean_all(&broker, now);
    let floor = broker.reader.start_position();
    assert!(floor > position(0));
    let ask = Ask {
        held: anabranch_core::vector::VersionVector::EMPTY,
        of: [BrokerId::new(0)].into(),
    };
    let (items, _) = ship_all(&broker.reader, &ask, 900);
    let Some(Shipped::Gaps(first)) = items.first() else {
        panic!("{items:?}")
    };
    assert_eq!(first[0].frames, floor.get());
    let gaps = items.iter().filter(|i| matches!(i, Shipped::Gaps(_)));
    assert!(gaps.count() > 2);
    let compacted = |item: &Shipped| match item {
        Shipped::Frame(commit) => commit
            .parts
            .iter()
            .any(|p| p.batch.as_ref().is_some_and(|batch| batch.is_compacted())),
        Shipped::Gaps(_) => false,
    };
    assert!(items.iter().any(compacted));
    // Who holds a part of what is gone is told of the rest.
    let some = Ask {
        held: [(
            broker.sequencer.origin(),
            anabranch_core::id::Sequence::new(5),
        )]
        .into_iter()
        .collect(),
        ..ask
    };
    let shipment = broker.reader.ship(position(5), &some, &|_| true, 1);
    let items = shipment.unwrap().items;
    let Some(Shipped::Gaps(rest)) = items.first() else {
        panic!("{items:?}")
    };
    assert_eq!((rest[0].first.get(), rest[0].frames), (6, floor.get() - 5));
    let mut all = vec![broker];
    while all.len() < 3 {
        let disk = MemoryDisk::new(4);
        all.push(reopened(&disk, all.len()));
    }
    join(&mut all, &[true, false, false], 9);
}
