//! What a disk in memory holds: now, and after a power cut.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::Fault;

/// What a disk lost in a power cut it lost in pieces of this size.
const SECTOR: usize = 512;

#[derive(Debug)]
pub(super) struct State {
    pub(super) random: u64,
    pub(super) boot: u64,
    pub(super) powered: bool,
    pub(super) operations: u64,
    /// Operations are neither counted nor do they fail.
    pub(super) watching: bool,
    pub(super) faults: BTreeMap<u64, Fault>,
    pub(super) capacity: u64,
    pub(super) inodes: Vec<Inode>,
    pub(super) names: BTreeMap<PathBuf, usize>,
    pub(super) durable_names: BTreeMap<PathBuf, usize>,
    pub(super) name_changes: Vec<NameChange>,
}

#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) now: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) unsynced: Vec<Change>,
    pub(super) changed: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    pub(super) fn is_in(&self, dir: &Path) -> bool {
        let (Self::Create(path, _) | Self::Rename(_, path) | Self::Remove(path)) = self;
        path.parent() == Some(dir)
    }
}

impl Change {
    pub(super) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Self::Resize(length) => content.resize(*length, 0),
        }
    }
}

impl State {
    /// Splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    pub(super) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next_random() % limit).unwrap_or(0)
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.operations += 1;
        self.operations
    }

    /// Counts an operation and says what becomes of it.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if self.watching && self.powered {
            return Ok(());
        }
        let operation = self.tick();
        match self.faults.remove(&operation) {
            Some(Fault::PowerCut) => self.powered = false,
            Some(Fault::Io) => return Err(io::Error::from_raw_os_error(EIO)),
            Some(Fault::NoSpace) => return Err(io::Error::from_raw_os_error(ENOSPC)),
            None => {}
        }
        if self.powered {
            Ok(())
        } else {
            Err(io::Error::other("the power is off"))
        }
    }

    pub(super) fn inode_of(&self, path: &Path) -> io::Result<usize> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.display().to_string()))
    }

    pub(super) fn rename_now(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    pub(super) fn has_room_for(&self, inode: usize, length: usize) -> io::Result<()> {
        if length <= self.inodes[inode].now.len() {
            return Ok(());
        }
        let others = self.names.values().filter(|&&n| n != inode);
        let used: usize = others.map(|&n| self.inodes[n].now.len()).sum();
        match u64::try_from(used + length) {
            Ok(total) if total <= self.capacity => Ok(()),
            _ => Err(io::Error::from_raw_os_error(ENOSPC)),
        }
    }

    pub(super) fn change(&mut self, inode: usize, change: Change) {
        self.inodes[inode].changed = self.operations;
        change.apply(&mut self.inodes[inode].now);
        self.inodes[inode].unsynced.push(change);
    }

    /// Keeps of what was not synced what the dice say, in the order that they say.
    pub(super) fn lose(&mut self, at: usize) {
        let mut unsynced = std::mem::take(&mut self.inodes[at].unsynced);
        let mood = self.below(4);
        for i in (1..unsynced.len()).rev() {
            let other = self.below(i + 1);
            unsynced.swap(i, other);
        }
        for change in unsynced {
            match (mood, change) {
                (0, _) => {}
                (1, change) => change.apply(&mut self.inodes[at].durable),
                (_, Change::Resize(length)) => {
                    if self.below(2) == 0 {
                        Change::Resize(length).apply(&mut self.inodes[at].durable);
                    }
                }
                (_, Change::Write(offset, bytes)) => self.keep_sectors(at, offset, &bytes),
            }
        }
        self.inodes[at].now = self.inodes[at].durable.clone();
    }

    pub(super) fn keep_sectors(&mut self, at: usize, offset: usize, bytes: &[u8]) {
        let mut from = 0;
        while from < bytes.len() {
            let to_boundary = SECTOR - (offset + from) % SECTOR;
            let to = bytes.len().min(from + to_boundary);
            if self.below(2) == 0 {
                let piece = Change::Write(offset + from, bytes[from..to].to_vec());
                piece.apply(&mut self.inodes[at].durable);
            }
            from = to;
        }
    }
}

pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;
