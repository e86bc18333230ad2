//! What is in the log's directory, judged by headers and footers alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_core::id::Position;
use anabranch_core::sequencer::Sequencer;

use super::super::index::Summary;
use super::super::seal::PREPARED;
use super::super::segment::{
    Footer, SegmentFault, SegmentHeader, SegmentId, first_of, path_of, read_block,
};
use super::super::shared::read_summary;
use super::{Context, Damage, OpenError, io_at};
use crate::disk::{Disk, DiskFile};

/// Removes what an earlier process left half made, and lists the segments.
pub(super) fn tidy(disk: &dyn Disk, dir: &Path) -> Result<Vec<Position>, OpenError> {
    let mut segments = Vec::new();
    for name in disk.list(dir).map_err(io_at("list", dir))? {
        if let Some(first) = first_of(&name) {
            segments.push(first);
        } else if name.starts_with(PREPARED) || name.ends_with(".temp") {
            let path = dir.join(name);
            disk.remove(&path).map_err(io_at("remove", &path))?;
        }
    }
    Ok(segments)
}

/// A segment file.
pub(super) struct Inspected {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) length: u64,
    pub(super) id: SegmentId,
    pub(super) first: Position,
    pub(super) seal: Seal,
}

/// How a segment ends.
pub(super) enum Seal {
    /// Not at all, as far as can be seen.
    None,
    /// Well.
    Whole(Footer, Summary),
    /// With a footer, behind which something is damaged.
    Damaged(Footer),
}

impl Inspected {
    pub(super) fn damage(&self, offset: u64, position: Position, what: impl ToString) -> OpenError {
        OpenError::Damaged(Damage {
            path: self.path.clone(),
            offset,
            position,
            what: what.to_string(),
        })
    }

    /// What the frames in a gap told of producers is known to checkpoints only.
    pub(super) fn forgot(&self, offset: u64, position: Position) -> Damage {
        Damage {
            path: self.path.clone(),
            offset,
            position,
            what: "the checkpoint behind a gap is damaged, and so are all that follow".to_owned(),
        }
    }

    pub(super) fn io(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> OpenError {
        io_at(action, &self.path)
    }

    /// The sequencer's state at the end of a sealed segment; `None` when it is damaged.
    pub(super) fn checkpoint(&self, footer: &Footer) -> Result<Option<Sequencer>, OpenError> {
        let bytes = read_block(&*self.file, footer.checkpoint_at(), footer.checkpoint)
            .map_err(self.io("read"))?;
        Ok(bytes
            .and_then(|bytes| Sequencer::restore(&bytes).ok())
            .filter(|state| state.next_position() == footer.next))
    }
}

impl Context<'_> {
    /// Reads the two ends of a segment.
    pub(super) fn inspect(&self, first: Position) -> Result<Inspected, OpenError> {
        let path = path_of(&self.dir, first);
        let file = self.disk.open(&path).map_err(io_at("open", &path))?;
        let length = file.length().map_err(io_at("open", &path))?;
        let header = SegmentHeader::read(&*file).map_err(io_at("read", &path))?;
        let damaged = |what: &str| {
            OpenError::Damaged(Damage {
                path: path.clone(),
                offset: 0,
                position: first,
                what: what.to_owned(),
            })
        };
        let header = match header {
            Ok(header) => header,
            Err(fault @ SegmentFault::NewerFormat(_)) => {
                return Err(OpenError::NewerFormat { path, fault });
            }
            Err(fault) => return Err(damaged(&format!("the segment's header: {fault}"))),
        };
        if header.identity != self.identity {
            return Err(OpenError::OtherBroker {
                path,
                found: header.identity,
                expected: self.identity,
            });
        }
        if header.first != first {
            return Err(damaged(
                "the segment's header names another position than the file",
            ));
        }
        let seal = self
            .seal_of(&*file, length, header.id)
            .map_err(io_at("read", &path))?;
        Ok(Inspected {
            path,
            file,
            length,
            id: header.id,
            first,
            seal,
        })
    }

    fn seal_of(&self, file: &dyn DiskFile, length: u64, id: SegmentId) -> std::io::Result<Seal> {
        let footer = Footer::read(file, length)?;
        let Some(footer) = footer.ok().filter(|footer| footer.id == id) else {
            return Ok(Seal::None);
        };
        Ok(match read_summary(file, &footer)? {
            Some(summary) => Seal::Whole(footer, summary),
            None => Seal::Damaged(footer),
        })
    }
}
