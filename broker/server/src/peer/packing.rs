//! Compressing blocks, and inflating them.
//!
//! Both keep their tables for the next block: to make them anew takes as long as a small block. Of
//! regions that are all linked, each ships the same block to all others, so it is compressed once.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use zstd::bulk::{Compressor, Decompressor};

/// Blocks shorter than this are not worth compressing.
const COMPRESS_FROM: usize = 512;

/// The fastest level: a link is compressed to save its bandwidth, not to keep what is sent.
const ZSTD_LEVEL: i32 = 1;

/// Blocks up to this length are inflated where they are read. It takes less time than to hand them
/// to another thread and back.
const INFLATE_HERE: usize = 64 * 1024;

/// Blocks up to this length are kept for other links. Longer ones are shipped to a peer that catches
/// up, and hardly any two of those are at the same place.
const SHARE_UP_TO: usize = 64 * 1024;

/// So many of them: those of the moment, as links are not woken in step.
const SHARED: usize = 8;

/// The blocks that links have compressed last.
#[derive(Default)]
pub(super) struct Latest(Mutex<VecDeque<Packing>>);

struct Packing {
    items: Bytes,
    packed: Option<Bytes>,
}

impl Latest {
    /// What these very items were compressed to. Whoever wants the same meanwhile waits for it.
    fn find_or_pack(
        &self,
        items: &Bytes,
        pack: impl FnOnce(&[u8]) -> Option<Bytes>,
    ) -> Option<Bytes> {
        let mut latest = self.0.lock();
        // Lengths differ, mostly, and where they do not, to compare takes a hundredth of the time.
        if let Some(held) = latest.iter().find(|held| held.items == items) {
            return held.packed.clone();
        }
        let packed = pack(items);
        if latest.len() == SHARED {
            latest.pop_front();
        }
        latest.push_back(Packing {
            items: items.clone(),
            packed: packed.clone(),
        });
        packed
    }
}

/// Compresses what goes out over one link.
pub(super) struct Packer {
    latest: Arc<Latest>,
    compressor: Option<Compressor<'static>>,
}

impl Packer {
    /// One that shares with others.
    pub(super) fn new(latest: &Arc<Latest>) -> Self {
        Self {
            latest: Arc::clone(latest),
            compressor: None,
        }
    }

    /// What is shorter than the items and inflates to them, if there is such.
    pub(super) fn pack(&mut self, items: &Bytes) -> Option<Bytes> {
        let Self { latest, compressor } = self;
        match items.len() {
            0..COMPRESS_FROM => None,
            COMPRESS_FROM..=SHARE_UP_TO => {
                latest.find_or_pack(items, |items| compress(compressor, items))
            }
            _ => compress(compressor, items),
        }
    }
}

fn compress(compressor: &mut Option<Compressor<'static>>, items: &[u8]) -> Option<Bytes> {
    if compressor.is_none() {
        *compressor = Compressor::new(ZSTD_LEVEL).ok();
    }
    let packed = compressor.as_mut()?.compress(items).ok()?;
    (packed.len() < items.len()).then(|| packed.into())
}

/// Inflates what comes in over one link.
#[derive(Default)]
pub(super) struct Unpacker(Option<Decompressor<'static>>);

impl Unpacker {
    /// The items, if they are at most so many bytes; `None` when they do not inflate.
    pub(super) async fn unpack(&mut self, packed: Bytes, limit: usize) -> Option<Bytes> {
        if limit <= INFLATE_HERE {
            return self.inflate(&packed, limit);
        }
        // Off the reactor, since a megabyte takes a millisecond.
        let mut there = std::mem::take(self);
        let inflating = tokio::task::spawn_blocking(move || {
            let inflated = there.inflate(&packed, limit);
            (there, inflated)
        });
        let (back, inflated) = inflating.await.ok()?;
        *self = back;
        inflated
    }

    fn inflate(&mut self, packed: &[u8], limit: usize) -> Option<Bytes> {
        if self.0.is_none() {
            self.0 = Decompressor::new().ok();
        }
        let inflated = self.0.as_mut()?.decompress(packed, limit);
        inflated.ok().map(Bytes::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(length: usize) -> Bytes {
        (0..=250)
            .flat_map(|byte| [byte; 100])
            .cycle()
            .take(length)
            .collect()
    }

    #[tokio::test]
    async fn what_was_packed_unpacks_again_and_again() {
        let latest = Arc::default();
        let (mut packer, mut unpacker) = (Packer::new(&latest), Unpacker::default());
        for length in [
            COMPRESS_FROM,
            5_000,
            INFLATE_HERE + 1,
            1_000_000,
            600,
            5_000,
        ] {
            let items = items(length);
            let packed = packer.pack(&items).unwrap();
            assert!(packed.len() < length);
            let short = unpacker.unpack(packed.clone(), length - 1).await;
            assert_eq!(short, None, "no longer than it says");
            let inflated = unpacker.unpack(packed, length).await;
            assert!(inflated.unwrap() == items);
        }
    }

    #[tokio::test]
    async fn noise_is_not_packed_and_does_not_unpack() {
        let mut noise = vec![0; 5_000];
        fastrand::Rng::with_seed(3).fill(&mut noise);
        let noise = Bytes::from(noise);
        let mut packer = Packer::new(&Arc::default());
        assert_eq!(packer.pack(&noise), None);
        assert_eq!(packer.pack(&noise), None, "nor the second time");
        assert_eq!(packer.pack(&items(COMPRESS_FROM - 1)), None);
        let mut unpacker = Unpacker::default();
        assert_eq!(unpacker.unpack(noise, 5_000).await, None);
    }

    #[test]
    fn what_one_link_has_packed_the_others_take_while_it_is_among_the_latest() {
        let latest = Arc::default();
        let mut packers = [0; 3].map(|_| Packer::new(&latest));
        let mut pack = |link: usize, length| packers[link].pack(&items(length)).unwrap();
        let first = pack(0, 5_000);
        assert_eq!(pack(1, 5_000).as_ptr(), first.as_ptr());
        for other in 0..SHARED {
            let length = 6_000 + other;
            assert_ne!(pack(2, length).as_ptr(), first.as_ptr());
        }
        assert_eq!(latest.0.lock().len(), SHARED);
        let again = pack(1, 5_000);
        assert_eq!(again, first);
        assert_ne!(again.as_ptr(), first.as_ptr(), "it was forgotten");
    }
}
