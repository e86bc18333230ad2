//! The definitions of all streams, folded from the system stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use anabranch_core::id::{StreamId, StreamName};
use anabranch_core::stream::StreamDefinition;
use hashbrown::HashMap;

use super::error::TablesError;

/// All streams that exist at one position of the log; the system stream always does.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamMap {
    by_id: HashMap<StreamId, Arc<StreamDefinition>>,
    by_name: BTreeMap<Box<str>, Arc<StreamDefinition>>,
}

impl Default for StreamMap {
    fn default() -> Self {
        let mut map = Self {
            by_id: HashMap::new(),
            by_name: BTreeMap::new(),
        };
        map.insert(StreamDefinition::system());
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

    /// All streams, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StreamDefinition>> {
        self.by_name.values()
    }

    /// How many there are, the system stream included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Never: the system stream is there.
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

    /// Removes a stream and gives its id; `None` when there is none that can be removed.
    pub(super) fn remove(&mut self, name: &StreamName) -> Option<StreamId> {
        if name.is_system() {
            return None;
        }
        let definition = self.by_name.remove(name.as_str())?;
        self.by_id.remove(&definition.id());
        Some(definition.id())
    }
}

/// The name in a key of the system stream.
pub(super) fn read_name(key: &[u8]) -> Result<StreamName, TablesError> {
    let text = String::from_utf8_lossy(key);
    StreamName::parse(&text).map_err(|error| TablesError::Definition {
        name: text.chars().take(80).collect(),
        what: error.to_string(),
    })
}

/// The definition in a row of the system stream.
pub(super) fn read_definition(key: &[u8], value: &[u8]) -> Result<StreamDefinition, TablesError> {
    let name = read_name(key)?;
    let wrong = |what: String| TablesError::Definition {
        name: name.to_string(),
        what,
    };
    let json = serde_json::from_slice(value).map_err(|error| wrong(error.to_string()))?;
    let definition =
        StreamDefinition::from_json(&json).map_err(|error| wrong(error.to_string()))?;
    if definition.name == name {
        Ok(definition)
    } else {
        Err(wrong(format!("it names {:?}", definition.name.as_str())))
    }
}
