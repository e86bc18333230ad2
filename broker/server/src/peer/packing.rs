//! Compressing blocks, and inflating them.
//!
//! Both keep their tables for the next block: to make them anew takes as long as a small block.

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

/// Blocks shorter than this are not worth compressing.
const COMPRESS_FROM: usize = 512;

/// The fastest level: a link is compressed to save its bandwidth, not to keep what is sent.
const ZSTD_LEVEL: i32 = 1;

/// Blocks up to this length are inflated where they are read. It takes less time than to hand them
/// to another thread and back.
const INFLATE_HERE: usize = 64 * 1024;

/// Compresses what goes out over one link.
#[derive(Default)]
pub(super) struct Packer(Option<Compressor<'static>>);

impl Packer {
    /// What is shorter than the items and inflates to them, if there is such.
    pub(super) fn pack(&mut self, items: &[u8]) -> Option<Vec<u8>> {
        if items.len() < COMPRESS_FROM {
            return None;
        }
        if self.0.is_none() {
            self.0 = Compressor::new(ZSTD_LEVEL).ok();
        }
        let packed = self.0.as_mut()?.compress(items).ok()?;
        (packed.len() < items.len()).then_some(packed)
    }
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

    #[tokio::test]
    async fn what_was_packed_unpacks_again_and_again() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        for length in [COMPRESS_FROM, 5_000, INFLATE_HERE + 1, 1_000_000, 600] {
            let items: Vec<u8> = (0..length).map(|at| (at / 100 % 251) as u8).collect();
            let packed = Bytes::from(packer.pack(&items).unwrap());
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
        let mut packer = Packer::default();
        assert_eq!(packer.pack(&noise), None);
        assert_eq!(packer.pack(&[0; COMPRESS_FROM - 1]), None);
        let mut unpacker = Unpacker::default();
        assert_eq!(unpacker.unpack(noise.into(), 5_000).await, None);
    }
}
