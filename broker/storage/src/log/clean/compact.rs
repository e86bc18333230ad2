//! Which records of keyed streams have been replaced.
//!
//! As Kafka's cleaner does it: a bounded map from the hash of a key to the newest record of it,
//! filled from what was appended since the last run; whatever the map knows a newer record for is
//! dead. What did not fit the map is for the next run.
//!
//! Newest is what the table takes for newest: the greatest stamp, then the greatest origin.

use anabranch_core::batch::Record;
use anabranch_core::frame::{Commit, CommitPart};
use anabranch_core::id::{Origin, Position, StreamId};
use anabranch_core::lww::Stamp;
use anabranch_core::stream::MergeMode;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::super::Filter;
use super::{CleanError, Run};

/// Keys in the map: about 100 MiB while a run lasts.
const MOST_KEYS: usize = 2_000_000;

/// Bytes read at a time.
const READ_BYTES: usize = 4 << 20;

/// Deletes are kept this long even if nothing is left to delete, so that a subscriber that is
/// behind learns of them. Kafka's default, too.
const DELETES_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// What a run knows about the keys of the streams that it compacts.
pub(super) struct Newest {
    seed: u64,
    keys: HashMap<u128, Winner>,
    streams: HashMap<StreamId, Reach>,
    /// Whether deletes may ever be dropped.
    deletes: Deletes,
}

/// The newest record of a key.
#[derive(Clone, Copy)]
struct Winner {
    stamp: Stamp,
    /// An older record of the key lies in a sealed segment.
    has_older: bool,
}

/// How far a stream is compacted in this run.
#[derive(Clone, Copy)]
struct Reach {
    /// Replaced records before this position are dropped.
    limit: Position,
    /// The map knows what is before this position and after the last run's.
    known_to: Position,
}

/// When a delete may be dropped.
#[derive(Clone, Copy)]
enum Deletes {
    /// Other brokers have written here: what a delete deletes might still come.
    Kept,
    /// If it was appended before this time and nothing older of its key is left.
    DroppedBefore(u64),
}

/// What becomes of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Alive,
    Replaced,
    /// A delete with nothing left to delete.
    Spent,
}

/// Calls `each` with every record of a part, with its stamp.
fn each_record(
    commit: &Commit,
    part: &CommitPart,
    each: &mut dyn FnMut(&Record<'_>, Stamp),
) -> bool {
    let Some(records) = part.batch.as_ref().and_then(|batch| batch.records().ok()) else {
        return false;
    };
    for record in records.iter() {
        let Ok(record) = record else { return false };
        each(&record, stamp_of(commit, part, &record));
    }
    true
}

pub(super) fn stamp_of(commit: &Commit, part: &CommitPart, record: &Record<'_>) -> Stamp {
    let index = part.first_index + record.offset_delta;
    Stamp {
        timestamp: commit.header.timestamp.of_record(index),
        origin: commit.header.origin,
    }
}

impl Run<'_> {
    /// Reads what the streams that are due have had since their last run.
    pub(super) fn find_replaced(&self) -> Result<Newest, CleanError> {
        let mut newest = Newest {
            seed: self.shared.disk.random().unwrap_or_default(),
            deletes: self.deletes(),
            ..Newest::nothing()
        };
        let sealed = self.sealed();
        let Some(end) = sealed.last().map(|segment| segment.summary.next) else {
            return Ok(newest);
        };
        let mut streams: Vec<_> = self.policies.keys().copied().collect();
        streams.sort_unstable();
        for stream in streams {
            if let Some(limit) = self.due(stream, end)? {
                self.gather(&mut newest, stream, limit, end)?;
            }
        }
        let streams: Vec<_> = newest.streams.keys().copied().collect();
        for stream in streams {
            self.note_older(&mut newest, stream, end)?;
        }
        Ok(newest)
    }

    /// With one broker stamps grow with positions, so nothing older than a delete can follow it.
    /// With several, only stability could tell.
    fn deletes(&self) -> Deletes {
        let state = self.shared.state.read();
        let vector = state.active.index.vector_after();
        let mut brokers = vector.iter().map(|(origin, _): (Origin, _)| origin.broker);
        let first = brokers.next();
        if brokers.all(|broker| Some(broker) == first) {
            Deletes::DroppedBefore(self.now_ms.saturating_sub(DELETES_KEPT_MS))
        } else {
            Deletes::Kept
        }
    }

    /// Up to where replaced records of a stream are dropped, if it is worth looking for them: at
    /// least half of what it has must be new.
    fn due(&self, stream: StreamId, end: Position) -> Result<Option<Position>, CleanError> {
        let Some(policy) = self.policies.get(&stream) else {
            return Ok(None);
        };
        if policy.merge != MergeMode::Lww {
            return Ok(None);
        }
        let limit = match policy.retention.compact {
            true => end,
            false => self.limit_of(stream, policy)?.min(end),
        };
        let cleaned = self.trims.cleaned(stream);
        let (mut new, mut all) = (0, 0);
        for segment in self.sealed() {
            let bytes: u64 = segment.summary.stream(stream).iter().map(|p| p.bytes).sum();
            all += bytes;
            if segment.summary.next > cleaned {
                new += bytes;
            }
        }
        Ok((limit > cleaned && new > 0 && new * 2 >= all).then_some(limit))
    }

    /// Notes the newest record of each key since the stream's last run, and all older deletes.
    fn gather(
        &self,
        newest: &mut Newest,
        stream: StreamId,
        limit: Position,
        end: Position,
    ) -> Result<(), CleanError> {
        let cleaned = self.trims.cleaned(stream);
        let mut known_to = end;
        self.each_frame(stream, Position::default(), end, &mut |commit| {
            let is_new = commit.position >= cleaned;
            if newest.keys.len() >= MOST_KEYS {
                known_to = known_to.min(commit.position.max(cleaned));
                return;
            }
            for part in commit.parts.iter().filter(|p| p.header.stream == stream) {
                each_record(commit, part, &mut |record, stamp| {
                    if let Some(key) = record.key
                        && (is_new || record.is_delete())
                    {
                        newest.note(stream, key, stamp);
                    }
                });
            }
        })?;
        newest.streams.insert(stream, Reach { limit, known_to });
        Ok(())
    }

    /// Notes for which keys there is something older than the newest.
    fn note_older(
        &self,
        newest: &mut Newest,
        stream: StreamId,
        end: Position,
    ) -> Result<(), CleanError> {
        self.each_frame(stream, Position::default(), end, &mut |commit| {
            for part in commit.parts.iter().filter(|p| p.header.stream == stream) {
                let whole = each_record(commit, part, &mut |record, stamp| {
                    let hash = record.key.map(|key| newest.hash(stream, key));
                    if let Some(winner) = hash.and_then(|hash| newest.keys.get_mut(&hash))
                        && stamp < winner.stamp
                    {
                        winner.has_older = true;
                    }
                });
                if !whole && part.batch.is_some() {
                    // What cannot be read might hold anything.
                    newest.deletes = Deletes::Kept;
                }
            }
        })
    }

    fn each_frame(
        &self,
        stream: StreamId,
        from: Position,
        end: Position,
        each: &mut dyn FnMut(&Commit),
    ) -> Result<(), CleanError> {
        let filter = Filter::Stream(stream);
        let mut at = from;
        while at < end {
            let chunk = self.reader.read(at, &filter, READ_BYTES)?;
            for commit in chunk.commits.iter().filter(|c| c.position < end) {
                each(commit);
            }
            if chunk.next <= at {
                break;
            }
            at = chunk.next;
        }
        Ok(())
    }
}

impl Newest {
    /// What is known when nothing is compacted.
    pub(super) fn nothing() -> Self {
        Self {
            seed: 0,
            keys: HashMap::new(),
            streams: HashMap::new(),
            deletes: Deletes::Kept,
        }
    }

    fn hash(&self, stream: StreamId, key: &[u8]) -> u128 {
        // The seed is drawn for each run, so that nobody can choose keys that collide.
        twox::xxh3::xxh3_128_with_seed(key, self.seed ^ stream.get())
    }

    fn note(&mut self, stream: StreamId, key: &[u8], stamp: Stamp) {
        match self.keys.entry(self.hash(stream, key)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Winner {
                    stamp,
                    has_older: false,
                });
            }
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                held.stamp = held.stamp.max(stamp);
            }
        }
    }

    /// Whether the stream is compacted in this run.
    pub(super) fn covers(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Up to where each stream is clean after this run.
    pub(super) fn cleaned(&self) -> impl Iterator<Item = (StreamId, Position)> {
        self.streams
            .iter()
            .map(|(&stream, reach)| (stream, reach.known_to.min(reach.limit)))
    }

    /// What becomes of a record of a stream that is compacted.
    pub(super) fn fate(
        &self,
        place: (StreamId, Position),
        record: &Record<'_>,
        stamp: Stamp,
        appended_at: u64,
    ) -> Fate {
        let (stream, position) = place;
        let known = self.streams.get(&stream).filter(|r| position < r.limit);
        let Some((reach, key)) = known.zip(record.key) else {
            return Fate::Alive;
        };
        let Some(winner) = self.keys.get(&self.hash(stream, key)) else {
            return Fate::Alive;
        };
        if stamp < winner.stamp {
            return Fate::Replaced;
        }
        let old = match self.deletes {
            Deletes::Kept => false,
            Deletes::DroppedBefore(ms) => appended_at < ms,
        };
        if record.is_delete() && old && !winner.has_older && position < reach.known_to {
            Fate::Spent
        } else {
            Fate::Alive
        }
    }
}
