//! Blocks of what a peer wants, read from the log.

use anabranch_core::exchange::Ask;
use anabranch_core::id::{Origin, Position, Sequence};
use anabranch_protocol::peer::block::{self, BlockWriter};
use anabranch_protocol::peer::{Encoder, PeerMessage};
use bytes::BytesMut;

use super::packing::Packer;
use crate::node::{Peer, Running, Shipped};

/// A block, ready for the socket.
pub(super) struct Block {
    pub(super) message: BytesMut,
    pub(super) frames: u64,
    pub(super) credit: u64,
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

/// The next frames that are wanted.
pub(super) fn make_block(
    running: &Running,
    (to, mut ask): (&Peer, Ask),
    from: Position,
    max_bytes: usize,
    (writer, packer): (&mut BlockWriter, Option<&mut Packer>),
) -> Result<Made, String> {
    let shipment = running.shipment((to, &ask), from, max_bytes);
    let mut shipment = shipment.map_err(|error| error.detail)?;
    let stops = running.residents.limit(&mut shipment, to, &mut ask);
    for item in &shipment.items {
        match item {
            Shipped::Frame(commit) => writer.put_frame(commit),
            Shipped::Gaps(gaps) => writer.put_gaps(gaps),
        }
    }
    let block = writer.take();
    let block = block.map(|block| pack(block, shipment.items.len() as u64, packer));
    Ok(Made {
        block: block.transpose()?,
        ask,
        stops,
        next: shipment.next,
    })
}

fn pack(
    mut block: block::Block,
    frames: u64,
    packer: Option<&mut Packer>,
) -> Result<Block, String> {
    let inflated = u32::try_from(block.bodies.len());
    let inflated = inflated.map_err(|_| "a block is too long".to_owned())?;
    let packed = packer.and_then(|packer| packer.pack(&block.bodies));
    let compressed = packed.is_some();
    block.bodies = packed.unwrap_or(block.bodies);
    let credit = u64::from(block.credit);
    let mut message = BytesMut::with_capacity(block.heads.len() + block.bodies.len() + 32);
    let block = PeerMessage::Block {
        compressed,
        inflated,
        block,
    };
    Encoder::default().encode(&block, &mut message);
    Ok(Block {
        message,
        frames,
        credit,
    })
}
