//! Logs of several brokers that take over each other's frames.

use anabranch_core::exchange::{Ask, Peers};
use anabranch_core::sequencer::Foreign;
use anabranch_core::stream::Retention;
use proptest::prelude::*;

use super::cleaning::{COMPACT, EVENTS, OTHER, clean, policies, records, rows};
use super::*;
use crate::log::verify;

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

/// Sends what was asked for; how much of it was taken over.
fn give(to: &mut Broker, from: &LogReader, ask: &Ask) -> usize {
    let mut taken = 0;
    for commit in read_all(from, &Filter::All) {
        if !ask.wants(&commit.header) {
            continue;
        }
        match to.sequencer.accept(&Foreign::from(&*commit), u64::MAX) {
            Ok(accepted) => {
                to.log.append(accepted, to.now);
                taken += 1;
            }
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
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..3).prop_map(Step::Event),
        4 => (0usize..3, 0u8..4).prop_map(|(at, key)| Step::Put(at, key)),
        3 => any::<u16>().prop_map(Step::Exchange),
        1 => (0usize..3, any::<bool>()).prop_map(|(at, closed)| Step::Restart(at, closed)),
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
                group.push(filler(OTHER, 1, 5));
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

/// What the tables would be: rows go by stamps, so the order of a log does not matter.
fn sorted_events(broker: &Broker) -> Vec<String> {
    let events = records(&broker.reader, EVENTS).into_iter();
    let mut values: Vec<_> = events.filter_map(|(_, _, value)| value).collect();
    values.sort_unstable();
    values
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn logs_of_all_brokers_hold_the_same_whatever_is_restarted_and_cleaned(
        steps in steps(),
        seed in any::<u64>(),
    ) {
        let disks: Vec<_> = (0..3).map(|at| MemoryDisk::new(seed ^ at)).collect();
        let mut brokers: Vec<_> = (0..3).map(|at| reopened(&disks[at], at)).collect();
        for (number, wanted) in steps.iter().enumerate() {
            step(&disks, &mut brokers, number, wanted);
        }
        // A chain of links: what 0 and 2 have of each other is relayed.
        while exchange(&mut brokers, &|to, from| to.abs_diff(from) == 1) > 0 {}
        let retention = Retention { max_age_seconds: Some(0), ..Retention::default() };
        let held = brokers[0].sequencer.vector();
        let events = sorted_events(&brokers[0]);
        for (at, broker) in brokers.iter().enumerate() {
            prop_assert_eq!(broker.sequencer.vector(), held.clone());
            prop_assert_eq!(sorted_events(broker), events.clone());
            assert_whole(&disks[at], at);
        }
        let mut with_gaps = 0;
        // Gaps of several origins stand next to each other, and nothing is mistaken.
        for (at, mut broker) in brokers.into_iter().enumerate() {
            broker.now += 3_600_000;
            let (kept, others) = (rows(&broker.reader), records(&broker.reader, OTHER));
            broker.log.roll(broker.sequencer.checkpoint()).unwrap();
            clean(&broker, &policies(retention, COMPACT)).unwrap();
            with_gaps += usize::from(broker.reader.shared().state.read().segments.iter().any(|s| {
                s.summary.entries < s.summary.next.get() - s.summary.first.get()
            }));
            prop_assert_eq!(records(&broker.reader, EVENTS), Vec::new());
            prop_assert_eq!(records(&broker.reader, OTHER), others.clone());
            prop_assert_eq!(rows(&broker.reader).len(), kept.len());
            assert_whole(&disks[at], at);
            broker.close().unwrap();
            let again = reopened(&disks[at], at);
            prop_assert_eq!(again.sequencer.vector(), held.clone());
            prop_assert_eq!(again.reader.vector_before(again.reader.next_position()).unwrap(), held.clone());
            prop_assert_eq!(records(&again.reader, OTHER), others);
        }
        prop_assert!(with_gaps == 3 || events.len() < 40, "{with_gaps} with gaps");
    }
}
