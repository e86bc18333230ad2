//! Up to where retention has dropped the records of each stream.
//!
//! `DIR/log/trims` holds the table twice, so that one damaged byte loses nothing, and is replaced
//! as a whole: magic "ABTRIMS3", crc u32 over what follows, the floor ([`Floor::encode`]), count u32,
//! then stream u64, trim u64, cleaned u64, gone to u64, and gone, a vector behind its length, each.
//! Segments that end at or before the floor may be gone.

use std::io;
use std::path::Path;

use anabranch_core::id::{Position, StreamId};
use anabranch_core::vector::VersionVector;
use hashbrown::HashMap;

use super::fields::{Fields, Malformed, length, put_vector, short_length};
use super::floor::Floor;
use crate::disk::{Disk, read_small, replace};

const MAGIC: &[u8; 8] = b"ABTRIMS3";
const FILE: &str = "trims";

/// Room for a million streams that have lost frames of some thirty origins each.
const MOST_BYTES: u64 = 1 << 30;

/// How far the streams are cleaned.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Trims {
    floor: Floor,
    streams: HashMap<StreamId, Trim>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Trim {
    /// Records before this position are dropped.
    before: Position,
    /// Replaced records before this position have been looked for.
    cleaned: Position,
    gone: Gone,
}

/// What a stream has lost that a follower might miss.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Gone {
    /// The place behind the last record that a trim has dropped.
    pub(crate) to: Position,
    /// The last frame of each origin that held such a record, or a delete that was dropped.
    pub(crate) frames: VersionVector,
}

const NOTHING: &Trim = &Trim {
    before: Position::new(0),
    cleaned: Position::new(0),
    gone: Gone {
        to: Position::new(0),
        frames: VersionVector::EMPTY,
    },
};

impl Trims {
    /// First position from which the stream's records are kept.
    pub(crate) fn of(&self, stream: StreamId) -> Position {
        self.get(stream).before
    }

    /// Up to where replaced records of the stream have been looked for.
    pub(crate) fn cleaned(&self, stream: StreamId) -> Position {
        self.get(stream).cleaned
    }

    /// The last frame of each origin of which something is gone that a follower might miss.
    pub(crate) fn gone(&self, stream: StreamId) -> &VersionVector {
        &self.get(stream).gone.frames
    }

    /// The place behind the last record that a trim has dropped.
    pub(crate) fn gone_to(&self, stream: StreamId) -> Position {
        self.get(stream).gone.to
    }

    fn get(&self, stream: StreamId) -> &Trim {
        self.streams.get(&stream).unwrap_or(NOTHING)
    }

    /// Where the log begins.
    pub(crate) fn floor(&self) -> &Floor {
        &self.floor
    }

    /// Moves the floor forward.
    pub(crate) fn raise_floor(&mut self, floor: Floor) {
        if floor.position() > self.floor.position() {
            self.floor = floor;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Moves a trim forward, which drops these; says whether it moved.
    pub(crate) fn raise(&mut self, stream: StreamId, position: Position, gone: &Gone) -> bool {
        if position <= self.of(stream) {
            return false;
        }
        let trim = self.streams.entry(stream).or_default();
        trim.before = position;
        trim.gone.to = trim.gone.to.max(gone.to);
        trim.gone.frames.merge(&gone.frames);
        true
    }

    /// Notes that deletes of these frames are dropped; says whether that is new.
    pub(crate) fn note_deletes(&mut self, stream: StreamId, frames: &VersionVector) -> bool {
        if self.gone(stream).covers(frames) {
            return false;
        }
        let trim = self.streams.entry(stream).or_default();
        trim.gone.frames.merge(frames);
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
        rows.sort_unstable_by_key(|(stream, _)| **stream);
        let mut body = Vec::new();
        self.floor.encode(&mut body);
        body.extend_from_slice(&short_length(rows.len()).to_le_bytes());
        for (stream, trim) in rows {
            let positions = [trim.before, trim.cleaned, trim.gone.to].map(Position::get);
            for number in std::iter::once(stream.get()).chain(positions) {
                body.extend_from_slice(&number.to_le_bytes());
            }
            put_vector(&mut body, &trim.gone.frames);
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
            floor: Floor::decode(&mut fields)?,
            ..Self::default()
        };
        let count = fields.u32()?;
        for _ in 0..count {
            let stream = StreamId::new(fields.u64()?);
            let trim = Trim {
                before: Position::new(fields.u64()?),
                cleaned: Position::new(fields.u64()?),
                gone: Gone {
                    to: Position::new(fields.u64()?),
                    frames: fields.vector()?,
                },
            };
            trims.streams.insert(stream, trim);
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
        let bytes = self.encode();
        if length(bytes.len()) > MOST_BYTES {
            // What cannot be read again would keep the log from being opened.
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        replace(disk, &dir.join(FILE), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use anabranch_core::id::{BrokerId, Epoch, Origin, Sequence};

    #[test]
    fn trims_survive_any_one_flipped_bit() {
        let (disk, dir) = (MemoryDisk::new(1), Path::new("/d"));
        let mut trims = Trims::default();
        let mut gone = Gone {
            to: Position::new(8),
            ..Gone::default()
        };
        let origin = Origin {
            broker: BrokerId::new(1),
            epoch: Epoch::new(2),
        };
        gone.frames.advance(origin, Sequence::new(7));
        assert!(trims.raise(StreamId::new(1), Position::new(10), &gone));
        assert!(!trims.raise(StreamId::new(1), Position::new(9), &gone));
        assert!(trims.raise(StreamId::new(2), Position::new(5), &Gone::default()));
        assert!(!trims.note_deletes(StreamId::new(1), &gone.frames));
        assert!(trims.note_deletes(StreamId::new(2), &gone.frames));
        let mut state = anabranch_core::sequencer::Sequencer::new(origin);
        let gap = anabranch_core::gap::Gap {
            position: Position::new(0),
            origin,
            first: Sequence::new(1),
            frames: 3,
            timestamp: anabranch_core::clock::HybridTimestamp::new(77),
            chain: anabranch_core::frame::Chain::new([5; 32]),
            context: VersionVector::EMPTY,
            parts: Vec::new(),
        };
        state.pass_over(&gap).unwrap();
        trims.raise_floor(Floor::at(&state));
        trims.raise_floor(Floor::default());
        assert_eq!(trims.floor().position(), Position::new(3));
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

    #[test]
    fn trims_of_a_million_streams_after_thirty_restarts_can_be_read_again() {
        let mut gone = Gone::default();
        for epoch in 1..=30 {
            let origin = Origin {
                broker: BrokerId::new(u64::MAX),
                epoch: Epoch::new(epoch),
            };
            gone.frames.advance(origin, Sequence::new(1 << 40));
        }
        let mut trims = Trims::default();
        for stream in 0..1000 {
            assert!(trims.raise(StreamId::new(stream), Position::new(10), &gone));
        }
        assert!(length(trims.encode().len()) * 1000 <= MOST_BYTES);
    }
}
