//! A disk in memory that can do whatever a real one may do to us.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, FileIdentity};

/// What a disk lost in a power cut it lost in pieces of this size.
const SECTOR: usize = 512;

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The power goes: this operation and all later ones fail until
    /// [`MemoryDisk::power_cycle`].
    PowerCut,
    /// This operation fails with an I/O error; a write may have been done in part.
    Io,
    /// This operation fails for want of space.
    NoSpace,
}

/// Files in memory. Clones are the same disk.
///
/// What was not synced when the power was cut is lost, kept, or kept in part, piece by piece and
/// in no order, as the seed decides.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: u64,
    boot: u64,
    powered: bool,
    operations: u64,
    /// Operations are neither counted nor do they fail.
    watching: bool,
    faults: BTreeMap<u64, Fault>,
    capacity: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
}

#[derive(Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    changed: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
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

    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Create(path, _) | Self::Rename(_, path) | Self::Remove(path)) = self;
        path.parent() == Some(dir)
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
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

impl MemoryDisk {
    /// An empty disk. The same seed leads to the same losses and the same random numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: seed,
            boot: 1,
            powered: true,
            operations: 0,
            watching: false,
            faults: BTreeMap::new(),
            capacity: u64::MAX,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Operations so far; what [`MemoryDisk::inject`] counts in.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Makes the operation with this number fail.
    pub fn inject(&self, operation: u64, fault: Fault) {
        self.state.lock().faults.insert(operation, fault);
    }

    /// Does something, such as a check, whose operations are not counted and meet no faults.
    pub fn watch<T>(&self, check: impl FnOnce() -> T) -> T {
        self.state.lock().watching = true;
        let seen = check();
        self.state.lock().watching = false;
        seen
    }

    /// Whether the power is on.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.state.lock().powered
    }

    /// How many bytes all files together may reserve.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Bytes that all files together take.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        let state = self.state.lock();
        let lengths = state.names.values().map(|&n| state.inodes[n].now.len());
        u64::try_from(lengths.sum::<usize>()).unwrap_or(u64::MAX)
    }

    /// Cuts the power and turns it on again. Faults still to come are forgotten.
    pub fn power_cycle(&self) {
        let state = &mut *self.state.lock();
        let kept = state.below(state.name_changes.len() + 1);
        for change in &state.name_changes[..kept] {
            change.apply(&mut state.durable_names);
        }
        state.name_changes.clear();
        state.names = state.durable_names.clone();
        for at in 0..state.inodes.len() {
            state.lose(at);
        }
        state.faults.clear();
        state.boot += 1;
        state.powered = true;
    }

    /// Inverts a bit of a file, as if it had always been so.
    ///
    /// # Panics
    /// When there is no such file or byte.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let state = &mut *self.state.lock();
        let inode = &mut state.inodes[state.names[path]];
        inode.now[byte] ^= 1 << bit;
        inode.durable[byte] ^= 1 << bit;
    }

    /// Copies all files of one directory into another, as `cp -r` would.
    pub fn copy_dir(&self, from: &Path, to: &Path) {
        let mut state = self.state.lock();
        let found: Vec<_> = state
            .names
            .iter()
            .filter_map(|(path, &inode)| Some((path.strip_prefix(from).ok()?.to_owned(), inode)))
            .collect();
        for (name, inode) in found {
            let content = state.inodes[inode].now.clone();
            let changed = state.tick();
            let copy = Inode {
                durable: content.clone(),
                now: content,
                changed,
                unsynced: Vec::new(),
            };
            state.inodes.push(copy);
            let number = state.inodes.len() - 1;
            state.names.insert(to.join(&name), number);
            state.durable_names.insert(to.join(&name), number);
        }
    }

    /// The content of a file as a process sees it now; `None` when there is no such file.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let inode = *state.names.get(path)?;
        Some(state.inodes[inode].now.clone())
    }

    fn file(&self, inode: usize, boot: u64) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile {
            disk: self.clone(),
            inode,
            boot,
        })
    }
}

impl State {
    /// Splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next_random() % limit).unwrap_or(0)
    }

    fn tick(&mut self) -> u64 {
        self.operations += 1;
        self.operations
    }

    /// Counts an operation and says what becomes of it.
    fn begin(&mut self) -> io::Result<()> {
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

    fn inode_of(&self, path: &Path) -> io::Result<usize> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.display().to_string()))
    }

    fn rename_now(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn has_room_for(&self, inode: usize, length: usize) -> io::Result<()> {
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

    fn change(&mut self, inode: usize, change: Change) {
        self.inodes[inode].changed = self.operations;
        change.apply(&mut self.inodes[inode].now);
        self.inodes[inode].unsynced.push(change);
    }

    /// Keeps of what was not synced what the dice say, in the order that they say.
    fn lose(&mut self, at: usize) {
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

    fn keep_sectors(&mut self, at: usize, offset: usize, bytes: &[u8]) {
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

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

impl Disk for MemoryDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.begin()?;
        let inode = state.inode_of(path)?;
        Ok(self.file(inode, state.boot))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.begin()?;
        if let Ok(inode) = state.inode_of(path) {
            state.change(inode, Change::Resize(0));
            return Ok(self.file(inode, state.boot));
        }
        let changed = state.operations;
        state.inodes.push(Inode {
            changed,
            ..Inode::default()
        });
        let inode = state.inodes.len() - 1;
        state.rename_now(NameChange::Create(path.to_owned(), inode));
        Ok(self.file(inode, state.boot))
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.state.lock().begin()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin()?;
        state.inode_of(from)?;
        state.rename_now(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin()?;
        state.inode_of(path)?;
        state.rename_now(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        state.begin()?;
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        Ok(names.collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        state.begin()?;
        let changes = std::mem::take(&mut state.name_changes);
        let (synced, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| c.is_in(dir));
        for change in synced {
            change.apply(&mut state.durable_names);
        }
        state.name_changes = rest;
        Ok(())
    }

    fn boot_id(&self) -> io::Result<u128> {
        Ok(u128::from(self.state.lock().boot))
    }

    fn random(&self) -> io::Result<u64> {
        Ok(self.state.lock().next_random())
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    inode: usize,
    boot: u64,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut State, usize) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        state.begin()?;
        if state.boot != self.boot {
            return Err(io::Error::other("the file was opened before the power cut"));
        }
        act(&mut state, self.inode)
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let from = place(offset)?;
            let found = state.inodes[inode].now.get(from..from + buffer.len());
            buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let at = place(offset)?;
            let length = state.inodes[inode].now.len().max(at + bytes.len());
            state.has_room_for(inode, length)?;
            state.change(inode, Change::Write(at, bytes.to_vec()));
            Ok(())
        })
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let length = place(length)?;
            state.has_room_for(inode, length)?;
            if state.inodes[inode].now.len() < length {
                state.change(inode, Change::Resize(length));
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, inode| {
            let inode = &mut state.inodes[inode];
            for change in std::mem::take(&mut inode.unsynced) {
                change.apply(&mut inode.durable);
            }
            Ok(())
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.with(|state, inode| u64::try_from(state.inodes[inode].now.len()).map_err(io::Error::other))
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let length = place(length)?;
            state.change(inode, Change::Resize(length));
            Ok(())
        })
    }

    fn identity(&self) -> io::Result<FileIdentity> {
        self.with(|state, inode| {
            Ok(FileIdentity {
                device: 1,
                inode: u64::try_from(inode).map_err(io::Error::other)?,
                changed: state.inodes[inode].changed,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_a_power_cut_and_the_rest_may_not() {
        let mut lost = 0;
        for seed in 0..50 {
            let disk = MemoryDisk::new(seed);
            let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
            let file = disk.create(path).unwrap();
            file.write_at(b"kept", 0).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(dir).unwrap();
            file.write_at(b"more", 4).unwrap();
            disk.power_cycle();
            let content = disk.content(path).unwrap();
            assert!(content.starts_with(b"kept"));
            lost += u32::from(content.len() == 4);
            assert!(file.write_at(b"x", 0).is_err(), "old handles are gone");
        }
        assert!((5..45).contains(&lost), "{lost} of 50 lost the write");
    }

    #[test]
    fn faults_come_when_they_were_asked_for() {
        let disk = MemoryDisk::new(1);
        let file = disk.create(Path::new("/f")).unwrap();
        disk.inject(disk.operations() + 1, Fault::Io);
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
        disk.set_capacity(3);
        let full = file.write_at(b"four", 0).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.inject(disk.operations() + 1, Fault::PowerCut);
        assert!(file.sync_data().is_err() && !disk.is_powered());
        assert!(file.sync_data().is_err());
    }
}
