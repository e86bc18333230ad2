//! How what several regions say of one stream becomes one definition.
//!
//! Definitions are written in every region, also while a region is away, and must end the same
//! everywhere. What is known of a name is an [`Entry`], and records are joined into it in any order:
//!
//! - A stream that is made after one of its name was deleted is of the next generation. A greater
//!   generation takes all. Generations have ids of their own, so what is left of a deleted stream
//!   never mixes with the next one.
//! - Within a generation, deleted wins over everything.
//! - What cannot change is as the record with the least stamp says: the one that made the stream. Of
//!   two regions that make it at once, one loses.
//! - What can change is as the record with the greatest stamp says.
//! - Where the payload may go is part of the stream's id. So what was ever said of an id's regions
//!   holds for good, whichever record wins, and is remembered for good.
//!
//! A record of the system stream says all of a definition, as JSON that HTTP shows, with a field
//! `generation` unless that is 0. A deletion is a delete, with the generation in a header of that
//! name, in decimal, unless it is 0.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::batch::Record;
use crate::clock::HybridTimestamp;
use crate::id::{BadStreamName, BrokerId, Epoch, Origin, RegionName, StreamId, StreamName};
use crate::lww::Stamp;
use crate::stream::{BadDefinition, MergeMode, StreamDefinition};

/// The field and the header that name the generation.
const GENERATION: &str = "generation";

/// The field of a stored entry that says which regions might hold streams of the name.
const KEPT: &str = "kept";

/// What is known of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    generation: u32,
    /// `None` once it is deleted.
    live: Option<Live>,
    /// Every generation with the regions that a record has named for it. Where none are named, all
    /// may hold it, and that is only remembered of a stream that is not deleted.
    kept: BTreeSet<(u32, Vec<RegionName>)>,
}

/// A stream that a name means, has meant, or would mean if another record had won.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meant {
    /// Which one.
    pub stream: StreamId,
    /// The regions that may hold its payload; none are named where all may.
    pub regions: Vec<RegionName>,
    /// Whether regions made it at once, and another one won. Nobody has deleted it.
    pub displaced: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Live {
    /// What cannot change is its own since this; what can, since `changed`.
    definition: StreamDefinition,
    created: Stamp,
    changed: Stamp,
}

/// What a record of the system stream says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    generation: u32,
    /// `None` when it deletes the stream.
    definition: Option<StreamDefinition>,
}

/// Why a row or a record of the system stream does not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// The key.
    #[error(transparent)]
    Name(#[from] BadStreamName),
    /// Not JSON.
    #[error("{0}")]
    Json(String),
    /// Not a definition.
    #[error(transparent)]
    Definition(#[from] BadDefinition),
    /// A generation or a stamp.
    #[error("its {0} does not read")]
    Field(&'static str),
    /// Another name than that of its key.
    #[error("it names {0:?}")]
    OtherName(String),
}

impl Said {
    /// What it says of where the payload may go.
    fn kept(&self) -> Option<(u32, Vec<RegionName>)> {
        let definition = self.definition.as_ref()?;
        Some((self.generation, definition.kept_in().to_vec()))
    }

    /// The stream that it makes or changes.
    #[must_use]
    pub fn definition(&self) -> Option<&StreamDefinition> {
        self.definition.as_ref()
    }

    /// Reads a record of the system stream.
    ///
    /// # Errors
    /// When it is none that this broker writes.
    pub fn read(name: &StreamName, record: &Record<'_>) -> Result<Self, BadEntry> {
        if let Some(value) = record.value.filter(|_| !record.is_delete()) {
            let mut value = parse(value)?;
            let definition = read_definition(name, &mut value)?;
            return Ok(Self {
                generation: definition.generation,
                definition: Some(definition),
            });
        }
        let generation = match record.headers().find(|(header, _)| *header == GENERATION) {
            Some((_, value)) => value
                .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok())
                .ok_or(BadEntry::Field(GENERATION))?,
            None => 0,
        };
        Ok(Self {
            generation,
            definition: None,
        })
    }
}

/// The value of a record that makes or changes a stream.
#[must_use]
pub fn put_value(definition: &StreamDefinition) -> String {
    with_generation(definition).to_string()
}

/// The header of a record that deletes a stream of this generation, if it needs one.
#[must_use]
pub fn delete_header(generation: u32) -> Option<(&'static str, String)> {
    (generation > 0).then(|| (GENERATION, generation.to_string()))
}

impl Entry {
    /// What a first record says.
    #[must_use]
    pub fn new(said: Said, stamp: Stamp) -> Self {
        Self {
            generation: said.generation,
            kept: said.kept().into_iter().collect(),
            live: said.definition.map(|definition| Live {
                definition,
                created: stamp,
                changed: stamp,
            }),
        }
    }

    /// With one record more.
    #[must_use]
    pub fn join(mut self, said: Said, stamp: Stamp) -> Self {
        self.kept.extend(said.kept());
        let mut joined = match said.generation.cmp(&self.generation) {
            Ordering::Less => self,
            Ordering::Equal => self.join_same(said, stamp),
            Ordering::Greater => Self {
                kept: self.kept,
                ..Self::new(said, stamp)
            },
        };
        joined.forget();
        joined
    }

    /// Forgets what needs no memory: of a stream that is gone, that all might hold it.
    fn forget(&mut self) {
        let current = self.live.as_ref().map(|_| self.generation);
        self.kept
            .retain(|(generation, regions)| !regions.is_empty() || current == Some(*generation));
    }

    fn join_same(mut self, said: Said, stamp: Stamp) -> Self {
        let (Some(live), Some(said)) = (&mut self.live, said.definition) else {
            self.live = None;
            return self;
        };
        if stamp < live.created {
            live.created = stamp;
            live.definition.merge = said.merge;
            live.definition.partitions = said.partitions;
            live.definition.regions = said.regions;
        }
        if stamp > live.changed {
            live.changed = stamp;
            live.definition.retention = said.retention;
        }
        self
    }

    /// All streams that the name has to do with and whose regions are remembered.
    pub fn meant(&self, name: &StreamName) -> impl Iterator<Item = Meant> {
        let live = self.live.as_ref().map(|live| live.definition.kept_in());
        self.kept.iter().map(move |(generation, regions)| Meant {
            stream: name.id_of_generation(*generation, regions),
            regions: regions.clone(),
            displaced: *generation == self.generation && live.is_some_and(|live| live != regions),
        })
    }

    /// The stream, unless it is deleted.
    #[must_use]
    pub fn definition(&self) -> Option<StreamDefinition> {
        let mut definition = self.live.as_ref()?.definition.clone();
        // Whoever asked for it may have made another stream of it than the one that won.
        definition.retention.compact &= definition.merge != MergeMode::Append;
        Some(definition)
    }

    /// The generation of the next stream to be made of this name.
    #[must_use]
    pub fn next_generation(&self) -> u32 {
        self.generation + u32::from(self.live.is_none())
    }

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut value = match &self.live {
            None => json!({ GENERATION: self.generation }),
            Some(live) => {
                let mut value = with_generation(&live.definition);
                value["created"] = stamp_json(live.created);
                value["changed"] = stamp_json(live.changed);
                value
            }
        };
        let said = self.said();
        let others = self.kept.iter().filter(|kept| said.as_ref() != Some(kept));
        let others: Vec<_> = others
            .map(|(generation, regions)| json!([generation, names(regions)]))
            .collect();
        if !others.is_empty() {
            value[KEPT] = others.into();
        }
        value.to_string()
    }

    /// What the definition says of where the payload may go.
    fn said(&self) -> Option<(u32, Vec<RegionName>)> {
        let live = self.live.as_ref()?;
        Some((self.generation, live.definition.kept_in().to_vec()))
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(name: &StreamName, stored: &[u8]) -> Result<Self, BadEntry> {
        let mut value = parse(stored)?;
        let kept = take_kept(&mut value).ok_or(BadEntry::Field(KEPT))?;
        let stamps = (
            take_stamp(&mut value, "created"),
            take_stamp(&mut value, "changed"),
        );
        let (Some(created), Some(changed)) = stamps else {
            return Ok(Self {
                generation: take_generation(&mut value)?,
                live: None,
                kept,
            });
        };
        let definition = read_definition(name, &mut value)?;
        let mut entry = Self {
            generation: definition.generation,
            live: Some(Live {
                definition,
                created,
                changed,
            }),
            kept,
        };
        entry.kept.extend(entry.said());
        Ok(entry)
    }
}

fn parse(json: &[u8]) -> Result<Value, BadEntry> {
    serde_json::from_slice(json).map_err(|error| BadEntry::Json(error.to_string()))
}

fn with_generation(definition: &StreamDefinition) -> Value {
    let mut value = definition.to_json();
    if definition.generation > 0 {
        value[GENERATION] = definition.generation.into();
    }
    value
}

fn take(value: &mut Value, field: &str) -> Option<Value> {
    value.as_object_mut()?.remove(field)
}

fn take_generation(value: &mut Value) -> Result<u32, BadEntry> {
    let Some(generation) = take(value, GENERATION) else {
        return Ok(0);
    };
    let generation = generation.as_u64().and_then(|n| u32::try_from(n).ok());
    generation.ok_or(BadEntry::Field(GENERATION))
}

fn read_definition(name: &StreamName, value: &mut Value) -> Result<StreamDefinition, BadEntry> {
    let generation = take_generation(value)?;
    let mut definition = StreamDefinition::parse(value)?;
    if definition.name != *name {
        return Err(BadEntry::OtherName(definition.name.to_string()));
    }
    definition.generation = generation;
    Ok(definition)
}

fn stamp_json(stamp: Stamp) -> Value {
    let Origin { broker, epoch } = stamp.origin;
    json!([stamp.timestamp.get(), broker.get(), epoch.get()])
}

fn names(regions: &[RegionName]) -> Vec<&str> {
    regions.iter().map(RegionName::as_str).collect()
}

fn take_kept(value: &mut Value) -> Option<BTreeSet<(u32, Vec<RegionName>)>> {
    let Some(kept) = take(value, KEPT) else {
        return Some(BTreeSet::new());
    };
    let read = |pair: &Value| {
        let generation = u32::try_from(pair.get(0)?.as_u64()?).ok()?;
        let regions = pair.get(1)?.as_array()?.iter();
        let regions = regions.map(|name| RegionName::parse(name.as_str()?).ok());
        Some((generation, regions.collect::<Option<_>>()?))
    };
    kept.as_array()?.iter().map(read).collect()
}

fn take_stamp(value: &mut Value, field: &str) -> Option<Stamp> {
    let numbers = take(value, field)?;
    let number = |n: usize| numbers.get(n)?.as_u64();
    Some(Stamp {
        timestamp: HybridTimestamp::new(number(0)?),
        origin: Origin {
            broker: BrokerId::new(number(1)?),
            epoch: Epoch::new(u32::try_from(number(2)?).ok()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::Retention;

    fn stamp(time: u64) -> Stamp {
        Stamp {
            timestamp: HybridTimestamp::new(time),
            origin: Origin {
                broker: BrokerId::new(time % 3),
                epoch: Epoch::new(1),
            },
        }
    }

    fn name() -> StreamName {
        StreamName::parse("orders").unwrap()
    }

    fn said(generation: u32, what: Option<(bool, u16, u64)>) -> Said {
        said_of(generation, what, &[])
    }

    fn said_of(generation: u32, what: Option<(bool, u16, u64)>, regions: &[&str]) -> Said {
        let regions: Vec<_> = regions
            .iter()
            .map(|name| RegionName::parse(name).unwrap())
            .collect();
        let definition = what.map(|(keyed, partitions, bytes)| StreamDefinition {
            regions: (!regions.is_empty()).then(|| regions.clone()),
            partitions,
            retention: Retention {
                max_bytes: Some(bytes),
                compact: keyed,
                ..Retention::default()
            },
            generation,
            ..StreamDefinition::new(
                name(),
                match keyed {
                    true => MergeMode::Lww,
                    false => MergeMode::Append,
                },
            )
        });
        Said {
            generation,
            definition,
        }
    }

    fn joined(records: &[(Said, Stamp)]) -> Entry {
        let ((first, stamp), rest) = records.split_first().unwrap();
        let first = Entry::new(first.clone(), *stamp);
        rest.iter().fold(first, |entry, (said, stamp)| {
            // As the tables do, by way of the stored form.
            let entry = Entry::decode(&name(), entry.encode().as_bytes()).unwrap();
            entry.join(said.clone(), *stamp)
        })
    }

    fn records() -> impl Strategy<Value = Vec<(Said, Stamp)>> {
        let what = prop::option::weighted(0.8, (any::<bool>(), 1u16..5, 1u64..9));
        let regions = prop::sample::select(vec![&[][..], &[], &["a"], &["a", "b"]]);
        let record = (0u32..3, what, regions)
            .prop_map(|(generation, what, regions)| said_of(generation, what, regions));
        prop::collection::vec(record, 1..12).prop_map(|records| {
            let stamps = (1..).map(stamp);
            records.into_iter().zip(stamps).collect()
        })
    }

    proptest! {
        #[test]
        fn any_order_of_records_gives_the_same_definition(
            (records, other) in records()
                .prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle())),
        ) {
            prop_assert_eq!(joined(&other), joined(&records));
            prop_assert_eq!(joined(&[records.clone(), other].concat()), joined(&records));
            // Whatever wins, the regions of whatever was said are known.
            let entry = joined(&records);
            let meant: Vec<_> = entry.meant(&name()).collect();
            for (said, _) in &records {
                let Some(definition) = said.definition() else { continue };
                let known = meant.iter().find(|meant| meant.stream == definition.id());
                match known {
                    Some(known) => prop_assert_eq!(&known.regions, definition.kept_in()),
                    None => prop_assert!(definition.regions.is_none()),
                }
            }
        }
    }

    #[test]
    fn the_first_settles_what_cannot_change_and_the_last_the_rest() {
        let entry = joined(&[
            (said(0, Some((false, 4, 8))), stamp(7)),
            (said(0, Some((true, 2, 5))), stamp(3)),
        ]);
        let definition = entry.definition().unwrap();
        assert_eq!(
            (definition.merge, definition.partitions),
            (MergeMode::Lww, 2)
        );
        assert_eq!(definition.retention.max_bytes, Some(8));
    }

    #[test]
    fn the_first_settles_the_regions_and_what_lost_is_remembered() {
        let name = name();
        let entry = joined(&[
            (said_of(0, Some((true, 1, 1)), &["a"]), stamp(2)),
            (said_of(0, Some((true, 1, 1)), &["b"]), stamp(3)),
            (said_of(0, Some((true, 1, 1)), &[]), stamp(4)),
        ]);
        let definition = entry.definition().unwrap();
        assert_eq!(names(definition.kept_in()), ["a"]);
        let displaced = |entry: &Entry| {
            let meant = entry.meant(&name).filter(|meant| meant.displaced);
            meant
                .map(|meant| names(&meant.regions).concat())
                .collect::<Vec<_>>()
        };
        assert_eq!(displaced(&entry), ["", "b"]);
        let entry = entry.join(said(0, None), stamp(5));
        assert_eq!(displaced(&entry), [""; 0]);
        let known: Vec<_> = entry
            .meant(&name)
            .map(|meant| meant.regions.len())
            .collect();
        assert_eq!(known, [1, 1]);
    }

    #[test]
    fn a_deleted_stream_stays_deleted_and_the_next_has_another_id() {
        let before = said(0, Some((true, 1, 5)));
        let entry = joined(&[
            (before.clone(), stamp(1)),
            (said(0, None), stamp(2)),
            (before.clone(), stamp(9)),
        ]);
        assert_eq!(entry.definition(), None);
        assert_eq!(entry.next_generation(), 1);
        let next = entry.join(said(1, Some((true, 1, 5))), stamp(4));
        let id = next.definition().unwrap().id();
        assert_ne!(id, name().id());
        assert_eq!(next.next_generation(), 1);
        assert_eq!(next.clone().join(before, stamp(10)), next);
    }
}
