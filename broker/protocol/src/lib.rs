//! What crosses a socket, shared by the broker and its clients.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | every error code, and the problem that carries it |
//! | [`record`] | records in messages, their JSON form, and batches made of them |
//! | [`position`] | where a subscription or a read starts |
//! | [`ws`] | the messages of the WebSocket protocol |
//! | [`peer`] | the messages between brokers |
//! | [`codec`] | their two encodings: `MessagePack` and JSON |
//! | [`http`] | the JSON shapes of the HTTP interface |
//!
//! Decoding borrows from the message, never panics, and never takes memory because of a length
//! that the other side claims.

pub mod codec;
pub mod error;
pub mod http;
pub mod peer;
pub mod position;
pub mod record;
pub mod ws;

mod msgpack;
