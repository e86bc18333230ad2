//! Blocks of what a peer wants, read from the log.

use anabranch_core::exchange::Ask;
use anabranch_core::id::{Origin, Position, Sequence};
use anabranch_protocol::peer::{PeerMessage, block, encode};
use bytes::{Bytes, BytesMut};

use super::packing::Packer;
use crate::node::{Peer, Running, Shipped};

/// A block, ready for the socket.
pub(super) struct Block {
    pub(super) message: BytesMut,
    pub(super) frames: u64,
    pub(super) raw: u64,
}

/// What was read from the log.
pub(super) struct Made {
    pub(super) block: Option<Block>,
    /// What is to be shipped from now on.
    pub(super) ask: Ask,
    /// The origins that are not shipped any more, and where that begins.
    pub(super) stops: Vec<(Origin, Sequence)>,
    /// Where to go on.
    pub(super) next: Position,
}

/// At most, but for gaps.
fn bytes_of(item: &Shipped) -> usize {
    match item {
        Shipped::Frame(commit) => block::frame_bytes(commit),
        Shipped::Gaps(_) => 0,
    }
}

/// The next frames that are wanted.
pub(super) fn make_block(
    running: &Running,
    (to, mut ask): (&Peer, Ask),
    from: Position,
    max_bytes: usize,
    packer: Option<&mut Packer>,
) -> Result<Made, String> {
    let shipment = running.shipment((to, &ask), from, max_bytes);
    let mut shipment = shipment.map_err(|error| error.detail)?;
    let stops = running.residents.limit(&mut shipment, to, &mut ask);
    let mut items = BytesMut::with_capacity(shipment.items.iter().map(bytes_of).sum());
    for item in &shipment.items {
        match item {
            Shipped::Frame(commit) => block::put_frame(commit, &mut items),
            Shipped::Gaps(gaps) => block::put_gaps(gaps, &mut items),
        }
    }
    let block = match shipment.items.len() {
        0 => None,
        frames => Some(pack(items.freeze(), frames as u64, packer)?),
    };
    Ok(Made {
        block,
        ask,
        stops,
        next: shipment.next,
    })
}

fn pack(items: Bytes, frames: u64, packer: Option<&mut Packer>) -> Result<Block, String> {
    let raw = items.len();
    let packed = packer.and_then(|packer| packer.pack(&items));
    let compressed = packed.is_some();
    let items = packed.unwrap_or(items);
    let mut message = BytesMut::with_capacity(items.len() + 16);
    let block = PeerMessage::Block {
        compressed,
        raw: u32::try_from(raw).map_err(|_| "a block is too long".to_owned())?,
        items,
    };
    encode(&block, &mut message);
    Ok(Block {
        message,
        frames,
        raw: raw as u64,
    })
}
