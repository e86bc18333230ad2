//! Messages from `MessagePack`.

use std::borrow::Cow;

use anabranch_core::id::{BrokerId, Epoch, Offset, Origin, Sequence};
use anabranch_core::limits::{MAX_BATCH_RECORDS, MAX_HEADERS, MAX_PARTITIONS};
use anabranch_core::producer::ProducerStamp;

use super::error::{At, DecodeError, Reason};
use super::fields::{self, ClientFields, Field, needed, unknown};
use crate::error::Problem;
use crate::msgpack::Reader;
use crate::record::{Header, Record, operation_named};
use crate::ws::{
    Ack, AckRow, ClientMessage, Deliver, Delivered, Durability, ErrorMessage, Limits, Part,
    PartPayload, Row, ServerMessage, Welcome,
};

/// Most items for which memory is taken before they have been read.
const PREALLOCATED: usize = 1024;

pub(super) fn client(message: &[u8]) -> Result<ClientMessage<'_>, DecodeError> {
    let mut reader = Reader::new(message);
    let mut fields = ClientFields::default();
    match client_fields(&mut reader, &mut fields) {
        Ok(()) => fields.message(),
        Err(reason) => Err(fields.blame(reason)),
    }
}

fn client_fields<'a>(reader: &mut Reader<'a>, fields: &mut ClientFields<'a>) -> Result<(), Reason> {
    for _ in 0..reader.map_len().at("(the whole)")? {
        let name = reader.name().at("(a name)")?;
        let field = Field::named(name).ok_or_else(|| unknown(name))?;
        if !fields.seen.note(field) {
            return Err(Reason::Twice(field.as_str()));
        }
        client_field(field, reader, fields)?;
    }
    match reader.remaining() {
        0 => Ok(()),
        left => Err(Reason::Trailing(left)),
    }
}

#[inline]
fn client_field<'a>(
    field: Field,
    reader: &mut Reader<'a>,
    fields: &mut ClientFields<'a>,
) -> Result<(), Reason> {
    let at = field.as_str();
    match field {
        Field::Kind => fields.kind = Some(Cow::Borrowed(reader.str().at(at)?)),
        Field::Id => fields.id = Some(reader.uint().at(at)?),
        Field::Stream => fields.stream = Some(Cow::Borrowed(reader.str().at(at)?)),
        Field::Batch => fields.batch = Some(Cow::Borrowed(reader.bin().at(at)?)),
        Field::Records => fields.records = Some(records(reader)?),
        Field::Partition => {
            fields.partition = optional(reader, Reader::uint, at)?
                .map(fields::partition)
                .transpose()?;
        }
        Field::Producer => fields.producer = Some(producer(reader)?),
        Field::Ack => fields.ack = optional(reader, Reader::str, at)?.map(Cow::Borrowed),
        Field::Version => fields.version = Some(reader.uint().at(at)?),
        Field::Client => fields.client = optional(reader, Reader::str, at)?.map(Cow::Borrowed),
        Field::Cluster => fields.cluster = optional(reader, Reader::str, at)?.map(Cow::Borrowed),
        Field::Subscription => {
            fields.subscription = Some(fields::subscription(reader.uint().at(at)?)?);
        }
        Field::Partitions => {
            let count = optional(reader, Reader::array_len, at)?.unwrap_or(0);
            if count > usize::from(MAX_PARTITIONS) {
                let expected = "at most 1024 partitions";
                return Err(Reason::Value {
                    field: at,
                    expected,
                });
            }
            for _ in 0..count {
                let number = reader.uint().at(at)?;
                fields.partitions.push(fields::partition(number)?);
            }
        }
        Field::Key => fields.key = optional(reader, Reader::bin, at)?.map(Cow::Borrowed),
        Field::Prefix => fields.prefix = optional(reader, Reader::bin, at)?.map(Cow::Borrowed),
        Field::From => fields.from = optional(reader, Reader::str, at)?.map(Cow::Borrowed),
        Field::Order => fields.order = optional(reader, Reader::str, at)?.map(Cow::Borrowed),
        Field::Format => fields.format = optional(reader, Reader::str, at)?.map(Cow::Borrowed),
        Field::Credit => fields.credit = Some(reader.uint().at(at)?),
        Field::Bytes => fields.bytes = Some(reader.uint().at(at)?),
    }
    Ok(())
}

/// Nil stands for a field that is left out.
#[inline]
fn optional<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T, crate::msgpack::Fault>,
    field: &'static str,
) -> Result<Option<T>, Reason> {
    match reader.nil() {
        true => Ok(None),
        false => read(reader).map(Some).at(field),
    }
}

fn producer(reader: &mut Reader<'_>) -> Result<ProducerStamp, Reason> {
    let (mut id, mut epoch, mut sequence) = (None, None, None);
    for _ in 0..reader.map_len().at("producer")? {
        match reader.name().at("producer")? {
            b"id" => id = Some(reader.uint().at("producer.id")?),
            b"epoch" => epoch = Some(reader.uint().at("producer.epoch")?),
            b"sequence" => sequence = Some(reader.uint().at("producer.sequence")?),
            other => return Err(unknown(other)),
        }
    }
    fields::producer(
        needed(id, "publish", "producer.id")?,
        needed(epoch, "publish", "producer.epoch")?,
        needed(sequence, "publish", "producer.sequence")?,
    )
}

fn records<'a>(reader: &mut Reader<'a>) -> Result<Vec<Record<'a>>, Reason> {
    let count = reader.array_len().at("records")?;
    if count > MAX_BATCH_RECORDS {
        return Err(Reason::TooManyRecords);
    }
    let mut records = Vec::with_capacity(count.min(PREALLOCATED));
    for _ in 0..count {
        records.push(record(reader, Extra::Refused)?.record);
    }
    Ok(records)
}

/// What happens to fields of a record that are not those of a publish.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    Refused,
    /// The offset is read, others are passed over.
    Delivered,
}

fn record<'a>(reader: &mut Reader<'a>, extra: Extra) -> Result<Delivered<'a>, Reason> {
    let mut record = Record::default();
    let mut offset = 0;
    for _ in 0..reader.map_len().at("record")? {
        match reader.name().at("record")? {
            b"key" => record.key = optional(reader, Reader::bin, "key")?.map(Cow::Borrowed),
            b"value" => record.value = optional(reader, Reader::bin, "value")?.map(Cow::Borrowed),
            b"timestamp" => record.timestamp = optional(reader, Reader::int, "timestamp")?,
            b"headers" => record.headers = headers(reader)?,
            b"op" => {
                if let Some(name) = optional(reader, Reader::str, "op")? {
                    let expected = "\"put\" or \"delete\"";
                    record.operation = operation_named(name).ok_or(Reason::Value {
                        field: "op",
                        expected,
                    })?;
                }
            }
            b"offset" if extra == Extra::Delivered => offset = reader.uint().at("offset")?,
            _ if extra == Extra::Delivered => reader.skip().at("record")?,
            other => return Err(unknown(other)),
        }
    }
    Ok(Delivered {
        partition: None,
        offset: Offset::new(offset),
        record,
    })
}

fn headers<'a>(reader: &mut Reader<'a>) -> Result<Vec<Header<'a>>, Reason> {
    let count = optional(reader, Reader::map_len, "headers")?.unwrap_or(0);
    if count > MAX_HEADERS {
        return Err(Reason::Value {
            field: "headers",
            expected: "at most 64 headers",
        });
    }
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let name = reader.str().at("headers")?;
        let value = optional(reader, Reader::bin, "headers")?;
        headers.push((Cow::Borrowed(name), value.map(Cow::Borrowed)));
    }
    Ok(headers)
}

/// The fields of a broker's message, in whatever order and encoding they came.
#[derive(Default)]
pub(super) struct ServerFields<'a> {
    pub(super) kind: Option<Cow<'a, str>>,
    pub(super) id: Option<u64>,
    pub(super) subscription: Option<u64>,
    pub(super) cursor: Option<Cow<'a, str>>,
    pub(super) origin: Option<Cow<'a, str>>,
    pub(super) sequence: Option<u64>,
    pub(super) durability: Option<Cow<'a, str>>,
    pub(super) token: Option<Cow<'a, str>>,
    pub(super) acks: Option<Vec<AckRow>>,
    pub(super) timestamp: Option<u64>,
    pub(super) parts: Option<Vec<Part<'a>>>,
    pub(super) rows: Option<Vec<Row<'a>>>,
    pub(super) version: Option<u64>,
    pub(super) server: Option<Cow<'a, str>>,
    pub(super) cluster: Option<Cow<'a, str>>,
    pub(super) broker: Option<Cow<'a, str>>,
    pub(super) region: Option<Cow<'a, str>>,
    pub(super) limits: Option<Limits>,
    pub(super) code: Option<Cow<'a, str>>,
    pub(super) message: Option<Cow<'a, str>>,
    pub(super) retryable: Option<bool>,
    pub(super) oldest: Option<Cow<'a, str>>,
}

pub(super) fn server(message: &[u8]) -> Result<ServerMessage<'_>, DecodeError> {
    let mut reader = Reader::new(message);
    let mut fields = ServerFields::default();
    for _ in 0..reader.map_len().at("(the whole)")? {
        let name = reader.name().at("(a name)")?;
        server_field(name, &mut reader, &mut fields)?;
    }
    match reader.remaining() {
        0 => Ok(fields.assemble()?),
        left => Err(Reason::Trailing(left).into()),
    }
}

fn server_field<'a>(
    name: &[u8],
    reader: &mut Reader<'a>,
    fields: &mut ServerFields<'a>,
) -> Result<(), Reason> {
    let text = |reader: &mut Reader<'a>, field| {
        optional(reader, Reader::str, field).map(|text| text.map(Cow::Borrowed))
    };
    match name {
        b"type" => fields.kind = text(reader, "type")?,
        b"id" => fields.id = optional(reader, Reader::uint, "id")?,
        b"subscription" => fields.subscription = optional(reader, Reader::uint, "subscription")?,
        b"cursor" => fields.cursor = text(reader, "cursor")?,
        b"origin" => fields.origin = text(reader, "origin")?,
        b"sequence" => fields.sequence = Some(reader.uint().at("sequence")?),
        b"durability" => fields.durability = text(reader, "durability")?,
        b"token" => fields.token = text(reader, "token")?,
        b"acks" => fields.acks = Some(acks(reader)?),
        b"timestamp" => fields.timestamp = Some(reader.uint().at("timestamp")?),
        b"parts" => fields.parts = Some(list(reader, "parts", part)?),
        b"rows" => fields.rows = Some(list(reader, "rows", row)?),
        b"version" => fields.version = Some(reader.uint().at("version")?),
        b"server" => fields.server = text(reader, "server")?,
        b"cluster" => fields.cluster = text(reader, "cluster")?,
        b"broker" => fields.broker = text(reader, "broker")?,
        b"region" => fields.region = text(reader, "region")?,
        b"limits" => fields.limits = Some(limits(reader)?),
        b"code" => fields.code = text(reader, "code")?,
        b"message" => fields.message = text(reader, "message")?,
        b"retryable" => fields.retryable = Some(reader.bool().at("retryable")?),
        b"oldest" => fields.oldest = text(reader, "oldest")?,
        _ => reader.skip().at("(an unknown one)")?,
    }
    Ok(())
}

fn list<'a, T>(
    reader: &mut Reader<'a>,
    field: &'static str,
    read: impl Fn(&mut Reader<'a>) -> Result<T, Reason>,
) -> Result<Vec<T>, Reason> {
    let count = reader.array_len().at(field)?;
    let mut items = Vec::with_capacity(count.min(PREALLOCATED));
    for _ in 0..count {
        items.push(read(reader)?);
    }
    Ok(items)
}

fn acks(reader: &mut Reader<'_>) -> Result<Vec<AckRow>, Reason> {
    list(reader, "acks", |reader| {
        if reader.array_len().at("acks")? != 5 {
            let expected = "rows of [id, partition, offset, records, index]";
            return Err(Reason::Type {
                field: "acks",
                expected,
            });
        }
        let id = reader.uint().at("acks")?;
        let partition = fields::partition(reader.uint().at("acks")?)?;
        let offset = optional(reader, Reader::uint, "acks")?.map(Offset::new);
        let records = below_2_32(reader.uint().at("acks")?, "acks")?;
        let index = optional(reader, Reader::uint, "acks")?;
        let index = index.map(|n| below_2_32(n, "acks")).transpose()?;
        Ok(AckRow {
            id,
            partition,
            offset,
            records,
            index,
        })
    })
}

fn below_2_32(number: u64, field: &'static str) -> Result<u32, Reason> {
    u32::try_from(number).map_err(|_| Reason::Type {
        field,
        expected: "below 2^32",
    })
}

fn part<'a>(reader: &mut Reader<'a>) -> Result<Part<'a>, Reason> {
    let (mut partition, mut offset, mut index, mut payload) = (None, None, None, None);
    for _ in 0..reader.map_len().at("parts")? {
        match reader.name().at("parts")? {
            b"partition" => partition = Some(fields::partition(reader.uint().at("partition")?)?),
            b"offset" => offset = Some(Offset::new(reader.uint().at("offset")?)),
            b"index" => index = Some(below_2_32(reader.uint().at("index")?, "index")?),
            b"records" => {
                let records = list(reader, "records", |reader| record(reader, Extra::Delivered))?;
                payload = Some(PartPayload::Records(records));
            }
            b"batch" => {
                let batch = reader.bin().at("batch")?;
                payload = Some(PartPayload::Batch(Cow::Borrowed(batch)));
            }
            _ => reader.skip().at("parts")?,
        }
    }
    Ok(Part {
        partition: needed(partition, "deliver", "partition")?,
        offset: needed(offset, "deliver", "offset")?,
        index: needed(index, "deliver", "index")?,
        payload: needed(payload, "deliver", "records or batch")?,
    })
}

fn row<'a>(reader: &mut Reader<'a>) -> Result<Row<'a>, Reason> {
    let (mut key, mut value) = (None, None);
    for _ in 0..reader.map_len().at("rows")? {
        match reader.name().at("rows")? {
            b"key" => key = Some(Cow::Borrowed(reader.bin().at("key")?)),
            b"value" => value = Some(Cow::Borrowed(reader.bin().at("value")?)),
            _ => reader.skip().at("rows")?,
        }
    }
    Ok(Row {
        key: needed(key, "rows", "key")?,
        value: needed(value, "rows", "value")?,
    })
}

fn limits(reader: &mut Reader<'_>) -> Result<Limits, Reason> {
    let (mut message_bytes, mut in_flight_bytes) = (None, None);
    for _ in 0..reader.map_len().at("limits")? {
        match reader.name().at("limits")? {
            b"message_bytes" => message_bytes = Some(reader.uint().at("message_bytes")?),
            b"in_flight_bytes" => in_flight_bytes = Some(reader.uint().at("in_flight_bytes")?),
            _ => reader.skip().at("limits")?,
        }
    }
    Ok(Limits {
        message_bytes: needed(message_bytes, "hello", "limits.message_bytes")?,
        in_flight_bytes: needed(in_flight_bytes, "hello", "limits.in_flight_bytes")?,
    })
}

impl<'a> ServerFields<'a> {
    /// The message that these fields make.
    pub(super) fn assemble(self) -> Result<ServerMessage<'a>, Reason> {
        let kind = self.kind.as_deref().ok_or(Reason::NoType)?;
        match kind {
            "ack" => self.ack(),
            "deliver" => self.deliver(),
            "rows" => Ok(ServerMessage::Rows {
                subscription: subscription_of("rows", self.subscription)?,
                rows: needed(self.rows, "rows", "rows")?,
            }),
            "live" => Ok(ServerMessage::Live {
                subscription: subscription_of("live", self.subscription)?,
                cursor: needed(self.cursor, "live", "cursor")?,
            }),
            "unsubscribed" => Ok(ServerMessage::Unsubscribed {
                subscription: subscription_of("unsubscribed", self.subscription)?,
                cursor: needed(self.cursor, "unsubscribed", "cursor")?,
            }),
            "error" => self.error(),
            "pong" => Ok(ServerMessage::Pong {
                id: needed(self.id, "pong", "id")?,
            }),
            "hello" => self.hello(),
            other => Err(Reason::UnknownType(other.chars().take(80).collect())),
        }
    }

    fn ack(self) -> Result<ServerMessage<'a>, Reason> {
        let durability = needed(self.durability, "ack", "durability")?;
        let expected = "disk, memory or regions";
        Ok(ServerMessage::Ack(Ack {
            origin: origin(&needed(self.origin, "ack", "origin")?)?,
            sequence: Sequence::new(needed(self.sequence, "ack", "sequence")?),
            durability: Durability::named(&durability).ok_or(Reason::Value {
                field: "durability",
                expected,
            })?,
            token: needed(self.token, "ack", "token")?,
            rows: needed(self.acks, "ack", "acks")?,
        }))
    }

    fn deliver(self) -> Result<ServerMessage<'a>, Reason> {
        Ok(ServerMessage::Deliver(Deliver {
            subscription: subscription_of("deliver", self.subscription)?,
            cursor: needed(self.cursor, "deliver", "cursor")?,
            origin: origin(&needed(self.origin, "deliver", "origin")?)?,
            sequence: Sequence::new(needed(self.sequence, "deliver", "sequence")?),
            timestamp: needed(self.timestamp, "deliver", "timestamp")?,
            parts: needed(self.parts, "deliver", "parts")?,
        }))
    }

    fn hello(self) -> Result<ServerMessage<'a>, Reason> {
        Ok(ServerMessage::Hello(Welcome {
            version: needed(self.version, "hello", "version")?,
            server: needed(self.server, "hello", "server")?,
            cluster: needed(self.cluster, "hello", "cluster")?,
            broker: needed(self.broker, "hello", "broker")?,
            region: needed(self.region, "hello", "region")?,
            limits: needed(self.limits, "hello", "limits")?,
        }))
    }

    fn error(self) -> Result<ServerMessage<'a>, Reason> {
        let code = needed(self.code, "error", "code")?;
        let message = needed(self.message, "error", "message")?;
        let retryable = self.retryable.unwrap_or(false);
        let problem = Problem {
            cursor: self.cursor.map(Cow::into_owned),
            oldest: self.oldest.map(Cow::into_owned),
            ..Problem::received(&code, &message, retryable)
        };
        Ok(ServerMessage::Error(ErrorMessage {
            id: self.id,
            subscription: self.subscription.map(fields::subscription).transpose()?,
            problem,
        }))
    }
}

fn subscription_of(
    kind: &'static str,
    number: Option<u64>,
) -> Result<crate::ws::SubscriptionId, Reason> {
    fields::subscription(needed(number, kind, "subscription")?)
}

fn origin(text: &str) -> Result<Origin, Reason> {
    let parse = || {
        let (broker, epoch) = text.split_once('.')?;
        let broker = u64::from_str_radix(broker, 16).ok()?;
        Some(Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(epoch.parse().ok()?),
        })
    };
    parse().ok_or(Reason::Type {
        field: "origin",
        expected: "BROKER.EPOCH",
    })
}
