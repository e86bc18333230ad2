//! Which partition a key belongs to.
//!
//! Kafka's default: murmur2 of the key, made positive, modulo the partitions. Keeping to it lets a
//! stream be filled by Kafka clients and by ours, and a key still finds its partition.

use crate::id::PartitionId;

/// The partition of a key.
///
/// # Panics
/// When there are no partitions.
#[must_use]
pub fn partition_of(key: &[u8], partitions: u16) -> PartitionId {
    assert!(partitions > 0, "a stream has at least one partition");
    let positive = murmur2(key) & 0x7fff_ffff;
    let partition = positive % u32::from(partitions);
    PartitionId::new(u16::try_from(partition).expect("less than a u16"))
}

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;

/// Austin Appleby's MurmurHash2 with Kafka's seed.
#[expect(
    clippy::cast_possible_truncation,
    reason = "Kafka mixes in the low 32 bits of the length"
)]
fn murmur2(key: &[u8]) -> u32 {
    let mut hash = SEED ^ (key.len() as u32);
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_are_those_of_kafka() {
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key).cast_signed(), expected);
        }
    }
}
