//! What tables must hold, folded as plainly as can be, and random histories to fold.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchBuilder, Compression, Record};
use anabranch_core::definition::{Entry, Said, put_value};
use anabranch_core::frame::Commit;
use anabranch_core::id::{Position, StreamId, StreamName};
use anabranch_core::lww::{self, Folded, Row, Stability, Stamp};
use anabranch_core::stream::{MergeMode, SYSTEM_STREAM, StreamDefinition};
use bytes::Bytes;
use fastrand::Rng;

use super::super::Tables;
use super::history::{History, batch, creation, deletion, id};
use crate::durable::Durable;

pub(super) type Frame = Durable<Arc<Commit>>;

/// Rows in their stored form, by stream and key.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) rows: BTreeMap<(StreamId, Vec<u8>), Vec<u8>>,
    entries: BTreeMap<StreamName, Entry>,
}

impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl Model {
    pub(super) fn of(frames: &[Frame]) -> Self {
        let mut model = Self::default();
        for frame in frames {
            model.apply(frame);
        }
        model
    }

    pub(super) fn apply(&mut self, commit: &Commit) {
        for part in &commit.parts {
            let (stream, Some(batch)) = (part.header.stream, &part.batch) else {
                continue;
            };
            if !self.is_lww(stream) {
                continue;
            }
            for record in batch.records().unwrap().iter().map(Result::unwrap) {
                let index = part.first_index + record.offset_delta;
                let stamp = Stamp {
                    timestamp: commit.header.timestamp.of_record(index),
                    origin: commit.header.origin,
                };
                if stream == id(SYSTEM_STREAM) {
                    self.define(&record, stamp);
                    continue;
                }
                let value = record.value.filter(|_| !record.is_delete());
                self.write(stream, record.key.unwrap(), value, stamp);
            }
        }
    }

    fn write(&mut self, stream: StreamId, key: &[u8], value: Option<&[u8]>, stamp: Stamp) {
        let name = (stream, key.to_vec());
        let held = self.rows.get(&name).map(|row| Row::decode(row).unwrap());
        match lww::fold(held, value, stamp, Stability::Stable) {
            Folded::Unchanged => {}
            Folded::Store(row) => {
                let mut stored = Vec::new();
                row.encode(&mut stored);
                self.rows.insert(name, stored);
            }
            Folded::Remove => {
                self.rows.remove(&name);
            }
        }
    }

    fn define(&mut self, record: &Record<'_>, stamp: Stamp) {
        let key = record.key.unwrap();
        let name = StreamName::parse(std::str::from_utf8(key).unwrap()).unwrap();
        let said = Said::read(&name, record).unwrap();
        let before = self.entries.remove(&name);
        let gone = before.as_ref().and_then(Entry::definition).map(|d| d.id());
        let entry = match before {
            Some(entry) => entry.join(said, stamp),
            None => Entry::new(said, stamp),
        };
        let stored = |value: String| [&[0], value.as_bytes()].concat();
        let shown = (id(SYSTEM_STREAM), key.to_vec());
        self.rows.insert(
            (StreamDefinition::entries(), key.to_vec()),
            stored(entry.encode()),
        );
        match entry.definition() {
            Some(definition) => {
                self.rows.insert(shown, stored(put_value(&definition)));
            }
            None => {
                self.rows.remove(&shown);
                self.rows.retain(|(stream, _), _| Some(*stream) != gone);
            }
        }
        self.entries.insert(name, entry);
    }

    fn is_lww(&self, stream: StreamId) -> bool {
        let definitions = self.entries.values().filter_map(Entry::definition);
        stream == id(SYSTEM_STREAM)
            || definitions
                .filter(|definition| definition.id() == stream)
                .any(|definition| definition.merge == MergeMode::Lww)
    }

    /// The values of a stream, by key.
    pub(super) fn values(&self, stream: StreamId) -> Vec<(Bytes, Bytes)> {
        let rows = self.rows.iter().filter(|((s, _), _)| *s == stream);
        let value = |row: &Vec<u8>| Row::decode(row).unwrap().value.map(Bytes::copy_from_slice);
        rows.filter_map(|((_, key), row)| Some((Bytes::from(key.clone()), value(row)?)))
            .collect()
    }

    pub(super) fn get(&self, stream: StreamId, key: &[u8]) -> Option<Bytes> {
        let row = self.rows.get(&(stream, key.to_vec()))?;
        Row::decode(row).unwrap().value.map(Bytes::copy_from_slice)
    }
}

/// Every row of the tables, and the position they are of.
pub(super) fn all_rows(tables: &Tables) -> (Model, Position) {
    let mut model = Model::default();
    let mut last = None;
    let applied = tables
        .each_row(&mut |stream, key, stored| {
            let name = (stream, key.to_vec());
            assert!(last.as_ref() < Some(&name), "rows come in order, once each");
            last = Some(name.clone());
            model.rows.insert(name, stored.to_vec());
        })
        .unwrap();
    (model, applied)
}

/// Streams of the random histories; the last two are never folded.
pub(super) const STREAMS: [&str; 5] = ["a", "b", "c", "events", "ghost"];

/// Random frames of two brokers, one of whose clocks is behind; the same for the same seed.
pub(super) struct Scenario {
    pub(super) rng: Rng,
    ahead: History,
    behind: History,
    next: u64,
    /// Generation of each name, and whether there is a stream of it.
    names: BTreeMap<&'static str, (u32, bool)>,
}

impl Scenario {
    pub(super) fn of(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            ahead: History::of(2),
            behind: History::of(1),
            next: 0,
            names: BTreeMap::new(),
        }
    }

    pub(super) fn frames(&mut self, count: usize) -> Vec<Frame> {
        (0..count).map(|_| self.frame()).collect()
    }

    pub(super) fn frame(&mut self) -> Frame {
        let parts = match self.rng.u32(..100) {
            0..10 => vec![self.definition(true)],
            10..14 => vec![self.definition(false)],
            14..18 => vec![self.definition(true), self.part(), self.part()],
            18..20 => vec![
                self.part(),
                self.definition(false),
                self.definition(true),
                self.part(),
            ],
            _ => (0..self.rng.usize(1..4)).map(|_| self.part()).collect(),
        };
        let history = match self.rng.u32(..4) {
            0 => &mut self.behind,
            _ => &mut self.ahead,
        };
        let mut commit = (*history.frame(parts).into_inner()).clone();
        commit.position = Position::new(self.next);
        self.next += 1;
        for part in &mut commit.parts {
            let keyed = part.header.stream != id(SYSTEM_STREAM);
            match self.rng.u32(..20) {
                0 if keyed => part.batch = None,
                1 if keyed => part.batch = part.batch.as_ref().and_then(compacted),
                _ => {}
            }
        }
        Durable::new(Arc::new(commit))
    }

    fn definition(&mut self, create: bool) -> (StreamId, Batch) {
        let name = STREAMS[self.rng.usize(..4)];
        let generation = match self.names.get(name) {
            None => 0,
            Some((generation, is_there)) => generation + u32::from(create && !is_there),
        };
        self.names.insert(name, (generation, create));
        let batch = match create {
            true => {
                let merge = match name {
                    "events" => MergeMode::Append,
                    _ => MergeMode::Lww,
                };
                creation(name, merge, generation)
            }
            false => deletion(name, generation),
        };
        (id(SYSTEM_STREAM), batch)
    }

    /// The stream that has the name, or had it.
    pub(super) fn id(&self, name: &str) -> StreamId {
        let generation = self
            .names
            .get(name)
            .map_or(0, |(generation, _)| *generation);
        StreamName::parse(name)
            .unwrap()
            .id_of_generation(generation, &[])
    }

    fn part(&mut self) -> (StreamId, Batch) {
        let name = STREAMS[self.rng.usize(..STREAMS.len())];
        // Some come after their stream was deleted.
        let stream = match self.rng.u32(..10) {
            0 => id(name),
            _ => self.id(name),
        };
        let count = self.rng.usize(1..30);
        let writes: Vec<_> = (0..count).map(|_| (self.key(), self.value())).collect();
        let writes: Vec<_> = writes
            .iter()
            .map(|(key, value)| (key.as_slice(), value.as_deref()))
            .collect();
        let compression = match self.rng.u32(..8) {
            0 => Compression::Lz4,
            1 => Compression::Zstd,
            _ => Compression::None,
        };
        (stream, batch(&writes, compression))
    }

    pub(super) fn key(&mut self) -> Vec<u8> {
        let n = self.rng.u8(..60);
        match self.rng.u32(..10) {
            0 => vec![n; 300],
            1 => vec![0xff, n],
            2 => Vec::new(),
            _ => format!("k{n}").into_bytes(),
        }
    }

    fn value(&mut self) -> Option<Vec<u8>> {
        let length = match self.rng.u32(..50) {
            0..10 => return None,
            10 => 3_000,
            _ => self.rng.usize(..150),
        };
        Some(vec![self.rng.u8(..); length])
    }
}

/// Every other record, as compaction leaves a batch.
fn compacted(original: &Batch) -> Option<Batch> {
    let mut builder = BatchBuilder::default();
    for record in original.records().unwrap().iter().step_by(2) {
        builder.push_surviving(&record.unwrap()).unwrap();
    }
    builder.finish_compacted(original).ok()
}
