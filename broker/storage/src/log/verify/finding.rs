//! What verifying a log may find.

use std::io;
use std::path::PathBuf;

use anabranch_core::id::Position;
use anabranch_core::vector::VersionVector;

use super::super::Progress;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In which file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// At which position.
    pub position: Position,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            path,
            offset,
            position,
            what,
        } = self;
        let path = path.display();
        write!(f, "position {position} ({path} byte {offset}): {what}")
    }
}

/// What happens while a log is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// So far so good.
    Progress(Progress),
    /// Something is wrong.
    Finding(Finding),
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Verified {
    /// Segment files.
    pub segments: u64,
    /// Entries that read well.
    pub entries: u64,
    /// Records that are stored in them.
    pub records: u64,
    /// Bytes of the segment files.
    pub bytes: u64,
    /// The position after the last entry.
    pub next: Position,
    /// Everything in the log.
    pub vector: VersionVector,
    /// How much is not as it should be.
    pub findings: u64,
}

/// Why a log could not be verified at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct VerifyError {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}
