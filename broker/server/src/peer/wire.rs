//! Messages between brokers over a socket.

use std::io;

use anabranch_protocol::peer::{
    BadMessage, Decoder, LENGTH_BYTES, MAX_HELLO_BYTES, MAX_MESSAGE_BYTES, PeerMessage,
};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 256 * 1024;

/// With less room than this there is made more before the socket is read.
const LEAST_ROOM: usize = 64 * 1024;

/// Messages up to this length are copied out of the buffer. A frame is kept for as long as somebody
/// may want it, and would keep the whole buffer with it.
const COPY_BYTES: usize = 64 * 1024;

/// Why no message comes any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the connection")]
    Closed,
    #[error("a message of {0} bytes is more than there can be")]
    TooLong(usize),
    #[error(transparent)]
    Message(#[from] BadMessage),
}

/// The reading half.
#[derive(Debug)]
pub(super) struct Incoming<R> {
    socket: R,
    buffer: BytesMut,
    decoder: Decoder,
    /// Longest message that is taken.
    most: usize,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(super) fn new(socket: R) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
            decoder: Decoder::default(),
            most: MAX_HELLO_BYTES,
        }
    }

    /// The other side has said who it is, and may say more from now on.
    pub(super) fn greeted(&mut self) {
        self.most = MAX_MESSAGE_BYTES;
    }

    /// The next message. Cancel-safe: what has come is kept.
    pub(super) async fn next(&mut self) -> Result<PeerMessage, ReadError> {
        loop {
            let length = self.buffered_length()?;
            if let Some(length) = length
                && self.buffer.len() >= LENGTH_BYTES + length
            {
                self.buffer.advance(LENGTH_BYTES);
                let message = self.take(length);
                return Ok(self.decoder.decode(message)?);
            }
            if self.buffer.capacity() - self.buffer.len() < LEAST_ROOM {
                // Grows with what has come, not with what is claimed.
                self.buffer.reserve(READ_BYTES);
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadError::Closed);
            }
        }
    }

    fn take(&mut self, length: usize) -> Bytes {
        if length > COPY_BYTES {
            return self.buffer.split_to(length).freeze();
        }
        let message = Bytes::copy_from_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        message
    }

    fn buffered_length(&self) -> Result<Option<usize>, ReadError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        match length <= self.most {
            true => Ok(Some(length)),
            false => Err(ReadError::TooLong(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use anabranch_protocol::peer::Encoder;
    use anabranch_protocol::peer::block::Block;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn block(length: usize) -> PeerMessage {
        PeerMessage::Block {
            compressed: false,
            inflated: 0,
            block: Block {
                bodies: vec![7; length].into(),
                ..Block::default()
            },
        }
    }

    #[tokio::test]
    async fn messages_of_every_length_read_back_and_small_ones_keep_no_more_than_they_are() {
        let lengths = [
            0,
            1,
            100,
            COPY_BYTES - 26,
            COPY_BYTES,
            READ_BYTES,
            3_000_000,
        ];
        let (mut near, far) = tokio::io::duplex(10_000);
        let sending = tokio::spawn(async move {
            for length in lengths.iter().chain(lengths.iter().rev()) {
                let mut bytes = BytesMut::new();
                Encoder::default().encode(&block(*length), &mut bytes);
                near.write_all(&bytes).await.unwrap();
            }
        });
        let mut incoming = Incoming::new(far);
        incoming.greeted();
        for length in lengths.iter().chain(lengths.iter().rev()) {
            let message = incoming.next().await.unwrap();
            assert!(message == block(*length), "{length}");
            let PeerMessage::Block { block, .. } = message else {
                panic!("it is a block")
            };
            if (1..=100).contains(length) {
                let held = block.bodies;
                drop(block.heads);
                let held = held.try_into_mut().unwrap().capacity();
                assert!(held < 200, "{length} bytes hold {held}");
            }
        }
        assert!(matches!(incoming.next().await, Err(ReadError::Closed)));
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_first_message_is_no_longer_than_a_hello() {
        let (mut near, far) = tokio::io::duplex(100);
        let length = u32::try_from(MAX_HELLO_BYTES + 1).unwrap();
        near.write_all(&length.to_le_bytes()).await.unwrap();
        let refused = Incoming::new(far).next().await;
        assert!(matches!(refused, Err(ReadError::TooLong(_))), "{refused:?}");
    }
}
