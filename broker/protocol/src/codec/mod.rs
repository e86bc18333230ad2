//! Messages to bytes and back, in the two subprotocols.
//!
//! Both carry the same messages as maps with string names. In `MessagePack`, keys, values and
//! batches are binary; in JSON they have the forms of [`crate::record::json`], and batches are
//! base64.

mod decode;
mod decode_json;
mod encode;
mod error;
mod fields;
mod form;
mod stream;
#[cfg(test)]
mod tests;

pub use error::{DecodeError, Reason};
pub use stream::{AckEncoder, AckHead, DeliverEncoder, DeliverHead, PartHead, encode_rows};

use crate::ws::{ClientMessage, ServerMessage};
use form::{Json, Msgpack};

/// How messages are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Codec {
    /// `MessagePack` in binary frames; subprotocol `anabranch.v1.msgpack`.
    Msgpack,
    /// JSON in text frames; subprotocol `anabranch.v1.json`.
    Json,
}

/// What kind of WebSocket frame a message came in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameKind {
    /// A text frame.
    Text,
    /// A binary frame.
    Binary,
}

impl FrameKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Binary => "binary",
        }
    }
}

impl Codec {
    /// Both, the faster first.
    pub const ALL: [Self; 2] = [Self::Msgpack, Self::Json];

    /// The name in `Sec-WebSocket-Protocol`.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Msgpack => "anabranch.v1.msgpack",
            Self::Json => "anabranch.v1.json",
        }
    }

    /// The first that a client's `Sec-WebSocket-Protocol` offers.
    #[must_use]
    pub fn offered(header: &str) -> Option<Self> {
        let mut offers = header.split(',').map(str::trim);
        offers.find_map(|name| {
            Self::ALL
                .into_iter()
                .find(|codec| codec.subprotocol() == name)
        })
    }

    /// The kind of frame its messages travel in.
    #[must_use]
    pub const fn frame_kind(self) -> FrameKind {
        match self {
            Self::Msgpack => FrameKind::Binary,
            Self::Json => FrameKind::Text,
        }
    }

    /// Reads what a client said. Unknown fields are refused.
    ///
    /// # Errors
    /// When the frame is of the wrong kind or not a message; see [`Reason`].
    pub fn decode_client<'a>(
        self,
        kind: FrameKind,
        message: &'a [u8],
    ) -> Result<ClientMessage<'a>, DecodeError> {
        self.check(kind)?;
        match self {
            Self::Msgpack => decode::client(message),
            Self::Json => decode_json::client(message),
        }
    }

    /// Reads what a broker said. Unknown fields are passed over.
    ///
    /// # Errors
    /// When the frame is of the wrong kind or not a message; see [`Reason`].
    pub fn decode_server<'a>(
        self,
        kind: FrameKind,
        message: &'a [u8],
    ) -> Result<ServerMessage<'a>, DecodeError> {
        self.check(kind)?;
        match self {
            Self::Msgpack => decode::server(message),
            Self::Json => decode_json::server(message),
        }
    }

    fn check(self, kind: FrameKind) -> Result<(), Reason> {
        match kind == self.frame_kind() {
            true => Ok(()),
            false => Err(Reason::FrameKind { codec: self, kind }),
        }
    }

    /// Appends what a client says.
    pub fn encode_client(self, message: &ClientMessage<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Msgpack => encode::client(&mut Msgpack::new(out), message),
            Self::Json => encode::client(&mut Json::new(out), message),
        }
    }

    /// Appends what a broker says.
    pub fn encode_server(self, message: &ServerMessage<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Msgpack => encode::server(&mut Msgpack::new(out), message),
            Self::Json => encode::server(&mut Json::new(out), message),
        }
    }
}
