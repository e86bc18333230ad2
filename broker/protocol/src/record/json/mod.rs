//! The JSON form of a record.
//!
//! ```json
//! {"key": "AA1", "value": {"delay": 12}, "headers": {"trace": "7"}, "timestamp": 1357020000000, "op": "put"}
//! ```
//!
//! A `key` is text and stands for its UTF-8 bytes. A `value` is any JSON, and stands for its own
//! text, exactly as written. What is neither travels as base64 in `key_base64` and
//! `value_base64`. Going out, bytes that are JSON come back as `value`, others as `value_base64`.

#[cfg(test)]
mod tests;
mod write;

use std::borrow::Cow;
use std::fmt;

use anabranch_core::batch::Operation;
use anabranch_core::id::{Offset, PartitionId};
use anabranch_core::limits::{MAX_BATCH_RECORDS, MAX_HEADERS};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use super::{Header, Record, operation_named};
use crate::error::{Code, Problem};

pub(crate) use write::{Object, write_base64, write_number, write_string};
pub use write::{as_json, write_delivered, write_record, write_row};

/// Deepest nesting of a `value`. Parsers that recurse, such as most clients', stay safe.
pub const MAX_JSON_DEPTH: usize = 128;

/// Why a JSON text is not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not of the form of a record.
    #[error("record {index}: {reason}")]
    Json {
        /// Which record, from 0.
        index: usize,
        /// The parser's words.
        reason: String,
    },
    /// A field that does not exist.
    #[error("record {index}: {reason}")]
    UnknownField {
        /// Which record, from 0.
        index: usize,
        /// The parser's words, which name the fields that exist.
        reason: String,
    },
    /// A field has a value that it cannot have.
    #[error("record {index}: {field} must be {expected}")]
    Field {
        /// Which record, from 0.
        index: usize,
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// More than fit a batch.
    #[error("more than {MAX_BATCH_RECORDS} records; publish fewer at once")]
    TooMany,
}

impl From<RecordError> for Problem {
    fn from(error: RecordError) -> Self {
        let code = match error {
            RecordError::Json { .. } => Code::NotJson,
            RecordError::UnknownField { .. } => Code::UnknownField,
            RecordError::Field { .. } => Code::BadParameter,
            RecordError::TooMany => Code::BatchTooLarge,
        };
        Self::new(code, error.to_string())
    }
}

/// Reads one record.
///
/// # Errors
/// When the text is not JSON, has an unknown field, or a field of the wrong type.
pub fn parse_record(text: &[u8]) -> Result<Record<'_>, RecordError> {
    let form = serde_json::from_slice(text).map_err(|error| json_error(0, &error))?;
    record_of(form, 0)
}

/// Reads a JSON array of records.
///
/// # Errors
/// With the first record that is wrong.
pub fn parse_array(text: &[u8]) -> Result<Vec<Record<'_>>, RecordError> {
    // Forms are checked one by one as raw values, so that an error can say which record it is in.
    let raw: Vec<&RawValue> =
        serde_json::from_slice(text).map_err(|error| json_error(0, &error))?;
    if raw.len() > MAX_BATCH_RECORDS {
        return Err(RecordError::TooMany);
    }
    let numbered = raw.into_iter().enumerate();
    numbered
        .map(|(index, raw)| parse_nth(raw.get().as_bytes(), index))
        .collect()
}

/// Reads newline-delimited records; empty lines are skipped.
///
/// # Errors
/// With the first record that is wrong.
pub fn parse_ndjson(text: &[u8]) -> Result<Vec<Record<'_>>, RecordError> {
    let mut records = Vec::new();
    let lines = text.split(|&b| b == b'\n');
    for line in lines.filter(|line| !line.trim_ascii().is_empty()) {
        if records.len() == MAX_BATCH_RECORDS {
            return Err(RecordError::TooMany);
        }
        records.push(parse_nth(line, records.len())?);
    }
    Ok(records)
}

fn parse_nth(text: &[u8], index: usize) -> Result<Record<'_>, RecordError> {
    let form = serde_json::from_slice(text).map_err(|error| json_error(index, &error))?;
    record_of(form, index)
}

fn json_error(index: usize, error: &serde_json::Error) -> RecordError {
    let reason = error.to_string();
    match reason.starts_with("unknown field") {
        true => RecordError::UnknownField { index, reason },
        false => RecordError::Json { index, reason },
    }
}

/// A JSON string, borrowed when it has no escapes.
#[derive(Deserialize, Debug)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// The fields of a record as they stand in JSON.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Form<'a> {
    #[serde(borrow)]
    pub(crate) key: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) key_base64: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "even_null")]
    pub(crate) value: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(crate) value_base64: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) headers: Option<Headers<'a>>,
    pub(crate) timestamp: Option<i64>,
    #[serde(borrow)]
    pub(crate) op: Option<Text<'a>>,
}

/// What a broker delivers; fields of newer brokers are passed over.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(crate) struct DeliveredForm<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    #[serde(borrow)]
    key_base64: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "even_null")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    value_base64: Option<Text<'a>>,
    #[serde(borrow)]
    headers: Option<Headers<'a>>,
    timestamp: Option<i64>,
    #[serde(borrow)]
    op: Option<Text<'a>>,
    partition: Option<u16>,
    offset: u64,
}

/// `"value": null` is a value, unlike no value at all.
fn even_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

pub(crate) fn record_of(form: Form<'_>, index: usize) -> Result<Record<'_>, RecordError> {
    let wrong = |field, expected| RecordError::Field {
        index,
        field,
        expected,
    };
    let operation = match &form.op {
        None => Operation::Put,
        Some(Text(op)) => {
            operation_named(op).ok_or_else(|| wrong("op", "\"put\" or \"delete\""))?
        }
    };
    Ok(Record {
        key: key_bytes(form.key, form.key_base64).map_err(|(f, e)| wrong(f, e))?,
        value: value_bytes(form.value, form.value_base64).map_err(|(f, e)| wrong(f, e))?,
        headers: form.headers.map(|headers| headers.0).unwrap_or_default(),
        timestamp: form.timestamp,
        operation,
    })
}

/// A field, and what it must be.
pub(crate) type Wrong = (&'static str, &'static str);

/// A key from its two forms.
pub(crate) fn key_bytes<'a>(
    key: Option<Text<'a>>,
    key_base64: Option<Text<'a>>,
) -> Result<Option<Cow<'a, [u8]>>, Wrong> {
    match (key, key_base64) {
        (None, None) => Ok(None),
        (Some(Text(key)), None) => Ok(Some(bytes_of(key))),
        (None, Some(Text(packed))) => decoded(&packed, "key_base64").map(Some),
        (Some(_), Some(_)) => Err(("key", "left out when there is a key_base64")),
    }
}

pub(crate) fn value_bytes<'a>(
    value: Option<&'a RawValue>,
    value_base64: Option<Text<'a>>,
) -> Result<Option<Cow<'a, [u8]>>, Wrong> {
    match (value, value_base64) {
        (None, None) => Ok(None),
        (Some(value), None) if too_deep(value.get()) => {
            Err(("value", "nested at most 128 levels deep"))
        }
        (Some(value), None) => Ok(Some(Cow::Borrowed(value.get().as_bytes()))),
        (None, Some(Text(packed))) => decoded(&packed, "value_base64").map(Some),
        (Some(_), Some(_)) => Err(("value", "left out when there is a value_base64")),
    }
}

pub(crate) fn decoded<'a>(packed: &str, field: &'static str) -> Result<Cow<'a, [u8]>, Wrong> {
    let bytes = STANDARD.decode(packed);
    bytes.map(Cow::Owned).map_err(|_| (field, "base64"))
}

fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// Whether a valid JSON text nests deeper than [`MAX_JSON_DEPTH`].
fn too_deep(json: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json.bytes() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_JSON_DEPTH {
            return true;
        }
    }
    false
}

/// An object of names to strings, `{"base64": …}` or null.
#[derive(Debug)]
pub(crate) struct Headers<'a>(Vec<Header<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Headers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of header names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers<'de>, A::Error> {
        let mut headers = Vec::new();
        while let Some(Text(name)) = map.next_key()? {
            if headers.len() == MAX_HEADERS {
                return Err(de::Error::custom("more than 64 headers"));
            }
            let HeaderValue(value) = map.next_value()?;
            headers.push((name, value));
        }
        Ok(Headers(headers))
    }
}

struct HeaderValue<'a>(Option<Cow<'a, [u8]>>);

impl<'de> Deserialize<'de> for HeaderValue<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = HeaderValue<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, {\"base64\": …} or null")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<HeaderValue<'de>, E> {
        Ok(HeaderValue(Some(Cow::Borrowed(text.as_bytes()))))
    }

    fn visit_str<E>(self, text: &str) -> Result<HeaderValue<'de>, E> {
        Ok(HeaderValue(Some(Cow::Owned(text.as_bytes().to_vec()))))
    }

    fn visit_unit<E>(self) -> Result<HeaderValue<'de>, E> {
        Ok(HeaderValue(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderValue<'de>, A::Error> {
        let wrong = || de::Error::custom("a header object is {\"base64\": \"…\"}");
        let Some((Text(name), Text(packed))) = map.next_entry()? else {
            return Err(wrong());
        };
        if name != "base64" || map.next_key::<Text<'_>>()?.is_some() {
            return Err(wrong());
        }
        let bytes = STANDARD.decode(packed.as_bytes()).map_err(|_| wrong())?;
        Ok(HeaderValue(Some(Cow::Owned(bytes))))
    }
}

/// A record that a broker delivered.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivered<'a> {
    /// Its partition; on WebSocket the part says it.
    pub partition: Option<PartitionId>,
    /// Its offset.
    pub offset: Offset,
    /// The record.
    pub record: Record<'a>,
}

/// Reads a delivered record.
///
/// # Errors
/// When the text is not JSON or a field has the wrong type.
pub fn parse_delivered(text: &[u8]) -> Result<Delivered<'_>, RecordError> {
    let form = serde_json::from_slice(text).map_err(|error| json_error(0, &error))?;
    delivered_of(form, 0)
}

pub(crate) fn delivered_of(
    form: DeliveredForm<'_>,
    index: usize,
) -> Result<Delivered<'_>, RecordError> {
    let (partition, offset) = (form.partition, form.offset);
    let record = Form {
        key: form.key,
        key_base64: form.key_base64,
        value: form.value,
        value_base64: form.value_base64,
        headers: form.headers,
        timestamp: form.timestamp,
        op: form.op,
    };
    Ok(Delivered {
        partition: partition.map(PartitionId::new),
        offset: Offset::new(offset),
        record: record_of(record, index)?,
    })
}

/// The JSON form of a row.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(crate) struct RowForm<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    #[serde(borrow)]
    key_base64: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "even_null")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    value_base64: Option<Text<'a>>,
}

/// A row: its key and its value.
pub type KeyValue<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Reads a row.
///
/// # Errors
/// When the text is not JSON or lacks the key or the value.
pub fn parse_row(text: &[u8]) -> Result<KeyValue<'_>, RecordError> {
    let form = serde_json::from_slice(text).map_err(|error| json_error(0, &error))?;
    row_of(form).map_err(|(field, expected)| RecordError::Field {
        index: 0,
        field,
        expected,
    })
}

pub(crate) fn row_of(form: RowForm<'_>) -> Result<KeyValue<'_>, Wrong> {
    let key = key_bytes(form.key, form.key_base64)?;
    let value = value_bytes(form.value, form.value_base64)?;
    let key = key.ok_or(("key", "given"))?;
    Ok((key, value.ok_or(("value", "given"))?))
}
