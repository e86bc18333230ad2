//! JSON values in canonical binary form: one form for each value. See [`super::form`].

use super::amount::Amount;
use super::form::{
    ARRAY, FALSE, INTEGER, NULL, NUMBER, OBJECT, STRING, TRUE, put_bytes, put_framed, read_bytes,
    read_text, since,
};
use crate::limits::{MAX_DOCUMENT_DEPTH, MAX_NUMBER_BYTES};
use crate::wire::{Malformed, Reader, put_zigzag};

/// A JSON value: bytes that were checked.
///
/// Numbers are as they were written: `1`, `1.0` and `1e0` are three values. The fields of an object
/// are in the order of their keys' bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// Checks that the bytes are one value.
    ///
    /// # Errors
    /// When they are not, also when they are another form of it or nested deeper than
    /// [`MAX_DOCUMENT_DEPTH`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let value = Self::read(&mut reader, 0)?;
        match reader.is_empty() {
            true => Ok(value),
            false => Err(Malformed),
        }
    }

    /// Reads one value that lies this deep in a document.
    pub(super) fn read(reader: &mut Reader<'a>, depth: usize) -> Result<Self, Malformed> {
        let from = reader.rest();
        check(reader, depth)?;
        Ok(Self(since(from, reader)))
    }

    /// The binary form.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it is an object.
    #[must_use]
    pub fn is_object(self) -> bool {
        self.kind() == OBJECT
    }

    pub(super) fn kind(self) -> u8 {
        self.0[0]
    }

    /// What comes after the head.
    pub(super) fn payload(self) -> &'a [u8] {
        &self.0[1..]
    }

    /// How deep it is nested: 1 for what holds nothing.
    #[must_use]
    pub fn depth(self) -> usize {
        let inner = match self.kind() {
            OBJECT => self.fields().map(|(_, value)| value.depth()).max(),
            ARRAY => self.elements().map(Self::depth).max(),
            _ => None,
        };
        1 + inner.unwrap_or_default()
    }

    /// The fields of an object; none of anything else.
    pub fn fields(self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let mut reader = Reader::new(self.inside(OBJECT));
        std::iter::from_fn(move || {
            let key = read_text(&mut reader).ok()?;
            Some((key, next(&mut reader)?))
        })
    }

    /// The elements of an array; none of anything else.
    pub fn elements(self) -> impl Iterator<Item = Value<'a>> {
        let mut reader = Reader::new(self.inside(ARRAY));
        std::iter::from_fn(move || next(&mut reader))
    }

    fn inside(self, kind: u8) -> &'a [u8] {
        let payload = (self.kind() == kind).then(|| self.payload());
        let inside = payload.map(|payload| read_bytes(&mut Reader::new(payload)));
        inside.unwrap_or(Ok(&[])).unwrap_or(&[])
    }

    /// The text of a string.
    #[must_use]
    pub fn as_text(self) -> Option<&'a str> {
        let payload = (self.kind() == STRING).then(|| self.payload())?;
        read_text(&mut Reader::new(payload)).ok()
    }

    /// A number as JSON writes it.
    #[must_use]
    pub fn as_number(self) -> Option<String> {
        let mut reader = Reader::new(self.payload());
        match self.kind() {
            INTEGER => reader.zigzag().ok().map(|integer| integer.to_string()),
            NUMBER => read_text(&mut reader).ok().map(str::to_owned),
            _ => None,
        }
    }

    /// The amount of a number that counts.
    #[must_use]
    pub fn as_amount(self) -> Option<Amount> {
        Amount::of_payload(self.kind(), self.payload())
    }
}

/// The value that is next, of ones that were checked.
fn next<'a>(reader: &mut Reader<'a>) -> Option<Value<'a>> {
    let from = reader.rest();
    skip_payload(reader.u8().ok()?, reader).ok()?;
    Some(Value(since(from, reader)))
}

/// Passes over the payload of a plain value.
pub(super) fn skip_payload(kind: u8, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match kind {
        NULL | FALSE | TRUE => Ok(()),
        INTEGER => reader.shortest_varint().map(drop),
        NUMBER | STRING | OBJECT | ARRAY => read_bytes(reader).map(drop),
        _ => Err(Malformed),
    }
}

fn check(reader: &mut Reader<'_>, depth: usize) -> Result<(), Malformed> {
    if depth >= MAX_DOCUMENT_DEPTH {
        return Err(Malformed);
    }
    match reader.u8()? {
        kind @ (NULL | FALSE | TRUE | INTEGER) => skip_payload(kind, reader),
        NUMBER => match is_other_number(read_text(reader)?) {
            true => Ok(()),
            false => Err(Malformed),
        },
        STRING => read_text(reader).map(drop),
        OBJECT => check_fields(&mut Reader::new(read_bytes(reader)?), depth + 1),
        ARRAY => {
            let mut elements = Reader::new(read_bytes(reader)?);
            while !elements.is_empty() {
                check(&mut elements, depth + 1)?;
            }
            Ok(())
        }
        _ => Err(Malformed),
    }
}

fn check_fields(fields: &mut Reader<'_>, depth: usize) -> Result<(), Malformed> {
    let mut last = None;
    while !fields.is_empty() {
        let key = read_text(fields)?;
        if last >= Some(key) {
            return Err(Malformed);
        }
        last = Some(key);
        check(fields, depth)?;
    }
    Ok(())
}

/// Whether a text is a number that has to be kept as text.
fn is_other_number(text: &str) -> bool {
    is_number(text) && text.len() <= MAX_NUMBER_BYTES && integer(text).is_none()
}

/// The integer, if that is all that the text says.
fn integer(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| text != "-0")
}

/// Whether the text is a number by RFC 8259.
pub(super) fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let signed = |part: &str| digits(part.strip_prefix(['+', '-']).unwrap_or(part));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(signed)
}

/// Appends a number, given as JSON writes it.
pub(super) fn put_number(out: &mut Vec<u8>, text: &str) {
    if let Some(integer) = integer(text) {
        out.push(INTEGER);
        put_zigzag(out, integer);
        return;
    }
    out.push(NUMBER);
    put_bytes(out, text.as_bytes());
}

/// Appends a string.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.push(STRING);
    put_bytes(out, text.as_bytes());
}

/// A JSON value that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValueBuf(Vec<u8>);

impl ValueBuf {
    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self(vec![NULL])
    }

    /// A number that counts.
    #[must_use]
    pub fn amount(amount: Amount) -> Self {
        let (kind, payload) = amount.to_payload();
        Self([&[kind][..], &payload].concat())
    }

    /// A string.
    #[must_use]
    pub fn text(text: &str) -> Self {
        let mut out = Vec::with_capacity(text.len() + 4);
        put_string(&mut out, text);
        Self(out)
    }

    /// An array of values.
    #[must_use]
    pub fn array<'a>(elements: impl IntoIterator<Item = Value<'a>>) -> Self {
        let mut out = vec![ARRAY];
        put_framed(&mut out, |out| {
            for element in elements {
                out.extend_from_slice(element.bytes());
            }
        });
        Self(out)
    }

    /// What is a value already.
    pub(super) fn of_checked(bytes: Vec<u8>) -> Self {
        debug_assert!(Value::decode(&bytes).is_ok());
        Self(bytes)
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> Value<'_> {
        Value(&self.0)
    }

    /// The binary form.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
