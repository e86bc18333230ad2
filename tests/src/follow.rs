//! What a subscription was given, in order.

use std::net::SocketAddr;

use anabranch_core::id::{Dot, Offset, PartitionId};
use anabranch_protocol::error::Problem;
use anabranch_protocol::ws::{
    ClientMessage, Deliver, PartPayload, ServerMessage, Subscribe, SubscriptionId,
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
    /// Subscribes.
    pub async fn start(address: SocketAddr, subscribe: Subscribe<'_>) -> Self {
        let mut wire = Wire::connect(address).await;
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

/// The records of one message.
///
/// # Panics
/// When it carries a batch.
#[must_use]
pub fn frame(deliver: &Deliver<'_>) -> Came {
    let mut records = Vec::new();
    for part in &deliver.parts {
        let PartPayload::Records(delivered) = &part.payload else {
            panic!("records were asked for");
        };
        for record in delivered {
            let behind = record.offset.get() - part.offset.get();
            let owned = |field: &Option<std::borrow::Cow<'_, [u8]>>| {
                field.as_ref().map(|bytes| bytes.to_vec())
            };
            let value = match record.record.is_delete() {
                true => None,
                false => owned(&record.record.value),
            };
            records.push(Got {
                dot: Dot {
                    origin: deliver.origin,
                    sequence: deliver.sequence,
                    index: part.index + u32::try_from(behind).unwrap(),
                },
                partition: part.partition,
                offset: record.offset,
                key: owned(&record.record.key),
                value,
            });
        }
    }
    Came::Frame {
        records,
        cursor: deliver.cursor.clone().into_owned(),
    }
}
