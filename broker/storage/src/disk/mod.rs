//! Files behind one small trait, so that recovery can be tested at every disk operation.

mod memory;
mod real;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

pub use memory::{Fault, MemoryDisk};
pub use real::RealDisk;

/// A directory tree of files.
///
/// What was written is durable only after [`DiskFile::sync_data`]; a name that was created,
/// renamed or removed only after [`Disk::sync_dir`] of its directory.
pub trait Disk: Debug + Send + Sync {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// As the operating system says; `NotFound` when there is none.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates an empty file; one that is there already is emptied.
    ///
    /// # Errors
    /// As the operating system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory and those above it, unless it is there.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames a file over another.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Whoever has it open can go on reading it.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Names of the files in a directory, sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the operating system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Says that a part of a file, which is durable, need not stay in memory. A hint: there may be
    /// no such file any more, and reading the part is only slower afterwards.
    fn uncache(&self, path: &Path, offset: u64, length: u64);

    /// What tells one start of the machine from the next: within one, the page cache has
    /// survived whatever happened to the process.
    ///
    /// # Errors
    /// As the operating system says.
    fn boot_id(&self) -> io::Result<u128>;

    /// 64 random bits.
    ///
    /// # Errors
    /// As the operating system says.
    fn random(&self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; else as the operating system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As the operating system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of the pieces, none of them empty, one behind the other. What becomes of them in
    /// a fault or a power cut is what becomes of one write of all their bytes. Afterwards the
    /// slices are used up.
    ///
    /// # Errors
    /// As the operating system says.
    fn write_pieces_at(&self, pieces: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Reserves space so that the file is at least this long; new bytes are zero.
    ///
    /// # Errors
    /// As the operating system says.
    fn preallocate(&self, length: u64) -> io::Result<()>;

    /// Makes durable what was written, and the length.
    ///
    /// # Errors
    /// As the operating system says. Never to be retried: the pages may be gone.
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file to this length.
    ///
    /// # Errors
    /// As the operating system says.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// What a copy of the file would not share.
    ///
    /// # Errors
    /// As the operating system says.
    fn identity(&self) -> io::Result<FileIdentity>;
}

/// What a copy of a file does not share with it, nor the file itself after it was overwritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Number on the device.
    pub inode: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub changed: u64,
}

/// Replaces a small file as a whole: afterwards there is the old content or the new.
///
/// # Errors
/// As the operating system says.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let temp = path.with_extension("temp");
    let file = disk.create(&temp)?;
    file.write_at(content, 0)?;
    file.sync_data()?;
    disk.rename(&temp, path)?;
    match path.parent() {
        Some(dir) => disk.sync_dir(dir),
        None => Ok(()),
    }
}

/// Reads a small file as a whole; `None` when there is none.
///
/// # Errors
/// As the operating system says, or `InvalidData` when it is longer than `most`.
pub(crate) fn read_small(disk: &dyn Disk, path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.length()?;
    let sized = usize::try_from(length).ok().filter(|_| length <= most);
    let Some(length) = sized else {
        let said = format!(
            "{} is {length} bytes long, at most {most} were expected",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, said));
    };
    let mut content = vec![0; length];
    file.read_at(&mut content, 0)?;
    Ok(Some(content))
}
