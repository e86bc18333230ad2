//! Writing the JSON form.

use std::borrow::Cow;

use anabranch_core::batch::{self, Operation};
use anabranch_core::id::{Offset, PartitionId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use super::too_deep;
use crate::record::{Record, operation_name};

/// Writes a record as one line of JSON without the line break.
pub fn write_record(out: &mut Vec<u8>, record: &Record<'_>) {
    let mut object = Object::open(out);
    if let Some(key) = &record.key {
        object.key_bytes(key);
    }
    if let Some(value) = &record.value {
        object.value_bytes(value);
    }
    let headers = record.headers.iter();
    object.headers(headers.map(|(name, value)| (name.as_ref(), value.as_deref())));
    if let Some(timestamp) = record.timestamp {
        object.number("timestamp", timestamp);
    }
    object.operation(record.operation);
    object.close();
}

/// Writes a delivered record as one line of JSON without the line break.
pub fn write_delivered(
    out: &mut Vec<u8>,
    partition: Option<PartitionId>,
    offset: Offset,
    record: &batch::Record<'_>,
) {
    let mut object = Object::open(out);
    if let Some(partition) = partition {
        object.number("partition", partition.get());
    }
    object.number("offset", offset.get());
    object.number("timestamp", record.timestamp);
    if let Some(key) = record.key {
        object.key_bytes(key);
    }
    if let Some(value) = record.value {
        object.value_bytes(value);
    }
    object.headers(record.headers());
    object.operation(record.operation);
    object.close();
}

/// Writes `{"key": …, "value": …}`, the JSON form of a row.
pub fn write_row(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let mut object = Object::open(out);
    object.key_bytes(key);
    object.value_bytes(value);
    object.close();
}

/// The bytes as JSON that may be embedded in a line of text; `None` when they are not JSON or
/// nest too deeply.
#[must_use]
pub fn as_json(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let raw: &RawValue = serde_json::from_slice(bytes).ok()?;
    let text = raw.get();
    if too_deep(text) {
        return None;
    }
    // In JSON a line break only ever stands between tokens, where a blank says the same.
    match text.contains(['\n', '\r']) {
        true => Some(Cow::Owned(text.replace(['\n', '\r'], " "))),
        false => Some(Cow::Borrowed(text)),
    }
}

/// Writes one JSON object.
pub(crate) struct Object<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
}

impl<'o> Object<'o> {
    pub(crate) fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        write_string(self.out, name);
        self.out.push(b':');
    }

    fn number(&mut self, name: &str, value: impl serde::Serialize) {
        self.name(name);
        write_number(self.out, value);
    }

    fn key_bytes(&mut self, key: &[u8]) {
        self.text_or_base64("key", "key_base64", key);
    }

    pub(crate) fn text_or_base64(&mut self, text_name: &str, base64_name: &str, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                self.name(text_name);
                write_string(self.out, text);
            }
            Err(_) => self.base64(base64_name, bytes),
        }
    }

    fn value_bytes(&mut self, value: &[u8]) {
        match as_json(value) {
            Some(json) => {
                self.name("value");
                self.out.extend_from_slice(json.as_bytes());
            }
            None => self.base64("value_base64", value),
        }
    }

    fn base64(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        write_base64(self.out, bytes);
    }

    fn headers<'h>(&mut self, headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>) {
        let mut headers = headers.peekable();
        if headers.peek().is_none() {
            return;
        }
        self.name("headers");
        let mut object = Object::open(self.out);
        for (name, value) in headers {
            object.header(name, value);
        }
        object.close();
    }

    pub(crate) fn header(&mut self, name: &str, value: Option<&[u8]>) {
        self.name(name);
        write_header_value(self.out, value);
    }

    fn operation(&mut self, operation: Operation) {
        if operation != Operation::Put {
            self.name("op");
            write_string(self.out, operation_name(operation));
        }
    }

    pub(crate) fn close(self) {
        self.out.push(b'}');
    }
}

fn write_header_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => out.extend_from_slice(b"null"),
        Some((_, Ok(text))) => write_string(out, text),
        Some((bytes, Err(_))) => Object::open(out).only_base64(bytes),
    }
}

impl Object<'_> {
    fn only_base64(mut self, bytes: &[u8]) {
        self.base64("base64", bytes);
        self.close();
    }
}

pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing to memory does not fail");
}

pub(crate) fn write_number(out: &mut Vec<u8>, number: impl serde::Serialize) {
    serde_json::to_writer(out, &number).expect("writing to memory does not fail");
}

pub(crate) fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(
        start + base64::encoded_len(bytes.len(), true).unwrap_or(0),
        0,
    );
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    out.truncate(start + written.expect("the room was measured"));
    out.push(b'"');
}
