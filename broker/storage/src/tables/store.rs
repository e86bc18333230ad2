//! RocksDB: where rows go when an image is full. Nothing else in the project names it.
//!
//! Rows reach it only as files that are sorted here and ingested whole, with the position up to
//! which the log is folded in a second file of the same ingestion: one edit of the manifest, so
//! both are there or neither is. RocksDB's own write-ahead log and memtables are never used.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::id::{BrokerId, Epoch, Origin, Position};
use anabranch_core::lww::{Row, Stamp};
use bytes::BufMut;
use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, ErrorKind,
    IngestExternalFileOptions, LogLevel, Options, ReadOptions, Snapshot, SstFileWriter,
};

use super::TablesOptions;
use super::arena::At;
use super::error::TablesError;
use super::image::Image;
use super::key::KeySpan;

/// Sorts before every row: rows have keys of eight bytes and more.
const MARK_KEY: &[u8] = &[0];
const MARK_VERSION: u8 = 3;
const MARK_BYTES: usize = 45;

/// Compaction of level 0 begins at this many files: two of each flush, so every four flushes.
const LEVEL0_TRIGGER: i32 = 8;
/// A flush waits while level 0 holds this many: every one is looked at by every read that misses.
const LEVEL0_MOST: u64 = 24;
/// How often a waiting flush looks. RocksDB tells nobody that a compaction has ended.
const LEVEL0_POLL: Duration = Duration::from_millis(5);

/// Stored rows that are looked at between two looks whether an image waits.
const SWEPT_AT_ONCE: usize = 16 * 1024;

/// Name of a file that says that a read found damage, so that the next start rebuilds.
const DAMAGED_FILE: &str = "damaged";
const STAGING: &str = "staging";

/// How far the log is folded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    /// The next position to fold.
    pub(super) applied: Position,
    /// The greatest stamp folded so far.
    pub(super) newest: Stamp,
}

impl Mark {
    /// Nothing folded.
    pub(super) const START: Self = Self {
        applied: Position::new(0),
        newest: Stamp {
            timestamp: HybridTimestamp::ZERO,
            origin: Origin {
                broker: BrokerId::new(0),
                epoch: Epoch::new(0),
            },
        },
    };

    fn encode(self, kept: Kept) -> Vec<u8> {
        let mut out = Vec::with_capacity(MARK_BYTES);
        out.put_u8(MARK_VERSION);
        out.put_u64_le(self.applied.get());
        out.put_u64_le(self.newest.timestamp.get());
        out.put_u64_le(self.newest.origin.broker.get());
        out.put_u32_le(self.newest.origin.epoch.get());
        out.put_u64_le(kept.stable_to.get());
        out.put_u64_le(kept.unstable_to.get());
        out
    }

    fn decode(bytes: &[u8]) -> Option<(Self, Kept)> {
        let fields: &[u8; MARK_BYTES] = bytes.try_into().ok()?;
        let u64_at = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&fields[at..at + 8]);
            u64::from_le_bytes(field)
        };
        let epoch = u32::from_le_bytes([fields[25], fields[26], fields[27], fields[28]]);
        let kept = Kept {
            stable_to: HybridTimestamp::new(u64_at(29)),
            unstable_to: HybridTimestamp::new(u64_at(37)),
        };
        let mark = Self {
            applied: Position::new(u64_at(1)),
            newest: Stamp {
                timestamp: HybridTimestamp::new(u64_at(9)),
                origin: Origin {
                    broker: BrokerId::new(u64_at(17)),
                    epoch: Epoch::new(epoch),
                },
            },
        };
        (fields[0] == MARK_VERSION).then_some((mark, kept))
    }
}

/// Which stamps the stored rows have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kept {
    /// Of writes up to this one, stamps and tombstones may have been dropped.
    pub(super) stable_to: HybridTimestamp,
    /// The newest stamp that is stored; zero when there is none.
    pub(super) unstable_to: HybridTimestamp,
}

impl Kept {
    const NOTHING: Self = Self {
        stable_to: HybridTimestamp::ZERO,
        unstable_to: HybridTimestamp::ZERO,
    };
}

pub(super) struct Store {
    db: DB,
    options: Options,
    dir: PathBuf,
    next_file: AtomicU64,
    /// As of the last ingestion, which only the flusher makes.
    kept: Mutex<Kept>,
}

impl Store {
    /// Opens the directory, or makes it.
    pub(super) fn open(dir: &Path, options: &TablesOptions) -> Result<(Self, Mark), TablesError> {
        let io = |error: std::io::Error| TablesError::io(dir, "opened", &error);
        fs::create_dir_all(dir).map_err(io)?;
        if dir.join(DAMAGED_FILE).exists() {
            return Err(TablesError::damaged(dir, "a read found damage before"));
        }
        let staging = dir.join(STAGING);
        let is_new = is_empty(dir).map_err(io)?;
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(io)?;
        }
        let mut rocks = rocks_options(options);
        rocks.create_if_missing(is_new);
        let db = DB::open(&rocks, dir).map_err(|error| opening(dir, &error))?;
        fs::create_dir_all(&staging).map_err(io)?;
        let store = Self {
            db,
            options: rocks,
            dir: dir.to_owned(),
            next_file: AtomicU64::new(0),
            kept: Mutex::new(Kept::NOTHING),
        };
        let (mark, kept) = store.read_mark()?;
        *store.kept.lock() = kept;
        Ok((store, mark))
    }

    fn read_mark(&self) -> Result<(Mark, Kept), TablesError> {
        if let Some(bytes) = self.get(MARK_KEY, |mark| mark.map(<[u8]>::to_vec))? {
            return Mark::decode(&bytes)
                .ok_or_else(|| self.damage("the applied position is of another version"));
        }
        let mut rows = self.rows(&KeySpan::all(), Caching::Keep);
        rows.begin()?;
        match rows.key() {
            Some(_) => Err(self.damage("there are rows but no applied position")),
            None => Ok((Mark::START, Kept::NOTHING)),
        }
    }

    /// What a stored key holds, handed to `read` without copying.
    pub(super) fn get<R>(
        &self,
        key: &[u8],
        read: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, TablesError> {
        let pinned = self.read(self.db.get_pinned(key))?;
        Ok(read(pinned.as_deref()))
    }

    /// What the store holds now, for reads that must agree.
    pub(super) fn snapshot(&self) -> Snapshot<'_> {
        self.db.snapshot()
    }

    /// What keys held when a snapshot was taken, in their order.
    pub(super) fn get_many(
        &self,
        snapshot: &Snapshot<'_>,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, TablesError> {
        let found = snapshot.multi_get(keys);
        found.into_iter().map(|row| self.read(row)).collect()
    }

    /// What the store holds of a span now. Nothing is read before [`Rows::begin`].
    pub(super) fn rows(&self, span: &KeySpan, caching: Caching) -> Rows<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(span.to.clone());
        options.fill_cache(caching == Caching::Keep);
        Rows {
            store: self,
            iterator: self.db.raw_iterator_opt(options),
            from: span.from.clone(),
        }
    }

    /// Turns an error of RocksDB into ours, and remembers damage for the next start.
    pub(super) fn read<T>(&self, result: Result<T, rocksdb::Error>) -> Result<T, TablesError> {
        result.map_err(|error| self.failed("read", &error))
    }

    fn failed(&self, doing: &'static str, error: &rocksdb::Error) -> TablesError {
        if error.kind() == ErrorKind::Corruption {
            return self.damage(error.to_string());
        }
        TablesError::Store {
            dir: self.dir.clone(),
            doing,
            what: error.to_string(),
        }
    }

    /// Notes that what is stored cannot be trusted.
    pub(super) fn damage(&self, what: impl Into<String>) -> TablesError {
        let what = what.into();
        tracing::error!(dir = %self.dir.display(), what, "tables are damaged");
        if let Err(error) = fs::write(self.dir.join(DAMAGED_FILE), &what) {
            tracing::error!(%error, "damage could not be noted for the next start");
        }
        TablesError::damaged(&self.dir, what)
    }

    /// Which stamps are stored.
    pub(super) fn kept(&self) -> Kept {
        *self.kept.lock()
    }

    /// Makes the rows of an image and its mark part of the store, both or neither. Stamps and
    /// tombstones of writes up to `watermark` are left out.
    pub(super) fn ingest(
        &self,
        image: &Image,
        order: &[At],
        mark: Mark,
        watermark: HybridTimestamp,
    ) -> Result<(), TablesError> {
        let failed = |error| self.failed("written", &error);
        let mut kept = self.kept();
        kept.stable_to = kept.stable_to.max(watermark);
        let mut rows = None;
        if !image.is_empty() {
            let (file, newest) = self.write_rows(image, order, watermark).map_err(failed)?;
            kept.unstable_to = kept.unstable_to.max(newest);
            rows = Some(file);
        }
        self.ingest_files(rows, mark, kept)
    }

    /// Makes a file of rows, if there is one, and the mark part of the store, both or neither.
    fn ingest_files(
        &self,
        rows: Option<PathBuf>,
        mark: Mark,
        kept: Kept,
    ) -> Result<(), TablesError> {
        let failed = |error| self.failed("written", &error);
        let mut files = vec![self.write_mark(mark, kept).map_err(failed)?];
        files.extend(rows);
        self.wait_for_level0();
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db
            .ingest_external_file_opts(&options, files.clone())
            .map_err(failed)?;
        *self.kept.lock() = kept;
        for file in files {
            // Ingesting links the file; our name for it is no longer needed.
            if let Err(error) = fs::remove_file(&file)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(file = %file.display(), %error, "a flushed file stays behind");
            }
        }
        Ok(())
    }

    fn write_mark(&self, mark: Mark, kept: Kept) -> Result<PathBuf, rocksdb::Error> {
        let path = self.staged();
        let mut writer = SstFileWriter::create(&self.options);
        writer.open(&path)?;
        writer.put(MARK_KEY, mark.encode(kept))?;
        writer.finish()?;
        Ok(path)
    }

    /// Gives the file and the newest stamp in it. Deleted streams go into the same file as a range
    /// each: all of a file has one place in RocksDB's order, and a range hides only what is older
    /// than itself.
    fn write_rows(
        &self,
        image: &Image,
        order: &[At],
        watermark: HybridTimestamp,
    ) -> Result<(PathBuf, HybridTimestamp), rocksdb::Error> {
        /// Entries whose cache lines are loaded together.
        const TOUCHED: usize = 64;
        let path = self.staged();
        let mut writer = SstFileWriter::create(&self.options);
        writer.open(&path)?;
        for &stream in image.dropped() {
            let span = KeySpan::of_stream(stream);
            writer.delete_range(span.from, span.to)?;
        }
        let mut newest = HybridTimestamp::ZERO;
        for places in order.chunks(TOUCHED) {
            image.touch_entries(places);
            for &at in places {
                let entry = image.entry(at);
                match entry.stored.map(|row| stripped(row, watermark)) {
                    Some(Stripped::Same(row, stamp)) => {
                        newest = newest.max(stamp);
                        writer.put(entry.key, row)?;
                    }
                    Some(Stripped::Row(row)) => writer.put(entry.key, row)?,
                    Some(Stripped::Nothing) | None => writer.delete(entry.key)?,
                }
            }
        }
        writer.finish()?;
        Ok((path, newest))
    }

    /// Leaves out the stamps and tombstones of writes up to `watermark` of some stored rows, from a
    /// key on. Gives the key to go on from, or `None` at the end of all rows. Only the flusher may
    /// call this: whatever is ingested replaces what is there.
    pub(super) fn sweep(
        &self,
        from: Vec<u8>,
        watermark: HybridTimestamp,
    ) -> Result<Option<Vec<u8>>, TablesError> {
        let failed = |error| self.failed("written", &error);
        let span = KeySpan {
            from,
            ..KeySpan::all()
        };
        let mut rows = self.rows(&span, Caching::Bypass);
        rows.begin()?;
        let path = self.staged();
        let mut writer = SstFileWriter::create(&self.options);
        writer.open(&path).map_err(failed)?;
        let mut changed = false;
        for _ in 0..SWEPT_AT_ONCE {
            let (Some(key), Some(row)) = (rows.key(), rows.stored()) else {
                break;
            };
            match stripped(row, watermark) {
                Stripped::Same(..) => {}
                Stripped::Row(row) => {
                    writer.put(key, row).map_err(failed)?;
                    changed = true;
                }
                Stripped::Nothing => {
                    writer.delete(key).map_err(failed)?;
                    changed = true;
                }
            }
            rows.advance()?;
        }
        let next = rows.key().map(<[u8]>::to_vec);
        drop(rows);
        let (mark, mut kept) = self.read_mark()?;
        kept.stable_to = kept.stable_to.max(watermark);
        if next.is_none() && kept.unstable_to <= watermark {
            kept.unstable_to = HybridTimestamp::ZERO;
        }
        if changed {
            writer.finish().map_err(failed)?;
            self.ingest_files(Some(path), mark, kept)?;
        } else if next.is_none() {
            self.ingest_files(None, mark, kept)?;
        }
        Ok(next)
    }

    fn staged(&self) -> PathBuf {
        let n = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.dir.join(STAGING).join(format!("{n}.sst"))
    }

    fn wait_for_level0(&self) {
        // After an error in the background no compaction comes; the ingestion will say so.
        while self.level0_files() >= LEVEL0_MOST && self.number(c"rocksdb.background-errors") == 0 {
            std::thread::sleep(LEVEL0_POLL);
        }
    }

    fn number(&self, property: &std::ffi::CStr) -> u64 {
        self.db
            .property_int_value(property)
            .ok()
            .flatten()
            .unwrap_or(0)
    }

    /// Bytes of all files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.number(c"rocksdb.total-sst-files-size")
    }

    /// Files on level 0.
    pub(super) fn level0_files(&self) -> u64 {
        self.number(c"rocksdb.num-files-at-level0")
    }

    /// Bytes that compaction still has to rewrite.
    pub(super) fn compaction_debt(&self) -> u64 {
        self.number(c"rocksdb.estimate-pending-compaction-bytes")
    }

    /// Rows, estimated.
    pub(super) fn row_count(&self) -> u64 {
        self.number(c"rocksdb.estimate-num-keys")
    }
}

/// A stored row without what is no longer needed of it.
enum Stripped<'a> {
    /// Nothing of it can go; its stamp, or zero.
    Same(&'a [u8], HybridTimestamp),
    /// Its stamp went.
    Row(Vec<u8>),
    /// It was a tombstone.
    Nothing,
}

/// Every write to come is stamped later than `watermark`, so it takes a row up to that with or
/// without its stamp. What images and files hold was checked when it got there.
fn stripped(stored: &[u8], watermark: HybridTimestamp) -> Stripped<'_> {
    let Some((row, stamp)) = Row::decode(stored)
        .ok()
        .and_then(|row| Some((row, row.stamp?.timestamp)))
    else {
        return Stripped::Same(stored, HybridTimestamp::ZERO);
    };
    if stamp > watermark {
        return Stripped::Same(stored, stamp);
    }
    match row.value {
        None => Stripped::Nothing,
        Some(_) => {
            let mut out = Vec::with_capacity(stored.len());
            Row { stamp: None, ..row }.encode(&mut out);
            Stripped::Row(out)
        }
    }
}

/// Stored rows in the order of their keys, as they were at one moment.
pub(super) struct Rows<'a> {
    store: &'a Store,
    iterator: DBRawIterator<'a>,
    from: Vec<u8>,
}

impl Rows<'_> {
    /// Goes to the first row.
    pub(super) fn begin(&mut self) -> Result<(), TablesError> {
        self.iterator.seek(&self.from);
        self.store.read(self.iterator.status())
    }

    /// Goes to the next row, if there is one at all.
    pub(super) fn advance(&mut self) -> Result<(), TablesError> {
        if self.iterator.valid() {
            self.iterator.next();
        }
        self.store.read(self.iterator.status())
    }

    /// The row's stored key.
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.iterator.key()
    }

    /// The row's stored form.
    pub(super) fn stored(&self) -> Option<&[u8]> {
        self.iterator.value()
    }
}

/// Whether blocks read on the way are worth remembering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Caching {
    /// They are.
    Keep,
    /// They are not: the whole table is read once.
    Bypass,
}

fn is_empty(dir: &Path) -> std::io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}

/// An error while opening: most mean that files are missing or wrong, some that the machine is.
fn opening(dir: &Path, error: &rocksdb::Error) -> TablesError {
    let missing = error.to_string().contains("No such file");
    match error.kind() {
        ErrorKind::IOError if !missing => TablesError::Store {
            dir: dir.to_owned(),
            doing: "opened",
            what: error.to_string(),
        },
        _ => TablesError::damaged(dir, error.to_string()),
    }
}

fn rocks_options(tables: &TablesOptions) -> Options {
    let mut blocks = BlockBasedOptions::default();
    // An LRU cache grows as it is filled: an idle broker does not pay for it.
    blocks.set_block_cache(&Cache::new_lru_cache(tables.block_cache_bytes));
    blocks.set_bloom_filter(10.0, false);
    blocks.set_format_version(6);
    // Otherwise the filters of a large table take memory without a limit.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_zero_file_num_compaction_trigger(LEVEL0_TRIGGER);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    // No write goes through a memtable.
    options.set_write_buffer_size(64 << 10);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_another_version_does_not() {
        let mark = Mark {
            applied: Position::new(7),
            newest: Stamp {
                timestamp: HybridTimestamp::new(8),
                origin: Origin {
                    broker: BrokerId::new(9),
                    epoch: Epoch::new(10),
                },
            },
        };
        let kept = Kept {
            stable_to: HybridTimestamp::new(11),
            unstable_to: HybridTimestamp::new(12),
        };
        let mut bytes = mark.encode(kept);
        assert_eq!(Mark::decode(&bytes), Some((mark, kept)));
        bytes[0] = 1;
        assert_eq!(Mark::decode(&bytes), None);
        assert_eq!(Mark::decode(&bytes[1..]), None);
    }
}
