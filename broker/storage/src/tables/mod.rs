//! Rows folded from the log.
//!
//! ```text
//! durable commits → Applier → active image → frozen images → RocksDB
//!                                  ↑ ____________↑ ___________↑
//!                                             Tables
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `applier` | the one thread that folds commits into the active image |
//! | `plan` | what a run of commits will do to the rows, before anything is locked |
//! | `image`, `arena` | rows changed lately: a hash table over chunks of bytes |
//! | `shared` | images and position behind one lock, and the way to the flusher |
//! | `flusher` | the thread that sorts frozen images and hands them to RocksDB |
//! | `store` | RocksDB |
//! | `moment` | all rows of a span at one moment |
//! | `source` | what one place holds of a span |
//! | `digest` | what rows come to, for comparing brokers |
//! | `key` | how a row is named |
//! | `stream_map` | the definitions of all streams |
//!
//! The log is the write-ahead log: what is in the images only is folded again after a start, from
//! [`Tables::applied`] on. The format is described in `docs/format/tables.md`.

mod applier;
mod arena;
mod digest;
mod error;
mod flusher;
mod image;
mod key;
mod moment;
mod plan;
mod shared;
mod source;
mod store;
mod stream_map;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::id::{Position, StreamId};
use bytes::Bytes;

pub use applier::{Applier, ReadHistory};
pub use digest::Digest;
pub use error::TablesError;
pub use stream_map::StreamMap;

use key::{KeySpan, RowKey};
use moment::Moment;
use shared::{Found, Shared};
use source::Wanted;
use store::{Caching, Store};

/// Rows of one page of a snapshot, and their bytes: what is in memory at a time.
const SNAPSHOT_PAGE: Wanted = Wanted {
    rows: 1024,
    bytes: 256 << 10,
};

/// The watermark of a broker that is alone.
const ALONE: HybridTimestamp = HybridTimestamp::new(u64::MAX);

/// Sizes of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablesOptions {
    /// An image is flushed when its rows take this many bytes. Up to `frozen_images` + 2 of them
    /// are in memory.
    pub image_bytes: usize,
    /// An image is flushed after this many writes. More writes per flush mean fewer rows written
    /// per write, as each row is written once however often it changed.
    pub image_rows: usize,
    /// An image is flushed after this many bytes of log, rows or not: what a start has to read
    /// again.
    pub log_bytes: u64,
    /// How many images may wait for the flusher before the applier waits for it. Readers may add
    /// one.
    pub frozen_images: usize,
    /// Scans search an active image of up to this many rows in place, which holds up the applier
    /// for about half a millisecond at the default. A larger one they have frozen first.
    pub search_rows: usize,
    /// What the cache of blocks may grow to.
    pub block_cache_bytes: usize,
    /// Whether brokers of other regions write as well. Then a write is stable once
    /// [`Tables::raise_watermark`] says so; else it is at once.
    pub with_others: bool,
}

impl Default for TablesOptions {
    fn default() -> Self {
        Self {
            image_bytes: 128 << 20,
            image_rows: 3_000_000,
            log_bytes: 1 << 30,
            frozen_images: 1,
            search_rows: 32 * 1024,
            block_cache_bytes: 128 << 20,
            with_others: false,
        }
    }
}

/// Which rows of a stream a reader wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    /// Keys that begin with this.
    pub prefix: Bytes,
    /// Keys greater than this, whether or not it is there.
    pub after: Option<Bytes>,
    /// Rows at most; at least one is given.
    pub limit: usize,
    /// Bytes of keys and values at most, unless the first row alone has more.
    pub max_bytes: usize,
}

/// Some rows of a stream, ordered by key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Keys and values.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Whether rows follow the last one.
    pub more: bool,
    /// The rows are those of this position.
    pub applied: Position,
}

/// Takes a row: its stream, its key, its stored form.
pub type EachRow<'a> = dyn FnMut(StreamId, &[u8], &[u8]) + 'a;

/// Figures for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TablesStats {
    /// Rows in the active image.
    pub image_rows: usize,
    /// Bytes they take.
    pub image_bytes: usize,
    /// Images on their way into the store.
    pub frozen_images: usize,
    /// Images flushed since the start.
    pub flushes: u64,
    /// Rows in them.
    pub flushed_rows: u64,
    /// Rows in the store, estimated: replaced and removed ones count until compaction.
    pub stored_rows: u64,
    /// Bytes of the store's files.
    pub stored_bytes: u64,
    /// Files that every read has to look at.
    pub level0_files: u64,
    /// Bytes that compaction still has to rewrite.
    pub compaction_debt_bytes: u64,
    /// Whether some stored row has a stamp or is a tombstone.
    pub stored_stamps: bool,
}

/// Deletes the tables in a directory; they are rebuilt by applying the log from its start.
///
/// # Errors
/// When a file cannot be deleted.
pub fn destroy(dir: &Path) -> Result<(), TablesError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TablesError::io(dir, "deleted", &error))
        }
        _ => Ok(()),
    }
}

/// The tables, for readers. Cloning shares them.
#[derive(Clone)]
pub struct Tables {
    shared: Arc<Shared>,
}

impl Tables {
    /// Opens the tables in a directory, or makes empty ones. Apply the log from
    /// [`Tables::applied`] on.
    ///
    /// # Errors
    /// [`TablesError::Damaged`] when the files are incomplete or wrong: [`destroy`] them and open
    /// again.
    pub fn open(dir: &Path, options: TablesOptions) -> Result<(Self, Applier), TablesError> {
        let (store, mark) = Store::open(dir, &options)?;
        let shared = Shared::new(options, store, mark, StreamMap::default());
        let streams = Arc::new(read_streams(&shared)?);
        shared.streams.store(Arc::clone(&streams));
        let shared = Arc::new(shared);
        let flusher =
            flusher::spawn(&shared).map_err(|error| TablesError::io(dir, "opened", &error))?;
        let applier = Applier::new(Arc::clone(&shared), streams, flusher);
        Ok((Self { shared }, applier))
    }

    /// Whether stamps were dropped that are needed now that others write as well: [`destroy`] the
    /// tables then and apply the log again, and all rows have theirs.
    #[must_use]
    pub fn lack_stamps(&self) -> bool {
        self.shared.options.with_others && self.shared.store.kept().stable_to == ALONE
    }

    /// The greatest watermark that was given: what only frames stamped up to it need may be gone.
    #[must_use]
    pub fn watermark(&self) -> HybridTimestamp {
        self.shared.watermark()
    }

    /// Every write to come, from anybody, is stamped later than this, so that rows and tombstones up
    /// to it need no stamp any more. They lose it when their image is flushed, or by a sweep of the
    /// store in the background.
    pub fn raise_watermark(&self, watermark: HybridTimestamp) {
        self.shared.raise_watermark(watermark);
    }

    /// The next position to apply; everything below it is visible.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.shared.applied()
    }

    /// All streams there are.
    #[must_use]
    pub fn streams(&self) -> Arc<StreamMap> {
        self.shared.streams.load_full()
    }

    /// The value of a row.
    ///
    /// # Errors
    /// When the store fails.
    pub fn get(&self, stream: StreamId, key: &[u8]) -> Result<Option<Bytes>, TablesError> {
        self.shared.value(RowKey::new(stream, key))
    }

    /// The values of several rows at one moment, and that moment.
    ///
    /// # Errors
    /// When the store fails.
    pub fn get_many(
        &self,
        keys: &[(StreamId, Bytes)],
    ) -> Result<(Vec<Option<Bytes>>, Position), TablesError> {
        let shared = &*self.shared;
        let mut values = vec![None; keys.len()];
        let mut missed = Vec::new();
        let state = shared.state.read();
        for (n, (stream, key)) in keys.iter().enumerate() {
            let key = RowKey::new(*stream, key);
            match state.find(shared.hasher.hash(key), key) {
                Found::Row(stored) => values[n] = shared.decode(stored)?,
                Found::Gone => {}
                Found::Below => missed.push((n, key.to_vec())),
            }
        }
        let applied = state.mark.applied;
        if missed.is_empty() {
            return Ok((values, applied));
        }
        let snapshot = shared.store.snapshot();
        drop(state);
        let (places, keys): (Vec<_>, Vec<_>) = missed.into_iter().unzip();
        for (n, stored) in places
            .into_iter()
            .zip(shared.store.get_many(&snapshot, &keys)?)
        {
            values[n] = match stored {
                Some(stored) => shared.decode(&stored)?,
                None => None,
            };
        }
        Ok((values, applied))
    }

    /// Rows of a stream at one moment, ordered by key.
    ///
    /// # Errors
    /// When the store fails.
    pub fn scan(&self, stream: StreamId, range: &KeyRange) -> Result<Page, TablesError> {
        let span = KeySpan::of(stream, &range.prefix, range.after.as_deref());
        let wanted = Wanted {
            rows: range.limit.max(1),
            bytes: range.max_bytes,
        };
        let mut moment = Moment::take(&self.shared, &span, wanted, Caching::Keep)?;
        let mut pages = Pages::of(&self.shared, &mut moment)?;
        pages.next(wanted)
    }

    /// All rows of a stream whose keys begin with `prefix`, as they are at one moment, page by
    /// page until `each` breaks off. No page comes for an empty table. Blocks the thread; holds
    /// one page in memory, and what an image of a few MiB holds.
    ///
    /// # Errors
    /// When the store fails.
    pub fn snapshot(
        &self,
        stream: StreamId,
        prefix: &[u8],
        each: &mut dyn FnMut(Page) -> ControlFlow<()>,
    ) -> Result<Position, TablesError> {
        let span = KeySpan::of(stream, prefix, None);
        let mut moment = Moment::take(&self.shared, &span, Wanted::ALL, Caching::Bypass)?;
        let applied = moment.applied();
        let mut pages = Pages::of(&self.shared, &mut moment)?;
        loop {
            let page = pages.next(SNAPSHOT_PAGE)?;
            let more = page.more;
            if !page.rows.is_empty() && each(page).is_break() || !more {
                return Ok(applied);
            }
        }
    }

    /// Every row of every stream in its stored form at one moment, ordered by stream and key; for
    /// comparing tables with what the log folds to.
    ///
    /// # Errors
    /// When the store fails.
    pub fn each_row(&self, each: &mut EachRow<'_>) -> Result<Position, TablesError> {
        let mut moment = Moment::take(&self.shared, &KeySpan::all(), Wanted::ALL, Caching::Bypass)?;
        while moment.advance()? {
            let (key, stored) = moment.row()?;
            each(key.stream, key.key, stored);
        }
        Ok(moment.applied())
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> TablesStats {
        let state = self.shared.state.read();
        let (image_rows, image_bytes) = (state.active.len(), state.active.bytes());
        let frozen_images = state.frozen.len();
        drop(state);
        let (flushes, flushed_rows) = self.shared.flushes();
        let store = &self.shared.store;
        TablesStats {
            image_rows,
            image_bytes,
            frozen_images,
            flushes,
            flushed_rows,
            stored_rows: store.row_count(),
            stored_bytes: store.file_bytes(),
            level0_files: store.level0_files(),
            compaction_debt_bytes: store.compaction_debt(),
            stored_stamps: store.kept().unstable_to > HybridTimestamp::ZERO,
        }
    }
}

/// Cuts the rows of a moment into pages.
struct Pages<'a, 'm> {
    shared: &'a Shared,
    moment: &'m mut Moment<'a>,
    /// Whether the moment stands on a row that is not in a page yet.
    more: bool,
}

impl<'a, 'm> Pages<'a, 'm> {
    fn of(shared: &'a Shared, moment: &'m mut Moment<'a>) -> Result<Self, TablesError> {
        let mut pages = Self {
            shared,
            moment,
            more: false,
        };
        pages.advance()?;
        Ok(pages)
    }

    /// Goes to the next row that has a value.
    fn advance(&mut self) -> Result<(), TablesError> {
        loop {
            self.more = self.moment.advance()?;
            if !self.more || self.shared.row(self.moment.row()?.1)?.value.is_some() {
                return Ok(());
            }
        }
    }

    fn next(&mut self, wanted: Wanted) -> Result<Page, TablesError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        while self.more && rows.len() < wanted.rows {
            let (key, stored) = self.moment.row()?;
            let value = self.shared.row(stored)?.value.unwrap_or_default();
            bytes += key.key.len() + value.len();
            if bytes > wanted.bytes && !rows.is_empty() {
                break;
            }
            rows.push((
                Bytes::copy_from_slice(key.key),
                Bytes::copy_from_slice(value),
            ));
            self.advance()?;
        }
        Ok(Page {
            rows,
            more: self.more,
            applied: self.moment.applied(),
        })
    }
}

/// The definitions that the entries hold.
fn read_streams(shared: &Shared) -> Result<StreamMap, TablesError> {
    let mut streams = StreamMap::default();
    let span = KeySpan::of_stream(shared.entries);
    let mut moment = Moment::take(shared, &span, Wanted::ALL, Caching::Keep)?;
    while moment.advance()? {
        let (key, stored) = moment.row()?;
        if let Some(value) = shared.row(stored)?.value {
            let name = stream_map::read_name(key.key)?;
            streams.set(&name, &stream_map::read_entry(&name, value)?);
        }
    }
    Ok(streams)
}
