//! The sequencer's state as bytes, which saves replaying the log from its start.

use bytes::BufMut;

use super::{Head, ReplayError, Sequencer};
use crate::clock::HybridTimestamp;
use crate::frame::Chain;
use crate::id::{BrokerId, Epoch, Offset, Origin, PartitionId, Position, Sequence, StreamId};
use crate::members::Members;
use crate::producer::ProducerTable;
use crate::vector::VersionVector;
use crate::wire::{Malformed, Reader, put_varint};

impl Sequencer {
    /// The state as bytes, for the end of a sealed segment.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_origin(&mut out, self.origin);
        out.put_u64_le(self.next_position.get());
        out.put_u64_le(self.clock.0.last().get());
        put_varint(&mut out, self.heads.len() as u64);
        for (&origin, head) in &self.heads {
            put_origin(&mut out, origin);
            out.put_u64_le(head.sequence.get());
            out.put_slice(head.chain.as_bytes());
        }
        self.news.encode(&mut out);
        put_varint(&mut out, self.awaited.len() as u64);
        for (&origin, wanted) in &self.awaited {
            put_origin(&mut out, origin);
            wanted.encode(&mut out);
        }
        let mut offsets: Vec<_> = self.offsets.iter().collect();
        offsets.sort_unstable();
        put_varint(&mut out, offsets.len() as u64);
        for (&(stream, partition), offset) in offsets {
            out.put_u64_le(stream.get());
            out.put_u16_le(partition.get());
            put_varint(&mut out, offset.get());
        }
        self.producers.encode(&mut out);
        self.members.encode(&mut out);
        out
    }

    /// The state that a checkpoint was made of.
    ///
    /// # Errors
    /// When the bytes are no checkpoint.
    pub fn restore(checkpoint: &[u8]) -> Result<Self, ReplayError> {
        let mut reader = Reader::new(checkpoint);
        let mut state = Self::new(read_origin(&mut reader)?);
        state.next_position = Position::new(reader.u64()?);
        state.clock.0.observe(HybridTimestamp::new(reader.u64()?));
        for _ in 0..reader.varint()? {
            let origin = read_origin(&mut reader)?;
            let sequence = Sequence::new(reader.u64()?);
            let mut chain = [0; 32];
            chain.copy_from_slice(reader.take(32)?);
            state.heads.insert(
                origin,
                Head {
                    sequence,
                    chain: Chain::new(chain),
                },
            );
        }
        state.news = VersionVector::read(&mut reader)?;
        for _ in 0..reader.varint()? {
            let origin = read_origin(&mut reader)?;
            let wanted = VersionVector::read(&mut reader)?;
            state.awaited.insert(origin, wanted);
        }
        for _ in 0..reader.varint()? {
            let key = (
                StreamId::new(reader.u64()?),
                PartitionId::new(reader.u16()?),
            );
            state.offsets.insert(key, Offset::new(reader.varint()?));
        }
        state.producers = ProducerTable::read(&mut reader)?;
        state.members = Members::read(&mut reader)?;
        if reader.is_empty() {
            Ok(state)
        } else {
            Err(ReplayError::Checkpoint)
        }
    }
}

fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    out.put_u64_le(origin.broker.get());
    out.put_u32_le(origin.epoch.get());
}

fn read_origin(reader: &mut Reader<'_>) -> Result<Origin, Malformed> {
    Ok(Origin {
        broker: BrokerId::new(reader.u64()?),
        epoch: Epoch::new(reader.u32()?),
    })
}
