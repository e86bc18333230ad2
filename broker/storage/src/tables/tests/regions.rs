//! Tables of several brokers that all write the same rows.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anabranch_core::batch::Compression;
use anabranch_core::frame::Commit;
use anabranch_core::id::{BrokerId, Epoch, Origin, PartitionId, StreamId, StreamName};
use anabranch_core::lww::Row;
use anabranch_core::sequencer::{Foreign, Publish, Sequencer};
use anabranch_core::stability::Stability;
use anabranch_core::stream::{MergeMode, StreamDefinition};

use super::super::{Applier, Tables, TablesOptions};
use super::history::{batch, id};
use super::small;
use crate::durable::Durable;

const BROKERS: usize = 3;

struct Replica {
    sequencer: Sequencer,
    log: Vec<Commit>,
    stability: Stability,
    tables: Tables,
    applier: Applier,
    /// How many of the log are applied.
    applied: usize,
    dir: tempfile::TempDir,
}

fn open(dir: &Path) -> (Tables, Applier) {
    let options = TablesOptions {
        with_others: true,
        ..small()
    };
    Tables::open(dir, options).unwrap()
}

fn broker(number: usize) -> BrokerId {
    BrokerId::new(number as u64 + 1)
}

impl Replica {
    fn new(number: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tables, applier) = open(dir.path());
        let mut stability = Stability::new(broker(number));
        for other in (0..BROKERS).filter(|&other| other != number) {
            stability.join(broker(other));
        }
        Self {
            sequencer: Sequencer::new(Origin {
                broker: broker(number),
                epoch: Epoch::new(1),
            }),
            log: Vec::new(),
            stability,
            tables,
            applier,
            applied: 0,
            dir,
        }
    }

    fn write(&mut self, stream: StreamId, key: &[u8], value: Option<&[u8]>, now: u64) {
        let publish = Publish {
            stream,
            partition: PartitionId::new(0),
            batch: batch(&[(key, value)], Compression::None),
        };
        let mut frame = self.sequencer.open();
        frame.add(&[publish], &mut Vec::new()).unwrap();
        self.log.push(frame.close(now).unwrap());
        self.advance();
    }

    /// Takes over up to so many frames that another holds, in its order.
    fn pull(&mut self, other: &[Commit], most: usize) -> usize {
        let mut taken = 0;
        for commit in other {
            if taken < most
                && let Ok(commit) = self.sequencer.accept(&Foreign::from(commit), 1 << 40)
            {
                self.log.push(commit);
                taken += 1;
            }
        }
        self.advance();
        taken
    }

    fn advance(&mut self) {
        let report = self.sequencer.report();
        self.stability.advance(&report.applied, report.promise);
    }

    /// Folds what the log has; the watermark is raised only after what it was found with.
    fn apply(&mut self) {
        let run: Vec<_> = self.log[self.applied..]
            .iter()
            .map(|commit| Durable::new(Arc::new(commit.clone())))
            .collect();
        self.applied = self.log.len();
        self.applier.apply(&run).unwrap();
        self.tables.raise_watermark(self.stability.watermark());
    }

    /// As after a crash.
    fn restart(&mut self) {
        let elsewhere = tempfile::tempdir().unwrap();
        let (tables, applier) = open(elsewhere.path());
        drop(std::mem::replace(&mut self.applier, applier));
        drop(std::mem::replace(&mut self.tables, tables));
        (self.tables, self.applier) = open(self.dir.path());
        assert!(!self.tables.lack_stamps());
        self.applied = usize::try_from(self.tables.applied().get()).unwrap();
    }

    fn rows(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let each = &mut |page: super::super::Page| {
            let page = page.rows.into_iter();
            rows.extend(page.map(|(key, value)| (key.to_vec(), value.to_vec())));
            ControlFlow::Continue(())
        };
        self.tables.snapshot(id("rows"), b"", each).unwrap();
        rows
    }

    fn stamps(&self) -> usize {
        let mut stamps = 0;
        let each = &mut |_: StreamId, _: &[u8], stored: &[u8]| {
            let row = Row::decode(stored).unwrap();
            stamps += usize::from(row.stamp.is_some() || row.value.is_none());
        };
        self.tables.each_row(each).unwrap();
        stamps
    }
}

fn exchange(replicas: &mut [Replica], rng: &mut fastrand::Rng, most: usize) -> usize {
    let (to, from) = (rng.usize(..BROKERS), rng.usize(..BROKERS));
    if to == from {
        return 0;
    }
    let log = replicas[from].log.clone();
    let taken = replicas[to].pull(&log, most);
    let report = replicas[from].sequencer.report();
    replicas[to].stability.hear(report);
    taken
}

/// Everybody gets everything, and says so.
fn settle(replicas: &mut [Replica]) {
    for _ in 0..2 {
        for to in 0..BROKERS {
            for from in (0..BROKERS).filter(|&from| from != to) {
                let log = replicas[from].log.clone();
                replicas[to].pull(&log, usize::MAX);
                let report = replicas[from].sequencer.report();
                replicas[to].stability.hear(report);
            }
        }
    }
    replicas.iter_mut().for_each(Replica::apply);
}

fn run(seed: u64, too_early: bool) -> bool {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut replicas: Vec<_> = (0..BROKERS).map(Replica::new).collect();
    let definition = StreamDefinition::new(StreamName::parse("rows").unwrap(), MergeMode::Lww);
    let json = definition.to_json().to_string();
    let system = StreamDefinition::system().id();
    replicas[0].write(system, b"rows", Some(json.as_bytes()), 1);
    settle(&mut replicas);
    for now in 2..120 {
        let at = rng.usize(..BROKERS);
        match rng.u8(..10) {
            0..5 => {
                let key = [b'a' + rng.u8(..4)];
                let value = now.to_string();
                let value = (rng.u8(..3) > 0).then_some(value.as_bytes());
                // Clocks differ.
                let clock = now * 10 + [0, 35, 90][at];
                replicas[at].write(id("rows"), &key, value, clock);
            }
            5 | 6 => {
                let most = rng.usize(1..8);
                exchange(&mut replicas, &mut rng, most);
            }
            7 => {
                if too_early {
                    let newest = replicas[at].sequencer.last_timestamp();
                    replicas[at].tables.raise_watermark(newest);
                }
                replicas[at].apply();
            }
            8 => replicas[at].applier.flush().unwrap(),
            _ => replicas[at].restart(),
        }
    }
    settle(&mut replicas);
    let rows: Vec<_> = replicas.iter().map(Replica::rows).collect();
    if rows.iter().any(|other| *other != rows[0]) {
        return false;
    }
    // Once all is quiet nothing but the values is left.
    for replica in &mut replicas {
        replica.applier.flush().unwrap();
        while replica.tables.stats().stored_stamps {
            std::thread::yield_now();
        }
        assert_eq!(replica.stamps(), 0);
        assert_eq!(replica.rows(), rows[0], "stripping changed a row");
    }
    check_digests(&replicas);
    check_keys(&replicas[0]);
    true
}

#[test]
fn tables_of_several_brokers_end_with_equal_rows_and_without_stamps() {
    for seed in 0..30 {
        assert!(run(seed, false), "seed {seed}");
    }
}

/// A test of the test above.
#[test]
fn a_watermark_that_is_raised_too_early_is_caught() {
    assert!((0..30).any(|seed| !run(seed, true)));
}

#[test]
fn a_stored_row_keeps_its_stamp_against_what_a_start_folds_again() {
    let mut replicas: Vec<_> = (0..BROKERS).map(Replica::new).collect();
    let definition = StreamDefinition::new(StreamName::parse("rows").unwrap(), MergeMode::Lww);
    let json = definition.to_json().to_string();
    let system = StreamDefinition::system().id();
    replicas[0].write(system, b"rows", Some(json.as_bytes()), 1);
    settle(&mut replicas);
    replicas[1].write(id("rows"), b"k", Some(b"earlier"), 50);
    replicas[0].write(id("rows"), b"k", Some(b"later"), 100);
    replicas[0].apply();
    replicas[0].applier.flush().unwrap();
    // The earlier write comes, and all say that nothing before will.
    settle(&mut replicas);
    settle(&mut replicas);
    let replica = &mut replicas[0];
    while replica.tables.shared.wants_sweep() {
        std::thread::yield_now();
    }
    replica.restart();
    replica.apply();
    assert_eq!(replica.rows(), [(b"k".to_vec(), b"later".to_vec())]);
}

/// Equal everywhere, and as much in two halves as in one piece; unequal where a row is.
fn check_keys(replica: &Replica) {
    let all = replica.tables.digest(id("rows"), b"", None).unwrap();
    let mut before = 0;
    for number in 0..all.rows {
        let key = replica.tables.key_at(id("rows"), (b"", None), number);
        let key = key.unwrap().unwrap();
        let rows = replica
            .tables
            .digest(id("rows"), b"", Some(&key))
            .unwrap()
            .rows;
        assert_eq!(rows, number, "rows before {key:?}");
        before += 1;
    }
    let beyond = replica.tables.key_at(id("rows"), (b"", None), before);
    assert_eq!(beyond.unwrap(), None);
}

fn check_digests(replicas: &[Replica]) {
    let digest = |replica: &Replica, from: &[u8], to| {
        let digest = replica.tables.digest(id("rows"), from, to).unwrap();
        (digest.sum, digest.rows)
    };
    let all = digest(&replicas[0], b"", None);
    for replica in replicas {
        assert_eq!(digest(replica, b"", None), all);
        let (low, high) = (
            digest(replica, b"", Some(b"c")),
            digest(replica, b"c", None),
        );
        assert_eq!(low.0.wrapping_add(high.0), all.0);
        assert_eq!(low.1 + high.1, all.1);
        assert_eq!(digest(replica, b"c", Some(b"b")).1, 0);
    }
}

#[test]
fn the_digest_does_not_depend_on_stamps_and_does_on_every_byte() {
    let mut replicas: Vec<_> = (0..BROKERS).map(Replica::new).collect();
    let definition = StreamDefinition::new(StreamName::parse("rows").unwrap(), MergeMode::Lww);
    let json = definition.to_json().to_string();
    replicas[0].write(
        StreamDefinition::system().id(),
        b"rows",
        Some(json.as_bytes()),
        1,
    );
    settle(&mut replicas);
    replicas[0].write(id("rows"), b"k", Some(b"v"), 10);
    replicas[0].write(id("rows"), b"gone", Some(b"v"), 11);
    replicas[0].write(id("rows"), b"gone", None, 12);
    let log = replicas[0].log.clone();
    replicas[1].pull(&log, usize::MAX);
    replicas.iter_mut().for_each(Replica::apply);
    let sum = |replica: &Replica| replica.tables.digest(id("rows"), b"", None).unwrap();
    assert!(replicas[0].stamps() > 0);
    let before = sum(&replicas[0]);
    assert_eq!((before.rows, before.sum), (1, sum(&replicas[1]).sum));
    settle(&mut replicas);
    replicas[1].applier.flush().unwrap();
    assert_eq!(replicas[1].stamps(), 0);
    assert_eq!(sum(&replicas[1]).sum, before.sum);
    replicas[1].write(id("rows"), b"k", Some(b"w"), 20);
    replicas[1].apply();
    assert_ne!(sum(&replicas[1]).sum, before.sum);
}
