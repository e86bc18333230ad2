//! Walking over the entries of a segment file, one after the other.

use std::io;

use anabranch_core::id::Position;
use bytes::{Bytes, BytesMut};

use super::entry::{
    ALIGNMENT, ENTRY_HEADER_BYTES, ENTRY_MAGIC, Entry, EntryFault, EntryHeader, MAX_ENTRY_BYTES,
};
use super::fields::length;
use super::gap::{self, StoredGap};
use super::index::SegmentIndex;
use super::segment::SegmentId;
use crate::disk::DiskFile;

/// Bytes read at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// What lies at one place of a segment.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// A frame, of which something may be dropped.
    Entry(Entry),
    /// Frames that are dropped whole.
    Gap(StoredGap),
}

impl Found {
    /// The position that comes after it.
    pub(crate) fn next_position(&self) -> Position {
        match self {
            Self::Entry(entry) => entry.commit.position.next(),
            Self::Gap(gap) => gap.gap.next_position(),
        }
    }

    /// Adds it to the index of what was found before.
    pub(crate) fn push_to(&self, index: &mut SegmentIndex) {
        match self {
            Self::Entry(entry) => index.push_stored(entry.as_new(), &entry.stored),
            Self::Gap(gap) => index.push_gap(&gap.gap, gap.appended_at, gap.length),
        }
    }
}

/// Reads entries and gaps in order.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    file: &'a dyn DiskFile,
    seed: u32,
    /// Where the next entry begins.
    at: u64,
    /// Where the entries end at the latest.
    end: u64,
    window: Bytes,
    window_at: u64,
}

impl<'a> Scanner<'a> {
    /// A scanner over the bytes from `at` to `end` of a segment.
    pub(crate) fn new(file: &'a dyn DiskFile, id: SegmentId, at: u64, end: u64) -> Self {
        Self {
            file,
            seed: id.seed(),
            at,
            end,
            window: Bytes::new(),
            window_at: at,
        }
    }

    /// Where the next entry begins.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Goes on at another place.
    pub(crate) fn go_to(&mut self, at: u64) {
        self.at = at;
    }

    /// Whether the bytes are at their end.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at >= self.end
    }

    /// Reads what comes next, which should be this position. After a fault it stays where it is.
    pub(crate) fn next(&mut self, position: Position) -> io::Result<Result<Found, EntryFault>> {
        let front = self.bytes(ENTRY_HEADER_BYTES)?;
        match gap::peek(&front) {
            Ok(None) => {}
            Ok(Some(bytes)) => return self.gap(position, bytes),
            Err(fault) => return Ok(Err(fault)),
        }
        let header = match EntryHeader::peek(&front) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let bytes = self.bytes(header.length)?;
        let read = Entry::read(&bytes, self.seed, position, &|_| true);
        if read.is_ok() {
            self.at += length(header.length);
        }
        Ok(read.map(Found::Entry))
    }

    fn gap(&mut self, position: Position, bytes: usize) -> io::Result<Result<Found, EntryFault>> {
        let read = gap::read(&self.bytes(bytes)?, self.seed, position);
        if read.is_ok() {
            self.at += length(bytes);
        }
        Ok(read.map(Found::Gap))
    }

    /// The bytes from here on, as many as asked for or as there are.
    fn bytes(&mut self, wanted: usize) -> io::Result<Bytes> {
        let wanted = length(wanted).min(self.end - self.at);
        let window_end = self.window_at + length(self.window.len());
        if self.at < self.window_at || self.at + wanted > window_end {
            let read = length(WINDOW_BYTES).max(wanted).min(self.end - self.at);
            self.window = read_range(self.file, self.at, read)?;
            self.window_at = self.at;
        }
        let from = usize::try_from(self.at - self.window_at).map_err(io::Error::other)?;
        let wanted = usize::try_from(wanted).map_err(io::Error::other)?;
        Ok(self.window.slice(from..from + wanted))
    }
}

/// Reads a range of a file.
pub(crate) fn read_range(file: &dyn DiskFile, at: u64, bytes: u64) -> io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(usize::try_from(bytes).map_err(io::Error::other)?);
    file.read_at(&mut buffer, at)?;
    Ok(buffer.freeze())
}

/// What lies behind the place where the entries seem to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Behind {
    /// The greatest durable position that a valid entry or gap there speaks of.
    pub(crate) durable: Position,
    /// After the last byte that is not zero.
    pub(crate) written_end: u64,
}

/// Looks for entries and gaps of the segment in `from..end`, wherever they begin.
pub(crate) fn look_behind(
    file: &dyn DiskFile,
    id: SegmentId,
    from: u64,
    end: u64,
) -> io::Result<Behind> {
    let mut behind = Behind {
        durable: Position::default(),
        written_end: from,
    };
    let mut at = from;
    while at < end {
        let window = read_range(file, at, length(WINDOW_BYTES).min(end - at))?;
        for (number, word) in window.chunks(ALIGNMENT).enumerate() {
            if word.iter().all(|&byte| byte == 0) {
                continue;
            }
            let word_at = at + length(number * ALIGNMENT);
            behind.written_end = word_at + length(word.len());
            let begins = [ENTRY_MAGIC, gap::GAP_MAGIC]
                .iter()
                .any(|magic| word.starts_with(&magic.to_le_bytes()));
            if begins && let Some(durable) = durable_at(file, id, word_at, end)? {
                behind.durable = behind.durable.max(durable);
            }
        }
        at += length(window.len());
    }
    Ok(behind)
}

/// What an entry or a gap that begins here says was durable when it was written.
fn durable_at(
    file: &dyn DiskFile,
    id: SegmentId,
    at: u64,
    end: u64,
) -> io::Result<Option<Position>> {
    let front = length(ENTRY_HEADER_BYTES);
    if at + front > end {
        return Ok(None);
    }
    let front = read_range(file, at, front)?;
    let (is_gap, covered) = match (gap::peek(&front), EntryHeader::peek(&front)) {
        (Ok(Some(bytes)), _) => (true, length(bytes)),
        (_, Ok(header)) => (false, length(header.table_end().min(MAX_ENTRY_BYTES))),
        _ => return Ok(None),
    };
    if at + covered > end {
        return Ok(None);
    }
    let bytes = read_range(file, at, covered)?;
    Ok(match is_gap {
        true => gap::durable(&bytes, id.seed()),
        false => EntryHeader::check(&bytes, id.seed())
            .ok()
            .map(|header| header.durable),
    })
}
