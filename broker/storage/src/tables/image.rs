//! The rows changed lately, in memory: a hash table of places in an arena.
//!
//! Open addressing with linear probing over slots of eight bytes: 32 bits of the row's hash, 32
//! bits of its place. The hash's upper bits choose the slot, so the table grows by one pass from
//! front to back without looking at any row. A miss costs a cache miss, a hit two.

use std::hash::{BuildHasher, RandomState};

use anabranch_core::id::StreamId;
use anabranch_core::lww::Row;
use twox::xxh3::xxh3_64_with_seed;

use super::arena::{Arena, At, Entry};
use super::key::RowKey;

const MIN_SLOTS_BITS: u32 = 10;

/// What is left of a row's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hash(u32);

/// Hashes keys. Seeded by the process, so that nobody outside can choose keys that collide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hasher {
    seed: u64,
}

impl Hasher {
    pub(super) fn random() -> Self {
        Self {
            seed: RandomState::new().hash_one(0),
        }
    }

    #[inline]
    pub(super) fn hash(self, row: RowKey<'_>) -> Hash {
        let hash = xxh3_64_with_seed(row.key, self.seed ^ row.stream.get());
        let [.., a, b, c, d] = hash.to_le_bytes();
        Hash(u32::from_le_bytes([a, b, c, d]))
    }
}

/// Slots of an image; apart, so that larger ones can be made while the old ones are read.
pub(super) struct Slots {
    slots: Vec<u64>,
    bits: u32,
    taken: usize,
}

impl Slots {
    fn with_bits(bits: u32) -> Self {
        Self {
            slots: vec![0; 1 << bits],
            bits,
            taken: 0,
        }
    }

    /// Enough for this many rows at a load of two thirds at most.
    fn bits_for(rows: usize) -> u32 {
        let least = rows + rows / 2;
        least
            .next_power_of_two()
            .trailing_zeros()
            .max(MIN_SLOTS_BITS)
    }

    #[inline]
    fn home(&self, hash: Hash) -> usize {
        (hash.0 >> (32 - self.bits)) as usize
    }

    #[inline]
    fn next(&self, i: usize) -> usize {
        (i + 1) & (self.slots.len() - 1)
    }

    fn grown(&self, bits: u32) -> Self {
        let mut grown = Self::with_bits(bits);
        for &slot in self.slots.iter().filter(|&&slot| slot != 0) {
            let mut i = grown.home(hash_of(slot));
            while grown.slots[i] != 0 {
                i = grown.next(i);
            }
            grown.slots[i] = slot;
        }
        grown.taken = self.taken;
        grown
    }
}

#[inline]
fn slot(hash: Hash, at: At) -> u64 {
    (u64::from(hash.0) << 32) | u64::from(at.get())
}

#[inline]
fn hash_of(slot: u64) -> Hash {
    let [.., a, b, c, d] = slot.to_le_bytes();
    Hash(u32::from_le_bytes([a, b, c, d]))
}

#[inline]
fn place_of(slot: u64) -> At {
    let [a, b, c, d, ..] = slot.to_le_bytes();
    At::new(u32::from_le_bytes([a, b, c, d]))
}

/// Rows and removals since the image was begun.
pub(super) struct Image {
    slots: Slots,
    arena: Arena,
    /// Streams that were deleted since: nothing below the image counts for them.
    dropped: Vec<StreamId>,
    /// Writes folded in, each key as often as it was written.
    pub(super) folded: usize,
    /// Bytes of log covered, rows or not.
    pub(super) log_bytes: u64,
}

impl Image {
    /// An image that holds this many rows without growing.
    pub(super) fn for_rows(rows: usize) -> Self {
        Self {
            slots: Slots::with_bits(Slots::bits_for(rows)),
            arena: Arena::default(),
            dropped: Vec::new(),
            folded: 0,
            log_bytes: 0,
        }
    }

    /// Rows held, removed ones included.
    pub(super) fn len(&self) -> usize {
        self.slots.taken
    }

    /// Bytes that its rows take.
    pub(super) fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Whether there is nothing to flush but a position.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && self.dropped.is_empty()
    }

    /// Streams deleted since the image was begun.
    pub(super) fn dropped(&self) -> &[StreamId] {
        &self.dropped
    }

    /// Whether nothing below the image counts for this stream.
    #[inline]
    pub(super) fn drops(&self, stream: StreamId) -> bool {
        !self.dropped.is_empty() && self.dropped.contains(&stream)
    }

    /// Larger slots if this many more rows might not fit; [`Image::adopt`] them.
    pub(super) fn slots_for(&self, more: usize) -> Option<Slots> {
        let bits = Slots::bits_for(self.len() + more);
        (bits > self.slots.bits).then(|| self.slots.grown(bits))
    }

    /// Takes slots that [`Image::slots_for`] made of the rows as they still are.
    pub(super) fn adopt(&mut self, slots: Slots) {
        assert_eq!(slots.taken, self.slots.taken, "rows came while slots grew");
        self.slots = slots;
    }

    #[inline]
    fn position(&self, hash: Hash, key: RowKey<'_>) -> Result<usize, usize> {
        let mut i = self.slots.home(hash);
        loop {
            let slot = self.slots.slots[i];
            if slot == 0 {
                return Err(i);
            }
            if hash_of(slot) == hash && self.arena.is_of(place_of(slot), key) {
                return Ok(i);
            }
            i = self.slots.next(i);
        }
    }

    /// The entry of a row; `None` when the image says nothing about it.
    #[inline]
    pub(super) fn find(&self, hash: Hash, key: RowKey<'_>) -> Option<Entry<'_>> {
        let i = self.position(hash, key).ok()?;
        Some(self.arena.entry(place_of(self.slots.slots[i])))
    }

    /// Sets a row, or notes that it was removed. There must be room: see [`Image::slots_for`].
    #[inline]
    pub(super) fn put(&mut self, hash: Hash, key: RowKey<'_>, row: Option<Row<'_>>) {
        match self.position(hash, key) {
            Ok(i) => {
                if !self.arena.overwrite(place_of(self.slots.slots[i]), row) {
                    self.slots.slots[i] = slot(hash, self.arena.push(key, row));
                }
            }
            Err(i) => {
                self.slots.slots[i] = slot(hash, self.arena.push(key, row));
                self.slots.taken += 1;
            }
        }
    }

    /// Loads what [`Image::put`] will look at, many rows at once, so that the cache misses overlap
    /// instead of following one another.
    pub(super) fn touch(&self, hashes: &[Hash]) {
        let mut sum = 0;
        for &hash in hashes {
            sum ^= self.slots.slots[self.slots.home(hash)];
        }
        std::hint::black_box(sum);
        let mut sum = 0;
        for &hash in hashes {
            let mut i = self.slots.home(hash);
            while self.slots.slots[i] != 0 {
                if hash_of(self.slots.slots[i]) == hash {
                    sum ^= self.arena.touch(place_of(self.slots.slots[i]));
                    break;
                }
                i = self.slots.next(i);
            }
        }
        std::hint::black_box(sum);
    }

    /// Removes all rows of a stream, here and below.
    pub(super) fn drop_stream(&mut self, stream: StreamId) {
        if !self.dropped.contains(&stream) {
            self.dropped.push(stream);
        }
        let of_stream = |key| RowKey::split(key).is_some_and(|row| row.stream == stream);
        let rows: Vec<At> = self
            .arena
            .walk()
            .filter_map(|(at, entry)| of_stream(entry.key).then_some(at))
            .collect();
        for at in rows {
            assert!(self.arena.overwrite(at, None), "a removal takes no room");
        }
    }

    /// The entry at a place.
    #[inline]
    pub(super) fn entry(&self, at: At) -> Entry<'_> {
        self.arena.entry(at)
    }

    /// Loads the entry at a place; see [`Image::touch`].
    pub(super) fn touch_entries(&self, places: &[At]) {
        let sum = places.iter().fold(0, |sum, &at| sum ^ self.arena.touch(at));
        std::hint::black_box(sum);
    }

    /// All entries, in the order in which their rows came.
    pub(super) fn walk(&self) -> impl Iterator<Item = (At, Entry<'_>)> {
        self.arena.walk()
    }

    /// The places of all entries, in the order of their keys.
    pub(super) fn sorted(&self) -> Vec<At> {
        let mut rows: Vec<(u64, u64, u32)> = Vec::with_capacity(self.len());
        rows.extend(self.walk().filter_map(|(at, entry)| {
            let (stream, first) = RowKey::split(entry.key)?.leading();
            Some((stream, first, at.get()))
        }));
        rows.sort_unstable_by(|a, b| {
            let whole = |raw| self.entry(At::new(raw)).key;
            (a.0, a.1)
                .cmp(&(b.0, b.1))
                .then_with(|| whole(a.2).cmp(whole(b.2)))
        });
        rows.into_iter().map(|(_, _, at)| At::new(at)).collect()
    }
}
