//! Up to where retention has dropped the records of each stream.
//!
//! `DIR/log/trims` holds the table twice, so that one damaged byte loses nothing, and is replaced
//! as a whole: magic "ABTRIMS1", crc u32 over what follows, floor u64, count u32, then stream u64,
//! trim u64 and cleaned u64 each. Segments that end at or before the floor may be gone.

use std::io;
use std::path::Path;

use anabranch_core::id::{Position, StreamId};
use hashbrown::HashMap;

use super::fields::{Fields, Malformed, short_length};
use crate::disk::{Disk, read_small, replace};

const MAGIC: &[u8; 8] = b"ABTRIMS1";
const FILE: &str = "trims";

/// Room for a million streams.
const MOST_BYTES: u64 = 64 << 20;

/// How far the streams are cleaned.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Trims {
    floor: Position,
    streams: HashMap<StreamId, Trim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Trim {
    /// Records before this position are dropped.
    before: Position,
    /// Replaced records before this position have been looked for.
    cleaned: Position,
}

impl Trims {
    /// First position from which the stream's records are kept.
    pub(crate) fn of(&self, stream: StreamId) -> Position {
        self.get(stream).before
    }

    /// Up to where replaced records of the stream have been looked for.
    pub(crate) fn cleaned(&self, stream: StreamId) -> Position {
        self.get(stream).cleaned
    }

    fn get(&self, stream: StreamId) -> Trim {
        self.streams.get(&stream).copied().unwrap_or_default()
    }

    /// First position that must be there.
    pub(crate) fn floor(&self) -> Position {
        self.floor
    }

    /// Moves the floor forward; says whether it moved.
    pub(crate) fn raise_floor(&mut self, floor: Position) -> bool {
        let moves = floor > self.floor;
        self.floor = self.floor.max(floor);
        moves
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Moves a trim forward; says whether it moved.
    pub(crate) fn raise(&mut self, stream: StreamId, position: Position) -> bool {
        if position <= self.of(stream) {
            return false;
        }
        self.streams.entry(stream).or_default().before = position;
        true
    }

    /// Moves forward up to where a stream is cleaned; says whether it moved.
    pub(crate) fn raise_cleaned(&mut self, stream: StreamId, position: Position) -> bool {
        if position <= self.cleaned(stream) {
            return false;
        }
        self.streams.entry(stream).or_default().cleaned = position;
        true
    }

    fn encode(&self) -> Vec<u8> {
        let mut rows: Vec<_> = self.streams.iter().collect();
        rows.sort_unstable();
        let mut body = self.floor.get().to_le_bytes().to_vec();
        body.extend_from_slice(&short_length(rows.len()).to_le_bytes());
        for (stream, trim) in rows {
            for number in [stream.get(), trim.before.get(), trim.cleaned.get()] {
                body.extend_from_slice(&number.to_le_bytes());
            }
        }
        let mut copy = MAGIC.to_vec();
        copy.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        copy.extend_from_slice(&body);
        copy.repeat(2)
    }

    fn decode(copy: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(copy);
        let magic = fields.take(8)?;
        let crc = fields.u32()?;
        if magic != MAGIC || crc != crc32c::crc32c(&copy[12..]) {
            return Err(Malformed);
        }
        let mut trims = Self {
            floor: Position::new(fields.u64()?),
            ..Self::default()
        };
        let count = fields.u32()?;
        for _ in 0..count {
            let stream = StreamId::new(fields.u64()?);
            trims.raise(stream, Position::new(fields.u64()?));
            trims.raise_cleaned(stream, Position::new(fields.u64()?));
        }
        if fields.is_empty() {
            Ok(trims)
        } else {
            Err(Malformed)
        }
    }

    /// Reads the file. The second value says how many of its copies are damaged; two are more than
    /// can be read, which is the inner error.
    pub(crate) fn load(
        disk: &dyn Disk,
        dir: &Path,
    ) -> io::Result<Result<(Self, usize), Malformed>> {
        let Some(content) = read_small(disk, &dir.join(FILE), MOST_BYTES)? else {
            return Ok(Ok((Self::default(), 0)));
        };
        let (first, second) = content.split_at(content.len() / 2);
        Ok(match (Self::decode(first), Self::decode(second)) {
            (Ok(trims), Ok(same)) if trims == same => Ok((trims, 0)),
            (Ok(trims), Err(Malformed)) | (Err(Malformed), Ok(trims)) => Ok((trims, 1)),
            _ => Err(Malformed),
        })
    }

    /// Replaces the file.
    pub(crate) fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        replace(disk, &dir.join(FILE), &self.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn trims_survive_any_one_flipped_bit() {
        let (disk, dir) = (MemoryDisk::new(1), Path::new("/d"));
        let mut trims = Trims::default();
        assert!(trims.raise(StreamId::new(1), Position::new(10)));
        assert!(!trims.raise(StreamId::new(1), Position::new(9)));
        assert!(trims.raise(StreamId::new(2), Position::new(5)));
        assert!(trims.raise_floor(Position::new(3)));
        trims.store(&disk, dir).unwrap();
        let path = dir.join(FILE);
        for byte in 0..disk.content(&path).unwrap().len() {
            disk.flip(&path, byte, 3);
            let (found, damaged) = Trims::load(&disk, dir).unwrap().unwrap();
            assert_eq!((&found, damaged), (&trims, 1), "byte {byte}");
            disk.flip(&path, byte, 3);
        }
        assert_eq!(Trims::load(&disk, dir).unwrap(), Ok((trims, 0)));
    }
}
