//! How far the log is durable, and whether the directory is the one that was written last.
//!
//! `DIR/mark` holds two slots that are overwritten in turn, without a sync, after every group. So
//! what it says is a lower bound, and exact while the machine runs, however the process ends.
//!
//! ```text
//!  0 magic "ABMARK01"     40 segment's first position   80 witness: device u64
//!  8 crc u32 over 12..    48 segment id u64             88 witness: inode u64
//! 12 flags u32, 1: clean  56 offset in its file u64     96 witness: changed, ns, u64
//! 16 counter u64          64 boot id, 16 bytes         104 epoch u32
//! 24 position u64                                      108 reserved, 20 bytes of 0
//! 32 reserved u64
//! ```
//!
//! A boot id of zeros says that peers hold frames which the log has lost.
//!
//! `DIR/witness` is rewritten at every start. A copy of the directory has a witness of another
//! inode, and one that was copied over this one has another time of change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_core::id::{Epoch, Position};

use super::fields::{Fields, Malformed};
use super::segment::SegmentId;
use crate::disk::{Disk, DiskFile, FileIdentity, read_small};

const MAGIC: &[u8; 8] = b"ABMARK01";
const SLOT_BYTES: usize = 128;
/// Far enough apart that a torn write damages one of them only.
const SLOT_DISTANCE: u64 = 4096;
const FILE_BYTES: usize = 4096 + SLOT_BYTES;
const CLEAN: u32 = 1;
/// In place of a boot id: no machine has this one.
const DOUBTED: u128 = 0;

/// What a mark says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) counter: u64,
    /// Everything below is durable.
    pub(crate) position: Position,
    /// The segment that is written.
    pub(crate) segment_first: Position,
    pub(crate) segment: SegmentId,
    /// Up to where it is durable.
    pub(crate) offset: u64,
    pub(crate) boot: u128,
    pub(crate) witness: FileIdentity,
    /// Under which epoch the broker writes.
    pub(crate) epoch: Epoch,
    pub(crate) clean: bool,
}

impl Mark {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[12..16].copy_from_slice(&u32::from(self.clean).to_le_bytes());
        let numbers = [
            (16, self.counter),
            (24, self.position.get()),
            (40, self.segment_first.get()),
            (48, self.segment.0),
            (56, self.offset),
            (80, self.witness.device),
            (88, self.witness.inode),
            (96, self.witness.changed),
        ];
        for (at, number) in numbers {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        out[64..80].copy_from_slice(&self.boot.to_le_bytes());
        out[104..108].copy_from_slice(&self.epoch.get().to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        let magic = fields.take(8)?;
        let crc = fields.u32()?;
        if magic != MAGIC || crc != crc32c::crc32c(&bytes[12..]) {
            return Err(Malformed);
        }
        let flags = fields.u32()?;
        let counter = fields.u64()?;
        let position = Position::new(fields.u64()?);
        let _reserved = fields.u64()?;
        let segment_first = Position::new(fields.u64()?);
        let segment = SegmentId(fields.u64()?);
        let offset = fields.u64()?;
        let boot = u128::from(fields.u64()?) | u128::from(fields.u64()?) << 64;
        let witness = FileIdentity {
            device: fields.u64()?,
            inode: fields.u64()?,
            changed: fields.u64()?,
        };
        Ok(Self {
            counter,
            position,
            segment_first,
            segment,
            offset,
            boot,
            witness,
            epoch: Epoch::new(fields.u32()?),
            clean: flags & CLEAN != 0,
        })
    }
}

/// Why a log may go on under the identity it had, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// There was no log.
    New,
    /// It was closed, and nothing has touched the directory since.
    Clean,
    /// The process ended at any moment, but the machine has run on.
    SameBoot,
    /// The machine was restarted without the log being closed: what an earlier disk said was
    /// durable might not be.
    OtherBoot,
    /// The directory is a copy, or was restored from one.
    Copied,
    /// Peers have shown that frames are missing that were written here.
    Doubted,
    /// There is no readable mark.
    NoMark,
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Clean => "closed cleanly",
            Self::SameBoot => "not closed, but the machine has run on",
            Self::OtherBoot => "not closed before the machine was restarted",
            Self::Copied => "copied or restored from a copy",
            Self::Doubted => "rolled back, as peers have shown",
            Self::NoMark => "without a readable mark",
        })
    }
}

impl Proof {
    /// Whether the log is proven to hold everything that was written under its identity.
    #[must_use]
    pub fn is_whole(self) -> bool {
        matches!(self, Self::New | Self::Clean | Self::SameBoot)
    }
}

/// What was found where a mark belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// The newer of the slots that read well.
    pub(crate) mark: Option<Mark>,
    /// Slots that hold something else than a mark.
    pub(crate) damaged: usize,
}

/// Reads the mark.
pub(crate) fn find(disk: &dyn Disk, dir: &Path) -> io::Result<Found> {
    let content = read_small(disk, &dir.join("mark"), 1 << 20)?.unwrap_or_default();
    let mut found = Found {
        mark: None,
        damaged: 0,
    };
    for start in [0, FILE_BYTES - SLOT_BYTES] {
        let slot = content.get(start..start + SLOT_BYTES).unwrap_or_default();
        match Mark::decode(slot) {
            Ok(mark) if found.mark.is_none_or(|held| held.counter < mark.counter) => {
                found.mark = Some(mark);
            }
            Ok(_) => {}
            Err(Malformed) if slot.iter().all(|&byte| byte == 0) => {}
            Err(Malformed) => found.damaged += 1,
        }
    }
    Ok(found)
}

/// Judges whether the directory is the one that the mark was written for. `has_log` says whether
/// there are segments.
pub(crate) fn judge(
    disk: &dyn Disk,
    dir: &Path,
    mark: Option<&Mark>,
    has_log: bool,
) -> io::Result<Proof> {
    let Some(mark) = mark else {
        return Ok(if has_log { Proof::NoMark } else { Proof::New });
    };
    let witness = match disk.open(&dir.join("witness")) {
        Ok(file) => Some(file.identity()?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(if witness != Some(mark.witness) {
        Proof::Copied
    } else if mark.boot == DOUBTED {
        Proof::Doubted
    } else if mark.clean {
        Proof::Clean
    } else if mark.boot == disk.boot_id()? {
        Proof::SameBoot
    } else {
        Proof::OtherBoot
    })
}

/// The mark, as the writer of the log keeps it.
#[derive(Debug)]
pub(crate) struct MarkFile {
    file: Arc<dyn DiskFile>,
    last: Mark,
}

impl MarkFile {
    /// Makes a new witness and a mark that names it; both are durable afterwards, but for the
    /// names. Takes over position, segment and epoch from `mark`.
    pub(crate) fn begin(disk: &dyn Disk, dir: &Path, mark: Mark) -> io::Result<Self> {
        let witness = disk.create(&witness_path(dir))?;
        witness.write_at(&disk.random()?.to_le_bytes(), 0)?;
        witness.sync_data()?;
        let path = dir.join("mark");
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(&path)?,
            Err(error) => return Err(error),
        };
        file.preallocate(super::fields::length(FILE_BYTES))?;
        let last = Mark {
            boot: disk.boot_id()?,
            witness: witness.identity()?,
            clean: false,
            ..mark
        };
        let mut marks = Self { file, last };
        marks.write_both()?;
        disk.sync_dir(dir)?;
        Ok(marks)
    }

    /// Moves the mark. Not synced: it is a lower bound.
    pub(crate) fn advance(
        &mut self,
        position: Position,
        segment: (Position, SegmentId),
        offset: u64,
    ) -> io::Result<()> {
        self.last.position = position;
        (self.last.segment_first, self.last.segment) = segment;
        self.last.offset = offset;
        self.write()
    }

    /// Says that the log is not what it was taken for, durably.
    pub(crate) fn doubt(&mut self) -> io::Result<()> {
        self.last.boot = DOUBTED;
        self.write_both()
    }

    /// Says that the log was closed, durably.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.last.clean = true;
        self.write_both()
    }

    /// Both slots, so that an older mark does not come back when the newer one is damaged; one
    /// after the other, so that a power cut damages one at most.
    fn write_both(&mut self) -> io::Result<()> {
        for _ in 0..2 {
            self.write()?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.last.counter += 1;
        let slot = (self.last.counter % 2) * SLOT_DISTANCE;
        self.file.write_at(&self.last.encode(), slot)
    }
}

fn witness_path(dir: &Path) -> PathBuf {
    dir.join("witness")
}
