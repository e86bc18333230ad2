//! Messages from JSON.

use std::borrow::Cow;
use std::fmt;

use anabranch_core::id::{Offset, PartitionId};
use anabranch_core::limits::{MAX_BATCH_RECORDS, MAX_PARTITIONS};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::decode::ServerFields;
use super::error::{DecodeError, Reason};
use super::fields::{self, ClientFields, Field, needed};
use crate::record::Record;
use crate::record::json::{
    DeliveredForm, Form, RowForm, Text, Wrong, decoded, delivered_of, key_bytes, record_of, row_of,
};
use crate::ws::{AckRow, ClientMessage, Delivered, Limits, Part, PartPayload, Row, ServerMessage};

/// The fields of all messages of clients.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ClientForm<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Text<'a>>,
    id: Option<u64>,
    #[serde(borrow)]
    stream: Option<Text<'a>>,
    #[serde(borrow)]
    batch: Option<Text<'a>>,
    #[serde(borrow)]
    records: Option<Records<'a>>,
    partition: Option<u64>,
    producer: Option<Producer>,
    #[serde(borrow)]
    ack: Option<Text<'a>>,
    version: Option<u64>,
    #[serde(borrow)]
    client: Option<Text<'a>>,
    #[serde(borrow)]
    cluster: Option<Text<'a>>,
    subscription: Option<u64>,
    partitions: Option<Vec<u16>>,
    #[serde(borrow)]
    key: Option<Text<'a>>,
    #[serde(borrow)]
    key_base64: Option<Text<'a>>,
    #[serde(borrow)]
    prefix: Option<Text<'a>>,
    #[serde(borrow)]
    prefix_base64: Option<Text<'a>>,
    #[serde(borrow)]
    from: Option<Text<'a>>,
    #[serde(borrow)]
    order: Option<Text<'a>>,
    #[serde(borrow)]
    format: Option<Text<'a>>,
    credit: Option<u64>,
    bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Producer {
    id: u64,
    epoch: u64,
    sequence: u64,
}

pub(super) fn client(message: &[u8]) -> Result<ClientMessage<'_>, DecodeError> {
    let form: ClientForm<'_> =
        serde_json::from_slice(message).map_err(|error| json_reason(&error))?;
    let (id, subscription) = (form.id, form.subscription);
    match client_fields(form) {
        Ok(fields) => fields.message(),
        Err(reason) => Err(DecodeError {
            reason,
            id,
            subscription: subscription.and_then(|number| fields::subscription(number).ok()),
        }),
    }
}

fn json_reason(error: &serde_json::Error) -> Reason {
    let words = error.to_string();
    match words.strip_prefix("unknown field ") {
        Some(rest) => Reason::UnknownField(rest.split(',').next().unwrap_or(rest).to_owned()),
        None => Reason::Json(words),
    }
}

fn client_fields(form: ClientForm<'_>) -> Result<ClientFields<'_>, Reason> {
    let mut fields = ClientFields {
        kind: text(form.kind),
        id: form.id,
        stream: text(form.stream),
        batch: form
            .batch
            .map(|packed| binary(&packed, "batch"))
            .transpose()?,
        records: form.records.map(|records| records.0),
        partition: form.partition.map(fields::partition).transpose()?,
        ack: text(form.ack),
        version: form.version,
        client: text(form.client),
        cluster: text(form.cluster),
        subscription: form.subscription.map(fields::subscription).transpose()?,
        key: key_bytes(form.key, form.key_base64).map_err(value)?,
        prefix: key_bytes(form.prefix, form.prefix_base64).map_err(value)?,
        from: text(form.from),
        order: text(form.order),
        format: text(form.format),
        credit: form.credit,
        bytes: form.bytes,
        ..ClientFields::default()
    };
    if let Some(producer) = form.producer {
        let Producer {
            id,
            epoch,
            sequence,
        } = producer;
        fields.producer = Some(fields::producer(id, epoch, sequence)?);
    }
    let partitions = form.partitions.unwrap_or_default();
    if partitions.len() > usize::from(MAX_PARTITIONS) {
        return Err(Reason::Value {
            field: "partitions",
            expected: "at most 1024 partitions",
        });
    }
    for number in partitions {
        fields.partitions.push(fields::partition(number.into())?);
    }
    note_seen(&mut fields);
    Ok(fields)
}

/// Notes which fields have come. The parser has seen to it that none came twice.
fn note_seen(fields: &mut ClientFields<'_>) {
    let present = [
        (Field::Id, fields.id.is_some()),
        (Field::Stream, fields.stream.is_some()),
        (Field::Batch, fields.batch.is_some()),
        (Field::Records, fields.records.is_some()),
        (Field::Partition, fields.partition.is_some()),
        (Field::Producer, fields.producer.is_some()),
        (Field::Ack, fields.ack.is_some()),
        (Field::Version, fields.version.is_some()),
        (Field::Client, fields.client.is_some()),
        (Field::Cluster, fields.cluster.is_some()),
        (Field::Subscription, fields.subscription.is_some()),
        (Field::Partitions, !fields.partitions.is_empty()),
        (Field::Key, fields.key.is_some()),
        (Field::Prefix, fields.prefix.is_some()),
        (Field::From, fields.from.is_some()),
        (Field::Order, fields.order.is_some()),
        (Field::Format, fields.format.is_some()),
        (Field::Credit, fields.credit.is_some()),
        (Field::Bytes, fields.bytes.is_some()),
    ];
    for (field, _) in present.into_iter().filter(|&(_, is_here)| is_here) {
        fields.seen.note(field);
    }
}

fn text(text: Option<Text<'_>>) -> Option<Cow<'_, str>> {
    text.map(|Text(text)| text)
}

fn binary<'a>(packed: &Text<'_>, field: &'static str) -> Result<Cow<'a, [u8]>, Reason> {
    decoded(&packed.0, field).map_err(value)
}

fn value((field, expected): Wrong) -> Reason {
    Reason::Value { field, expected }
}

/// Records, made one by one as they are read, up to the limit: their JSON form takes far more
/// memory than its text.
struct Records<'a>(Vec<Record<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Records<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(RecordsVisitor)
    }
}

struct RecordsVisitor;

impl<'de> Visitor<'de> for RecordsVisitor {
    type Value = Records<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Records<'de>, A::Error> {
        let mut records = Vec::new();
        while let Some(form) = seq.next_element::<Form<'de>>()? {
            if records.len() == MAX_BATCH_RECORDS {
                return Err(de::Error::custom(Reason::TooManyRecords));
            }
            records.push(record_of(form, records.len()).map_err(de::Error::custom)?);
        }
        Ok(Records(records))
    }
}

/// `[id, partition, offset, records, index]`.
type AckTuple = (u64, u16, Option<u64>, u32, Option<u32>);

/// The fields of all messages of brokers.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ServerForm<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Text<'a>>,
    id: Option<u64>,
    subscription: Option<u64>,
    #[serde(borrow)]
    cursor: Option<Text<'a>>,
    #[serde(borrow)]
    origin: Option<Text<'a>>,
    sequence: Option<u64>,
    #[serde(borrow)]
    durability: Option<Text<'a>>,
    #[serde(borrow)]
    token: Option<Text<'a>>,
    acks: Option<Vec<AckTuple>>,
    timestamp: Option<u64>,
    #[serde(borrow)]
    parts: Option<Vec<PartForm<'a>>>,
    #[serde(borrow)]
    rows: Option<Vec<RowForm<'a>>>,
    version: Option<u64>,
    #[serde(borrow)]
    server: Option<Text<'a>>,
    #[serde(borrow)]
    cluster: Option<Text<'a>>,
    #[serde(borrow)]
    broker: Option<Text<'a>>,
    #[serde(borrow)]
    region: Option<Text<'a>>,
    limits: Option<LimitsForm>,
    #[serde(borrow)]
    code: Option<Text<'a>>,
    #[serde(borrow)]
    message: Option<Text<'a>>,
    retryable: Option<bool>,
    #[serde(borrow)]
    oldest: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct LimitsForm {
    message_bytes: u64,
    in_flight_bytes: u64,
}

#[derive(Deserialize)]
struct PartForm<'a> {
    partition: u64,
    offset: u64,
    index: u32,
    #[serde(borrow)]
    records: Option<Vec<DeliveredForm<'a>>>,
    #[serde(borrow)]
    batch: Option<Text<'a>>,
}

pub(super) fn server(message: &[u8]) -> Result<ServerMessage<'_>, DecodeError> {
    let form: ServerForm<'_> =
        serde_json::from_slice(message).map_err(|error| json_reason(&error))?;
    let parts = form
        .parts
        .map(|parts| parts.into_iter().map(part).collect());
    let rows = form.rows.map(|rows| rows.into_iter().map(row).collect());
    let fields = ServerFields {
        kind: text(form.kind),
        id: form.id,
        subscription: form.subscription,
        cursor: text(form.cursor),
        origin: text(form.origin),
        sequence: form.sequence,
        durability: text(form.durability),
        token: text(form.token),
        acks: form
            .acks
            .map(|rows| rows.into_iter().map(ack_row).collect()),
        timestamp: form.timestamp,
        parts: parts.transpose()?,
        rows: rows.transpose()?,
        version: form.version,
        server: text(form.server),
        cluster: text(form.cluster),
        broker: text(form.broker),
        region: text(form.region),
        limits: form.limits.map(|limits| Limits {
            message_bytes: limits.message_bytes,
            in_flight_bytes: limits.in_flight_bytes,
        }),
        code: text(form.code),
        message: text(form.message),
        retryable: form.retryable,
        oldest: text(form.oldest),
    };
    Ok(fields.assemble()?)
}

fn ack_row(row: AckTuple) -> AckRow {
    let (id, partition, offset, records, index) = row;
    AckRow {
        id,
        partition: PartitionId::new(partition),
        offset: offset.map(Offset::new),
        records,
        index,
    }
}

fn part(form: PartForm<'_>) -> Result<Part<'_>, Reason> {
    let records = |forms: Vec<_>| {
        let read = |form| delivered(form);
        forms.into_iter().map(read).collect::<Result<Vec<_>, _>>()
    };
    let payload = match (form.records, form.batch) {
        (Some(forms), _) => Some(PartPayload::Records(records(forms)?)),
        (None, Some(packed)) => Some(PartPayload::Batch(binary(&packed, "batch")?)),
        (None, None) => None,
    };
    Ok(Part {
        partition: fields::partition(form.partition)?,
        offset: Offset::new(form.offset),
        index: form.index,
        payload: needed(payload, "deliver", "records or batch")?,
    })
}

fn delivered(form: DeliveredForm<'_>) -> Result<Delivered<'_>, Reason> {
    delivered_of(form, 0).map_err(|error| Reason::Json(error.to_string()))
}

fn row(form: RowForm<'_>) -> Result<Row<'_>, Reason> {
    let (key, value) = row_of(form).map_err(value)?;
    Ok(Row { key, value })
}
