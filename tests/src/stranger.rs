//! Somebody on the port of links who speaks as a broker, and may say anything.

use std::net::SocketAddr;

use anabranch_core::batch::{BatchBuilder, NewRecord};
use anabranch_core::clock::HybridTimestamp;
use anabranch_core::frame::{Chain, Commit, CommitPart, FrameHeader, PartHeader};
use anabranch_core::id::{
    BrokerId, Epoch, Offset, Origin, PartitionId, Position, RegionName, Sequence, StreamName,
};
use anabranch_core::members::Standing;
use anabranch_core::vector::VersionVector;
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::block::BlockWriter;
use anabranch_protocol::peer::{Decoder, Encoder, Heads, Hello, LENGTH_BYTES, PeerMessage};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::condition::soon;

/// A link that is up.
#[derive(Debug)]
pub struct Stranger {
    socket: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    writer: BlockWriter,
    /// What the broker has said of itself.
    pub hello: Hello,
}

/// The first identity of a broker.
#[must_use]
pub fn origin(broker: u64) -> Origin {
    Origin {
        broker: BrokerId::new(broker),
        epoch: Epoch::new(1),
    }
}

impl Stranger {
    /// Links as this broker, which holds nothing.
    pub async fn link(address: SocketAddr, broker: u64) -> Self {
        Self::link_holding(address, broker, |_| Heads::new()).await
    }

    /// Links as this broker, which claims to hold something.
    ///
    /// # Panics
    /// When the broker says nothing.
    pub async fn link_holding(
        address: SocketAddr,
        broker: u64,
        heads: impl FnOnce(&Hello) -> Heads,
    ) -> Self {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut decoder = Decoder::default();
        let hello = match read(&mut socket, &mut decoder).await {
            Some(PeerMessage::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        };
        let mut stranger = Self {
            socket,
            encoder: Encoder::default(),
            decoder,
            writer: BlockWriter::default(),
            hello,
        };
        // A member, as it says, of a cluster that is founded: nobody has to be made one, so the broker writes
        // nothing for this link's sake.
        let mut members = stranger.hello.members.clone();
        members.insert(BrokerId::new(broker), Standing::Active);
        let own = Hello {
            cluster: stranger.hello.cluster,
            origin: origin(broker),
            region: RegionName::parse("elsewhere").unwrap(),
            heads: heads(&stranger.hello),
            members,
            complete: true,
        };
        stranger.say(&PeerMessage::Hello(own)).await;
        stranger
    }

    /// Says something. The broker may have ended the link meanwhile.
    pub async fn say(&mut self, message: &PeerMessage) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(message, &mut bytes);
        let _ = self.socket.write_all(&bytes).await;
    }

    /// Ships frames.
    ///
    /// # Panics
    /// When they are too many for one block.
    pub async fn ship(&mut self, frames: &[Commit]) {
        for frame in frames {
            self.writer.put_frame(frame);
        }
        let Some(block) = self.writer.take() else {
            return;
        };
        let block = PeerMessage::Block {
            compressed: false,
            inflated: u32::try_from(block.bodies.len()).unwrap(),
            block,
        };
        self.say(&block).await;
    }

    /// Waits until the broker ends the link, and says why.
    ///
    /// # Panics
    /// When it ends it without a word.
    pub async fn bye(&mut self) -> (Code, String) {
        loop {
            match read(&mut self.socket, &mut self.decoder).await {
                Some(PeerMessage::Bye { code, message }) => return (code, message),
                Some(_) => {}
                None => panic!("it has ended the link without a word"),
            }
        }
    }
}

async fn read(socket: &mut TcpStream, decoder: &mut Decoder) -> Option<PeerMessage> {
    let mut length = [0; LENGTH_BYTES];
    let read = soon("a message", socket.read_exact(&mut length)).await;
    read.ok()?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    let read = soon("its end", socket.read_exact(&mut bytes)).await;
    read.ok()?;
    Some(decoder.decode(bytes.into()).unwrap())
}

/// A frame with one record for the stream `events`, after an origin's frame of this chain.
///
/// # Panics
/// Never.
#[must_use]
pub fn frame(origin: Origin, sequence: u64, previous: Chain) -> Commit {
    let mut batch = BatchBuilder::default();
    let record = NewRecord {
        value: Some(b"made up"),
        ..NewRecord::default()
    };
    batch.push(&record).unwrap();
    let batch = batch.finish(None).unwrap();
    let part = PartHeader {
        stream: StreamName::parse("events").unwrap().id(),
        partition: PartitionId::new(0),
        records: 1,
        length: u32::try_from(batch.len()).unwrap(),
        crc: batch.crc(),
    };
    let mut header = FrameHeader {
        origin,
        sequence: Sequence::new(sequence),
        timestamp: HybridTimestamp::from_millis(1000),
        context: VersionVector::EMPTY,
        chain: Chain::START,
        parts: vec![part],
    };
    let header_bytes = header.seal(previous);
    Commit {
        position: Position::new(0),
        header,
        header_bytes,
        parts: vec![CommitPart {
            header: part,
            base_offset: Offset::new(0),
            first_index: 0,
            batch: Some(batch),
        }],
    }
}
