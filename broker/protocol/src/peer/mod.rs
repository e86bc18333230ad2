//! What brokers say to each other: a link between two regions.
//!
//! Both sides of a TCP connection send the same messages; who dialled makes no difference. Each
//! says [`Hello`], then asks the other for frames and is shipped them, in the order of the other's
//! log, in blocks, as far as its credit goes.
//!
//! ```text
//! length u32 of what follows, crc u32 of what follows it, kind u8, body
//!
//! kind  message   body
//!  1    hello     magic "ABPEER01", cluster u32, broker u64, epoch u32, region,
//!                 heads: count, and for each: broker u64, epoch u32, sequence u64, chain;
//!                 members: count, and for each: broker u64, standing u8; complete u8
//!  2    ask       window u64, brokers: count, u64 each, then the vector of what is held
//!  3    block     compression u8, credit u32, proof u64, bytes of the bodies u32, of the heads
//!                 u32, heads, bodies as they are or compressed, see `block`
//!  4    credit    bytes u64
//!  5    reports   count, and for each: broker u64, promise u64, applied: length, vector
//!  6    bye       code, as text, and a text
//!  7    ping
//!  8    withheld  broker u64, epoch u32, sequence u64
//!  9    audit     stream u64, vector u64, sum u128, rows u64, from, has an end u8, to
//! 10    recalls   count, and for each: broker u64, epoch u32, who has answered: count, u64
//!                 each; held: length, vector
//! 11    held      length, vector
//! 12    reports   as differences, see `reports`
//! ```
//!
//! CRC-32C: what reports and asks say is believed, and TCP's own checksum lets one error in
//! 65,536 through. Little-endian; counts and lengths are u32, a region and a text are a length and UTF-8, a key a length and bytes.

pub mod block;
mod codec;
mod reports;
mod told;
mod vectors;

use std::collections::BTreeMap;

use anabranch_core::audit::Audit;
use anabranch_core::entry::Greeting;
use anabranch_core::exchange::Ask;
use anabranch_core::frame::Chain;
use anabranch_core::id::{BrokerId, ClusterId, Origin, RegionName, Sequence};
use anabranch_core::limits::{MAX_FRAME_BYTES, MAX_ORIGINS, SPARE_ORIGINS};
use anabranch_core::members::Standing;
use anabranch_core::recall::Recall;
use anabranch_core::stability::Report;
use anabranch_core::vector::VersionVector;

pub use codec::{Decoder, Encoder};
pub use told::Told;

use self::block::Block;

use crate::error::Code;

/// Longest message: a block with one frame of the largest size, or a hello of a cluster that has
/// lost power thousands of times.
pub const MAX_MESSAGE_BYTES: usize = MAX_FRAME_BYTES + 1024 * 1024;

/// Longest first message: a hello with the heads of as many origins as there can be.
pub const MAX_HELLO_BYTES: usize = 512 * 1024;

/// Bytes of a head, and of a member, in a hello.
const HEAD_BYTES: usize = 52;
const MEMBER_BYTES: usize = 9;

const _: () = assert!(
    (MAX_ORIGINS + SPARE_ORIGINS) * (HEAD_BYTES + MEMBER_BYTES) + 1024 <= MAX_HELLO_BYTES,
    "whoever holds as many origins as there can be can say hello"
);

/// Bytes before the kind of a message: its length.
pub const LENGTH_BYTES: usize = 4;

/// The last frame held of each origin, with the chain up to it.
pub type Heads = BTreeMap<Origin, (Sequence, Chain)>;

/// The first message: who speaks, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Brokers of other clusters are refused.
    pub cluster: ClusterId,
    /// Under which identity it writes.
    pub origin: Origin,
    /// Where it stands.
    pub region: RegionName,
    /// What it holds. Where both hold the same last frame of an origin, the chains must be equal.
    pub heads: Heads,
    /// Who belongs to the cluster, as its log says.
    pub members: BTreeMap<BrokerId, Standing>,
    /// Whether its cluster is founded, so that somebody may have dropped what only late frames need.
    pub complete: bool,
}

impl Hello {
    /// What it holds.
    #[must_use]
    pub fn vector(&self) -> VersionVector {
        let heads = self.heads.iter();
        heads
            .map(|(&origin, &(sequence, _))| (origin, sequence))
            .collect()
    }

    /// What of it says who it is and what it belongs to.
    #[must_use]
    pub fn greeting(&self) -> Greeting {
        Greeting {
            origin: self.origin,
            region: self.region.clone(),
            holds: self.vector(),
            members: self.members.clone(),
            complete: self.complete,
        }
    }

    /// An origin of whom both hold the same last frame, under different chains.
    #[must_use]
    pub fn fork(&self, heads: &Heads) -> Option<Origin> {
        self.heads.iter().find_map(|(origin, mine)| {
            let theirs = heads.get(origin)?;
            (mine.0 == theirs.0 && mine.1 != theirs.1).then_some(*origin)
        })
    }
}

/// A message between brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// Who speaks.
    Hello(Hello),
    /// What is wanted from now on, instead of what was asked for before.
    Ask {
        /// Which frames.
        ask: Ask,
        /// Bytes of items that may be on their way, before credit is given back.
        window: u64,
    },
    /// Frames.
    Block {
        /// Whether the block's bodies are compressed with zstd.
        compressed: bool,
        /// Bytes of the bodies without compression.
        inflated: u32,
        /// The block.
        block: Block,
    },
    /// So many more bytes may be sent.
    Credit(u64),
    /// What brokers have applied.
    Reports(Vec<Report>),
    /// The link ends.
    Bye {
        /// Why, as everywhere.
        code: Code,
        /// The same in words.
        message: String,
    },
    /// Nothing is new; the link is alive.
    Ping,
    /// What some rows come to. Who has the same frames and other rows answers with smaller spans.
    Audit(Audit),
    /// The frames of an origin from this one on do not come over this link: the sender holds a stub
    /// where the other side may hold all. It counts until the next ask.
    Withheld(Origin, Sequence),
    /// Brokers that may have forgotten what they reported ask what there is.
    Recalls(Vec<Recall>),
    /// What the sender holds, which may have forgotten what it reported. Its frames to come need not
    /// follow that.
    Held(VersionVector),
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// They end early, or hold a number or text that is out of range.
    #[error("a message between brokers is malformed")]
    Malformed,
    /// They are not those that were sent.
    #[error("a message between brokers was damaged on its way")]
    Crc,
    /// The other side is something else.
    #[error("the other side does not speak the protocol between brokers")]
    Magic,
    /// Frames that came as differences are not those that were sent.
    #[error("frames that came as differences are not those that were sent")]
    Proof,
    /// A kind that is unknown here.
    #[error(
        "a message between brokers has the unknown kind {0}; is one of them of a newer version?"
    )]
    Kind(u8),
}
