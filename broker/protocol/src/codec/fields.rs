//! The fields of a client's message, in whatever order and encoding they came, and the message
//! that they make.

use std::borrow::Cow;

use anabranch_core::cursor::Order;
use anabranch_core::id::PartitionId;
use anabranch_core::producer::ProducerStamp;

use super::error::{DecodeError, Reason, shown};
use crate::record::Record;
use crate::ws::{
    AckLevel, ClientMessage, Format, Hello, KeyFilter, Payload, Publish, Subscribe, SubscriptionId,
};

/// Which fields have come: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen(u32);

macro_rules! fields {
    ($($name:ident $text:literal $bytes:literal)*) => {
        /// The fields there are, in the order of their bits.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(super) enum Field { $($name),* }

        impl Field {
            const ALL: &'static [Self] = &[$(Self::$name),*];

            pub(super) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            #[inline]
            pub(super) fn named(name: &[u8]) -> Option<Self> {
                match name {
                    $($bytes => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

fields! {
    Kind "type" b"type"
    Id "id" b"id"
    Stream "stream" b"stream"
    Batch "batch" b"batch"
    Records "records" b"records"
    Partition "partition" b"partition"
    Producer "producer" b"producer"
    Ack "ack" b"ack"
    Version "version" b"version"
    Client "client" b"client"
    Cluster "cluster" b"cluster"
    Subscription "subscription" b"subscription"
    Partitions "partitions" b"partitions"
    Key "key" b"key"
    Prefix "prefix" b"prefix"
    From "from" b"from"
    Order "order" b"order"
    Format "format" b"format"
    Credit "credit" b"credit"
    Bytes "bytes" b"bytes"
}

impl Seen {
    const fn of(fields: &[Field]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < fields.len() {
            bits |= 1 << fields[at] as u32;
            at += 1;
        }
        Self(bits)
    }

    /// Notes a field; `false` when it has come before.
    #[inline]
    pub(super) fn note(&mut self, field: Field) -> bool {
        let bit = 1 << field as u32;
        let new = self.0 & bit == 0;
        self.0 |= bit;
        new
    }

    /// A field that is here but not in `allowed`.
    fn beyond(self, allowed: Self) -> Option<Field> {
        let beyond = self.0 & !allowed.0;
        let is_beyond = |&&field: &&Field| beyond & (1 << field as u32) != 0;
        match beyond {
            0 => None,
            _ => Field::ALL.iter().find(is_beyond).copied(),
        }
    }
}

const HELLO: Seen = Seen::of(&[Field::Kind, Field::Version, Field::Client, Field::Cluster]);
const PUBLISH: Seen = Seen::of(&[
    Field::Kind,
    Field::Id,
    Field::Stream,
    Field::Batch,
    Field::Records,
    Field::Partition,
    Field::Producer,
    Field::Ack,
]);
const SUBSCRIBE: Seen = Seen::of(&[
    Field::Kind,
    Field::Subscription,
    Field::Stream,
    Field::Partitions,
    Field::Key,
    Field::Prefix,
    Field::From,
    Field::Order,
    Field::Format,
    Field::Credit,
]);
const CREDIT: Seen = Seen::of(&[Field::Kind, Field::Subscription, Field::Bytes]);
const UNSUBSCRIBE: Seen = Seen::of(&[Field::Kind, Field::Subscription]);
const PING: Seen = Seen::of(&[Field::Kind, Field::Id]);

/// Whatever came.
#[derive(Default)]
pub(super) struct ClientFields<'a> {
    pub(super) seen: Seen,
    pub(super) kind: Option<Cow<'a, str>>,
    pub(super) id: Option<u64>,
    pub(super) stream: Option<Cow<'a, str>>,
    pub(super) batch: Option<Cow<'a, [u8]>>,
    pub(super) records: Option<Vec<Record<'a>>>,
    pub(super) partition: Option<PartitionId>,
    pub(super) producer: Option<ProducerStamp>,
    pub(super) ack: Option<Cow<'a, str>>,
    pub(super) version: Option<u64>,
    pub(super) client: Option<Cow<'a, str>>,
    pub(super) cluster: Option<Cow<'a, str>>,
    pub(super) subscription: Option<SubscriptionId>,
    pub(super) partitions: Vec<PartitionId>,
    pub(super) key: Option<Cow<'a, [u8]>>,
    pub(super) prefix: Option<Cow<'a, [u8]>>,
    pub(super) from: Option<Cow<'a, str>>,
    pub(super) order: Option<Cow<'a, str>>,
    pub(super) format: Option<Cow<'a, str>>,
    pub(super) credit: Option<u64>,
    pub(super) bytes: Option<u64>,
}

impl<'a> ClientFields<'a> {
    /// Says what an error is about.
    pub(super) fn blame(&self, reason: Reason) -> DecodeError {
        DecodeError {
            reason,
            id: self.id,
            subscription: self.subscription,
        }
    }

    /// The message that these fields make.
    pub(super) fn message(mut self) -> Result<ClientMessage<'a>, DecodeError> {
        let (id, subscription) = (self.id, self.subscription);
        let Some(kind) = self.kind.take() else {
            return Err(self.blame(Reason::NoType));
        };
        let message = match kind.as_ref() {
            "publish" => self.publish(),
            "credit" => self.credit(),
            "ping" => self.ping(),
            "hello" => self.hello(),
            "subscribe" => self.subscribe(),
            "unsubscribe" => self.unsubscribe(),
            other => Err(Reason::UnknownType(other.chars().take(80).collect())),
        };
        message.map_err(|reason| DecodeError {
            reason,
            id,
            subscription,
        })
    }

    fn only(&self, kind: &'static str, allowed: Seen) -> Result<(), Reason> {
        match self.seen.beyond(allowed) {
            Some(field) => Err(Reason::Misplaced {
                kind,
                field: field.as_str(),
            }),
            None => Ok(()),
        }
    }

    fn hello(self) -> Result<ClientMessage<'a>, Reason> {
        self.only("hello", HELLO)?;
        Ok(ClientMessage::Hello(Hello {
            version: needed(self.version, "hello", "version")?,
            client: self.client,
            cluster: self.cluster,
        }))
    }

    fn publish(self) -> Result<ClientMessage<'a>, Reason> {
        self.only("publish", PUBLISH)?;
        let payload = match (self.batch, self.records) {
            (Some(_), None) if self.producer.is_some() => {
                return Err(Reason::Value {
                    field: "producer",
                    expected: "left out with a batch, which carries its own",
                });
            }
            (Some(batch), None) => Payload::Batch(batch),
            (None, Some(records)) => Payload::Records(records),
            (Some(_), Some(_)) => {
                return Err(Reason::Value {
                    field: "records",
                    expected: "left out when there is a batch",
                });
            }
            (None, None) => {
                return Err(Reason::Missing {
                    kind: "publish",
                    field: "records or batch",
                });
            }
        };
        Ok(ClientMessage::Publish(Publish {
            id: needed(self.id, "publish", "id")?,
            stream: needed(self.stream, "publish", "stream")?,
            partition: self.partition,
            payload,
            producer: self.producer,
            ack: named(self.ack, AckLevel::parse, "ack", ACK_LEVELS)?,
        }))
    }

    fn subscribe(self) -> Result<ClientMessage<'a>, Reason> {
        self.only("subscribe", SUBSCRIBE)?;
        let keys = match (self.key, self.prefix) {
            (None, None) => KeyFilter::All,
            (Some(key), None) => KeyFilter::Key(key),
            (None, Some(prefix)) => KeyFilter::Prefix(prefix),
            (Some(_), Some(_)) => {
                return Err(Reason::Value {
                    field: "prefix",
                    expected: "left out when there is a key",
                });
            }
        };
        Ok(ClientMessage::Subscribe(Subscribe {
            subscription: needed(self.subscription, "subscribe", "subscription")?,
            stream: needed(self.stream, "subscribe", "stream")?,
            partitions: self.partitions,
            keys,
            from: self.from,
            order: named(self.order, Order::named, "order", "\"local\" or \"total\"")?,
            format: named(
                self.format,
                Format::named,
                "format",
                "\"records\" or \"batch\"",
            )?,
            credit: needed(self.credit, "subscribe", "credit")?,
        }))
    }

    fn credit(self) -> Result<ClientMessage<'a>, Reason> {
        self.only("credit", CREDIT)?;
        Ok(ClientMessage::Credit {
            subscription: needed(self.subscription, "credit", "subscription")?,
            bytes: needed(self.bytes, "credit", "bytes")?,
        })
    }

    fn unsubscribe(self) -> Result<ClientMessage<'a>, Reason> {
        self.only("unsubscribe", UNSUBSCRIBE)?;
        Ok(ClientMessage::Unsubscribe {
            subscription: needed(self.subscription, "unsubscribe", "subscription")?,
        })
    }

    fn ping(self) -> Result<ClientMessage<'a>, Reason> {
        self.only("ping", PING)?;
        Ok(ClientMessage::Ping {
            id: needed(self.id, "ping", "id")?,
        })
    }
}

pub(super) fn needed<T>(
    value: Option<T>,
    kind: &'static str,
    field: &'static str,
) -> Result<T, Reason> {
    value.ok_or(Reason::Missing { kind, field })
}

/// What `ack` may be.
const ACK_LEVELS: &str = "disk, memory, regions:N or region:NAME,…";

pub(super) fn named<T: Default>(
    text: Option<Cow<'_, str>>,
    parse: impl Fn(&str) -> Option<T>,
    field: &'static str,
    expected: &'static str,
) -> Result<T, Reason> {
    match text {
        None => Ok(T::default()),
        Some(text) => parse(&text).ok_or(Reason::Value { field, expected }),
    }
}

/// A partition's number.
pub(super) fn partition(number: u64) -> Result<PartitionId, Reason> {
    let id = u16::try_from(number).map(PartitionId::new);
    id.map_err(|_| Reason::Value {
        field: "partition",
        expected: "a number below 65536",
    })
}

/// A subscription's number.
pub(super) fn subscription(number: u64) -> Result<SubscriptionId, Reason> {
    let id = u32::try_from(number).map(SubscriptionId::new);
    id.map_err(|_| Reason::Value {
        field: "subscription",
        expected: "a number below 2^32",
    })
}

/// A producer's stamp.
pub(super) fn producer(id: u64, epoch: u64, sequence: u64) -> Result<ProducerStamp, Reason> {
    let wrong = Reason::Value {
        field: "producer",
        expected: "an id below 2^63, an epoch below 2^15 and a sequence below 2^31",
    };
    let epoch = u16::try_from(epoch).ok().filter(|&n| n < 1 << 15);
    let sequence = u32::try_from(sequence).ok().filter(|&n| n < 1 << 31);
    match (epoch, sequence) {
        (Some(epoch), Some(sequence)) if id < 1 << 63 => Ok(ProducerStamp {
            id,
            epoch,
            sequence,
        }),
        _ => Err(wrong),
    }
}

pub(super) fn unknown(name: &[u8]) -> Reason {
    Reason::UnknownField(shown(name))
}
