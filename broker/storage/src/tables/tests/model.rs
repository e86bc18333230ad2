//! What tables must hold, folded as plainly as can be, and random histories to fold.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchBuilder, Compression};
use anabranch_core::frame::Commit;
use anabranch_core::id::{Position, StreamId};
use anabranch_core::lww::{self, Folded, Row, Stability, Stamp};
use anabranch_core::stream::{MergeMode, SYSTEM_STREAM, StreamDefinition};
use bytes::Bytes;
use fastrand::Rng;

use super::super::Tables;
use super::history::{History, batch, id};
use crate::durable::Durable;

pub(super) type Frame = Durable<Arc<Commit>>;

/// Rows in their stored form, by stream and key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) rows: BTreeMap<(StreamId, Vec<u8>), Vec<u8>>,
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
                if stream == id(SYSTEM_STREAM) {
                    let gone = id(std::str::from_utf8(key).unwrap());
                    self.rows.retain(|(stream, _), _| *stream != gone);
                }
            }
        }
    }

    fn is_lww(&self, stream: StreamId) -> bool {
        let system = id(SYSTEM_STREAM);
        let is_it = |key: &[u8]| id(std::str::from_utf8(key).unwrap()) == stream;
        let defined = |row: &[u8]| {
            let json = serde_json::from_slice(&row[1..]).unwrap();
            StreamDefinition::from_json(&json).unwrap().merge == MergeMode::Lww
        };
        stream == system
            || self
                .rows
                .iter()
                .any(|((s, key), row)| *s == system && is_it(key) && defined(row))
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
}

impl Scenario {
    pub(super) fn of(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            ahead: History::of(2),
            behind: History::of(1),
            next: 0,
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
        let merge = match name {
            "events" => MergeMode::Append,
            _ => MergeMode::Lww,
        };
        let name = anabranch_core::id::StreamName::parse(name).unwrap();
        let json = StreamDefinition::new(name.clone(), merge)
            .to_json()
            .to_string();
        let write = (name.as_str().as_bytes(), create.then_some(json.as_bytes()));
        (id(SYSTEM_STREAM), batch(&[write], Compression::None))
    }

    fn part(&mut self) -> (StreamId, Batch) {
        let stream = id(STREAMS[self.rng.usize(..STREAMS.len())]);
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
