//! Streams that are made, changed and deleted in several regions at once: definitions and rows end
//! the same everywhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anabranch_core::batch::{Batch, Compression};
use anabranch_core::definition;
use anabranch_core::frame::Commit;
use anabranch_core::id::{
    BrokerId, Epoch, Origin, PartitionId, Position, RegionName, StreamId, StreamName,
};
use anabranch_core::lww::Row;
use anabranch_core::sequencer::{Foreign, Publish, Sequencer};
use anabranch_core::stability::Stability;
use anabranch_core::stream::{MergeMode, SYSTEM_STREAM, StreamDefinition};
use fastrand::Rng;
use parking_lot::Mutex;

use super::super::{Applier, Tables, TablesOptions};
use super::history::{batch, deletion, id};
use super::small;
use crate::durable::Durable;

const BROKERS: usize = 3;
const NAMES: [&str; 2] = ["a", "b"];

type Log = Arc<Mutex<Vec<Durable<Arc<Commit>>>>>;

/// Rows by stream and key.
type Rows = BTreeMap<(StreamId, Vec<u8>), Vec<u8>>;

struct Replica {
    sequencer: Sequencer,
    log: Log,
    stability: Stability,
    tables: Tables,
    applier: Applier,
    dir: tempfile::TempDir,
}

fn open(dir: &Path, log: &Log) -> (Tables, Applier) {
    let options = TablesOptions {
        with_others: true,
        ..small()
    };
    let (tables, mut applier) = Tables::open(dir, options).unwrap();
    let log = Arc::clone(log);
    applier.read_history_with(Box::new(move |stream, at| {
        let (log, at) = (log.lock(), usize::try_from(at.get()).unwrap());
        let to = log.len().min(at + 3);
        let has = |commit: &&Durable<Arc<Commit>>| {
            let mut parts = commit.parts.iter();
            parts.any(|part| part.header.stream == stream)
        };
        let found = log[at..to].iter().filter(has).cloned().collect();
        Ok((found, Position::new(to as u64)))
    }));
    (tables, applier)
}

impl Replica {
    fn new(number: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::default();
        let (tables, applier) = open(dir.path(), &log);
        let broker = |n: usize| BrokerId::new(n as u64);
        let mut stability = Stability::new(broker(number));
        let others = (0..BROKERS).filter(|&other| other != number);
        others.for_each(|other| stability.join(broker(other)));
        Self {
            sequencer: Sequencer::new(Origin {
                broker: broker(number),
                epoch: Epoch::new(1),
            }),
            log,
            stability,
            tables,
            applier,
            dir,
        }
    }

    fn write(&mut self, parts: Vec<(StreamId, Batch)>, now_ms: u64) {
        let publish = |(stream, batch)| Publish {
            stream,
            partition: PartitionId::new(0),
            batch,
        };
        let group: Vec<_> = parts.into_iter().map(publish).collect();
        let mut frame = self.sequencer.open();
        frame.add(&group, &mut Vec::new()).unwrap();
        let commit = frame.close(now_ms).unwrap();
        self.log.lock().push(Durable::new(Arc::new(commit)));
        self.apply();
    }

    fn pull(&mut self, other: &[Durable<Arc<Commit>>], most: usize) -> usize {
        let mut taken = 0;
        for commit in other {
            if taken < most
                && let Ok(commit) = self.sequencer.accept(&Foreign::from(&***commit), 1 << 40)
            {
                self.log.lock().push(Durable::new(Arc::new(commit)));
                taken += 1;
            }
        }
        self.apply();
        taken
    }

    fn apply(&mut self) {
        let from = usize::try_from(self.tables.applied().get()).unwrap();
        let run = self.log.lock()[from..].to_vec();
        self.applier.apply(&run).unwrap();
        let report = self.sequencer.report();
        self.stability.advance(&report.applied, report.promise);
        self.tables.raise_watermark(self.stability.watermark());
    }

    fn restart(&mut self) {
        let elsewhere = tempfile::tempdir().unwrap();
        let (tables, applier) = open(elsewhere.path(), &self.log);
        drop(std::mem::replace(&mut self.applier, applier));
        drop(std::mem::replace(&mut self.tables, tables));
        (self.tables, self.applier) = open(self.dir.path(), &self.log);
        self.apply();
    }

    fn rows(&self) -> Rows {
        let mut rows = Rows::new();
        let each = &mut |stream, key: &[u8], stored: &[u8]| {
            if let Some(value) = Row::decode(stored).unwrap().value {
                rows.insert((stream, key.to_vec()), value.to_vec());
            }
        };
        self.tables.each_row(each).unwrap();
        rows
    }
}

fn region(name: &str) -> RegionName {
    RegionName::parse(name).unwrap()
}

fn definition(rng: &mut Rng, name: &str, generation: u32) -> StreamDefinition {
    let merge = match rng.bool() {
        true => MergeMode::Lww,
        false => MergeMode::Append,
    };
    let mut definition = StreamDefinition {
        generation,
        partitions: rng.u16(1..4),
        regions: match rng.u8(..4) {
            0 => Some(["x"].map(region).to_vec()),
            1 => Some(["x", "y"].map(region).to_vec()),
            _ => None,
        },
        ..StreamDefinition::new(StreamName::parse(name).unwrap(), merge)
    };
    definition.retention.max_bytes = Some(rng.u64(1..9));
    definition.retention.compact = merge == MergeMode::Lww && rng.bool();
    definition
}

/// One of the things that people do with streams.
fn use_streams(replica: &mut Replica, rng: &mut Rng, now_ms: u64) {
    let name = NAMES[rng.usize(..NAMES.len())];
    let streams = replica.tables.streams();
    let put = |definition: &StreamDefinition| {
        let value = definition::put_value(definition);
        let write = (name.as_bytes(), Some(value.as_bytes()));
        (id(SYSTEM_STREAM), batch(&[write], Compression::None))
    };
    let write = |rng: &mut Rng, stream| {
        let (key, value) = ([rng.u8(..6)], now_ms.to_string());
        let value = (rng.u8(..4) > 0).then_some(value.as_bytes());
        (stream, batch(&[(&key, value)], Compression::None))
    };
    let parts = match streams.by_name(name) {
        None => vec![put(&definition(rng, name, streams.next_generation(name)))],
        Some(held) => match rng.u8(..20) {
            0 => vec![
                write(rng, held.id()),
                (id(SYSTEM_STREAM), deletion(name, held.generation)),
            ],
            1..4 => {
                let mut changed = (**held).clone();
                changed.retention.max_bytes = Some(rng.u64(1..9));
                vec![write(rng, held.id()), put(&changed)]
            }
            _ => vec![write(rng, held.id())],
        },
    };
    replica.write(parts, now_ms);
}

fn settle(replicas: &mut [Replica]) {
    for _ in 0..2 {
        for to in 0..BROKERS {
            for from in (0..BROKERS).filter(|&from| from != to) {
                let log = replicas[from].log.lock().clone();
                replicas[to].pull(&log, usize::MAX);
                let report = replicas[from].sequencer.report();
                replicas[to].stability.hear(report);
            }
        }
    }
    replicas.iter_mut().for_each(Replica::apply);
}

/// How often a stream turned out to merge otherwise, and to be another one, with other regions.
fn run(seed: u64) -> (usize, usize) {
    let mut rng = Rng::with_seed(seed);
    let mut replicas: Vec<_> = (0..BROKERS).map(Replica::new).collect();
    let (mut changes, mut replaced) = (0, 0);
    for now in 2..150 {
        let at = rng.usize(..BROKERS);
        let before = replicas[at].tables.streams();
        match rng.u8(..20) {
            0..12 => {
                // Clocks differ.
                use_streams(&mut replicas[at], &mut rng, now * 10 + [0, 35, 90][at]);
            }
            12..17 => {
                let from = (at + rng.usize(1..BROKERS)) % BROKERS;
                let log = replicas[from].log.lock().clone();
                replicas[at].pull(&log, rng.usize(1..12));
                let report = replicas[from].sequencer.report();
                replicas[at].stability.hear(report);
            }
            17 | 18 => replicas[at].applier.flush().unwrap(),
            _ => replicas[at].restart(),
        }
        let after = replicas[at].tables.streams();
        changes += before
            .iter()
            .filter(|b| after.get(b.id()).is_some_and(|a| a.merge != b.merge))
            .count();
        replaced += before.iter().filter(|b| after.is_displaced(b.id())).count();
    }
    settle(&mut replicas);
    let (streams, rows) = (replicas[0].tables.streams(), replicas[0].rows());
    for replica in &mut replicas {
        assert_eq!(replica.tables.streams(), streams, "seed {seed}");
        assert_eq!(replica.rows(), rows, "seed {seed}");
        replica.restart();
        assert_eq!(replica.tables.streams(), streams, "seed {seed}");
        assert_eq!(replica.rows(), rows, "seed {seed}");
    }
    (changes, replaced)
}

#[test]
fn definitions_and_rows_end_the_same_whatever_regions_do_with_streams_at_once() {
    let found = (0..40).map(run);
    let (changes, replaced) = found.fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
    assert!(
        changes > 20 && replaced > 20,
        "{changes} streams turned out to merge otherwise, {replaced} to be others"
    );
}
