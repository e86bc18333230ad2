//! The definitions of all streams, folded from the system stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::definition::{BadEntry, Entry, Meant};
use anabranch_core::id::{RegionName, StreamId, StreamName};
use anabranch_core::stream::StreamDefinition;
use hashbrown::HashMap;

use super::error::TablesError;

/// All streams that exist at one position of the log; the broker's own always do.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamMap {
    by_id: HashMap<StreamId, Arc<StreamDefinition>>,
    by_name: BTreeMap<Box<str>, Arc<StreamDefinition>>,
    /// Generations of the next streams of names whose last one was deleted.
    next: HashMap<Box<str>, u32>,
    /// What is known of where payloads may go, also of streams that are gone.
    meant: HashMap<Box<str>, Vec<Meant>>,
}

impl Default for StreamMap {
    fn default() -> Self {
        let mut map = Self {
            by_id: HashMap::new(),
            by_name: BTreeMap::new(),
            next: HashMap::new(),
            meant: HashMap::new(),
        };
        map.insert(StreamDefinition::system());
        map.insert(StreamDefinition::members());
        map
    }
}

impl StreamMap {
    /// The stream with this id.
    #[must_use]
    pub fn get(&self, id: StreamId) -> Option<&Arc<StreamDefinition>> {
        self.by_id.get(&id)
    }

    /// The stream with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Arc<StreamDefinition>> {
        self.by_name.get(name)
    }

    /// The generation of a stream that is made of this name.
    #[must_use]
    pub fn next_generation(&self, name: &str) -> u32 {
        self.next.get(name).copied().unwrap_or(0)
    }

    /// Every stream that only some regions may hold, or might before it was deleted.
    pub fn restricted(&self) -> impl Iterator<Item = (StreamId, &[RegionName])> {
        let meant = self.meant.values().flatten();
        let restricted = meant.filter(|meant| !meant.regions.is_empty());
        restricted.map(|meant| (meant.stream, meant.regions.as_slice()))
    }

    /// Whether a stream is none any more because of two that regions made at once, with other
    /// regions that may hold them, this one has lost. Its records stay: the other one may lose yet.
    #[must_use]
    pub fn is_displaced(&self, id: StreamId) -> bool {
        let mut meant = self.meant.values().flatten();
        meant.any(|meant| meant.stream == id && meant.displaced)
    }

    /// All streams, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StreamDefinition>> {
        self.by_name.values()
    }

    /// How many there are, the broker's own included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Never: the broker's own are there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn insert(&mut self, definition: StreamDefinition) {
        let definition = Arc::new(definition);
        let name = definition.name.as_str().into();
        self.by_id.insert(definition.id(), Arc::clone(&definition));
        self.by_name.insert(name, definition);
    }

    /// Makes a name what its entry says. Gives the stream whose rows are of no use any more.
    pub(super) fn set(&mut self, name: &StreamName, entry: &Entry) -> Option<Outdated> {
        if name.is_system() {
            return None;
        }
        // Of most names there is nothing to know.
        let meant: Vec<_> = entry.meant(name).collect();
        match meant.iter().any(|meant| !meant.regions.is_empty()) {
            true => drop(self.meant.insert(name.as_str().into(), meant)),
            false => drop(self.meant.remove(name.as_str())),
        }
        let before = self.by_name.remove(name.as_str());
        if let Some(before) = &before {
            self.by_id.remove(&before.id());
        }
        let Some(definition) = entry.definition() else {
            self.next
                .insert(name.as_str().into(), entry.next_generation());
            return before.map(|before| Outdated::Gone(before.id()));
        };
        self.next.remove(name.as_str());
        let (id, merge) = (definition.id(), definition.merge);
        let generation = definition.generation;
        self.insert(definition);
        match before {
            Some(before) if before.id() != id => Some(match before.generation == generation {
                true => Outdated::Replaced(before.id(), id),
                false => Outdated::Gone(before.id()),
            }),
            Some(before) if before.merge != merge => Some(Outdated::OtherMerge(id)),
            _ => None,
        }
    }
}

/// Why the rows of a stream are of no use any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outdated {
    /// There is no such stream any more.
    Gone(StreamId),
    /// There is another one of its name, which may have lost to it before and have records.
    Replaced(StreamId, StreamId),
    /// Its merge mode turned out to be another one: its records have to be folded anew.
    OtherMerge(StreamId),
}

/// The name in a key of the system stream.
pub(super) fn read_name(key: &[u8]) -> Result<StreamName, TablesError> {
    let text = String::from_utf8_lossy(key);
    StreamName::parse(&text).map_err(|error| TablesError::Definition {
        name: text.chars().take(80).collect(),
        what: error.to_string(),
    })
}

/// What is known of a name, from its row among the entries.
pub(super) fn read_entry(name: &StreamName, stored: &[u8]) -> Result<Entry, TablesError> {
    Entry::decode(name, stored).map_err(|error| unreadable(name, &error))
}

pub(super) fn unreadable(name: &StreamName, error: &BadEntry) -> TablesError {
    TablesError::Definition {
        name: name.to_string(),
        what: error.to_string(),
    }
}
