//! The records inside a batch, read in place.

use bytes::Bytes;

use super::BatchError;
use crate::limits::{MAX_HEADERS, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::wire::{Malformed, Reader};

/// What a record does to the row of its key. Travels in the record's `attributes` byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Operation {
    /// Writes the value. In a keyed stream a record without a value is a delete, as in Kafka.
    #[default]
    Put,
    /// Removes the row.
    Delete,
}

impl Operation {
    /// The operation with this code; `None` when there is none.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Put),
            1 => Some(Self::Delete),
            _ => None,
        }
    }

    /// The code in the record's `attributes`.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Put => 0,
            Self::Delete => 1,
        }
    }
}

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record<'a> {
    /// What it does.
    pub operation: Operation,
    /// Milliseconds since 1970, as its producer said.
    pub timestamp: i64,
    /// Its offset less the batch's base offset. Equal to its index unless compaction removed
    /// records before it.
    pub offset_delta: u32,
    /// Key, if any.
    pub key: Option<&'a [u8]>,
    /// Value, if any.
    pub value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> Record<'a> {
    /// The record's headers.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        self.headers
    }

    /// Whether it removes the row of its key.
    #[must_use]
    pub fn is_delete(&self) -> bool {
        self.operation == Operation::Delete || self.value.is_none()
    }
}

/// The headers of a record: names with optional values, in order. Iterates over pairs.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Headers<'a> {
    count: usize,
    rest: &'a [u8],
}

impl Headers<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        let mut reader = Reader::new(self.rest);
        let header = read_header(&mut reader).ok()?;
        self.rest = &self.rest[self.rest.len() - reader.remaining()..];
        Some(header)
    }
}

fn read_header<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, Option<&'a [u8]>), Malformed> {
    let length = reader.length(MAX_KEY_BYTES)?.ok_or(Malformed)?;
    let name = std::str::from_utf8(reader.take(length)?).map_err(|_| Malformed)?;
    let value = match reader.length(MAX_VALUE_BYTES)? {
        Some(length) => Some(reader.take(length)?),
        None => None,
    };
    Ok((name, value))
}

/// The inflated records of one batch.
#[derive(Clone, Debug)]
pub struct Records {
    bytes: Bytes,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Records {
    pub(super) fn new(bytes: Bytes, base_timestamp: i64, max_timestamp: i64) -> Self {
        Self {
            bytes,
            base_timestamp,
            max_timestamp,
        }
    }

    /// The inflated bytes that the records borrow from, so that a key or a value can be kept as a
    /// slice of them without copying.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Walks over the records. After an error the walk ends.
    pub fn iter(&self) -> Walk<'_> {
        self.iter_from(0)
    }

    /// Walks over the records from a place on that [`Walk::place`] has told.
    pub fn iter_from(&self, place: usize) -> Walk<'_> {
        let rest = self.bytes.get(place..).unwrap_or_default();
        Walk {
            reader: Reader::new(rest),
            length: self.bytes.len(),
            base_timestamp: self.base_timestamp,
            index: 0,
        }
    }

    /// Walks all records and checks what a walk alone does not: the count, that nothing follows
    /// the last one, and that offsets are dense.
    pub(super) fn check_all(&self, count: u32) -> Result<(), BatchError> {
        let mut walk = self.iter();
        for index in 0..count {
            let short = BatchError::Record {
                index,
                what: "the batch ends before it",
            };
            let record = walk.next().ok_or(short)??;
            if record.offset_delta != index {
                return Err(BatchError::Record {
                    index,
                    what: "its offset delta is not its index",
                });
            }
            if record.timestamp > self.max_timestamp {
                return Err(BatchError::Record {
                    index,
                    what: "its timestamp is beyond the batch's greatest",
                });
            }
        }
        match walk.reader.remaining() {
            0 => Ok(()),
            left => Err(BatchError::Trailing(left)),
        }
    }
}

/// Iterator over the records of a batch.
pub struct Walk<'a> {
    reader: Reader<'a>,
    /// Of all records.
    length: usize,
    base_timestamp: i64,
    index: u32,
}

impl Walk<'_> {
    /// Where the next record begins.
    #[must_use]
    pub fn place(&self) -> usize {
        self.length - self.reader.remaining()
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Record<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() {
            return None;
        }
        let index = self.index;
        self.index += 1;
        let record = read_record(&mut self.reader, self.base_timestamp);
        if record.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(record.map_err(|what| BatchError::Record { index, what }))
    }
}

#[inline]
fn read_record<'a>(
    reader: &mut Reader<'a>,
    base_timestamp: i64,
) -> Result<Record<'a>, &'static str> {
    let length = reader
        .length(usize::MAX)
        .ok()
        .flatten()
        .ok_or("its length is out of range")?;
    let body = reader
        .take(length)
        .map_err(|_| "it is longer than what is left of the batch")?;
    let mut body = Reader::new(body);
    let attributes = body.u8().map_err(|_| "it is empty")?;
    let operation = Operation::from_code(attributes).ok_or("its operation is unknown")?;
    let timestamp_delta = body.zigzag().map_err(|_| "its timestamp is out of range")?;
    let offset_delta = body.zigzag().ok().and_then(|n| u32::try_from(n).ok());
    let key =
        read_field(&mut body, MAX_KEY_BYTES).map_err(|_| "its key is cut short or over 4 KiB")?;
    let value = read_field(&mut body, MAX_VALUE_BYTES)
        .map_err(|_| "its value is cut short or over 4 MiB")?;
    let headers = read_headers(&mut body).map_err(|_| "its headers are malformed or over 64")?;
    Ok(Record {
        operation,
        timestamp: base_timestamp
            .checked_add(timestamp_delta)
            .ok_or("its timestamp is out of range")?,
        offset_delta: offset_delta.ok_or("its offset delta is out of range")?,
        key,
        value,
        headers,
    })
}

#[inline]
fn read_field<'a>(body: &mut Reader<'a>, max: usize) -> Result<Option<&'a [u8]>, Malformed> {
    match body.length(max)? {
        Some(length) => body.take(length).map(Some),
        None => Ok(None),
    }
}

/// Checks the headers now, so that iterating over them later cannot fail. They end the record.
#[inline]
fn read_headers<'a>(body: &mut Reader<'a>) -> Result<Headers<'a>, Malformed> {
    let count = body.length(MAX_HEADERS)?.ok_or(Malformed)?;
    let rest = body.take(body.remaining())?;
    let mut reader = Reader::new(rest);
    for _ in 0..count {
        read_header(&mut reader)?;
    }
    if reader.is_empty() {
        Ok(Headers { count, rest })
    } else {
        Err(Malformed)
    }
}
