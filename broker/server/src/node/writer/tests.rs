//! The writer by itself, on a disk in memory that fails when it is told to.

use std::path::Path;

use anabranch_core::batch::{BatchBuilder, NewRecord};
use anabranch_core::id::{BrokerId, ClusterId, PartitionId, RegionName, StreamId, StreamName};
use anabranch_core::members::Members;
use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_storage::data_dir::Identity;
use anabranch_storage::disk::{Fault, MemoryDisk};
use anabranch_storage::log::{Background, LogOptions};
use anabranch_storage::tables::{Applier, TablesOptions};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::super::Phase;
use super::super::publish::{Ack, Budget, Group, Wish};
use super::super::regions::Begin;
use super::super::start::spawn_writer;
use super::*;

/// A writer, and what its threads would hold.
struct Scene {
    writer: Writer,
    disk: MemoryDisk,
    runs: Receiver<(Run, Position)>,
    folding: Applier,
    _tables: TempDir,
}

impl Scene {
    fn new() -> Self {
        let disk = MemoryDisk::new(1);
        let identity = Identity {
            cluster: ClusterId::new(1),
            broker: BrokerId::new(1),
        };
        let options = LogOptions {
            segment_bytes: 1 << 20,
            background: Background::Inline,
        };
        let on: Arc<MemoryDisk> = Arc::new(disk.clone());
        let opened = Log::open_at(on, Path::new("/data"), identity, options, &mut |_| ()).unwrap();
        let folder = TempDir::new().unwrap();
        let (tables, folding) = Tables::open(folder.path(), TablesOptions::default()).unwrap();
        let (applier, runs) = crossbeam_channel::unbounded();
        let next = opened.reader.next_position();
        let seen = opened.sequencer.vector();
        let here = RegionName::parse("here").unwrap();
        let regions = Regions::new(Begin {
            own: opened.sequencer.origin(),
            region: here.clone(),
            report: opened.sequencer.report(),
            cluster: ClusterId::of("test"),
            patience: std::time::Duration::ZERO,
            durable: next,
            tables: tables.clone(),
            expected: None,
            named: Vec::new(),
            members: Members::EMPTY,
            is_unproven: false,
        });
        let writer = Writer {
            holding: Holding::default(),
            regions: Arc::new(regions),
            residents: Arc::new(Residents::new(identity.broker, here, &tables.streams())),
            durable: Arc::new(watch::Sender::new(next)),
            moved: std::time::Instant::now(),
            sequencer: opened.sequencer,
            log: opened.log,
            inbox: crossbeam_channel::unbounded().1,
            tail: Arc::new(Tail::new(identity.cluster, 1 << 20, seen, next)),
            applier,
            metrics: WriterMetrics::register(),
            no_segment: Arc::default(),
            streams: tables,
        };
        Self {
            writer,
            disk,
            runs,
            folding,
            _tables: folder,
        }
    }

    /// What a publish is answered, and how its group ended.
    fn publish(&mut self, to: StreamId, durability: Durability) -> (Answered, Result<(), Failure>) {
        self.publish_record(record_for(to, b"key", b"value"), durability)
    }

    fn publish_record(
        &mut self,
        publish: Publish,
        durability: Durability,
    ) -> (Answered, Result<(), Failure>) {
        let (reply, mut answer) = oneshot::channel();
        let submission = Submission {
            publishes: vec![Numbered {
                id: 0,
                group: Group::One(publish),
                wish: Wish {
                    level: match durability {
                        Durability::Memory => AckLevel::Memory,
                        _ => AckLevel::Disk,
                    },
                    patience: None,
                },
            }],
            reply: Reply::Once(reply),
            budget: Budget {
                broker: Arc::new(Semaphore::new(0)),
                window: None,
                permits: 1,
            },
        };
        let mut gathered = Gathered::default();
        let ended = self
            .writer
            .one_group(Some(Request::Publish(submission)), &mut gathered);
        (answer.try_recv().ok(), ended)
    }
}

fn record_for(stream: StreamId, key: &[u8], value: &[u8]) -> Publish {
    let mut batch = BatchBuilder::default();
    let record = NewRecord {
        key: Some(key),
        value: Some(value),
        ..NewRecord::default()
    };
    batch.push(&record).unwrap();
    Publish {
        stream,
        partition: PartitionId::new(0),
        batch: batch.finish(None).unwrap(),
    }
}

/// The answer, if there was one.
type Answered = Option<Result<Ack, Error>>;

#[test]
fn memory_acknowledgements_are_sent_after_the_write_and_before_the_sync() {
    let stream = StreamDefinition::system().id();
    // The write itself is the next operation of the disk, the sync the one after it.
    for (failing, is_acknowledged) in [(1, false), (2, true)] {
        let mut scene = Scene::new();
        let operation = scene.disk.operations() + failing;
        scene.disk.inject(operation, Fault::Io);
        let (answer, ended) = scene.publish(stream, Durability::Memory);
        assert!(ended.is_err(), "operation {failing}");
        let acknowledged = matches!(answer, Some(Ok(_)));
        assert_eq!(acknowledged, is_acknowledged, "operation {failing}");
    }
}

#[test]
fn disk_acknowledgements_are_sent_after_the_sync() {
    let stream = StreamDefinition::system().id();
    for failing in [1, 2] {
        let mut scene = Scene::new();
        let operation = scene.disk.operations() + failing;
        scene.disk.inject(operation, Fault::Io);
        let (answer, ended) = scene.publish(stream, Durability::Disk);
        assert!(ended.is_err() && !matches!(answer, Some(Ok(_))));
    }
    let (answer, ended) = Scene::new().publish(stream, Durability::Disk);
    assert!(ended.is_ok() && matches!(answer, Some(Ok(_))));
}

/// It was there when the surface looked.
#[test]
fn a_publish_to_a_stream_that_was_deleted_meanwhile_is_refused() {
    let mut scene = Scene::new();
    let (answer, ended) = scene.publish(StreamId::new(77), Durability::Disk);
    ended.unwrap();
    let refused = answer.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::NoSuchStream, "{refused:?}");
}

/// A group is gathered for as long as publishes come.
#[test]
fn a_publish_to_a_stream_made_while_its_group_is_gathered_is_taken() {
    let mut scene = Scene::new();
    let tables = scene.writer.streams.clone();
    let residents = Arc::clone(&scene.writer.residents);
    let mut known = Known::of(&tables, &residents);
    let name = StreamName::parse("fresh").unwrap();
    let publish = record_for(name.id(), b"key", b"value");
    let refused = known.still_there(&publish).unwrap_err();
    assert_eq!(refused.code, Code::NoSuchStream);

    let definition = StreamDefinition::new(name.clone(), MergeMode::Append);
    let json = definition.to_json().to_string();
    let system = StreamDefinition::system().id();
    let made = record_for(system, name.as_str().as_bytes(), json.as_bytes());
    let (_, ended) = scene.publish_record(made, Durability::Disk);
    ended.unwrap();
    scene
        .folding
        .apply(&scene.runs.try_recv().unwrap().0)
        .unwrap();
    known.still_there(&publish).unwrap();
}

/// A writer that would give a position twice stops at an assertion.
#[test]
fn a_writer_that_panics_makes_the_broker_fail() {
    let mut scene = Scene::new();
    let (_, ended) = scene.publish(StreamDefinition::system().id(), Durability::Disk);
    ended.unwrap();
    let mut writer = scene.writer;
    writer.sequencer = Sequencer::new(writer.sequencer.origin());
    let (inbox, requests) = crossbeam_channel::unbounded();
    writer.inbox = requests;
    let phase = Arc::new(watch::Sender::new(Phase::Ready));
    let thread = spawn_writer(&phase, writer).unwrap();
    let (reply, answer) = oneshot::channel();
    let publish = record_for(StreamDefinition::system().id(), b"key", b"value");
    let sent = inbox.send(Request::Publish(Submission {
        publishes: vec![Numbered {
            id: 0,
            group: Group::One(publish),
            wish: Wish::default(),
        }],
        reply: Reply::Once(reply),
        budget: Budget {
            broker: Arc::new(Semaphore::new(0)),
            window: None,
            permits: 1,
        },
    }));
    assert!(sent.is_ok());
    assert!(thread.join().is_err(), "it has panicked");
    let phase = phase.borrow().clone();
    let Phase::Failed(failure) = phase else {
        panic!("{phase:?}");
    };
    let said = failure.to_string();
    assert!(said.starts_with("its log-writer panicked"), "{said}");
    assert!(
        answer.blocking_recv().is_err(),
        "nobody is told that it was written"
    );
}
