//! Every limit of the core, each with its reason.
//!
//! A length that comes from a socket or a file is compared with one of these before
//! anything is allocated for it.

/// Longest key, in bytes. RocksDB keeps keys in every index block, so they must stay small.
pub const MAX_KEY_BYTES: usize = 4 * 1024;

/// Longest value, in bytes. One value must fit a batch, with room for its header.
pub const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;

/// Most headers on one record. Headers are metadata; data belongs into the value.
pub const MAX_HEADERS: usize = 64;

/// Longest record batch, in bytes as received (compressed or not).
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Most bytes that one batch may inflate to: what a decompression bomb can cost us.
pub const MAX_INFLATED_BYTES: usize = 32 * 1024 * 1024;

/// Most records in one batch. Bounds the work of one walk to about 10 ms.
pub const MAX_BATCH_RECORDS: usize = 250_000;

/// Most parts in one frame. Bounds the header to about 100 KiB.
pub const MAX_FRAME_PARTS: usize = 4096;

/// Body size at which the sequencer stops gathering publishes into a frame.
/// Groups of about 1 MiB reach the disk's full rate; larger ones only add latency.
pub const TARGET_FRAME_BYTES: usize = 1024 * 1024;

/// Largest frame: the target, plus one transaction of two full batches that may not be split.
pub const MAX_FRAME_BYTES: usize = 2 * MAX_BATCH_BYTES + TARGET_FRAME_BYTES;

/// Most partitions that one gap of dropped frames names. Bounds it to about 2 MiB.
pub const MAX_GAP_PARTITIONS: usize = 65_536;

/// Most bytes of context in one frame header: room for 5,000 origins. A region is one, and so is each
/// epoch of a broker.
pub const MAX_CONTEXT_BYTES: usize = 128 * 1024;

/// Most origins of which a log takes frames over. A peer that makes up more than a cluster can have is
/// refused, so that the context of what is written here always has room.
pub const MAX_ORIGINS: usize = 5000;

/// So many more of members: whoever makes up the rest must not keep those out.
pub const SPARE_ORIGINS: usize = 500;

/// An entry of a context takes at most 23 bytes. What is left is for this broker's own identities.
const _: () = assert!(10 + (MAX_ORIGINS + SPARE_ORIGINS + 150) * 23 <= MAX_CONTEXT_BYTES);

/// Longest stream name. The same as Kafka's, so that names can cross over.
pub const MAX_STREAM_NAME_BYTES: usize = 249;

/// Most partitions of one stream. A partition costs memory in every index.
pub const MAX_PARTITIONS: u16 = 1024;

/// Longest region name. It is a metric label.
pub const MAX_REGION_NAME_BYTES: usize = 63;

/// Most regions that a stream names. More are better said by naming none.
pub const MAX_STREAM_REGIONS: usize = 64;

/// How far ahead of the wall clock a stamp from elsewhere may be before it is held, in
/// milliseconds.
pub const MAX_CLOCK_AHEAD_MS: u64 = 500;

/// Batches remembered per producer and partition. Kafka clients keep at most five in flight.
pub const PRODUCER_WINDOW: usize = 5;

/// Producers remembered. The one that was silent longest is forgotten first.
pub const MAX_PRODUCERS: usize = 100_000;

/// Deepest nesting of a document, its top counted as one. Whatever walks a document may recurse.
pub const MAX_DOCUMENT_DEPTH: usize = 64;

/// Largest document, in bytes of its binary form. Every change writes the row anew.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// Most elements of an array in a document. What is inserted concurrently is ordered by walking over them.
pub const MAX_ARRAY_ELEMENTS: usize = 10_000;

/// Longest number in a document, in characters as written.
pub const MAX_NUMBER_BYTES: usize = 128;

/// Most operations in one patch. Bounds the work of one record.
pub const MAX_PATCH_OPERATIONS: usize = 10_000;

/// Most digits behind the point of a number that counts. Amounts of any scale add up exactly in 128 bits.
pub const MAX_AMOUNT_SCALE: u8 = 12;
