//! A lean WebSocket connection: messages that were framed ahead go out as they are, and messages
//! that come in are looked at in place.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;

use anabranch_protocol::codec::{Codec, FrameKind};
use anabranch_protocol::ws::{self, ClientMessage, Hello, ServerMessage};
use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

const CODEC: Codec = Codec::Msgpack;

/// Clients have to mask what they send. A constant serves as well as a random number, since
/// nothing between here and the broker could be confused by what is sent.
const MASK: [u8; 4] = [0x5a, 0xc3, 0x96, 0x1f];

const FINAL_BINARY: u8 = 0x82;
const FINAL_PING: u8 = 0x89;
const FINAL_PONG: u8 = 0x8a;
const FINAL_CLOSE: u8 = 0x88;

/// Room for what comes in; grows to the longest message.
const BUFFER_BYTES: usize = 64 * 1024;

/// Appends a message as a masked frame.
pub(crate) fn put_message(out: &mut Vec<u8>, message: &ClientMessage<'_>, scratch: &mut Vec<u8>) {
    scratch.clear();
    CODEC.encode_client(message, scratch);
    put_frame(out, FINAL_BINARY, scratch);
}

fn put_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    let length = payload.len() as u64;
    let [.., high, low] = length.to_be_bytes();
    match length {
        0..=125 => out.push(0x80 | low),
        126..=0xffff => out.extend_from_slice(&[0x80 | 126, high, low]),
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let begin = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[begin..]);
}

fn mask(payload: &mut [u8]) {
    let mut words = payload.chunks_exact_mut(4);
    for word in &mut words {
        word.iter_mut()
            .zip(MASK)
            .for_each(|(byte, mask)| *byte ^= mask);
    }
    let rest = words.into_remainder();
    rest.iter_mut()
        .zip(MASK)
        .for_each(|(byte, mask)| *byte ^= mask);
}

/// Connects and exchanges greetings.
pub(crate) async fn open(address: SocketAddr) -> Result<(Transmitter, Receiver)> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{address}{}", ws::PATH);
    let mut request = url.into_client_request()?;
    let subprotocol = HeaderValue::from_static(CODEC.subprotocol());
    request
        .headers_mut()
        .insert("sec-websocket-protocol", subprotocol);
    let (socket, _) = client_async(request, stream)
        .await
        .context("the broker refuses the WebSocket")?;
    // Nothing has been read ahead: a broker says nothing before it is greeted.
    let stream = Rc::new(socket.into_inner());
    let pong = Rc::new(RefCell::new(Vec::new()));
    let transmitter = Transmitter {
        stream: Rc::clone(&stream),
        pong: Rc::clone(&pong),
    };
    let mut receiver = Receiver {
        stream,
        buffer: vec![0; BUFFER_BYTES],
        unread: 0..0,
        received: 0,
        pong,
    };
    let hello = ClientMessage::Hello(Hello {
        version: ws::VERSION,
        client: Some("anabranch bench".into()),
        cluster: None,
    });
    transmitter.send(&hello).await?;
    match receiver.message().await? {
        ServerMessage::Hello(_) => Ok((transmitter, receiver)),
        other => bail!("the broker greets with {other:?}"),
    }
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Transmitter {
    stream: Rc<TcpStream>,
    pong: Rc<RefCell<Vec<u8>>>,
}

impl Transmitter {
    /// Frames and sends a message.
    pub(crate) async fn send(&self, message: &ClientMessage<'_>) -> Result<()> {
        let mut frame = Vec::new();
        put_message(&mut frame, message, &mut Vec::new());
        self.write(&frame).await
    }

    /// Sends frames that are complete, and an answer to a ping if one is due.
    pub(crate) async fn write(&self, frames: &[u8]) -> Result<()> {
        let pong = std::mem::take(&mut *self.pong.borrow_mut());
        self.write_all(&pong).await?;
        self.write_all(frames).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                }
                Err(error) => return Err(error).context("the broker closed the connection"),
            }
        }
        Ok(())
    }
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: Rc<TcpStream>,
    buffer: Vec<u8>,
    unread: Range<usize>,
    received: u64,
    /// Frames that answer pings; the transmitter sends them between messages.
    pong: Rc<RefCell<Vec<u8>>>,
}

impl Receiver {
    /// The next message. Dropping the future loses nothing.
    pub(crate) async fn message(&mut self) -> Result<ServerMessage<'_>> {
        let payload = loop {
            let (kind, payload) = self.frame().await?;
            match kind {
                FINAL_BINARY => break payload,
                FINAL_PING => {
                    let answer = &self.buffer[payload];
                    put_frame(&mut self.pong.borrow_mut(), FINAL_PONG, answer);
                }
                FINAL_PONG => {}
                FINAL_CLOSE => {
                    let reason = self.buffer[payload].get(2..).unwrap_or_default();
                    bail!(
                        "the broker ends the connection: {}",
                        String::from_utf8_lossy(reason)
                    );
                }
                other => bail!("the broker sent a frame of kind {other:#x}"),
            }
        };
        self.received += payload.len() as u64;
        let message = CODEC.decode_server(FrameKind::Binary, &self.buffer[payload])?;
        match message {
            ServerMessage::Error(error) => {
                let problem = error.problem;
                bail!("{} {}", problem.code.code(), problem.detail)
            }
            message => Ok(message),
        }
    }

    /// Bytes of all messages so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Whether a ping waits for its answer.
    pub(crate) fn pong_is_due(&self) -> bool {
        !self.pong.borrow().is_empty()
    }

    /// The next frame: its first byte, and where its payload is.
    async fn frame(&mut self) -> Result<(u8, Range<usize>)> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let wanted = match FrameHead::read(unread) {
                Some(head) if unread.len() >= head.bytes + head.payload => {
                    let begin = self.unread.start + head.bytes;
                    let end = begin + head.payload;
                    self.unread.start = end;
                    return Ok((head.kind, begin..end));
                }
                Some(head) => head.bytes + head.payload,
                None => FrameHead::LONGEST,
            };
            self.fill(wanted).await?;
        }
    }

    /// Reads more, with room for a frame of this length.
    async fn fill(&mut self, frame: usize) -> Result<()> {
        if self.unread.start + frame > self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if frame > self.buffer.len() {
                self.buffer.resize(frame.next_power_of_two(), 0);
            }
        }
        loop {
            match self.stream.try_read(&mut self.buffer[self.unread.end..]) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(read) => {
                    self.unread.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.stream.readable().await?;
                }
                Err(error) => return Err(error).context("the broker closed the connection"),
            }
        }
    }
}

/// The head of a frame from a broker, which is not masked.
struct FrameHead {
    kind: u8,
    /// Its own length.
    bytes: usize,
    /// Length of what follows.
    payload: usize,
}

impl FrameHead {
    const LONGEST: usize = 10;

    /// `None` until it is complete.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (bytes, payload) = match short {
            126 => (4, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*rest.first_chunk()?)),
            short => (2, u64::from(short)),
        };
        let payload = usize::try_from(payload).ok()?;
        Some(Self {
            kind,
            bytes,
            payload,
        })
    }
}

/// The payloads of masked frames, one after the other.
#[cfg(test)]
pub(crate) fn unframed(mut frames: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while let [kind, length, rest @ ..] = frames {
        assert_eq!(*kind, FINAL_BINARY);
        let (length, rest) = match length & 0x7f {
            126 => (
                u64::from(u16::from_be_bytes(rest[..2].try_into().unwrap())),
                &rest[2..],
            ),
            127 => (
                u64::from_be_bytes(rest[..8].try_into().unwrap()),
                &rest[8..],
            ),
            short => (u64::from(short), rest),
        };
        assert_eq!(rest[..4], MASK);
        let length = usize::try_from(length).unwrap();
        let mut payload = rest[4..4 + length].to_vec();
        mask(&mut payload);
        payloads.push(payload);
        frames = &rest[4 + length..];
    }
    payloads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_read_back() {
        for length in [0usize, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            let mut out = Vec::new();
            put_frame(&mut out, FINAL_BINARY, &payload);
            assert_eq!(unframed(&out), [payload]);
        }
    }

    #[test]
    fn heads_are_read_once_they_are_complete() {
        let head = FrameHead::read(&[0x82, 126, 1, 0]).unwrap();
        assert_eq!((head.kind, head.bytes, head.payload), (0x82, 4, 256));
        assert!(FrameHead::read(&[0x82, 126, 1]).is_none());
        assert!(FrameHead::read(&[0x82, 127, 0, 0, 0, 0, 0, 0, 1]).is_none());
        assert_eq!(FrameHead::read(&[0x89, 3]).unwrap().payload, 3);
    }
}
