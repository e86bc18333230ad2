//! Room that is kept for when there is none left.
//!
//! `DIR/ballast` is a file of reserved space without content. On a disk without a free byte it is
//! deleted, so that what gives space back can be written: trims, or what RocksDB writes when it is
//! opened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, RealDisk};

/// Enough to open RocksDB and to write the trims of tens of thousands of streams.
pub const BALLAST_BYTES: u64 = 4 << 20;

/// The ballast of one data directory.
#[derive(Clone, Debug)]
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// That of the data directory `dir`, whether or not there is any.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let path = dir.join("ballast");
        Self { path }
    }

    /// Takes it on, unless it is there.
    ///
    /// # Errors
    /// As the operating system says. Without room for all of it, nothing of it stays.
    pub fn take_on(&self) -> io::Result<()> {
        if self.path.exists() {
            return Ok(());
        }
        let file = RealDisk.create(&self.path)?;
        let reserved = file.preallocate(BALLAST_BYTES);
        if reserved.is_err() {
            self.throw_off()?;
        }
        reserved
    }

    /// Gives its room free. False when there was none.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn throw_off(&self) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballast_takes_room_until_it_is_thrown_off() {
        let temp = tempfile::tempdir().unwrap();
        let ballast = Ballast::of(temp.path());
        assert!(!ballast.throw_off().unwrap());
        ballast.take_on().unwrap();
        ballast.take_on().unwrap();
        let length = fs::metadata(temp.path().join("ballast")).unwrap().len();
        assert_eq!(length, BALLAST_BYTES);
        assert!(ballast.throw_off().unwrap());
        assert!(!ballast.throw_off().unwrap());
    }
}
