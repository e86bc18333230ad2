//! Tests of the log as a whole, on a disk in memory. The power may go at every disk operation.

mod cleaning;
mod crash;
mod damage;
mod epochs;
mod gaps;
mod reading;
mod received;
mod regions;
mod residency;
mod shipping;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_core::batch::{BatchBuilder, NewRecord};
use anabranch_core::frame::Commit;
use anabranch_core::id::{BrokerId, ClusterId, PartitionId, Position, StreamId};
use anabranch_core::sequencer::{Publish, Sequencer};

use super::{
    Background, Filter, Log, LogOptions, LogReader, OpenError, Opened, ReadError, Recovery,
    WriteError,
};
use crate::data_dir::Identity;
use crate::disk::MemoryDisk;

pub(super) const DIR: &str = "/data";

pub(super) const IDENTITY: Identity = Identity {
    cluster: ClusterId::new(7),
    broker: BrokerId::new(9),
};

/// Small segments, so that a test rolls often.
pub(super) const SMALL: LogOptions = LogOptions {
    segment_bytes: 4096,
    background: Background::Inline,
};

/// A log with its sequencer, as the writer thread has them.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) log: Log,
    pub(super) reader: LogReader,
    pub(super) sequencer: Sequencer,
    pub(super) recovery: Recovery,
    pub(super) now: u64,
}

pub(super) fn open(disk: &MemoryDisk) -> Result<Broker, OpenError> {
    open_in(disk, Path::new(DIR))
}

pub(super) fn open_in(disk: &MemoryDisk, dir: &Path) -> Result<Broker, OpenError> {
    open_as(disk, dir, IDENTITY, SMALL)
}

pub(super) fn open_as(
    disk: &MemoryDisk,
    dir: &Path,
    identity: Identity,
    options: LogOptions,
) -> Result<Broker, OpenError> {
    let opened = Log::open_at(Arc::new(disk.clone()), dir, identity, options, &mut |_| {})?;
    let Opened {
        log,
        reader,
        sequencer,
        recovery,
    } = opened;
    Ok(Broker {
        log,
        reader,
        sequencer,
        recovery,
        now: 1000,
    })
}

/// One record: key and value; no value deletes.
pub(super) type KeyValue<'a> = (Option<&'a str>, Option<&'a str>);

pub(super) fn publish(stream: u64, partition: u16, records: &[KeyValue<'_>]) -> Publish {
    let mut builder = BatchBuilder::default();
    for (key, value) in records {
        let record = NewRecord {
            key: key.map(str::as_bytes),
            value: value.map(str::as_bytes),
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    Publish {
        stream: StreamId::new(stream),
        partition: PartitionId::new(partition),
        batch: builder.finish(None).unwrap(),
    }
}

/// A publish of `bytes` bytes that nobody else makes.
pub(super) fn filler(stream: u64, number: u64, bytes: usize) -> Publish {
    let value = format!("{number:0bytes$}");
    publish(stream, (number % 3) as u16, &[(None, Some(&value))])
}

impl Broker {
    pub(super) fn append(&mut self, group: &[Publish]) -> Commit {
        let mut frame = self.sequencer.open();
        frame.add(group, &mut Vec::new()).unwrap();
        let commit = frame.close(self.now).unwrap();
        self.log.append(commit.clone(), self.now);
        commit
    }

    /// Syncs, and rolls when it is due, as the writer does.
    pub(super) fn sync(&mut self) -> Result<Vec<Arc<Commit>>, WriteError> {
        let durable = self.log.sync()?;
        let durable = durable
            .into_iter()
            .map(|commit| commit.into_inner())
            .collect();
        if self.log.wants_roll() {
            self.log.roll(self.sequencer.checkpoint())?;
        }
        Ok(durable)
    }

    pub(super) fn put(&mut self, group: &[Publish]) -> Commit {
        let commit = self.append(group);
        self.sync().unwrap();
        commit
    }

    pub(super) fn close(self) -> Result<(), WriteError> {
        let checkpoint = self.sequencer.checkpoint();
        self.log.close(&checkpoint)
    }

    /// The whole log, read from its start.
    pub(super) fn all(&self) -> Vec<Arc<Commit>> {
        read_all(&self.reader, &Filter::All)
    }
}

pub(super) fn read_all(reader: &LogReader, filter: &Filter) -> Vec<Arc<Commit>> {
    try_read_all(reader, filter).unwrap()
}

pub(super) fn try_read_all(
    reader: &LogReader,
    filter: &Filter,
) -> Result<Vec<Arc<Commit>>, ReadError> {
    let mut at = reader.start_position();
    let mut all = Vec::new();
    while at < reader.next_position() {
        let chunk = reader.read(at, filter, 700)?;
        assert!(chunk.next > at);
        all.extend(chunk.commits.into_iter().map(|commit| commit.into_inner()));
        at = chunk.next;
    }
    Ok(all)
}

/// Compares but for the offset in front of each batch, which is the broker's own.
pub(super) fn assert_same(found: &[Arc<Commit>], written: &[Commit]) {
    assert_eq!(found.len(), written.len());
    for (found, written) in found.iter().zip(written) {
        assert_eq!(found.position, written.position);
        assert_eq!(found.header_bytes, written.header_bytes);
        for (part, original) in found.parts.iter().zip(&written.parts) {
            assert_eq!(part.base_offset, original.base_offset);
            assert_eq!(part.first_index, original.first_index);
            let (batch, original) = (
                part.batch.as_ref().unwrap(),
                original.batch.as_ref().unwrap(),
            );
            assert_eq!(batch.bytes()[16..], original.bytes()[16..]);
            assert_eq!(batch.bytes()[..8], part.base_offset.get().to_be_bytes());
        }
    }
}

/// The newest segment file.
pub(super) fn segments(disk: &MemoryDisk) -> Vec<PathBuf> {
    use crate::disk::Disk;
    let dir = Path::new(DIR).join("log");
    let names = disk.list(&dir).unwrap();
    let segments = names
        .iter()
        .filter(|name| super::segment::first_of(name).is_some());
    segments.map(|name| dir.join(name)).collect()
}

pub(super) fn position(raw: u64) -> Position {
    Position::new(raw)
}
