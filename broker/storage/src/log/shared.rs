//! What the writer, the readers and the cleaner share: which segments there are, and what the one
//! that is written holds so far. Everything in it is durable.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anabranch_core::id::{Offset, PartitionId, Position, StreamId};
use anabranch_core::vector::VersionVector;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use super::index::{Key, SegmentIndex, Summary};
use super::scan::Scanner;
use super::segment::{FIRST_ENTRY_AT, Footer, SegmentFault, SegmentHeader, SegmentId, read_block};
use super::trims::Trims;
use crate::disk::{Disk, DiskFile};

/// Memory for the indexes of sealed segments that were read lately.
const CACHE_BYTES: usize = 32 << 20;

/// Most sealed segments that are held open: far below the usual limit of 1024 files.
const CACHE_FILES: usize = 64;

/// Shared between threads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    /// Where the segments are.
    pub(crate) dir: PathBuf,
    /// Size at which a segment is sealed.
    pub(crate) segment_bytes: u64,
    pub(crate) state: RwLock<State>,
    cache: Mutex<Cache>,
}

/// What changes while the log is written.
#[derive(Debug)]
pub(crate) struct State {
    /// All segments but the last, in order, without gaps.
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) active: Active,
    pub(crate) trims: Arc<Trims>,
    /// Offsets that come next, as of the beginning of the active segment.
    pub(crate) offsets: HashMap<Key, Offset>,
}

/// The segment that is written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) id: SegmentId,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) index: SegmentIndex,
}

/// A segment that is no longer written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) path: PathBuf,
    pub(crate) summary: Summary,
    /// Its file and index, until the seal is on the disk.
    unsealed: Mutex<Option<Arc<Loaded>>>,
}

/// A segment's file, opened, and its index, read.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) id: SegmentId,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) index: SegmentIndex,
}

/// Why a sealed segment could not be opened.
#[derive(Debug)]
pub(crate) enum LoadError {
    Io(io::Error),
    /// The file is another segment by now: it was rewritten or removed.
    Replaced,
    Index(&'static str),
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Replaced,
            _ => Self::Io(error),
        }
    }
}

impl From<SegmentFault> for LoadError {
    fn from(_: SegmentFault) -> Self {
        Self::Index("the footer is damaged")
    }
}

impl Segment {
    pub(crate) fn sealed(id: SegmentId, path: PathBuf, summary: Summary) -> Self {
        Self {
            id,
            path,
            summary,
            unsealed: Mutex::new(None),
        }
    }

    /// One whose seal is still to be written.
    pub(crate) fn unsealed(loaded: Arc<Loaded>) -> Self {
        Self {
            id: loaded.id,
            path: loaded.path.clone(),
            summary: loaded.index.summary(),
            unsealed: Mutex::new(Some(loaded)),
        }
    }

    /// Whether the seal is on the disk.
    pub(crate) fn is_sealed(&self) -> bool {
        self.unsealed.lock().is_none()
    }
}

#[derive(Debug, Default)]
struct Cache {
    /// The one used last at the back.
    held: VecDeque<Arc<Loaded>>,
    bytes: usize,
}

impl Cache {
    fn get(&mut self, id: SegmentId) -> Option<Arc<Loaded>> {
        let at = self.held.iter().position(|loaded| loaded.id == id)?;
        let loaded = self.held.remove(at)?;
        self.held.push_back(Arc::clone(&loaded));
        Some(loaded)
    }

    fn put(&mut self, loaded: Arc<Loaded>) {
        if self.held.iter().any(|held| held.id == loaded.id) {
            return;
        }
        self.bytes += loaded.index.memory();
        self.held.push_back(loaded);
        while self.held.len() > 1 && (self.bytes > CACHE_BYTES || self.held.len() > CACHE_FILES) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.held.pop_front() {
            self.bytes -= first.index.memory();
        }
    }

    fn remove(&mut self, id: SegmentId) {
        if let Some(at) = self.held.iter().position(|loaded| loaded.id == id) {
            self.held.rotate_left(at);
            self.drop_first();
        }
    }
}

impl Shared {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, segment_bytes: u64, state: State) -> Self {
        Self {
            disk,
            dir,
            segment_bytes,
            state: RwLock::new(state),
            cache: Mutex::new(Cache::default()),
        }
    }

    /// The file and index of a segment.
    pub(crate) fn load(&self, segment: &Segment) -> Result<Arc<Loaded>, LoadError> {
        if let Some(loaded) = segment.unsealed.lock().as_ref() {
            return Ok(Arc::clone(loaded));
        }
        if let Some(loaded) = self.cache.lock().get(segment.id) {
            return Ok(loaded);
        }
        let loaded = match load_sealed(&*self.disk, &segment.path, segment.id) {
            Err(LoadError::Index(what)) => {
                tracing::error!(path = %segment.path.display(), what, "rebuilding the index from the entries");
                self.load_by_entries(segment)?
            }
            loaded => loaded?,
        };
        let loaded = Arc::new(loaded);
        self.cache.lock().put(Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Opens a segment whose index is damaged by reading all its entries.
    pub(crate) fn load_by_entries(&self, segment: &Segment) -> Result<Loaded, LoadError> {
        let file = self.disk.open(&segment.path)?;
        if SegmentHeader::read(&*file)?.is_ok_and(|header| header.id != segment.id) {
            return Err(LoadError::Replaced);
        }
        let Summary {
            first,
            next,
            ref base,
            entries_end,
            ..
        } = segment.summary;
        let mut index = SegmentIndex::new(first, base.clone(), FIRST_ENTRY_AT);
        let mut scanner = Scanner::new(&*file, segment.id, FIRST_ENTRY_AT, entries_end);
        while index.next() < next {
            let Ok(found) = scanner.next(index.next())? else {
                return Err(LoadError::Index(
                    "both its index and its entries are damaged",
                ));
            };
            found.push_to(&mut index);
        }
        Ok(Loaded {
            id: segment.id,
            path: segment.path.clone(),
            file,
            index,
        })
    }

    /// Notes that a segment's seal is on the disk.
    pub(crate) fn note_sealed(&self, segment: &Segment) {
        let loaded = segment.unsealed.lock().take();
        if let Some(loaded) = loaded {
            self.cache.lock().put(loaded);
        }
    }

    /// Forgets a segment that was rewritten or removed.
    pub(crate) fn forget(&self, id: SegmentId) {
        self.cache.lock().remove(id);
    }
}

/// Opens a sealed segment and reads its index.
pub(crate) fn load_sealed(
    disk: &dyn Disk,
    path: &Path,
    id: SegmentId,
) -> Result<Loaded, LoadError> {
    let file = disk.open(path)?;
    let header = SegmentHeader::read(&*file)??;
    if header.id != id {
        return Err(LoadError::Replaced);
    }
    let footer = Footer::read(&*file, file.length()?)??;
    let summary =
        read_summary(&*file, &footer)?.ok_or(LoadError::Index("the summary is damaged"))?;
    let index = read_block(&*file, footer.index_at(), footer.index)?
        .and_then(|bytes| SegmentIndex::decode(&bytes, &summary, FIRST_ENTRY_AT).ok())
        .ok_or(LoadError::Index("the index is damaged"))?;
    Ok(Loaded {
        id,
        path: path.to_owned(),
        file,
        index,
    })
}

/// Reads the summary of a sealed segment; `None` when it is damaged.
pub(crate) fn read_summary(file: &dyn DiskFile, footer: &Footer) -> io::Result<Option<Summary>> {
    let bytes = read_block(file, footer.summary_at(), footer.summary)?;
    Ok(bytes
        .and_then(|bytes| Summary::decode(&bytes).ok())
        .filter(|s| s.next == footer.next && s.entries_end == footer.entries_end))
}

impl State {
    /// First position that is not durable yet.
    pub(crate) fn next(&self) -> Position {
        self.active.index.next()
    }

    /// First position still held.
    pub(crate) fn start(&self) -> Position {
        self.segments
            .first()
            .map_or_else(|| self.active.index.first(), |s| s.summary.first)
    }

    /// The frames that are no longer held.
    pub(crate) fn floor(&self) -> &VersionVector {
        match self.segments.first() {
            Some(first) => &first.summary.base,
            None => self.active.index.base(),
        }
    }

    /// The segment that holds a position, if it is not the active one.
    pub(crate) fn segment_of(&self, position: Position) -> Option<&Arc<Segment>> {
        let at = self
            .segments
            .partition_point(|segment| segment.summary.next <= position);
        self.segments.get(at)
    }

    /// The offset that comes next.
    pub(crate) fn next_offset(&self, stream: StreamId, partition: PartitionId) -> Offset {
        let key = (stream, partition);
        match self.active.index.list(key) {
            Some(list) => list.next_offset(),
            None => self.offsets.get(&key).copied().unwrap_or_default(),
        }
    }

    /// Puts a new segment in place of the active one, which becomes the last of the others.
    pub(crate) fn roll(&mut self, next: Active) -> Arc<Segment> {
        let old = std::mem::replace(&mut self.active, next);
        for list in old.index.lists() {
            self.offsets.insert(list.key, list.next_offset());
        }
        let loaded = Arc::new(Loaded {
            id: old.id,
            path: old.path,
            file: old.file,
            index: old.index,
        });
        let segment = Arc::new(Segment::unsealed(loaded));
        self.segments.push(Arc::clone(&segment));
        segment
    }
}
