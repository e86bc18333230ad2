//! What a run of commits will do to the rows, found out before anything is locked.

use std::sync::Arc;

use anabranch_core::batch::{Batch, BatchError, Record, Records};
use anabranch_core::definition::{Entry, Said, put_value};
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::{Position, StreamId, StreamName};
use anabranch_core::lww::Stamp;
use anabranch_core::stream::MergeMode;
use hashbrown::HashMap;

use super::error::TablesError;
use super::image::{Hash, Hasher};
use super::key::RowKey;
use super::shared::Shared;
use super::store::Mark;
use super::stream_map::{Outdated, StreamMap, read_entry, read_name, unreadable};
use crate::durable::Durable;

/// How the writes of a part compare with everything folded before them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Against {
    /// Stamped later than all of it: each wins, and the held row need not be looked at.
    Older,
    /// Perhaps stamped before a row that is held.
    Any,
    /// Not by stamps: what they make of the rows was found out already.
    Settled,
}

/// The records of one part of a commit, opened.
pub(super) struct Part {
    stream: StreamId,
    position: Position,
    records: Records,
    /// Stamp of the record whose offset delta is 0.
    first: Stamp,
    pub(super) against: Against,
    /// Rows of the system stream and of the entries, as they are after this part of it.
    definitions: Vec<(StreamId, Vec<u8>, Option<Vec<u8>>)>,
    /// Streams that lose their rows with this part.
    pub(super) dropped: Vec<StreamId>,
}

/// One write.
pub(super) struct Write<'a> {
    pub(super) key: RowKey<'a>,
    /// `None` for a delete.
    pub(super) value: Option<&'a [u8]>,
    offset_delta: u32,
}

/// Writes in the order of the log, their hashes beside them.
#[derive(Default)]
pub(super) struct Writes<'a> {
    pub(super) writes: Vec<Write<'a>>,
    pub(super) hashes: Vec<Hash>,
    /// Where the writes of each part end.
    pub(super) ends: Vec<usize>,
}

impl Part {
    /// The stamp of one of its writes.
    pub(super) fn stamp(&self, write: &Write<'_>) -> Stamp {
        stamp_of(self.first, write.offset_delta)
    }

    fn records(&self) -> impl Iterator<Item = Result<(&[u8], Record<'_>), TablesError>> {
        self.records.iter().filter_map(|record| match record {
            Ok(record) => match record.key {
                Some(key) => Some(Ok((key, record))),
                None => {
                    self.not_folded("a record without a key");
                    None
                }
            },
            Err(source) => Some(Err(self.malformed(source))),
        })
    }

    /// Surfaces refuse what has no row to go to, so this was published to a stream of the same name
    /// that has been deleted since. Failing here would keep the broker from ever starting again.
    fn not_folded(&self, what: &str) {
        tracing::error!(stream = %self.stream, position = %self.position, what, "not folded into its table");
    }

    fn malformed(&self, source: BatchError) -> TablesError {
        TablesError::Batch {
            position: self.position,
            stream: self.stream,
            source,
        }
    }

    fn add_writes<'a>(&'a self, hasher: Hasher, into: &mut Writes<'a>) -> Result<(), TablesError> {
        if self.against == Against::Settled {
            for (stream, key, value) in &self.definitions {
                let key = RowKey::new(*stream, key);
                into.hashes.push(hasher.hash(key));
                into.writes.push(Write {
                    key,
                    value: value.as_deref(),
                    offset_delta: 0,
                });
            }
            into.ends.push(into.writes.len());
            return Ok(());
        }
        for record in self.records() {
            let (key, record) = record?;
            let key = RowKey::new(self.stream, key);
            into.hashes.push(hasher.hash(key));
            into.writes.push(Write {
                key,
                value: written(&record),
                offset_delta: record.offset_delta,
            });
        }
        into.ends.push(into.writes.len());
        Ok(())
    }
}

fn written<'a>(record: &Record<'a>) -> Option<&'a [u8]> {
    record.value.filter(|_| !record.is_delete())
}

fn stamp_of(first: Stamp, offset_delta: u32) -> Stamp {
    Stamp {
        timestamp: first.timestamp.of_record(offset_delta),
        ..first
    }
}

/// A run of commits, opened: batches inflated, definitions folded.
pub(super) struct Opened {
    pub(super) parts: Vec<Part>,
    /// What the tables are at after the run.
    pub(super) mark: Mark,
    /// All streams after the run.
    pub(super) streams: Arc<StreamMap>,
    pub(super) log_bytes: u64,
    /// Streams whose records have to be folded anew.
    pub(super) anew: Vec<StreamId>,
}

impl Opened {
    /// A run that follows `mark`.
    pub(super) fn of(
        run: &[Durable<Arc<Commit>>],
        mark: Mark,
        streams: Arc<StreamMap>,
        shared: &Shared,
    ) -> Result<Self, TablesError> {
        let mut opened = Self {
            parts: Vec::with_capacity(run.len()),
            mark,
            streams,
            log_bytes: 0,
            anew: Vec::new(),
        };
        let mut definitions = Definitions::default();
        for commit in run {
            opened.add(commit, &mut definitions, shared)?;
        }
        Ok(opened)
    }

    /// Records of one stream that were passed before; nothing else advances. They may be stamped
    /// before anything that is held.
    pub(super) fn again(
        run: &[Durable<Arc<Commit>>],
        stream: StreamId,
        mark: Mark,
        streams: Arc<StreamMap>,
    ) -> Result<Self, TablesError> {
        let mut opened = Self {
            parts: Vec::with_capacity(run.len()),
            mark,
            streams,
            log_bytes: 0,
            anew: Vec::new(),
        };
        for commit in run {
            let first = Stamp {
                timestamp: commit.header.timestamp,
                origin: commit.header.origin,
            };
            for part in commit.parts.iter().filter(|p| p.header.stream == stream) {
                let part = opened.open(part, commit.position, first, Against::Any)?;
                opened.parts.extend(part);
            }
            opened.log_bytes += commit.size() as u64;
        }
        Ok(opened)
    }

    fn add(
        &mut self,
        commit: &Commit,
        definitions: &mut Definitions,
        shared: &Shared,
    ) -> Result<(), TablesError> {
        let mark = &mut self.mark;
        assert!(
            commit.position >= mark.applied,
            "entry {} came again; the next one is {}",
            commit.position,
            mark.applied
        );
        let origin = commit.header.origin;
        let stamp = |timestamp| Stamp { timestamp, origin };
        let first = stamp(commit.header.timestamp);
        let against = match first > mark.newest {
            true => Against::Older,
            false => Against::Any,
        };
        mark.applied = commit.position.next();
        mark.newest = mark.newest.max(stamp(commit.header.last_timestamp()));
        self.log_bytes += commit.size() as u64;
        for part in &commit.parts {
            let Some(mut part) = self.open(part, commit.position, first, against)? else {
                continue;
            };
            if part.stream == shared.system {
                self.anew
                    .extend(definitions.fold(&mut part, &mut self.streams, shared)?);
            }
            self.parts.push(part);
        }
        Ok(())
    }

    /// `None` when the part leaves no rows: its stream has none or is gone, or its records are.
    fn open(
        &self,
        part: &CommitPart,
        position: Position,
        frame: Stamp,
        against: Against,
    ) -> Result<Option<Part>, TablesError> {
        let stream = part.header.stream;
        let Some(definition) = self.streams.get(stream) else {
            return Ok(None);
        };
        let batch = match (definition.merge, &part.batch) {
            (MergeMode::Lww, Some(batch)) => batch,
            (MergeMode::Append, _) | (_, None) => return Ok(None),
        };
        let records = match Batch::records(batch) {
            Ok(records) => records,
            // See `Part::not_folded`.
            Err(error) => {
                tracing::error!(%stream, %position, %error, "a batch is not folded into its table");
                return Ok(None);
            }
        };
        Ok(Some(Part {
            stream,
            position,
            records,
            first: stamp_of(frame, part.first_index),
            against,
            definitions: Vec::new(),
            dropped: Vec::new(),
        }))
    }

    /// Lets streams lose their rows as well: those that are gone after this.
    pub(super) fn drop_also(&mut self, streams: Vec<StreamId>) {
        if let Some(part) = self.parts.last_mut() {
            part.dropped.extend(streams);
        }
    }

    /// All writes of the run.
    pub(super) fn writes(&self, hasher: Hasher) -> Result<Writes<'_>, TablesError> {
        let mut writes = Writes::default();
        for part in &self.parts {
            part.add_writes(hasher, &mut writes)?;
        }
        Ok(writes)
    }
}

/// What is known of names as the run leaves it, ahead of the tables.
#[derive(Default)]
struct Definitions {
    known: HashMap<StreamName, Entry>,
}

impl Definitions {
    /// Folds a part of the system stream into the map; gives the streams to be folded anew.
    fn fold(
        &mut self,
        part: &mut Part,
        streams: &mut Arc<StreamMap>,
        shared: &Shared,
    ) -> Result<Vec<StreamId>, TablesError> {
        let (mut definitions, mut dropped, mut anew) = (Vec::new(), Vec::new(), Vec::new());
        for record in part.records() {
            let (key, record) = record?;
            let name = read_name(key)?;
            let said = Said::read(&name, &record).map_err(|error| unreadable(&name, &error))?;
            let stamp = stamp_of(part.first, record.offset_delta);
            let entry = match self.known_of(&name, shared)? {
                Some(entry) => entry.join(said, stamp),
                None => Entry::new(said, stamp),
            };
            let shown = entry.definition().map(|d| put_value(&d).into_bytes());
            definitions.push((
                shared.entries,
                key.to_vec(),
                Some(entry.encode().into_bytes()),
            ));
            definitions.push((shared.system, key.to_vec(), shown));
            match Arc::make_mut(streams).set(&name, &entry) {
                Some(Outdated::Gone(stream)) => dropped.push(stream),
                Some(Outdated::Replaced(stream, by)) => {
                    dropped.push(stream);
                    anew.push(by);
                }
                Some(Outdated::OtherMerge(stream)) => anew.push(stream),
                None => {}
            }
            self.known.insert(name, entry);
        }
        part.against = Against::Settled;
        part.definitions = definitions;
        part.dropped = dropped;
        Ok(anew)
    }

    fn known_of(
        &mut self,
        name: &StreamName,
        shared: &Shared,
    ) -> Result<Option<Entry>, TablesError> {
        if let Some(entry) = self.known.remove(name) {
            return Ok(Some(entry));
        }
        let key = RowKey::new(shared.entries, name.as_str().as_bytes());
        let Some(stored) = shared.stored(key)? else {
            return Ok(None);
        };
        let value = shared.row(&stored)?.value.unwrap_or_default();
        read_entry(name, value).map(Some)
    }
}
