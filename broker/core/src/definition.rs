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
//!
//! A record of the system stream says all of a definition, as JSON that HTTP shows, with a field
//! `generation` unless that is 0. A deletion is a delete, with the generation in a header of that
//! name, in decimal, unless it is 0.

use serde_json::{Value, json};

use crate::batch::Record;
use crate::clock::HybridTimestamp;
use crate::id::{BadStreamName, BrokerId, Epoch, Origin, StreamName};
use crate::lww::Stamp;
use crate::stream::{BadDefinition, MergeMode, StreamDefinition};

/// The field and the header that name the generation.
const GENERATION: &str = "generation";

/// What is known of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    generation: u32,
    /// `None` once it is deleted.
    live: Option<Live>,
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
        if said.generation != self.generation {
            return match said.generation < self.generation {
                true => self,
                false => Self::new(said, stamp),
            };
        }
        let (Some(live), Some(said)) = (&mut self.live, said.definition) else {
            self.live = None;
            return self;
        };
        if stamp < live.created {
            live.created = stamp;
            live.definition.merge = said.merge;
            live.definition.partitions = said.partitions;
        }
        if stamp > live.changed {
            live.changed = stamp;
            live.definition.retention = said.retention;
            live.definition.regions = said.regions;
        }
        self
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
        let Some(live) = &self.live else {
            return json!({ GENERATION: self.generation }).to_string();
        };
        let mut value = with_generation(&live.definition);
        value["created"] = stamp_json(live.created);
        value["changed"] = stamp_json(live.changed);
        value.to_string()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(name: &StreamName, stored: &[u8]) -> Result<Self, BadEntry> {
        let mut value = parse(stored)?;
        let stamps = (
            take_stamp(&mut value, "created"),
            take_stamp(&mut value, "changed"),
        );
        let (Some(created), Some(changed)) = stamps else {
            let generation = take_generation(&mut value)?;
            let live = None;
            return Ok(Self { generation, live });
        };
        let definition = read_definition(name, &mut value)?;
        Ok(Self {
            generation: definition.generation,
            live: Some(Live {
                definition,
                created,
                changed,
            }),
        })
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
        let definition = what.map(|(keyed, partitions, bytes)| StreamDefinition {
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
        let record = (0u32..3, what).prop_map(|(generation, what)| said(generation, what));
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
