//! Retention and compaction against a naive model, with the power going at any operation.

use std::collections::BTreeMap;

use anabranch_core::batch::Batch;
use anabranch_core::stream::{MergeMode, Retention};
use hashbrown::HashMap;
use proptest::prelude::*;

use super::*;
use crate::disk::{Disk, Fault};
use crate::log::{CleanError, Cleaner, Policy, Report, verify};

pub(super) const EVENTS: u64 = 1;
pub(super) const TABLE: u64 = 2;
pub(super) const OTHER: u64 = 3;

pub(super) type Policies = HashMap<StreamId, Policy>;

pub(super) fn policies(events: Retention, table: Retention) -> Policies {
    let policy = |merge, retention| Policy {
        merge,
        retention,
        trim_before_ms: None,
    };
    HashMap::from([
        (StreamId::new(EVENTS), policy(MergeMode::Append, events)),
        (StreamId::new(TABLE), policy(MergeMode::Lww, table)),
        (
            StreamId::new(OTHER),
            policy(MergeMode::Append, Retention::default()),
        ),
    ])
}

pub(super) const COMPACT: Retention = Retention {
    max_age_seconds: None,
    max_bytes: None,
    compact: true,
};

pub(super) fn clean(broker: &Broker, policies: &Policies) -> Result<Report, CleanError> {
    Cleaner::new(broker.reader.clone()).run_once(policies, broker.now)
}

/// All records of a stream that can be read: offset, key, value.
pub(super) fn records(reader: &LogReader, stream: u64) -> Vec<(u64, String, Option<String>)> {
    let mut found = Vec::new();
    for commit in read_all(reader, &Filter::Stream(StreamId::new(stream))) {
        for part in &commit.parts {
            let Some(batch) = &part.batch else { continue };
            let base = part.base_offset.get();
            each(batch, &mut |delta, key, value| {
                found.push((base + u64::from(delta), key, value));
            });
        }
    }
    found
}

fn each(batch: &Batch, found: &mut dyn FnMut(u32, String, Option<String>)) {
    let records = batch.records().unwrap();
    for record in records.iter() {
        let record = record.unwrap();
        let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8(b.to_vec()).unwrap());
        let key = text(record.key).unwrap_or_default();
        found(record.offset_delta, key, text(record.value));
    }
}

pub(super) fn rows(reader: &LogReader) -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for (_, key, value) in records(reader, TABLE) {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
    rows
}

pub(super) fn put_row(broker: &mut Broker, key: &str, value: Option<&str>) {
    broker.put(&[publish(TABLE, 0, &[(Some(key), value)])]);
}

/// Makes everything so far part of sealed segments.
pub(super) fn seal_all(broker: &mut Broker) {
    broker.log.roll(broker.sequencer.checkpoint()).unwrap();
}

pub(super) fn assert_verified(disk: &MemoryDisk) {
    let mut findings = Vec::new();
    verify(disk, Path::new(DIR), IDENTITY, &mut |event| {
        if let crate::log::Event::Finding(finding) = event {
            findings.push(finding.to_string());
        }
    })
    .unwrap();
    assert_eq!(findings, Vec::<String>::new());
}

#[test]
fn events_beyond_their_age_or_size_are_trimmed_at_once_and_segments_follow() {
    for by_size in [false, true] {
        let disk = MemoryDisk::new(1);
        let mut broker = open(&disk).unwrap();
        for n in 0..60u64 {
            broker.now = 1_000_000 + n * 1000;
            broker.put(&[filler(EVENTS, n, 400)]);
        }
        let retention = match by_size {
            false => Retention {
                max_age_seconds: Some(20),
                ..Retention::default()
            },
            true => Retention {
                max_bytes: Some(20 * 472),
                ..Retention::default()
            },
        };
        let before = segments(&disk).len();
        let report = clean(&broker, &policies(retention, Retention::default())).unwrap();
        let kept = records(&broker.reader, EVENTS).len();
        assert!((20..=21).contains(&kept), "{kept}");
        let stream = StreamId::new(EVENTS);
        assert_eq!(broker.reader.trimmed(stream).get(), 60 - kept as u64);
        let (first, next) = broker.reader.bounds(stream, PartitionId::new(2));
        assert!(first.get() >= 12 && next.get() == 20, "{first} {next}");
        assert!(report.removed > 0 && segments(&disk).len() == before - report.removed);
        assert_eq!(report.floor, Some(broker.reader.start_position()));
        let floor = broker.reader.floor();
        assert_eq!(broker.reader.resume(&floor), broker.reader.start_position());
        assert!(
            clean(&broker, &policies(retention, Retention::default()))
                .unwrap()
                .is_empty()
        );
        let before = records(&broker.reader, EVENTS);
        assert_verified(&disk);
        broker.close().unwrap();
        let broker = open(&disk).unwrap();
        assert_eq!(records(&broker.reader, EVENTS), before);
        assert_eq!(broker.reader.floor(), floor);
    }
}

#[test]
fn replaced_rows_are_dropped_and_the_rest_keeps_offsets_and_chains() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    for n in 0..100u64 {
        let value = format!("{n:0100}");
        let rows = [
            (Some("hot"), Some(value.as_str())),
            (Some("x"), Some(&value)),
        ];
        broker.put(&[publish(TABLE, 0, &rows), filler(OTHER, n, 8)]);
    }
    put_row(&mut broker, "lone", Some("v"));
    seal_all(&mut broker);
    let (before, others) = (rows(&broker.reader), records(&broker.reader, OTHER));
    let stored = broker.reader.stored_bytes(StreamId::new(TABLE));
    let report = clean(&broker, &policies(Retention::default(), COMPACT)).unwrap();
    assert!(report.rewritten > 0);
    assert!(broker.reader.stored_bytes(StreamId::new(TABLE)) < stored / 5);
    assert_eq!(rows(&broker.reader), before);
    assert_eq!(records(&broker.reader, OTHER), others);
    let left = records(&broker.reader, TABLE);
    assert!(left.contains(&(200, "lone".to_owned(), Some("v".to_owned()))));
    assert!(
        clean(&broker, &policies(Retention::default(), COMPACT))
            .unwrap()
            .is_empty()
    );
    assert_verified(&disk);
    broker.close().unwrap();
    assert_eq!(rows(&open(&disk).unwrap().reader), before);
}

#[test]
fn a_delete_goes_a_day_later_and_only_after_what_it_deletes() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let long = "v".repeat(300);
    for n in 0..20 {
        put_row(&mut broker, &format!("k{n}"), Some(&long));
    }
    seal_all(&mut broker);
    for n in 0..20 {
        put_row(&mut broker, &format!("k{n}"), None);
    }
    seal_all(&mut broker);
    let all = policies(Retention::default(), COMPACT);
    clean(&broker, &all).unwrap();
    let left = records(&broker.reader, TABLE);
    assert_eq!(left.len(), 20, "the deletes stay");
    assert!(left.iter().all(|(_, _, value)| value.is_none()));
    broker.now += 25 * 60 * 60 * 1000;
    // Cleaning begins again when half of what there is, is new.
    for n in 0..20 {
        put_row(&mut broker, &format!("n{n}"), Some(&long));
    }
    seal_all(&mut broker);
    let before = rows(&broker.reader);
    clean(&broker, &all).unwrap();
    assert_eq!(rows(&broker.reader), before);
    assert!(
        records(&broker.reader, TABLE)
            .iter()
            .all(|(_, _, value)| value.is_some())
    );
    assert_verified(&disk);
}

#[test]
fn deletes_stay_where_other_brokers_write() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    let theirs = anabranch_core::id::Origin {
        broker: BrokerId::new(77),
        epoch: anabranch_core::id::Epoch::new(1),
    };
    put_row(&mut broker, "a", None);
    let ours = broker.sequencer.origin();
    broker.sequencer.take_origin(theirs);
    put_row(&mut broker, "b", Some("1"));
    assert_ne!(ours, theirs);
    seal_all(&mut broker);
    broker.now += 25 * 60 * 60 * 1000;
    clean(&broker, &policies(Retention::default(), COMPACT)).unwrap();
    assert_eq!(records(&broker.reader, TABLE).len(), 2);
}

#[test]
fn compressed_batches_are_compacted_too() {
    use anabranch_core::batch::{BatchBuilder, Compression, NewRecord};
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    for n in 0..40 {
        let mut builder = BatchBuilder::default();
        for key in ["a", "b"] {
            let value: String = (0..300u64)
                .map(|i| ((i * 7919 + n * 104_729) % 93 + 33) as u8 as char)
                .collect();
            let record = NewRecord {
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                ..NewRecord::default()
            };
            builder.push(&record).unwrap();
        }
        broker.put(&[Publish {
            stream: StreamId::new(TABLE),
            partition: PartitionId::new(0),
            batch: builder.finish_compressed(Compression::Zstd, None).unwrap(),
        }]);
    }
    seal_all(&mut broker);
    let before = rows(&broker.reader);
    clean(&broker, &policies(Retention::default(), COMPACT)).unwrap();
    assert_eq!(rows(&broker.reader), before);
    assert_eq!(records(&broker.reader, TABLE).len(), 2);
}

#[test]
fn a_read_that_began_before_a_segment_was_replaced_ends_well() {
    let disk = MemoryDisk::new(1);
    let mut broker = open(&disk).unwrap();
    for n in 0..60 {
        put_row(&mut broker, "k", Some(&format!("{n:0200}")));
    }
    seal_all(&mut broker);
    let segment = Arc::clone(&broker.reader.shared().state.read().segments[0]);
    let loaded = broker.reader.shared().load(&segment).unwrap();
    clean(&broker, &policies(Retention::default(), COMPACT)).unwrap();
    // The old file is still open, the old segment is not found by name any more.
    let mut scanner =
        crate::log::scan::Scanner::new(&*loaded.file, loaded.id, 64, loaded.index.end());
    assert!(scanner.next(position(0)).unwrap().is_ok());
    assert!(broker.reader.shared().load(&segment).is_err());
    assert_eq!(broker.reader.vector_before(position(1)).unwrap().len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Events(usize),
    Put(u8, usize),
    Delete(u8),
    Clean,
    Seal,
    Restart,
    /// As [`Step::Restart`], but as another origin.
    LoseMark,
    Hours(u64),
    /// As many segments of one event each.
    Segments(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (10usize..600).prop_map(Step::Events),
        8 => (0u8..6, 10usize..600).prop_map(|(key, bytes)| Step::Put(key, bytes)),
        2 => (0u8..6).prop_map(Step::Delete),
        2 => Just(Step::Clean),
        2 => Just(Step::Seal),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseMark),
        2 => (1u64..30).prop_map(Step::Hours),
        1 => (3u64..12).prop_map(Step::Segments),
    ];
    prop::collection::vec(step, 5..60)
}

fn retentions() -> impl Strategy<Value = Policies> {
    let retention = |compact| {
        let age = prop::option::of(1u64..40).prop_map(|hours| hours.map(|h| h * 3600));
        (age, prop::option::of(500u64..8000), compact).prop_map(
            |(max_age_seconds, max_bytes, compact)| Retention {
                max_age_seconds,
                max_bytes,
                compact,
            },
        )
    };
    let never = Just(false).boxed();
    (retention(never), retention(any::<bool>().boxed())).prop_map(|(e, t)| policies(e, t))
}

/// What is acknowledged: all events, and the rows.
#[derive(Default)]
struct Model {
    events: Vec<(u64, String)>,
    rows: BTreeMap<String, String>,
    now: u64,
    count: u64,
}

impl Model {
    fn step(
        &mut self,
        disk: &MemoryDisk,
        broker: Broker,
        step: &Step,
        all: &Policies,
    ) -> Result<Broker, String> {
        let mut broker = broker;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        self.count += 1;
        broker.now = self.now;
        let seal = |broker: &mut Broker| {
            let checkpoint = broker.sequencer.checkpoint();
            broker.log.roll(checkpoint).map_err(|error| text(&error))
        };
        match step {
            Step::Events(bytes) => {
                let value = format!("{:0bytes$}", self.count);
                broker.append(&[publish(EVENTS, 0, &[(None, Some(&value))])]);
                broker.sync().map_err(|error| text(&error))?;
                self.events.push((self.events.len() as u64, value));
            }
            Step::Put(key, bytes) => {
                let (key, value) = (format!("k{key}"), format!("{:0bytes$}", self.count));
                broker.append(&[publish(TABLE, 0, &[(Some(&key), Some(&value))])]);
                broker.sync().map_err(|error| text(&error))?;
                self.rows.insert(key, value);
            }
            Step::Delete(key) => {
                let key = format!("k{key}");
                broker.append(&[publish(TABLE, 0, &[(Some(&key), None)])]);
                broker.sync().map_err(|error| text(&error))?;
                self.rows.remove(&key);
            }
            Step::Clean => drop(clean(&broker, all).map_err(|error| text(&error))?),
            Step::Seal => seal(&mut broker)?,
            Step::Segments(count) => {
                for _ in 0..*count {
                    broker = self.step(disk, broker, &Step::Events(10), all)?;
                    seal(&mut broker)?;
                }
            }
            Step::Restart => {
                broker.close().map_err(|error| text(&error))?;
                broker = open(disk).map_err(|error| text(&error))?;
            }
            Step::LoseMark => {
                broker.close().map_err(|error| text(&error))?;
                let mark = Path::new(DIR).join("mark");
                disk.remove(&mark).map_err(|error| text(&error))?;
                broker = open(disk).map_err(|error| text(&error))?;
            }
            Step::Hours(hours) => self.now += hours * 3_600_000,
        }
        Ok(broker)
    }

    fn check(&self, broker: &Broker, all: &Policies) {
        assert_eq!(rows(&broker.reader), self.rows);
        let found = records(&broker.reader, EVENTS);
        let kept = found.len();
        let (first, next) = broker
            .reader
            .bounds(StreamId::new(EVENTS), PartitionId::new(0));
        assert_eq!((next.get() - first.get()) as usize, kept);
        let expected = self.events[self.events.len() - kept..].iter();
        let expected: Vec<_> = expected
            .map(|(n, v)| (*n, String::new(), Some(v.clone())))
            .collect();
        assert_eq!(found, expected);
        let retention = all[&StreamId::new(EVENTS)].retention;
        if retention.max_age_seconds.is_none() && retention.max_bytes.is_none() {
            assert_eq!(kept, self.events.len(), "nothing says to drop any");
        }
    }
}

/// Runs the steps. When the power goes, the last step may or may not have happened: the model is
/// then what it was before or after it. Returns the disk operations of each cleaning.
fn run(disk: &MemoryDisk, steps: &[Step], all: &Policies) -> Vec<u64> {
    let mut model = Model::default();
    let mut cleaning = Vec::new();
    let Ok(mut broker) = open(disk) else {
        assert!(!disk.is_powered());
        return cleaning;
    };
    for step in steps {
        let (events, rows) = (model.events.len(), model.rows.clone());
        let from = disk.operations();
        match model.step(disk, broker, step, all) {
            Ok(next) => broker = next,
            Err(error) => {
                assert!(!disk.is_powered(), "{error}");
                after_a_cut(disk, step, (events, rows), &model);
                goes_on_after_a_cut(disk, all, model.now);
                return cleaning;
            }
        }
        if !disk.is_powered() {
            return cleaning;
        }
        if matches!(step, Step::Clean | Step::Restart | Step::LoseMark) {
            cleaning.extend(from + 1..=disk.operations());
            disk.watch(|| {
                model.check(&broker, all);
                assert_verified(disk);
            });
        }
    }
    cleaning
}

fn after_a_cut(
    disk: &MemoryDisk,
    step: &Step,
    (events, before): (usize, BTreeMap<String, String>),
    after: &Model,
) {
    disk.power_cycle();
    let broker = open(disk).unwrap();
    assert_verified(disk);
    let found = rows(&broker.reader);
    let mut next = before.clone();
    match step {
        // Of a publish that failed, the log may hold the record all the same.
        Step::Put(key, bytes) => {
            next.insert(format!("k{key}"), format!("{:0bytes$}", after.count));
        }
        Step::Delete(key) => {
            next.remove(&format!("k{key}"));
        }
        _ => {}
    }
    assert!(found == before || found == next, "{found:?}");
    let kept = records(&broker.reader, EVENTS);
    let (first, next) = broker
        .reader
        .bounds(StreamId::new(EVENTS), PartitionId::new(0));
    assert_eq!((next.get() - first.get()) as usize, kept.len());
    assert!(next.get() as usize >= events);
    for (offset, _, value) in &kept {
        let known = after.events.get(*offset as usize);
        assert!(known.is_none_or(|(_, written)| Some(written) == value.as_ref()));
    }
}

/// Whatever the cut left is cleaned as if there had been none.
fn goes_on_after_a_cut(disk: &MemoryDisk, all: &Policies, now: u64) {
    let mut broker = open(disk).unwrap();
    broker.now = now;
    let (before, events) = (rows(&broker.reader), records(&broker.reader, EVENTS));
    for _ in 0..2 {
        clean(&broker, all).unwrap();
        assert_verified(disk);
        assert_eq!(rows(&broker.reader), before);
        assert!(events.ends_with(&records(&broker.reader, EVENTS)));
    }
    let (vector, left) = (broker.sequencer.vector(), broker.all());
    drop(broker);
    let broker = open(disk).unwrap();
    assert_eq!(broker.sequencer.vector(), vector);
    assert_eq!(broker.all().len(), left.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn rows_and_kept_events_stay_what_they_are_whatever_is_cleaned(steps in steps(), all in retentions(), seed in any::<u64>()) {
        run(&MemoryDisk::new(seed), &steps, &all);
    }

    #[test]
    fn a_power_cut_while_cleaning_changes_no_row_and_no_kept_event(steps in steps(), all in retentions(), seed in any::<u64>()) {
        let cleaning = run(&MemoryDisk::new(seed), &steps, &all);
        let stride = cleaning.len().div_ceil(25).max(1);
        for &operation in cleaning.iter().skip(seed as usize % stride).step_by(stride) {
            let disk = MemoryDisk::new(seed);
            disk.inject(operation, Fault::PowerCut);
            run(&disk, &steps, &all);
        }
    }
}
