//! The WebSocket surface: publish, subscribe, acknowledgements, credit. Written down for clients
//! in `docs/protocol/websocket.md`.
//!
//! ```text
//!            ┌ inbound: decode → publishing (batches) → node ─┐
//! socket ────┤                                                ├ acks
//!            └ outbound: encode, feed, flush ← delivery ← subscriptions
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `handshake` | from an HTTP request to a connection |
//! | `inbound` | reads messages and acts on them |
//! | `publishing` | from a publish message to checked batches |
//! | `delivery` | one task per subscription: credit, encoding, slowness |
//! | `encode`, `acks` | messages as bytes |
//! | `outbound` | writes what the others have for the client |

mod acks;
mod delivery;
mod encode;
mod handshake;
mod inbound;
mod outbound;
mod publishing;

pub(crate) use handshake::upgrade;
