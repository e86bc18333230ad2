//! A copy of a data folder that may be written to.
//!
//! Recovery and RocksDB write when they open something. So they are given a copy, in which only
//! what they never write to is a link: settled segments and sorted tables.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anabranch_storage::data_dir::DataDir;
use anabranch_storage::disk::RealDisk;
use anabranch_storage::log::settled_segments;
use anyhow::Context;

/// The copy. It is deleted when it is dropped.
pub(super) struct Replica {
    path: PathBuf,
}

impl Replica {
    /// Copies a data folder. The copy lies in it, since links do not cross file systems.
    pub(super) fn of(dir: &DataDir) -> anyhow::Result<Self> {
        dir.remove_copy()?;
        let replica = Self { path: dir.copy() };
        replica.fill(dir.path(), &dir.tables()).with_context(|| {
            format!("cannot make a copy to verify in {}", replica.path.display())
        })?;
        Ok(replica)
    }

    fn fill(&self, dir: &Path, tables: &Path) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        for file in files(dir)? {
            let name = file.file_name().unwrap_or_default();
            if name != "lock" && name != "ballast" {
                copy(&file, &self.path)?;
            }
        }
        let settled = settled_segments(&RealDisk, dir)?;
        replicate(&dir.join("log"), &self.path.join("log"), &settled)?;
        replicate(tables, &self.tables(), &of_type(tables, "sst")?)
    }

    /// The copy of the data folder, without tables.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The copy of the tables as they are.
    pub(super) fn tables(&self) -> PathBuf {
        self.path.join("tables-held")
    }

    /// Where the tables that the log makes go.
    pub(super) fn folded(&self) -> PathBuf {
        self.path.join("tables-folded")
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            super::super::output::hint(&format!("{error:#}"));
        }
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes a folder with the files of another: these as links, all others as copies.
fn replicate(from: &Path, to: &Path, linked: &[PathBuf]) -> io::Result<()> {
    fs::create_dir(to)?;
    for file in files(from)? {
        match linked.contains(&file) {
            true => link(&file, to)?,
            false => copy(&file, to)?,
        }
    }
    Ok(())
}

/// The files of a folder in the order of their names, without folders.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn of_type(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = files(folder)?;
    files.retain(|file| file.extension().is_some_and(|it| it == extension));
    Ok(files)
}

fn copy(file: &Path, folder: &Path) -> io::Result<()> {
    fs::copy(file, target(file, folder)).map(drop)
}

/// A link, or a copy where the file system has no links.
fn link(file: &Path, folder: &Path) -> io::Result<()> {
    fs::hard_link(file, target(file, folder)).or_else(|_| copy(file, folder))
}

fn target(file: &Path, folder: &Path) -> PathBuf {
    folder.join(file.file_name().unwrap_or_default())
}
