//! A disk in memory that can do whatever a real one may do to us.

mod state;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, FileIdentity};
use state::{Change, Inode, NameChange, State};

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

    fn uncache(&self, _: &Path, _: u64, _: u64) {}

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

    fn write_pieces_at(&self, pieces: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        // One change, which tears at sectors wherever the pieces meet.
        let bytes: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect();
        self.write_at(&bytes, offset)
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
        self.with(|state, inode| {
            u64::try_from(state.inodes[inode].now.len()).map_err(io::Error::other)
        })
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
    use super::state::EIO;
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
    fn a_write_of_pieces_tears_as_one_write_of_all_their_bytes() {
        let bytes: Vec<u8> = (0..5000u32).map(|n| n.to_le_bytes()[0]).collect();
        let after_a_power_cut = |seed, write: &dyn Fn(&dyn DiskFile)| {
            let disk = MemoryDisk::new(seed);
            let path = Path::new("/d/f");
            let file = disk.create(path).unwrap();
            file.preallocate(6000).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            write(&*file);
            let operations = disk.operations();
            disk.power_cycle();
            (operations, disk.content(path))
        };
        for seed in 0..50 {
            let whole = after_a_power_cut(seed, &|file| file.write_at(&bytes, 100).unwrap());
            let pieces = after_a_power_cut(seed, &|file| {
                let cuts = [&bytes[..7], &bytes[7..3000], &bytes[3000..]];
                let mut pieces = cuts.map(IoSlice::new);
                file.write_pieces_at(&mut pieces, 100).unwrap();
            });
            assert!(whole == pieces, "seed {seed}");
        }
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
