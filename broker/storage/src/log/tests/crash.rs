//! Power cuts, at every disk operation, and ends of the process.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anabranch_core::id::{Origin, Sequence};
use proptest::prelude::*;

use super::*;
use crate::disk::Fault;
use crate::log::Proof;

/// What a writer does between two starts.
#[derive(Clone, Debug)]
enum Step {
    /// Frames of these numbers of publishes of so many bytes, then a sync.
    Group(Vec<usize>, usize),
    Close,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let group = (prop::collection::vec(1usize..4, 1..4), 10usize..900)
        .prop_map(|(frames, bytes)| Step::Group(frames, bytes));
    let step = prop_oneof![12 => group, 1 => Just(Step::Close), 1 => Just(Step::Kill)];
    prop::collection::vec(step, 1..25)
}

/// What was ever written, what of it is in the log, and what of that was acknowledged.
#[derive(Default)]
struct Model {
    used: HashSet<(Origin, Sequence)>,
    log: Vec<Commit>,
    acknowledged: usize,
}

impl Model {
    fn group(
        &mut self,
        broker: &mut Broker,
        frames: &[usize],
        bytes: usize,
    ) -> Result<(), WriteError> {
        for &publishes in frames {
            let first = self.log.len();
            let group: Vec<_> = (0..publishes)
                .map(|n| filler(1 + n as u64 % 2, (first * 10 + n) as u64, bytes))
                .collect();
            let commit = broker.append(&group);
            let name = (commit.header.origin, commit.header.sequence);
            assert!(self.used.insert(name), "{name:?} is used twice");
            self.log.push(commit);
        }
        let durable = broker.log.sync()?;
        assert_eq!(durable.len(), frames.len());
        self.acknowledged = self.log.len();
        if broker.log.wants_roll() {
            broker.log.roll(broker.sequencer.checkpoint())?;
        }
        Ok(())
    }

    /// Everything acknowledged is there, nothing is torn, and only the tail may be gone.
    fn check(&mut self, broker: &Broker) {
        self.try_check(broker).unwrap();
    }

    fn try_check(&mut self, broker: &Broker) -> Result<(), ReadError> {
        let found = try_read_all(&broker.reader, &Filter::All)?;
        assert!(
            found.len() >= self.acknowledged,
            "{} of {} acknowledged are there",
            found.len(),
            self.acknowledged
        );
        assert!(found.len() <= self.log.len());
        self.log.truncate(found.len());
        self.acknowledged = found.len();
        assert_same(&found, &self.log);
        let mut replayed = Sequencer::new(broker.sequencer.origin());
        for commit in &found {
            replayed.replay(commit).unwrap();
        }
        assert_eq!(replayed.next_position(), broker.sequencer.next_position());
        assert_eq!(replayed.vector(), broker.sequencer.vector());
        assert_eq!(replayed.last_timestamp(), broker.sequencer.last_timestamp());
        Ok(())
    }

    /// Does the steps until the power goes.
    fn run(&mut self, disk: &MemoryDisk, steps: &[Step]) {
        if let Err(error) = self.steps(disk, steps) {
            assert!(!disk.is_powered(), "{error}");
        }
    }

    fn steps(&mut self, disk: &MemoryDisk, steps: &[Step]) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut broker = open(disk).map_err(|error| text(&error))?;
        for step in steps {
            match step {
                Step::Group(frames, bytes) => {
                    let done = self.group(&mut broker, frames, *bytes);
                    done.map_err(|error| text(&error))?;
                    continue;
                }
                Step::Close => broker.close().map_err(|error| text(&error))?,
                Step::Kill => drop(broker),
            }
            broker = open(disk).map_err(|error| text(&error))?;
            assert!(broker.recovery.proof.is_whole());
            assert_eq!(broker.recovery.new_origin, None);
            self.try_check(&broker).map_err(|error| text(&error))?;
        }
        Ok(())
    }
}

fn check_a_cut_at(seed: u64, operation: u64, steps: &[Step]) {
    let disk = MemoryDisk::new(seed);
    let mut model = Model::default();
    disk.inject(operation, Fault::PowerCut);
    model.run(&disk, steps);
    disk.power_cycle();
    // The second time the power goes while the log is being recovered.
    disk.inject(disk.operations() + 1 + operation % 40, Fault::PowerCut);
    drop(open(&disk));
    disk.power_cycle();
    let mut broker = open(&disk).unwrap();
    model.check(&broker);
    model.group(&mut broker, &[1, 2], 50).unwrap();
    model.check(&broker);
    drop(broker);
    let again = open(&disk).unwrap();
    assert_eq!(again.recovery.cut_bytes, 0, "recovering is done after once");
    model.check(&again);
    again.close().unwrap();
    let closed = open(&disk).unwrap();
    assert_eq!(
        (closed.recovery.proof, closed.recovery.scanned_bytes),
        (Proof::Clean, 0)
    );
    model.check(&closed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn a_power_cut_at_any_operation_loses_nothing_acknowledged(steps in steps(), seed in any::<u64>()) {
        let disk = MemoryDisk::new(seed);
        let mut model = Model::default();
        model.run(&disk, &steps);
        let operations = disk.operations();
        // Enough of them that all are met over the cases.
        let stride = operations.div_ceil(60).max(1);
        for operation in (1 + seed % stride..=operations).step_by(stride as usize) {
            check_a_cut_at(seed ^ operation, operation, &steps);
        }
    }
}

#[test]
fn a_failed_sync_is_final_and_acknowledges_nothing() {
    for fault in [Fault::Io, Fault::NoSpace] {
        for ahead in 1..=2 {
            let disk = MemoryDisk::new(5);
            let mut broker = open(&disk).unwrap();
            broker.put(&[filler(1, 0, 10)]);
            broker.append(&[filler(1, 1, 10)]);
            disk.inject(disk.operations() + ahead, fault);
            assert!(matches!(broker.log.sync(), Err(WriteError::Io { .. })));
            assert!(matches!(broker.log.sync(), Err(WriteError::Poisoned(_))));
            assert!(matches!(
                broker.log.roll(Vec::new()),
                Err(WriteError::Poisoned(_))
            ));
            assert_eq!(broker.all().len(), 1);
            assert!(matches!(broker.close(), Err(WriteError::Poisoned(_))));
            assert_eq!(open(&disk).unwrap().recovery.proof, Proof::SameBoot);
        }
    }
}

#[test]
fn what_a_failed_sync_left_in_memory_is_written_again_before_it_is_believed() {
    let disk = MemoryDisk::new(5);
    let mut broker = open(&disk).unwrap();
    broker.put(&[filler(1, 0, 10)]);
    broker.append(&[filler(1, 1, 10)]);
    disk.inject(disk.operations() + 2, Fault::Io);
    broker.log.sync().unwrap_err();
    drop(broker);
    let before = disk.operations();
    let broker = open(&disk).unwrap();
    assert_eq!(
        broker.all().len(),
        2,
        "it was written, only not acknowledged"
    );
    assert!(disk.operations() > before);
    drop(broker);
    disk.power_cycle();
    assert_eq!(open(&disk).unwrap().all().len(), 2, "and is durable now");
}

#[test]
fn a_full_disk_at_a_roll_leaves_the_log_as_it_was() {
    let disk = MemoryDisk::new(5);
    let mut broker = open(&disk).unwrap();
    let mut written = Vec::new();
    let fill = |broker: &mut Broker, written: &mut Vec<Commit>| {
        while !broker.log.wants_roll() {
            written.push(broker.append(&[filler(1, 0, 900)]));
            broker.log.sync().unwrap();
        }
        written.len()
    };
    fill(&mut broker, &mut written);
    disk.set_capacity(0);
    // The next segment is prepared; the seal of this one has no room and waits.
    broker.log.roll(broker.sequencer.checkpoint()).unwrap();
    disk.set_capacity(disk.reserved() + 2000);
    let held = fill(&mut broker, &mut written);
    disk.set_capacity(0);
    for _ in 0..2 {
        let full = broker.log.roll(broker.sequencer.checkpoint());
        assert!(matches!(full, Err(WriteError::NoSpace { .. })));
        assert_eq!(broker.all().len(), held);
    }
    disk.set_capacity(u64::MAX);
    broker.log.roll(broker.sequencer.checkpoint()).unwrap();
    fill(&mut broker, &mut written);
    assert_same(&broker.all(), &written);
    broker.close().unwrap();
    let again = open(&disk).unwrap();
    assert_eq!(
        again.recovery.scanned_bytes, 0,
        "everything was sealed in the end"
    );
    assert_same(&again.all(), &written);
}

#[test]
fn a_full_disk_in_the_middle_of_a_segment_leaves_the_log_as_it_was() {
    let disk = MemoryDisk::new(5);
    let mut broker = open(&disk).unwrap();
    let held = disk.reserved();
    let written = vec![broker.put(&[filler(1, 0, 900)])];
    disk.set_capacity(held);
    broker.log.make_room(2000).unwrap();
    for _ in 0..2 {
        let full = broker.log.make_room(5000);
        assert!(matches!(full, Err(WriteError::NoSpace { .. })));
        assert_eq!(disk.reserved(), held, "nothing of it was kept");
    }
    assert_same(&broker.all(), &written);
    disk.set_capacity(held + 5000);
    broker.log.make_room(5000).unwrap();
    let written = [written, vec![broker.append(&[filler(1, 1, 4500)])]].concat();
    disk.set_capacity(disk.reserved());
    broker.log.sync().unwrap();
    assert_same(&broker.all(), &written);
    broker.close().unwrap();
    assert_same(&open(&disk).unwrap().all(), &written);
}

#[test]
fn a_log_opens_on_a_full_disk_and_is_written_when_there_is_room() {
    for close in [false, true] {
        let disk = MemoryDisk::new(5);
        let mut broker = open(&disk).unwrap();
        let mut written = vec![broker.put(&[filler(1, 0, 900)])];
        if close {
            broker.close().unwrap();
        }
        disk.set_capacity(disk.reserved());
        let mut broker = open(&disk).unwrap();
        assert_same(&broker.all(), &written);
        disk.set_capacity(disk.reserved());
        let full = broker.log.make_room(9000);
        assert!(matches!(full, Err(WriteError::NoSpace { .. })));
        disk.set_capacity(u64::MAX);
        broker.log.make_room(2000).unwrap();
        written.push(broker.put(&[filler(1, 1, 900)]));
        assert_same(&open(&disk).unwrap().all(), &written);
    }
}

#[test]
fn sealing_in_the_background_leads_to_the_same_log() {
    let temp = tempfile::tempdir().unwrap();
    let options = LogOptions {
        segment_bytes: 64 << 10,
        ..LogOptions::default()
    };
    let disk = Arc::new(crate::disk::RealDisk);
    let start = || Log::open_at(disk.clone(), temp.path(), IDENTITY, options, &mut |_| {}).unwrap();
    let mut written = Vec::new();
    for round in 0..3 {
        let Opened {
            log,
            reader,
            sequencer,
            recovery,
        } = start();
        let expected = [Proof::New, Proof::Clean, Proof::SameBoot][round];
        assert_eq!(recovery.proof, expected);
        let mut broker = Broker {
            log,
            reader,
            sequencer,
            recovery,
            now: 5,
        };
        for n in 0..200 {
            written.push(broker.put(&[filler(1, n, 1000), filler(2, n, 300)]));
        }
        assert_same(&broker.all(), &written);
        if round == 0 {
            broker.close().unwrap();
        }
    }
    assert_same(&read_all(&start().reader, &Filter::All), &written);
}

#[test]
fn a_sealer_that_panics_is_a_failure_of_the_log() {
    let disk = MemoryDisk::new(1);
    let options = LogOptions {
        background: Background::Thread,
        ..SMALL
    };
    let mut broker = open_as(&disk, Path::new(DIR), IDENTITY, options).unwrap();
    broker.append(&[filler(1, 1, 10)]);
    broker.sync().unwrap();
    broker.log.break_sealer();
    let deadline = Instant::now() + Duration::from_secs(30);
    let failed = loop {
        if let Err(failed) = broker.log.write() {
            break failed;
        }
        assert!(Instant::now() < deadline, "nothing was noticed");
        std::thread::yield_now();
    };
    assert!(failed.to_string().contains("panicked"), "{failed}");
}

/// A segment has its name, and the sync of the directory fails: the process ends, the next one finds
/// the segment in the system's memory, and writes to it.
#[test]
fn a_segment_is_there_after_a_power_cut_though_the_directory_was_synced_by_a_later_start_only() {
    let fill = |model: &mut Model, broker: &mut Broker| {
        (0..12).try_for_each(|_| model.group(broker, &[2], 300))
    };
    let fails_at = |operation: u64, seed: u64| {
        let disk = MemoryDisk::new(seed);
        let mut model = Model::default();
        let mut broker = open(&disk).unwrap();
        disk.inject(disk.operations() + operation, Fault::Io);
        // Some may fail without harm, and some later ones at the start.
        let _ = fill(&mut model, &mut broker);
        drop(broker);
        let mut broker = open(&disk).or_else(|_| open(&disk)).unwrap();
        model.check(&broker);
        // What was not written was not sent, either.
        model.used.clear();
        let _ = model.group(&mut broker, &[1], 10);
        drop(broker);
        disk.power_cycle();
        model.check(&open(&disk).unwrap());
    };
    for seed in 0..20 {
        (1..100).for_each(|operation| fails_at(operation, seed));
    }
}
