//! The log: one per broker, all streams in it, in the order in which the broker applied them.
//!
//! ```text
//! append, append … sync ──► one write + one fdatasync ──► Durable ──► readers
//!                 roll ──► the segment is sealed in the background: index, checkpoint, footer
//!                 open ──► seals are read, what is unsealed is scanned: the only recovery path
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `writer` | [`Log`]: group commit, rolling, closing |
//! | `reader` | [`LogReader`]: reading by position, stream, vector, time and offset |
//! | `ship` | [`Shipment`]: reading what a peer asks for |
//! | `fetch` | reading the entries that an index names |
//! | `recover` | opening a log, whatever state it was left in |
//! | `verify` | [`verify()`]: every checksum and every cross-reference |
//! | `clean` | [`Cleaner`]: retention, compaction, rewriting, the floor |
//! | `segment`, `entry`, `gap`, `index`, `mark`, `trims` | the files, byte by byte; see docs/format/log.md |
//! | `floor` | where the log begins, and what is left of the frames before |
//! | `group` | what waits for the next write |
//! | `hurried` | what need not stay in the page cache |
//! | `seal` | the thread that seals segments and prepares the next |
//! | `room` | what is reserved before it is written |
//! | `scan` | walking over the entries of a file |
//! | `settled` | [`settled_segments`]: what opening a log leaves as it is |
//! | `shared` | what writer, readers and cleaner share |

mod clean;
mod entry;
mod fetch;
mod fields;
mod floor;
mod gap;
mod group;
mod hurried;
mod index;
mod mark;
mod reader;
mod recover;
mod room;
mod scan;
mod seal;
mod segment;
mod settled;
mod shared;
mod ship;
mod trims;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use clean::{CleanError, Cleaner, Policy, Report};
pub use entry::EntryFault;
pub use index::Filter;
pub use mark::Proof;
pub use reader::{Chunk, LogReader, ReadError};
pub use recover::{Damage, OpenError, Opened, Progress, Recovery};
pub use room::{most_entry_bytes, most_gap_bytes};
pub use segment::SegmentFault;
pub use settled::settled_segments;
pub use ship::{Shipment, Shipped};
pub use verify::{Event, Finding, Verified, VerifyError, verify};
pub use writer::{Log, WriteError};

/// Who seals segments and prepares the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Background {
    /// A thread of its own, so that the writer never waits for it.
    Thread,
    /// Whoever rolls, at once: every run does the same disk operations in the same order.
    Inline,
}

/// How a log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// Size at which a segment is sealed. Large enough that indexes and seals cost nothing, small
    /// enough that scanning one takes a fraction of a second.
    pub segment_bytes: u64,
    /// Who seals segments.
    pub background: Background,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 256 << 20,
            background: Background::Thread,
        }
    }
}
