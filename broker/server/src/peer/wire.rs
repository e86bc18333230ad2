//! Messages between brokers over a socket.

use std::io;

use anabranch_protocol::peer::{BadMessage, LENGTH_BYTES, MAX_MESSAGE_BYTES, PeerMessage, decode};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 256 * 1024;

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
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(super) fn new(socket: R) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
        }
    }

    /// The next message. Cancel-safe: what has come is kept.
    pub(super) async fn next(&mut self) -> Result<PeerMessage, ReadError> {
        loop {
            if let Some(length) = self.buffered_length()? {
                if self.buffer.len() >= LENGTH_BYTES + length {
                    self.buffer.advance(LENGTH_BYTES);
                    return Ok(decode(self.buffer.split_to(length).freeze())?);
                }
                // Grows with what has come, not with what is claimed.
                self.buffer.reserve(READ_BYTES.min(length + LENGTH_BYTES));
            } else {
                self.buffer.reserve(READ_BYTES);
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadError::Closed);
            }
        }
    }

    fn buffered_length(&self) -> Result<Option<usize>, ReadError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        match length <= MAX_MESSAGE_BYTES {
            true => Ok(Some(length)),
            false => Err(ReadError::TooLong(length)),
        }
    }
}
