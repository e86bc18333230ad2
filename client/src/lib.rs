//! Rust client for Anabranch, a broker whose streams are tables.
//!
//! ```no_run
//! use anabranch_client::{Client, From, MergeMode, Record, StreamDefinition, StreamName};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7070").await?;
//! let name = StreamName::parse("orders")?;
//! client.create_stream(&StreamDefinition::new(name, MergeMode::Lww)).await?;
//!
//! let orders = client.stream("orders");
//! let ack = orders.publish(Record::put(&b"4711"[..], &b"{\"total\":12}"[..])).await?;
//! println!("on disk at offset {:?}", ack.offset);
//! println!("{:?}", orders.row(b"4711").await?);
//!
//! let mut changes = orders.subscribe(From::Earliest).await?;
//! let record = changes.next_record().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `client` | [`Client`]: streams, transactions, administration |
//! | `stream` | [`StreamHandle`]: publish, subscribe, rows |
//! | [`publisher`] | [`Publisher`]: pipelined, in order, each record once |
//! | [`subscription`] | [`Subscription`] and [`Watch`]: they resume by themselves |
//! | [`connection`] | a WebSocket connection, message by message |
//!
//! Everything that waits has a time limit, and everything that queues has a size limit.

mod ack;
mod address;
mod backoff;
mod client;
pub mod connection;
mod delivered;
mod error;
mod http;
pub mod publisher;
mod stream;
pub mod subscription;
mod tcp;

pub use ack::Ack;
pub use address::{Address, DEFAULT_PORT};
pub use client::{Client, ClientBuilder, Transaction};
pub use delivered::{Delivered, Row};
pub use error::Error;
pub use publisher::{AckFuture, Publisher, PublisherOptions};
pub use stream::{Read, ReadOptions, RowRange, RowValue, Rows, StreamHandle};
pub use subscription::{Event, SubscribeOptions, Subscription, Watch};

pub use anabranch_core::batch::Operation;
pub use anabranch_core::cursor::Order;
pub use anabranch_core::id::{Dot, Offset, PartitionId, StreamName};
pub use anabranch_core::stream::{MergeMode, Retention, StreamDefinition};
pub use anabranch_protocol::codec::Codec;
pub use anabranch_protocol::error::{Code, Problem};
pub use anabranch_protocol::http::{PublishAnswer, Regions, StreamInfo};
pub use anabranch_protocol::position::From;
pub use anabranch_protocol::record::Record;
pub use anabranch_protocol::ws::{AckLevel, Durability, KeyFilter};
