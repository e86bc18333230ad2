//! Where an image keeps its rows: chunks of bytes that are filled from front to back.
//!
//! ```text
//! 0  length of the stored row u32 (two values mean "deleted" and "superseded")
//! 4  room u32: how long a stored row may get and still be written here
//! 8  length of the key u16
//! 10 key, then room
//! ```
//!
//! Entries begin at multiples of eight, so that 32 bits reach 32 GiB.

use anabranch_core::lww::Row;

use super::key::RowKey;

/// Small enough to cost an idle broker nothing, large enough that most entries find room at the
/// end of one.
const CHUNK_BYTES: usize = 1 << 20;
const UNIT: usize = 8;
const UNITS_BITS: u32 = (CHUNK_BYTES / UNIT).trailing_zeros();
/// The first unit of every chunk stays empty, so that no place is 0.
const FIRST: usize = UNIT;
const HEADER: usize = 10;

const DELETED: u32 = u32::MAX;
const SUPERSEDED: u32 = u32::MAX - 1;

/// The place of an entry; never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At(u32);

impl At {
    pub(super) const fn new(raw: u32) -> Self {
        Self(raw)
    }

    pub(super) const fn get(self) -> u32 {
        self.0
    }

    fn of(chunk: usize, offset: usize) -> Self {
        let raw = (chunk << UNITS_BITS) | (offset / UNIT);
        Self(u32::try_from(raw).expect("an image is frozen long before 32 GiB"))
    }

    fn chunk(self) -> usize {
        (self.0 >> UNITS_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << UNITS_BITS) - 1)) as usize * UNIT
    }
}

/// An entry, borrowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// The stored key.
    pub(super) key: &'a [u8],
    /// The stored row; `None` when the row was removed.
    pub(super) stored: Option<&'a [u8]>,
}

#[derive(Default)]
pub(super) struct Arena {
    chunks: Vec<Box<[u8]>>,
    /// Where the next entry goes in the last chunk.
    fill: usize,
    /// Bytes of all entries.
    bytes: usize,
}

impl Arena {
    /// Bytes of all entries, superseded ones included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, key: RowKey<'_>, row: Option<Row<'_>>) -> At {
        let stored = row.map_or(0, |row| row.stored_len());
        let size = (HEADER + key.len() + stored).next_multiple_of(UNIT);
        let at = self.take(size);
        let entry = &mut self.chunks[at.chunk()][at.offset()..][..size];
        let room = size - HEADER - key.len();
        entry[4..8].copy_from_slice(&as_u32(room).to_le_bytes());
        let key_length = u16::try_from(key.len()).expect("keys are limited to 4 KiB");
        entry[8..10].copy_from_slice(&key_length.to_le_bytes());
        let (stream, rest) = entry[HEADER..].split_at_mut(super::key::STREAM_BYTES);
        stream.copy_from_slice(&key.stream.get().to_be_bytes());
        rest[..key.key.len()].copy_from_slice(key.key);
        write_row(entry, HEADER + key.len(), row);
        at
    }

    fn take(&mut self, size: usize) -> At {
        self.bytes += size;
        let fits = self
            .chunks
            .last()
            .is_some_and(|chunk| self.fill + size <= chunk.len());
        // A chunk that is longer than usual holds one entry: places only reach CHUNK_BYTES.
        if !fits || self.fill >= CHUNK_BYTES {
            let length = CHUNK_BYTES.max(FIRST + size);
            self.chunks.push(vec![0; length].into_boxed_slice());
            self.fill = FIRST;
        }
        let at = At::of(self.chunks.len() - 1, self.fill);
        self.fill += size;
        at
    }

    /// Replaces the row of an entry if there is room; otherwise the entry is superseded and the
    /// caller adds another.
    pub(super) fn overwrite(&mut self, at: At, row: Option<Row<'_>>) -> bool {
        let entry = &mut self.chunks[at.chunk()][at.offset()..];
        let room = u32_at(entry, 4) as usize;
        let from = HEADER + key_length(entry);
        if row.is_some_and(|row| row.stored_len() > room) {
            entry[..4].copy_from_slice(&SUPERSEDED.to_le_bytes());
            return false;
        }
        write_row(entry, from, row);
        true
    }

    /// The entry at a place that [`Arena::push`] gave.
    #[inline]
    pub(super) fn entry(&self, at: At) -> Entry<'_> {
        let bytes = &self.chunks[at.chunk()][at.offset()..];
        let (key, row) = bytes[HEADER..].split_at(key_length(bytes));
        let stored = match u32_at(bytes, 0) {
            DELETED => None,
            length => Some(&row[..length as usize]),
        };
        Entry { key, stored }
    }

    /// Whether the entry is of this row.
    #[inline]
    pub(super) fn is_of(&self, at: At, key: RowKey<'_>) -> bool {
        let bytes = &self.chunks[at.chunk()][at.offset()..];
        key_length(bytes) == key.len()
            && bytes[HEADER..HEADER + 8] == key.stream.get().to_be_bytes()
            && &bytes[HEADER + 8..HEADER + key.len()] == key.key
    }

    /// Loads the cache lines of an entry of usual size. The result means nothing; whoever asks
    /// must not let the compiler notice.
    #[inline]
    pub(super) fn touch(&self, at: At) -> u8 {
        let chunk = &self.chunks[at.chunk()];
        let offset = at.offset();
        let line = |n: usize| chunk.get(offset + 64 * n).copied().unwrap_or(0);
        line(0) ^ line(1) ^ line(2)
    }

    /// All entries that are not superseded, in the order in which they were added.
    pub(super) fn walk(&self) -> impl Iterator<Item = (At, Entry<'_>)> {
        self.chunks
            .iter()
            .enumerate()
            .flat_map(|(n, chunk)| walk_chunk(n, chunk))
            .filter(|&at| u32_at(&self.chunks[at.chunk()][at.offset()..], 0) != SUPERSEDED)
            .map(|at| (at, self.entry(at)))
    }
}

fn walk_chunk(n: usize, chunk: &[u8]) -> impl Iterator<Item = At> {
    let mut offset = FIRST;
    std::iter::from_fn(move || {
        let entry = chunk.get(offset..).filter(|rest| rest.len() >= HEADER)?;
        let key = key_length(entry);
        if key == 0 {
            return None;
        }
        let at = At::of(n, offset);
        offset += HEADER + key + u32_at(entry, 4) as usize;
        Some(at)
    })
}

fn write_row(entry: &mut [u8], from: usize, row: Option<Row<'_>>) {
    let length = match row {
        None => DELETED,
        Some(row) => {
            let mut out = &mut entry[from..];
            row.encode(&mut out);
            as_u32(row.stored_len())
        }
    };
    entry[..4].copy_from_slice(&length.to_le_bytes());
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

#[inline]
fn key_length(entry: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([entry[8], entry[9]]))
}

fn as_u32(length: usize) -> u32 {
    u32::try_from(length).expect("values are limited to 4 MiB")
}
