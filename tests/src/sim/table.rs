//! Rows as a broker folds them, with stamps that go by the watermark, beside rows as they would be
//! folded if nothing was ever dropped.
//!
//! The broker's tables need RocksDB on a real disk. This is the same rule in a map: what is at or
//! below the watermark is folded without a stamp, and a flush leaves its stamps out.

use std::collections::BTreeMap;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::frame::Commit;
use anabranch_core::id::{Position, StreamId};
use anabranch_core::lww::{self, Folded, Row, Stability, Stamp};
use anabranch_core::vector::VersionVector;

use super::truth::name_of;
use super::verdict::{Checked, ensure};

/// The stream that is folded.
pub(super) const ROWS: StreamId = StreamId::new(5);

/// The one that is not.
pub(super) const EVENTS: StreamId = StreamId::new(6);

pub(super) type Key = Vec<u8>;

/// A write of a key: its stamp and value.
pub(super) type Write = (Stamp, Option<Vec<u8>>);

/// Calls `each` with the writes to rows in a commit.
pub(super) fn each_write(commit: &Commit, mut each: impl FnMut(&[u8], Write)) {
    let parts = commit.parts.iter();
    for part in parts.filter(|part| part.header.stream == ROWS) {
        let Some(batch) = &part.batch else { continue };
        let records = batch.records().expect("it was checked when it came");
        for record in records.iter() {
            let record = record.expect("it was checked when it came");
            let index = part.first_index + record.offset_delta;
            let stamp = Stamp {
                timestamp: commit.header.timestamp.of_record(index),
                origin: commit.header.origin,
            };
            let value = record.value.filter(|_| !record.is_delete());
            let key = record.key.unwrap_or_default();
            each(key, (stamp, value.map(<[u8]>::to_vec)));
        }
    }
}

/// Every row's winner, deleted ones included. Nothing is ever forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Oracle {
    rows: BTreeMap<Key, Write>,
}

impl Oracle {
    pub(super) fn apply(&mut self, commit: &Commit) {
        each_write(commit, |key, write| {
            let held = self.rows.entry(key.to_vec()).or_insert(write.clone());
            if write.0 > held.0 {
                *held = write;
            }
        });
    }

    pub(super) fn winner(&self, key: &[u8]) -> Option<&Write> {
        self.rows.get(key)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&Key, &Vec<u8>)> {
        let rows = self.rows.iter();
        rows.filter_map(|(key, (_, value))| Some((key, value.as_ref()?)))
    }
}

/// The rows of a broker.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// In their stored form.
    rows: BTreeMap<Key, Vec<u8>>,
    /// What of them a crash leaves.
    stored: Stored,
    applied: Position,
    /// The frames that were folded.
    folded: VersionVector,
    oracle: Oracle,
    watermark: HybridTimestamp,
}

/// What is flushed.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    rows: BTreeMap<Key, Vec<u8>>,
    at: Position,
    folded: VersionVector,
    oracle: Oracle,
    watermark: HybridTimestamp,
}

impl Stored {
    /// Nothing, in a cluster that is founded.
    pub(super) fn founded() -> Self {
        Self {
            watermark: HybridTimestamp::new(1),
            ..Self::default()
        }
    }
}

impl Table {
    /// As it is after a crash.
    pub(super) fn restored(stored: Stored) -> Self {
        Self {
            rows: stored.rows.clone(),
            applied: stored.at,
            folded: stored.folded.clone(),
            oracle: stored.oracle.clone(),
            watermark: stored.watermark,
            stored,
        }
    }

    pub(super) fn applied(&self) -> Position {
        self.applied
    }

    pub(super) fn folded(&self) -> &VersionVector {
        &self.folded
    }

    pub(super) fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    pub(super) fn stored(&self) -> &Stored {
        &self.stored
    }

    /// It holds everything before this.
    pub(super) fn pass_to(&mut self, through: Position) {
        self.applied = self.applied.max(through);
    }

    /// The greatest that was given.
    pub(super) fn watermark(&self) -> HybridTimestamp {
        self.watermark
    }

    pub(super) fn raise(&mut self, watermark: HybridTimestamp) {
        self.watermark = self.watermark.max(watermark);
    }

    /// Folds a commit, and compares what it changed with the oracle.
    pub(super) fn apply(&mut self, commit: &Commit) -> Checked {
        let (origin, sequence) = name_of(commit);
        ensure(!self.folded.contains(origin, sequence), || {
            format!("{origin} {sequence} is folded twice")
        })?;
        self.folded.advance(origin, sequence);
        self.pass_to(commit.position.next());
        self.oracle.apply(commit);
        let mut touched = Vec::new();
        each_write(commit, |key, (stamp, value)| {
            self.fold(key, value.as_deref(), stamp);
            touched.push(key.to_vec());
        });
        touched.iter().try_for_each(|key| self.check(key))
    }

    fn fold(&mut self, key: &[u8], value: Option<&[u8]>, stamp: Stamp) {
        let held = self.rows.get(key).cloned();
        let held = held.as_deref().map(decoded);
        let stability = match stamp.timestamp <= self.watermark {
            true => Stability::Stable,
            false => Stability::Unstable,
        };
        match lww::fold(held, value, stamp, stability) {
            Folded::Unchanged => {}
            Folded::Store(row) => {
                let mut bytes = Vec::new();
                row.encode(&mut bytes);
                self.rows.insert(key.to_vec(), bytes);
            }
            Folded::Remove => {
                self.rows.remove(key);
            }
        }
    }

    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.rows.get(key).and_then(|row| decoded(row).value)
    }

    /// The row is the fold of the log.
    pub(super) fn check(&self, key: &[u8]) -> Checked {
        let wanted = self.oracle.winner(key);
        let wanted = wanted.and_then(|(_, value)| value.as_deref());
        let found = self.value(key);
        ensure(found == wanted, || {
            let text = |value: Option<&[u8]>| value.map(String::from_utf8_lossy).map(String::from);
            let (found, wanted) = (text(found), text(wanted));
            format!(
                "row {} is {found:?}, and the log says {wanted:?}",
                String::from_utf8_lossy(key)
            )
        })
    }

    /// Writes what is in memory to where a crash leaves it, without what the watermark says is not
    /// needed any more.
    pub(super) fn flush(&mut self) -> Checked {
        let mut rows = BTreeMap::new();
        for (key, stored) in &self.rows {
            let row = decoded(stored);
            match row.stamp {
                Some(stamp) if stamp.timestamp <= self.watermark => {
                    if row.value.is_some() {
                        let mut bytes = Vec::new();
                        Row { stamp: None, ..row }.encode(&mut bytes);
                        rows.insert(key.clone(), bytes);
                    }
                }
                _ => {
                    rows.insert(key.clone(), stored.clone());
                }
            }
        }
        self.rows = rows;
        let keys: Vec<_> = self.oracle.rows.keys().cloned().collect();
        keys.iter().try_for_each(|key| self.check(key))?;
        self.stored = Stored {
            rows: self.rows.clone(),
            at: self.applied,
            folded: self.folded.clone(),
            oracle: self.oracle.clone(),
            watermark: self.watermark,
        };
        Ok(())
    }

    /// Stamps and tombstones that are kept.
    pub(super) fn kept(&self) -> usize {
        let rows = self.rows.values().map(|row| decoded(row));
        rows.filter(|row| row.stamp.is_some() || row.value.is_none())
            .count()
    }
}

fn decoded(stored: &[u8]) -> Row<'_> {
    Row::decode(stored).expect("the table wrote it")
}
