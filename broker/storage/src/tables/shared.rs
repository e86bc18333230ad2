//! What the applier, the flusher and all readers share.
//!
//! Order of locks: `freezing`, then `state`, then `queue`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::id::{Position, StreamId};
use anabranch_core::lww::{Row, Stability, Stamp};
use anabranch_core::stream::StreamDefinition;
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard};

use super::arena::At;
use super::error::TablesError;
use super::image::{Hash, Hasher, Image};
use super::key::RowKey;
use super::store::{Mark, Store};
use super::stream_map::StreamMap;
use super::{ALONE, TablesOptions};

/// An image that no longer changes and is on its way into the store.
pub(super) struct Frozen {
    pub(super) image: Image,
    pub(super) mark: Mark,
    /// All frames after the mark are stamped later. One that was raised since does not say so of
    /// those that a start folds again.
    pub(super) watermark: HybridTimestamp,
    order: OnceLock<Vec<At>>,
}

impl Frozen {
    /// Whether [`Frozen::order`] is there already.
    pub(super) fn is_sorted(&self) -> bool {
        self.order.get().is_some()
    }

    /// Its entries in the order of their keys; sorted by whoever asks first.
    pub(super) fn order(&self) -> &[At] {
        self.order.get_or_init(|| self.image.sorted())
    }
}

/// Everything above the store.
pub(super) struct State {
    pub(super) active: Image,
    /// The newest first.
    pub(super) frozen: VecDeque<Arc<Frozen>>,
    pub(super) mark: Mark,
    /// How often an image was frozen: whoever looked before the last time looks again.
    pub(super) freezes: u64,
}

/// What the images say about a row.
pub(super) enum Found<'a> {
    /// Stored like this.
    Row(&'a [u8]),
    /// Not there.
    Gone,
    /// Nothing: ask the store.
    Below,
}

impl State {
    #[inline]
    pub(super) fn find(&self, hash: Hash, key: RowKey<'_>) -> Found<'_> {
        let frozen = self.frozen.iter().map(|frozen| &frozen.image);
        find_in(std::iter::once(&self.active).chain(frozen), hash, key)
    }

    /// As [`State::find`], leaving out the active image.
    pub(super) fn find_frozen(&self, hash: Hash, key: RowKey<'_>) -> Found<'_> {
        find_in(self.frozen.iter().map(|frozen| &frozen.image), hash, key)
    }
}

#[inline]
fn find_in<'a>(images: impl Iterator<Item = &'a Image>, hash: Hash, key: RowKey<'_>) -> Found<'a> {
    for image in images {
        if let Some(entry) = image.find(hash, key) {
            return entry.stored.map_or(Found::Gone, Found::Row);
        }
        if image.drops(key.stream) {
            return Found::Gone;
        }
    }
    Found::Below
}

/// What the flusher does.
pub(super) enum Work {
    /// Write this image into the store.
    Flush(Arc<Frozen>),
    /// Leave out stamps that are no longer needed.
    Sweep,
    /// End.
    Stop,
}

/// Work for the flusher, the oldest first.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Frozen>>,
    stopped: bool,
    failed: Option<TablesError>,
    flushes: u64,
    rows: u64,
}

pub(super) struct Shared {
    pub(super) options: TablesOptions,
    pub(super) store: Store,
    pub(super) hasher: Hasher,
    /// The stream whose rows define streams.
    pub(super) system: StreamId,
    /// Where what is known of names is kept, deleted ones included. It is no stream.
    pub(super) entries: StreamId,
    pub(super) state: RwLock<State>,
    pub(super) streams: ArcSwap<StreamMap>,
    /// Copy of the state's position, for those who only want to know it.
    applied: AtomicU64,
    watermark: AtomicU64,
    /// Whether older frames are folded again, so that no stamp may be left out.
    holds_watermark: AtomicBool,
    /// What the store holds is the fold of the log up to here.
    stored: AtomicU64,
    freezing: Mutex<()>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(
        options: TablesOptions,
        store: Store,
        mark: Mark,
        streams: StreamMap,
    ) -> Self {
        // A broker that is alone has nobody to wait for.
        let watermark = match options.with_others {
            true => HybridTimestamp::ZERO,
            false => ALONE,
        };
        Self {
            options,
            store,
            hasher: Hasher::random(),
            system: StreamDefinition::system().id(),
            entries: StreamDefinition::entries(),
            state: RwLock::new(State {
                active: Image::for_rows(0),
                frozen: VecDeque::new(),
                mark,
                freezes: 0,
            }),
            streams: ArcSwap::from_pointee(streams),
            applied: AtomicU64::new(mark.applied.get()),
            watermark: AtomicU64::new(watermark.get()),
            holds_watermark: AtomicBool::new(false),
            stored: AtomicU64::new(mark.applied.get()),
            freezing: Mutex::new(()),
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
        }
    }

    pub(super) fn applied(&self) -> Position {
        Position::new(self.applied.load(Ordering::Acquire))
    }

    /// Publishes a position. Called under the write lock, after the rows up to it.
    pub(super) fn publish(&self, state: &mut State, mark: Mark) {
        state.mark = mark;
        self.applied.store(mark.applied.get(), Ordering::Release);
    }

    /// The value of a row.
    pub(super) fn value(&self, key: RowKey<'_>) -> Result<Option<Bytes>, TablesError> {
        let hash = self.hasher.hash(key);
        match self.state.read().find(hash, key) {
            Found::Row(stored) => return self.decode(stored),
            Found::Gone => return Ok(None),
            Found::Below => {}
        }
        self.store.get(&key.to_vec(), |row| match row {
            Some(stored) => self.decode(stored),
            None => Ok(None),
        })?
    }

    /// The stored form of a row.
    pub(super) fn stored(&self, key: RowKey<'_>) -> Result<Option<Vec<u8>>, TablesError> {
        let hash = self.hasher.hash(key);
        if let Some(entry) = self.state.read().active.find(hash, key) {
            return Ok(entry.stored.map(<[u8]>::to_vec));
        }
        self.stored_below(hash, key)
    }

    /// The stored form of a row as it is below the active image.
    pub(super) fn stored_below(
        &self,
        hash: Hash,
        key: RowKey<'_>,
    ) -> Result<Option<Vec<u8>>, TablesError> {
        match self.state.read().find_frozen(hash, key) {
            Found::Row(stored) => return Ok(Some(stored.to_vec())),
            Found::Gone => return Ok(None),
            Found::Below => {}
        }
        self.store.get(&key.to_vec(), |row| row.map(<[u8]>::to_vec))
    }

    /// The value in a stored row.
    pub(super) fn decode(&self, stored: &[u8]) -> Result<Option<Bytes>, TablesError> {
        Ok(self.row(stored)?.value.map(Bytes::copy_from_slice))
    }

    pub(super) fn row<'a>(&self, stored: &'a [u8]) -> Result<Row<'a>, TablesError> {
        Row::decode(stored).map_err(|_| self.store.damage("a row does not read"))
    }

    /// Hands the active image to the flusher and begins another. Waits while too many are on
    /// their way, so that memory stays bounded; never with the state locked.
    ///
    /// # Errors
    /// With what stopped the flusher.
    pub(super) fn freeze(&self) -> Result<RwLockWriteGuard<'_, State>, TablesError> {
        let one_at_a_time = self.freezing.lock();
        self.wait_until(|queue| queue.waiting.len() < self.options.frozen_images.max(1))?;
        Ok(self.freeze_now(&one_at_a_time))
    }

    /// As [`Shared::freeze`], for a reader that wants order: there is room for one image more, and
    /// if that is taken as well the answer is `None`.
    pub(super) fn freeze_to_read(
        &self,
    ) -> Result<Option<RwLockWriteGuard<'_, State>>, TablesError> {
        let Some(one_at_a_time) = self.freezing.try_lock() else {
            return Ok(None);
        };
        let is_room = self.is_true(&self.queue.lock(), |queue| self.has_room_to_read(queue))?;
        Ok(is_room.then(|| self.freeze_now(&one_at_a_time)))
    }

    /// Waits until [`Shared::freeze_to_read`] has room.
    pub(super) fn wait_to_read(&self) -> Result<(), TablesError> {
        self.wait_until(|queue| self.has_room_to_read(queue))
    }

    fn has_room_to_read(&self, queue: &Queue) -> bool {
        queue.waiting.len() <= self.options.frozen_images.max(1)
    }

    fn freeze_now(&self, _one_at_a_time: &MutexGuard<'_, ()>) -> RwLockWriteGuard<'_, State> {
        // Made before the lock is taken: it may have to clear memory.
        let next = Image::for_rows(self.state.read().active.len());
        let mut state = self.state.write();
        let frozen = Arc::new(Frozen {
            image: std::mem::replace(&mut state.active, next),
            mark: state.mark,
            watermark: self.watermark(),
            order: OnceLock::new(),
        });
        state.frozen.push_front(Arc::clone(&frozen));
        state.freezes += 1;
        self.queue.lock().waiting.push_back(frozen);
        self.changed.notify_all();
        state
    }

    /// Waits until all frozen images are in the store.
    ///
    /// # Errors
    /// With what stopped the flusher.
    pub(super) fn drain(&self) -> Result<(), TablesError> {
        self.wait_until(|queue| queue.waiting.is_empty())
    }

    fn wait_until(&self, done: impl Fn(&Queue) -> bool) -> Result<(), TablesError> {
        let mut queue = self.queue.lock();
        while !self.is_true(&queue, &done)? {
            self.changed.wait(&mut queue);
        }
        Ok(())
    }

    /// Without a flusher everything is: nothing will change, but nothing will be applied either.
    fn is_true(&self, queue: &Queue, done: impl Fn(&Queue) -> bool) -> Result<bool, TablesError> {
        match &queue.failed {
            Some(error) => Err(error.clone()),
            None => Ok(queue.stopped || done(queue)),
        }
    }

    /// What the flusher does next; waits for it. Images go before the sweep, which can wait.
    pub(super) fn next_work(&self, sweeping: bool) -> Work {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopped {
                return Work::Stop;
            }
            if let Some(frozen) = queue.waiting.front() {
                return Work::Flush(Arc::clone(frozen));
            }
            if sweeping || self.wants_sweep() {
                return Work::Sweep;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Whether everything that is stored with a stamp can do without by now.
    pub(super) fn wants_sweep(&self) -> bool {
        let newest = self.store.kept().unstable_to;
        newest > HybridTimestamp::ZERO && newest <= self.store_watermark()
    }

    /// Every write that is not in the store is stamped later, also those that a start folds again.
    pub(super) fn store_watermark(&self) -> HybridTimestamp {
        if self.holds_watermark.load(Ordering::Acquire) {
            return HybridTimestamp::ZERO;
        }
        let kept = self.store.kept().stable_to;
        // Looked at before the positions: what it was found with was applied when it was raised.
        let raised = self.watermark();
        match self.stored.load(Ordering::Acquire) >= self.applied().get() {
            true => kept.max(raised),
            false => kept,
        }
    }

    /// Every write to come is stamped later.
    pub(super) fn watermark(&self) -> HybridTimestamp {
        if self.holds_watermark.load(Ordering::Acquire) {
            return HybridTimestamp::ZERO;
        }
        HybridTimestamp::new(self.watermark.load(Ordering::Acquire))
    }

    /// Whether older frames are folded again.
    pub(super) fn hold_watermark(&self, holds: bool) {
        self.holds_watermark.store(holds, Ordering::Release);
    }

    pub(super) fn raise_watermark(&self, watermark: HybridTimestamp) {
        self.watermark.fetch_max(watermark.get(), Ordering::AcqRel);
        if self.wants_sweep() {
            // Under the lock, so that the flusher does not miss it between its look and its wait.
            drop(self.queue.lock());
            self.changed.notify_all();
        }
    }

    /// Whether a write needs its stamp.
    #[inline]
    pub(super) fn stability(&self, stamp: Stamp) -> Stability {
        match stamp.timestamp <= self.watermark() {
            true => Stability::Stable,
            false => Stability::Unstable,
        }
    }

    /// Forgets the oldest image, which is in the store now.
    pub(super) fn flushed(&self, mark: Mark) {
        self.stored.store(mark.applied.get(), Ordering::Release);
        let gone = self.state.write().frozen.pop_back();
        let mut queue = self.queue.lock();
        queue.waiting.pop_front();
        queue.flushes += 1;
        queue.rows += gone.map_or(0, |frozen| frozen.image.len() as u64);
        self.changed.notify_all();
    }

    pub(super) fn flush_failed(&self, error: TablesError) {
        self.queue.lock().failed = Some(error);
        self.changed.notify_all();
    }

    /// Tells the flusher to end after what it is doing.
    pub(super) fn stop(&self) {
        self.queue.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Flushes so far and the rows in them.
    pub(super) fn flushes(&self) -> (u64, u64) {
        let queue = self.queue.lock();
        (queue.flushes, queue.rows)
    }
}
