//! What a subscription was given, in order.

use std::borrow::Cow;
use std::net::SocketAddr;

use anabranch_core::batch::Batch;
use anabranch_core::id::{Dot, Offset, PartitionId};
use anabranch_protocol::codec::Codec;
use anabranch_protocol::error::Problem;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{
    ClientMessage, Deliver, Delivered, Part, PartPayload, ServerMessage, Subscribe, SubscriptionId,
};

use crate::wire::{Closed, Wire};

/// A record that was delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Got {
    /// Its global name.
    pub dot: Dot,
    /// Its partition.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` for a deletion.
    pub value: Option<Vec<u8>>,
}

impl Got {
    /// Its value as text.
    ///
    /// # Panics
    /// When it has none, or it is not text.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().unwrap()).unwrap()
    }
}

/// What came next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Came {
    /// The records of one frame.
    Frame {
        /// Those that the subscription asked for.
        records: Vec<Got>,
        /// Where to resume after it.
        cursor: String,
    },
    /// Rows of the table: key and value.
    Rows(Vec<(Vec<u8>, Vec<u8>)>),
    /// All rows were given.
    Live {
        /// Where to resume.
        cursor: String,
    },
    /// It was ended as asked.
    Unsubscribed {
        /// Where to resume.
        cursor: String,
    },
    /// It was refused or ended.
    Refused(Problem),
    /// The connection ended.
    Closed(Closed),
}

/// One subscription on a connection of its own.
#[derive(Debug)]
pub struct Follower {
    wire: Wire,
    subscription: SubscriptionId,
}

impl Follower {
    /// Subscribes, in `MessagePack`.
    pub async fn start(address: SocketAddr, subscribe: Subscribe<'_>) -> Self {
        Self::start_as(address, Codec::Msgpack, subscribe).await
    }

    /// Subscribes.
    pub async fn start_as(address: SocketAddr, codec: Codec, subscribe: Subscribe<'_>) -> Self {
        let mut wire = Wire::connect_as(address, codec).await;
        let subscription = subscribe.subscription;
        wire.send(&ClientMessage::Subscribe(subscribe)).await;
        Self { wire, subscription }
    }

    /// The connection.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// What comes next, in time.
    ///
    /// # Panics
    /// When nothing does.
    pub async fn next(&mut self) -> Came {
        crate::condition::soon("something delivered", self.next_unhurried()).await
    }

    /// What comes next, whenever it does.
    ///
    /// # Panics
    /// When it is for another subscription.
    pub async fn next_unhurried(&mut self) -> Came {
        let incoming = match self.wire.next_unhurried().await {
            Ok(incoming) => incoming,
            Err(closed) => return Came::Closed(closed),
        };
        let (of, came) = match incoming.message() {
            ServerMessage::Deliver(deliver) => (deliver.subscription, frame(&deliver)),
            ServerMessage::Rows { subscription, rows } => {
                let rows = rows.into_iter();
                let owned = rows.map(|row| (row.key.into_owned(), row.value.into_owned()));
                (subscription, Came::Rows(owned.collect()))
            }
            ServerMessage::Live {
                subscription,
                cursor,
            } => {
                let cursor = cursor.into_owned();
                (subscription, Came::Live { cursor })
            }
            ServerMessage::Unsubscribed {
                subscription,
                cursor,
            } => {
                let cursor = cursor.into_owned();
                (subscription, Came::Unsubscribed { cursor })
            }
            ServerMessage::Error(error) => (
                error.subscription.unwrap_or(self.subscription),
                Came::Refused(error.problem),
            ),
            other => panic!("not for a subscriber: {other:?}"),
        };
        assert_eq!(of, self.subscription, "{came:?}");
        came
    }

    /// The next records, at least so many, and where to resume after them.
    ///
    /// # Panics
    /// When something else comes, or too little in time.
    pub async fn records(&mut self, at_least: usize) -> (Vec<Got>, String) {
        let (mut all, mut last) = (Vec::new(), String::new());
        while all.len() < at_least {
            match self.next().await {
                Came::Frame { records, cursor } => {
                    all.extend(records);
                    last = cursor;
                }
                other => panic!("after {} of {at_least} records: {other:?}", all.len()),
            }
        }
        (all, last)
    }

    /// Waits until it is live, without rows, and says where that is.
    ///
    /// # Panics
    /// When something else comes.
    pub async fn live(&mut self) -> String {
        let (rows, cursor) = self.table().await;
        assert_eq!(rows, []);
        cursor
    }

    /// The rows of the table up to where it goes live, and where that is.
    ///
    /// # Panics
    /// When something else comes.
    pub async fn table(&mut self) -> (Vec<(Vec<u8>, Vec<u8>)>, String) {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Came::Rows(rows) => all.extend(rows),
                Came::Live { cursor } => return (all, cursor),
                other => panic!("among rows: {other:?}"),
            }
        }
    }

    /// Gives more credit.
    pub async fn grant(&mut self, bytes: u64) {
        let subscription = self.subscription;
        let message = ClientMessage::Credit {
            subscription,
            bytes,
        };
        self.wire.send(&message).await;
    }
}

/// The records of one message, however they come.
fn frame(deliver: &Deliver<'_>) -> Came {
    let mut records = Vec::new();
    for part in &deliver.parts {
        match &part.payload {
            PartPayload::Records(delivered) => {
                let got = |it: &Delivered<'_>| got(deliver, part, it.offset, &it.record);
                records.extend(delivered.iter().map(got));
            }
            PartPayload::Batch(bytes) => {
                let batch = Batch::reopen(bytes.to_vec().into()).unwrap();
                for record in batch.records().unwrap().iter() {
                    let record = record.unwrap();
                    let offset = part.offset.advance(u64::from(record.offset_delta));
                    records.push(got(deliver, part, offset, &Record::from(&record)));
                }
            }
        }
    }
    Came::Frame {
        records,
        cursor: deliver.cursor.clone().into_owned(),
    }
}

fn got(deliver: &Deliver<'_>, part: &Part<'_>, offset: Offset, record: &Record<'_>) -> Got {
    let owned = |field: &Option<Cow<'_, [u8]>>| field.as_ref().map(|bytes| bytes.to_vec());
    let behind = offset.get() - part.offset.get();
    Got {
        dot: Dot {
            origin: deliver.origin,
            sequence: deliver.sequence,
            index: part.index + u32::try_from(behind).unwrap(),
        },
        partition: part.partition,
        offset,
        key: owned(&record.key),
        value: owned(&record.value).filter(|_| !record.is_delete()),
    }
}
