//! Which segments a start would not write to.

use std::io;
use std::path::{Path, PathBuf};

use anabranch_core::sequencer::Sequencer;

use super::segment::{Footer, SegmentHeader, first_of, path_of, read_block};
use super::shared::{LoadError, load_sealed};
use crate::disk::{Disk, DiskFile};

/// The segments of the log in `dir`, the data directory, that opening it leaves as they are: those
/// at its front that are sealed, with an index and a checkpoint that read well. The last one is
/// never among them, since it may be written on.
///
/// # Errors
/// When the operating system refuses.
pub fn settled_segments(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let log = dir.join("log");
    let names = disk.list(&log)?;
    let firsts: Vec<_> = names.iter().filter_map(|name| first_of(name)).collect();
    let before_last = firsts.len().saturating_sub(1);
    let mut settled = Vec::with_capacity(before_last);
    for &first in &firsts[..before_last] {
        let path = path_of(&log, first);
        if !is_settled(disk, &path)? {
            break;
        }
        settled.push(path);
    }
    Ok(settled)
}

fn is_settled(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    let file = disk.open(path)?;
    let Ok(header) = SegmentHeader::read(&*file)? else {
        return Ok(false);
    };
    match load_sealed(disk, path, header.id) {
        Ok(_) => has_checkpoint(&*file),
        Err(LoadError::Replaced | LoadError::Index(_)) => Ok(false),
        Err(LoadError::Io(error)) => Err(error),
    }
}

fn has_checkpoint(file: &dyn DiskFile) -> io::Result<bool> {
    let Ok(footer) = Footer::read(file, file.length()?)? else {
        return Ok(false);
    };
    let checkpoint = read_block(file, footer.checkpoint_at(), footer.checkpoint)?;
    Ok(checkpoint.is_some_and(|bytes| Sequencer::restore(&bytes).is_ok()))
}
