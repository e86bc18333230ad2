//! What a stream is.
//!
//! A definition is a row of the system stream [`SYSTEM_STREAM`]: its key is the stream's name, its
//! value the JSON that HTTP shows. So definitions are logged, folded and replicated like all else;
//! how they merge, [`crate::definition`] says.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::id::{BadRegionName, BadStreamName, RegionName, StreamId, StreamName};
use crate::limits::{MAX_PARTITIONS, MAX_STREAM_REGIONS};
use crate::members::MEMBERS_STREAM;

/// The stream whose rows are the definitions of all streams.
pub const SYSTEM_STREAM: &str = "_streams";

/// How a stream's records fold into rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeMode {
    /// Each record is a row of its own, named by its dot: a table of events.
    Append,
    /// One row per key, one opaque value: the last writer wins.
    Lww,
}

impl MergeMode {
    /// The name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Lww => "lww",
        }
    }
}

/// What may be dropped from the log.
///
/// In an `append` stream, whatever is older or beyond the size is dropped. In a keyed stream, the
/// same limits drop only records that a later record of their key has replaced: a row never loses
/// the record that it was folded from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Drop records older than this many seconds; by the broker's clock when they were appended.
    pub max_age_seconds: Option<u64>,
    /// Drop the oldest records beyond this many bytes.
    pub max_bytes: Option<u64>,
    /// Keyed streams: drop every replaced record once its segment is sealed.
    pub compact: bool,
}

/// A stream as its creator defined it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamDefinition {
    /// Its name.
    pub name: StreamName,
    /// How it folds. Cannot change.
    pub merge: MergeMode,
    /// How many partitions it has. Cannot change.
    pub partitions: u16,
    /// What may be dropped.
    pub retention: Retention,
    /// The regions that may hold its payload, in order; `None` for all. Cannot change.
    pub regions: Option<Vec<RegionName>>,
    /// How many streams of this name were deleted before. Not shown.
    pub generation: u32,
}

/// Why a stream definition was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDefinition {
    /// Not a JSON object.
    #[error("a stream definition is a JSON object")]
    NotAnObject,
    /// A field that does not exist.
    #[error("a stream has no field {field:?}; it has {known}")]
    UnknownField {
        /// The field.
        field: String,
        /// Those that exist.
        known: &'static str,
    },
    /// A field of the wrong type or out of range.
    #[error("stream field {field} must be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// The merge mode is planned, not there.
    #[error("merge \"document\" is not available yet; use \"append\" or \"lww\"")]
    DocumentNotYet,
    /// The name.
    #[error(transparent)]
    Name(#[from] BadStreamName),
    /// The name belongs to the broker.
    #[error("stream name {0:?} begins with an underscore, which is reserved for the broker")]
    Reserved(String),
    /// A region's name.
    #[error(transparent)]
    Region(#[from] BadRegionName),
    /// A change to what cannot change.
    #[error("{0} of a stream cannot change after it was created; create another stream")]
    Fixed(&'static str),
}

const FIELDS: &str = "name, merge, partitions, retention, regions";
const RETENTION_FIELDS: &str = "max_age_seconds, max_bytes, compact";

impl StreamDefinition {
    /// A stream with everything at its default: one partition, nothing dropped, all regions.
    #[must_use]
    pub fn new(name: StreamName, merge: MergeMode) -> Self {
        Self {
            name,
            merge,
            partitions: 1,
            retention: Retention::default(),
            regions: None,
            generation: 0,
        }
    }

    /// The definition of the system stream, which every broker knows without being told.
    ///
    /// # Panics
    /// Never: the constant is a valid name.
    #[must_use]
    pub fn system() -> Self {
        let name = StreamName::parse(SYSTEM_STREAM).expect("the constant is in the alphabet");
        Self::new(name, MergeMode::Lww)
    }

    /// The definition of the stream of members, which every broker knows too.
    ///
    /// # Panics
    /// Never: the constant is a valid name.
    #[must_use]
    pub fn members() -> Self {
        let name = StreamName::parse(MEMBERS_STREAM).expect("the constant is in the alphabet");
        Self::new(name, MergeMode::Lww)
    }

    /// An id that no stream has: of the rows that say what is known of each name.
    ///
    /// # Panics
    /// Never: the constant is a valid name.
    #[must_use]
    pub fn entries() -> StreamId {
        let name = StreamName::parse("_definitions").expect("the constant is in the alphabet");
        name.id()
    }

    /// The stream's id.
    #[must_use]
    pub fn id(&self) -> StreamId {
        self.name.id_of_generation(self.generation, self.kept_in())
    }

    /// The regions that may hold its payload; none are named where all may.
    #[must_use]
    pub fn kept_in(&self) -> &[RegionName] {
        self.regions.as_deref().unwrap_or_default()
    }

    /// Whether a region may hold its payload.
    #[must_use]
    pub fn may_be_in(&self, region: &RegionName) -> bool {
        let kept_in = self.regions.as_ref();
        kept_in.is_none_or(|regions| regions.contains(region))
    }

    /// Reads the JSON form of a stream that a user asks for.
    ///
    /// # Errors
    /// With the field that is wrong.
    pub fn from_json(value: &Value) -> Result<Self, BadDefinition> {
        let definition = Self::parse(value)?;
        definition.check()?;
        Ok(definition)
    }

    /// As [`StreamDefinition::from_json`], without a look at how the fields fit together.
    pub(crate) fn parse(value: &Value) -> Result<Self, BadDefinition> {
        let fields = object(value, FIELDS)?;
        let name = text(fields, "name")?.ok_or(BadDefinition::Field {
            field: "name",
            expected: "given",
        })?;
        let name = StreamName::parse(name)?;
        if name.is_system() {
            return Err(BadDefinition::Reserved(name.to_string()));
        }
        let merge = merge_mode(fields)?.unwrap_or(MergeMode::Append);
        let mut definition = Self::new(name, merge);
        if let Some(partitions) = partitions(fields)? {
            definition.partitions = partitions;
        }
        if let Some(retention) = fields.get("retention") {
            definition.retention = Retention::default().changed_by(retention)?;
        }
        definition.regions = regions(fields)?;
        Ok(definition)
    }

    /// What concerns more than one field.
    fn check(&self) -> Result<(), BadDefinition> {
        if self.retention.compact && self.merge == MergeMode::Append {
            return Err(BadDefinition::Field {
                field: "retention.compact",
                expected: "false in a stream with merge \"append\", which has no keys to compact by",
            });
        }
        Ok(())
    }

    /// This definition with the given fields changed.
    ///
    /// # Errors
    /// With the field that is wrong or cannot change.
    pub fn changed_by(&self, value: &Value) -> Result<Self, BadDefinition> {
        let fields = object(value, FIELDS)?;
        if text(fields, "name")?.is_some_and(|name| name != self.name.as_str()) {
            return Err(BadDefinition::Fixed("the name"));
        }
        if merge_mode(fields)?.is_some_and(|merge| merge != self.merge) {
            return Err(BadDefinition::Fixed("the merge mode"));
        }
        if partitions(fields)?.is_some_and(|n| n != self.partitions) {
            return Err(BadDefinition::Fixed("the number of partitions"));
        }
        let mut changed = self.clone();
        if let Some(retention) = fields.get("retention") {
            changed.retention = self.retention.changed_by(retention)?;
        }
        if fields.contains_key("regions") && regions(fields)? != self.regions {
            return Err(BadDefinition::Fixed("where the payload may go (regions)"));
        }
        changed.check()?;
        Ok(changed)
    }

    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let regions = self.regions.as_ref().map(|names| {
            names
                .iter()
                .map(|name| Value::from(name.as_str()))
                .collect::<Vec<_>>()
        });
        json!({
            "name": self.name.as_str(),
            "merge": self.merge.as_str(),
            "partitions": self.partitions,
            "retention": {
                "max_age_seconds": self.retention.max_age_seconds,
                "max_bytes": self.retention.max_bytes,
                "compact": self.retention.compact,
            },
            "regions": regions,
        })
    }
}

impl Retention {
    fn changed_by(self, value: &Value) -> Result<Self, BadDefinition> {
        let fields = object(value, RETENTION_FIELDS)?;
        let mut changed = self;
        if let Some(value) = fields.get("max_age_seconds") {
            changed.max_age_seconds = limit(value, "retention.max_age_seconds")?;
        }
        if let Some(value) = fields.get("max_bytes") {
            changed.max_bytes = limit(value, "retention.max_bytes")?;
        }
        if let Some(value) = fields.get("compact") {
            let wrong = BadDefinition::Field {
                field: "retention.compact",
                expected: "true or false",
            };
            changed.compact = value.as_bool().ok_or(wrong)?;
        }
        Ok(changed)
    }
}

fn object<'a>(
    value: &'a Value,
    known: &'static str,
) -> Result<&'a Map<String, Value>, BadDefinition> {
    let fields = value.as_object().ok_or(BadDefinition::NotAnObject)?;
    match fields
        .keys()
        .find(|field| !known.split(", ").any(|k| k == field.as_str()))
    {
        Some(field) => Err(BadDefinition::UnknownField {
            field: field.chars().take(80).collect(),
            known,
        }),
        None => Ok(fields),
    }
}

fn text<'a>(
    fields: &'a Map<String, Value>,
    field: &'static str,
) -> Result<Option<&'a str>, BadDefinition> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(BadDefinition::Field {
            field,
            expected: "a string",
        }),
    }
}

fn merge_mode(fields: &Map<String, Value>) -> Result<Option<MergeMode>, BadDefinition> {
    match text(fields, "merge")? {
        None => Ok(None),
        Some("append") => Ok(Some(MergeMode::Append)),
        Some("lww") => Ok(Some(MergeMode::Lww)),
        Some("document") => Err(BadDefinition::DocumentNotYet),
        Some(_) => Err(BadDefinition::Field {
            field: "merge",
            expected: "\"append\" or \"lww\"",
        }),
    }
}

fn partitions(fields: &Map<String, Value>) -> Result<Option<u16>, BadDefinition> {
    let Some(value) = fields.get("partitions").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let count = value.as_u64().and_then(|n| u16::try_from(n).ok());
    match count.filter(|n| (1..=MAX_PARTITIONS).contains(n)) {
        Some(count) => Ok(Some(count)),
        None => Err(BadDefinition::Field {
            field: "partitions",
            expected: "a number from 1 to 1024",
        }),
    }
}

fn limit(value: &Value, field: &'static str) -> Result<Option<u64>, BadDefinition> {
    match value {
        Value::Null => Ok(None),
        value => match value.as_u64().filter(|&n| n > 0) {
            Some(n) => Ok(Some(n)),
            None => Err(BadDefinition::Field {
                field,
                expected: "a whole number above 0, or null for no limit",
            }),
        },
    }
}

fn regions(fields: &Map<String, Value>) -> Result<Option<Vec<RegionName>>, BadDefinition> {
    let wrong = BadDefinition::Field {
        field: "regions",
        expected: "a list of region names, or null for all",
    };
    let names = match fields.get("regions") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(names)) => names,
        Some(_) => return Err(wrong),
    };
    let parse = |name: &Value| match name.as_str() {
        Some(name) => Ok(RegionName::parse(name)?),
        None => Err(wrong.clone()),
    };
    // In one order, since the stream's id is made of them.
    let names: BTreeSet<_> = names.iter().map(parse).collect::<Result<_, _>>()?;
    if names.len() > MAX_STREAM_REGIONS {
        return Err(BadDefinition::Field {
            field: "regions",
            expected: "at most 64 names, or null for all",
        });
    }
    Ok((!names.is_empty()).then(|| names.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<StreamDefinition, BadDefinition> {
        StreamDefinition::from_json(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_definition_reads_back() {
        let text = r#"{"name":"orders","merge":"lww","partitions":3,
            "retention":{"max_age_seconds":60,"compact":true},"regions":["eu-west","asia"]}"#;
        let definition = read(text).unwrap();
        let regions: Vec<_> = definition
            .kept_in()
            .iter()
            .map(RegionName::as_str)
            .collect();
        assert_eq!(regions, ["asia", "eu-west"]);
        assert_eq!(definition.retention.max_age_seconds, Some(60));
        assert_eq!(
            StreamDefinition::from_json(&definition.to_json()),
            Ok(definition)
        );
    }

    #[test]
    fn streams_that_may_be_in_other_regions_are_other_streams() {
        let id = |regions: &str| {
            let text = format!(r#"{{"name":"a","regions":{regions}}}"#);
            read(&text).unwrap().id()
        };
        let ids = [r#"["a","b"]"#, r#"["ab"]"#, r#"["a"]"#, "null"].map(id);
        for (at, one) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(one));
        }
        assert_eq!(id(r#"["b","a","b"]"#), ids[0]);
        assert_eq!(id("[]"), ids[3]);
        let name = StreamName::parse("a").unwrap();
        assert_eq!(
            (ids[3], name.id_of_generation(0, &[])),
            (name.id(), name.id())
        );
    }

    #[test]
    fn wrong_fields_are_named() {
        let cases = [
            (
                r#"{"name":"a","color":1}"#,
                "a stream has no field \"color\"",
            ),
            (
                r#"{"name":"a","partitions":0}"#,
                "stream field partitions must be",
            ),
            (r#"{"name":"a/b"}"#, "stream name \"a/b\" is not allowed"),
            (r#"{"name":"_a"}"#, "begins with an underscore"),
            (r#"{"name":"a","merge":"document"}"#, "not available yet"),
            (
                r#"{"name":"a","retention":{"max_bytes":-1}}"#,
                "retention.max_bytes must be",
            ),
            (r#"{"merge":"lww"}"#, "stream field name must be given"),
            (
                r#"{"name":"a","retention":{"compact":true}}"#,
                "retention.compact must be false",
            ),
            (
                r#"{"name":"a","regions":"eu"}"#,
                "stream field regions must be",
            ),
            (
                r#"{"name":"a","regions":["EU"]}"#,
                "region name \"EU\" is not",
            ),
            ("[]", "is a JSON object"),
        ];
        for (text, expected) in cases {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_fixed_cannot_change_and_the_rest_can() {
        let definition = read(r#"{"name":"a","retention":{"max_bytes":5}}"#).unwrap();
        let change = |text: &str| definition.changed_by(&serde_json::from_str(text).unwrap());
        assert_eq!(
            change(r#"{"merge":"lww"}"#),
            Err(BadDefinition::Fixed("the merge mode"))
        );
        assert_eq!(
            change(r#"{"partitions":2}"#),
            Err(BadDefinition::Fixed("the number of partitions"))
        );
        let fixed = change(r#"{"regions":["a"]}"#);
        assert!(matches!(fixed, Err(BadDefinition::Fixed(_))), "{fixed:?}");
        assert!(change(r#"{"regions":[]}"#).is_ok(), "none means all");
        let changed = change(r#"{"retention":{"max_age_seconds":9}}"#).unwrap();
        assert_eq!(changed.retention.max_bytes, Some(5));
        assert_eq!(changed.retention.max_age_seconds, Some(9));
    }
}
