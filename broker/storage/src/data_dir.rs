//! The directory of one broker.
//!
//! ```text
//! DIR/lock     held while a broker runs; says its process id
//! DIR/format   what the directory is: format version, cluster, broker
//! DIR/region   where its broker stands
//! DIR/mark     how far the log is durable        (see `log::mark`)
//! DIR/ballast  room for when there is none        (see `ballast`)
//! DIR/witness  what a copy does not share        (see `log::mark`)
//! DIR/log/     segments
//! DIR/tables/  rows
//! DIR/verify.tmp/  a copy, while it is verified
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anabranch_core::id::{BrokerId, ClusterId, RegionName};
use rustix::fs::{FlockOperation, flock};

use crate::disk::{RealDisk, read_small, replace};

/// The format that this software writes.
const FORMAT: u32 = 1;

/// Longest `format` file that is looked at; ours has under 100 bytes.
const MOST_FORMAT_BYTES: u64 = 4096;

/// Whose directory it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The broker.
    pub broker: BrokerId,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "data directory {path} is in use by process {pid}; stop it, or choose another directory"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other process, as far as it said.
        pid: String,
    },
    /// A later version wrote it.
    #[error(
        "data directory {path} has format {found}, this version knows {known}; run the version that wrote it, or a later one"
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The latest one known here.
        known: u32,
    },
    /// It belongs to another cluster.
    #[error(
        "data directory {path} belongs to cluster {found:08x}, not {expected:08x}; check the cluster's name, or choose another directory"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: u32,
        /// The one asked for.
        expected: u32,
    },
    /// The format file cannot be understood.
    #[error(
        "{path} is damaged: {what}; restore it from a backup: it says which broker wrote the log, and where"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// There is a log but no format file.
    #[error(
        "data directory {path} holds a log but no format file; restore the file `format` from a backup"
    )]
    NoFormat {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// An open data directory, locked against other processes until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl DataDir {
    /// Opens a directory, or makes one. `seed` are 64 random bits, for a new broker's id.
    ///
    /// # Errors
    /// When it is in use, of a newer format, of another cluster, damaged, or out of reach.
    pub fn open(path: &Path, cluster: ClusterId, seed: u64) -> Result<Self, DataDirError> {
        fs::create_dir_all(path).map_err(|source| failed("create", path, source))?;
        let lock = take_lock(path)?;
        let identity = match read_format(path)? {
            Some(identity) => identity,
            None => write_format(path, cluster, seed)?,
        };
        if identity.cluster != cluster {
            return Err(DataDirError::OtherCluster {
                path: path.to_owned(),
                found: identity.cluster.get(),
                expected: cluster.get(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// Opens the directory of a broker whose cluster is not known, as `verify` does.
    ///
    /// # Errors
    /// When it is no data directory, in use, of a newer format, damaged, or out of reach.
    pub fn open_existing(path: &Path) -> Result<Self, DataDirError> {
        let missing = || failed("open", path, io::ErrorKind::NotFound.into());
        if !path.join("format").exists() {
            return Err(missing());
        }
        let lock = take_lock(path)?;
        let identity = read_format(path)?.ok_or_else(missing)?;
        Ok(Self {
            path: path.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// Where its broker stood the last time, if that was written down.
    ///
    /// # Errors
    /// When it is damaged or out of reach.
    pub fn region(&self) -> Result<Option<RegionName>, DataDirError> {
        let path = self.path.join("region");
        let content = read_small(&RealDisk, &path, MOST_FORMAT_BYTES)
            .map_err(|source| failed("read", &path, source))?;
        let Some(content) = content else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&content);
        match RegionName::parse(text.trim_end()) {
            Ok(region) => Ok(Some(region)),
            Err(_) => Err(DataDirError::Damaged {
                path,
                what: "it names no region",
            }),
        }
    }

    /// Writes down where its broker stands.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn note_region(&self, region: &RegionName) -> Result<(), DataDirError> {
        let path = self.path.join("region");
        replace(&RealDisk, &path, format!("{region}\n").as_bytes())
            .map_err(|source| failed("write", &path, source))
    }

    /// Whose directory it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the tables are.
    #[must_use]
    pub fn tables(&self) -> PathBuf {
        self.path.join("tables")
    }

    /// Where `verify` makes the copy that it may write to.
    #[must_use]
    pub fn copy(&self) -> PathBuf {
        self.path.join("verify.tmp")
    }

    /// Removes what a `verify` that was killed has left.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn remove_copy(&self) -> Result<(), DataDirError> {
        let path = self.copy();
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("delete", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Bytes that may still be written to its file system.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.path)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn take_lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| failed("open", &path, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // The holder writes its id after it has the lock, so there may be none yet.
            let _ = file.take(20).read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "another one".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(DataDirError::InUse {
                path: dir.to_owned(),
                pid,
            });
        }
        Err(error) => return Err(failed("lock", &path, error.into())),
    }
    let said = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()));
    said.map_err(|source| failed("write", &path, source))?;
    Ok(file)
}

fn read_format(dir: &Path) -> Result<Option<Identity>, DataDirError> {
    let path = dir.join("format");
    let content = read_small(&RealDisk, &path, MOST_FORMAT_BYTES)
        .map_err(|source| failed("read", &path, source))?;
    let Some(content) = content else {
        return Ok(None);
    };
    let damaged = |what| DataDirError::Damaged {
        path: path.clone(),
        what,
    };
    let text = String::from_utf8(content).map_err(|_| damaged("it is not text"))?;
    let version = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("anabranch "))
        .and_then(|version| version.parse::<u32>().ok())
        .ok_or_else(|| damaged("its first line is not `anabranch VERSION`"))?;
    if version > FORMAT {
        return Err(DataDirError::NewerFormat {
            path: dir.to_owned(),
            found: version,
            known: FORMAT,
        });
    }
    let (body, check) = text
        .split_once("check ")
        .ok_or_else(|| damaged("it has no line `check`"))?;
    if u32::from_str_radix(check.trim_end(), 16) != Ok(crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("its check does not match"));
    }
    let field = |name: &str| {
        let line = body.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex, 16).ok())
    };
    let cluster = field("cluster ").and_then(|raw| u32::try_from(raw).ok());
    match (cluster, field("broker ")) {
        (Some(cluster), Some(broker)) => Ok(Some(Identity {
            cluster: ClusterId::new(cluster),
            broker: BrokerId::new(broker),
        })),
        _ => Err(damaged("it names no cluster or no broker")),
    }
}

fn write_format(dir: &Path, cluster: ClusterId, seed: u64) -> Result<Identity, DataDirError> {
    let log = dir.join("log");
    if fs::read_dir(&log).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(DataDirError::NoFormat {
            path: dir.to_owned(),
        });
    }
    let body = format!(
        "anabranch {FORMAT}\ncluster {:08x}\nbroker {seed:016x}\n",
        cluster.get()
    );
    let check = crc32c::crc32c(body.as_bytes());
    let path = dir.join("format");
    replace(
        &RealDisk,
        &path,
        format!("{body}check {check:08x}\n").as_bytes(),
    )
    .map_err(|source| failed("write", &path, source))?;
    Ok(Identity {
        cluster,
        broker: BrokerId::new(seed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::open(path, ClusterId::of("test"), 77)
    }

    #[test]
    fn a_directory_keeps_its_identity() {
        let temp = tempfile::tempdir().unwrap();
        let first = open(temp.path()).unwrap().identity();
        let again = DataDir::open(temp.path(), ClusterId::of("test"), 99).unwrap();
        assert_eq!(again.identity(), first);
        drop(again);
        let found = DataDir::open_existing(temp.path()).unwrap();
        assert_eq!(found.identity(), first);
        assert!(found.free_bytes().unwrap() > 0);
    }

    #[test]
    fn two_brokers_on_one_directory_are_refused_with_the_others_process() {
        let temp = tempfile::tempdir().unwrap();
        let _first = open(temp.path()).unwrap();
        let refused = open(temp.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
    }

    #[test]
    fn another_clusters_directory_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        drop(open(temp.path()).unwrap());
        let refused = DataDir::open(temp.path(), ClusterId::of("other"), 1);
        assert!(matches!(refused, Err(DataDirError::OtherCluster { .. })));
    }

    #[test]
    fn a_newer_format_is_refused_and_a_damaged_one_is_called_so() {
        let temp = tempfile::tempdir().unwrap();
        drop(open(temp.path()).unwrap());
        let path = temp.path().join("format");
        let good = fs::read(&path).unwrap();
        fs::write(&path, "anabranch 2\nwhatever").unwrap();
        let newer = open(temp.path());
        assert!(matches!(
            newer,
            Err(DataDirError::NewerFormat {
                found: 2,
                known: 1,
                ..
            })
        ));
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 0x02;
            fs::write(&path, &damaged).unwrap();
            assert!(open(temp.path()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_log_without_a_format_file_is_not_taken_over() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("log")).unwrap();
        fs::write(temp.path().join("log/x"), "x").unwrap();
        assert!(matches!(
            open(temp.path()),
            Err(DataDirError::NoFormat { .. })
        ));
    }
}
