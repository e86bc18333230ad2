//! The two encodings as one interface, so that each message is described once.

use crate::msgpack;
use crate::record::json::{self, Object};

/// Writes values one after the other. Maps and arrays say how many items they have.
pub(super) trait Form {
    /// The map that is a message. What stands before it is none of its business.
    fn message(&mut self, entries: usize);
    fn map(&mut self, entries: usize);
    fn end_map(&mut self);
    fn array(&mut self, items: usize);
    fn end_array(&mut self);
    /// Begins an array of unknown length; what it returns is for [`Form::close_array`].
    fn open_array(&mut self) -> usize;
    fn close_array(&mut self, mark: usize, items: usize);
    /// Name of the next value.
    fn name(&mut self, name: &'static str);
    fn str(&mut self, text: &str);
    fn uint(&mut self, number: u64);
    fn int(&mut self, number: i64);
    fn bool(&mut self, value: bool);
    fn nil(&mut self);
    /// A key or a prefix: binary, or text with base64 under another name where it is not text.
    fn key(&mut self, name: &'static str, base64_name: &'static str, bytes: &[u8]);
    /// The field `value`: binary, or JSON with base64 where it is not JSON.
    fn value(&mut self, bytes: &[u8]);
    /// The field `headers`.
    fn headers<'h>(
        &mut self,
        count: usize,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    );
    /// The field `batch`, in two pieces.
    fn batch(&mut self, head: &[u8], tail: &[u8]);

    fn named_str(&mut self, name: &'static str, text: &str) {
        self.name(name);
        self.str(text);
    }

    fn named_uint(&mut self, name: &'static str, number: impl Into<u64>) {
        self.name(name);
        self.uint(number.into());
    }

    fn maybe_str(&mut self, name: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.named_str(name, text);
        }
    }
}

/// `MessagePack`.
pub(super) struct Msgpack<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Msgpack<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out }
    }
}

impl Form for Msgpack<'_> {
    fn message(&mut self, entries: usize) {
        self.map(entries);
    }

    fn map(&mut self, entries: usize) {
        msgpack::put_map(self.out, entries);
    }

    fn end_map(&mut self) {}

    fn array(&mut self, items: usize) {
        msgpack::put_array(self.out, items);
    }

    fn end_array(&mut self) {}

    fn open_array(&mut self) -> usize {
        msgpack::open_array(self.out)
    }

    fn close_array(&mut self, mark: usize, items: usize) {
        msgpack::close_array(self.out, mark, items);
    }

    #[inline]
    fn name(&mut self, name: &'static str) {
        msgpack::put_str(self.out, name);
    }

    fn str(&mut self, text: &str) {
        msgpack::put_str(self.out, text);
    }

    fn uint(&mut self, number: u64) {
        msgpack::put_uint(self.out, number);
    }

    fn int(&mut self, number: i64) {
        msgpack::put_int(self.out, number);
    }

    fn bool(&mut self, value: bool) {
        msgpack::put_bool(self.out, value);
    }

    fn nil(&mut self) {
        msgpack::put_nil(self.out);
    }

    fn key(&mut self, name: &'static str, _: &'static str, bytes: &[u8]) {
        self.name(name);
        msgpack::put_bin(self.out, bytes);
    }

    fn value(&mut self, bytes: &[u8]) {
        self.name("value");
        msgpack::put_bin(self.out, bytes);
    }

    fn headers<'h>(
        &mut self,
        count: usize,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) {
        self.name("headers");
        msgpack::put_map(self.out, count);
        for (name, value) in headers {
            msgpack::put_str(self.out, name);
            match value {
                Some(bytes) => msgpack::put_bin(self.out, bytes),
                None => msgpack::put_nil(self.out),
            }
        }
    }

    fn batch(&mut self, head: &[u8], tail: &[u8]) {
        self.name("batch");
        msgpack::put_bin_head(self.out, head.len() + tail.len());
        self.out.extend_from_slice(head);
        self.out.extend_from_slice(tail);
    }
}

/// JSON.
pub(super) struct Json<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Json<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out }
    }

    /// A comma, unless this is the first item or follows a name.
    fn separate(&mut self) {
        if !matches!(self.out.last(), None | Some(b'{' | b'[' | b':')) {
            self.out.push(b',');
        }
    }
}

impl Form for Json<'_> {
    fn message(&mut self, _: usize) {
        self.out.push(b'{');
    }

    fn map(&mut self, _: usize) {
        self.separate();
        self.out.push(b'{');
    }

    fn end_map(&mut self) {
        self.out.push(b'}');
    }

    fn array(&mut self, _: usize) {
        self.open_array();
    }

    fn end_array(&mut self) {
        self.out.push(b']');
    }

    fn open_array(&mut self) -> usize {
        self.separate();
        self.out.push(b'[');
        0
    }

    fn close_array(&mut self, _: usize, _: usize) {
        self.end_array();
    }

    fn name(&mut self, name: &'static str) {
        self.separate();
        json::write_string(self.out, name);
        self.out.push(b':');
    }

    fn str(&mut self, text: &str) {
        self.separate();
        json::write_string(self.out, text);
    }

    fn uint(&mut self, number: u64) {
        self.separate();
        json::write_number(self.out, number);
    }

    fn int(&mut self, number: i64) {
        self.separate();
        json::write_number(self.out, number);
    }

    fn bool(&mut self, value: bool) {
        self.separate();
        let text: &[u8] = if value { b"true" } else { b"false" };
        self.out.extend_from_slice(text);
    }

    fn nil(&mut self) {
        self.separate();
        self.out.extend_from_slice(b"null");
    }

    fn key(&mut self, name: &'static str, base64_name: &'static str, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.named_str(name, text),
            Err(_) => {
                self.name(base64_name);
                json::write_base64(self.out, bytes);
            }
        }
    }

    fn value(&mut self, bytes: &[u8]) {
        match json::as_json(bytes) {
            Some(text) => {
                self.name("value");
                self.out.extend_from_slice(text.as_bytes());
            }
            None => {
                self.name("value_base64");
                json::write_base64(self.out, bytes);
            }
        }
    }

    fn headers<'h>(
        &mut self,
        _: usize,
        headers: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
    ) {
        self.name("headers");
        let mut object = Object::open(self.out);
        for (name, value) in headers {
            object.header(name, value);
        }
        object.close();
    }

    fn batch(&mut self, head: &[u8], tail: &[u8]) {
        self.name("batch");
        json::write_base64(self.out, &[head, tail].concat());
    }
}
