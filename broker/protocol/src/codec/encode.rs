//! What each message looks like, whatever the encoding.

use anabranch_core::batch::{self, Operation};
use anabranch_core::cursor::Order;

use super::form::Form;
use super::stream::{ack_head, ack_row, deliver_head, part_head};
use super::{AckHead, DeliverHead, PartHead};
use crate::record::{Record, operation_name};
use crate::ws::{
    AckLevel, ClientMessage, ErrorMessage, Format, Hello, KeyFilter, Part, PartPayload, Payload,
    Publish, ServerMessage, Subscribe, SubscriptionId, Welcome,
};

pub(super) fn client(form: &mut impl Form, message: &ClientMessage<'_>) {
    match message {
        ClientMessage::Hello(message) => hello(form, message),
        ClientMessage::Publish(message) => publish(form, message),
        ClientMessage::Subscribe(message) => subscribe(form, message),
        ClientMessage::Credit {
            subscription,
            bytes,
        } => {
            about(form, "credit", *subscription, 1);
            form.named_uint("bytes", *bytes);
        }
        ClientMessage::Unsubscribe { subscription } => {
            about(form, "unsubscribe", *subscription, 0);
        }
        ClientMessage::Ping { id } => numbered(form, "ping", *id),
    }
    form.end_map();
}

fn begin(form: &mut impl Form, kind: &'static str, more: usize) {
    form.message(1 + more);
    form.named_str("type", kind);
}

/// Begins a message about a subscription.
pub(super) fn about(
    form: &mut impl Form,
    kind: &'static str,
    subscription: SubscriptionId,
    more: usize,
) {
    begin(form, kind, 1 + more);
    form.named_uint("subscription", subscription.get());
}

fn numbered(form: &mut impl Form, kind: &'static str, id: u64) {
    begin(form, kind, 1);
    form.named_uint("id", id);
}

fn hello(form: &mut impl Form, message: &Hello<'_>) {
    let optional = usize::from(message.client.is_some()) + usize::from(message.cluster.is_some());
    begin(form, "hello", 1 + optional);
    form.named_uint("version", message.version);
    form.maybe_str("client", message.client.as_deref());
    form.maybe_str("cluster", message.cluster.as_deref());
}

fn publish(form: &mut impl Form, message: &Publish<'_>) {
    let ack = (message.ack != AckLevel::Disk).then(|| message.ack.to_string());
    let optional = usize::from(message.partition.is_some())
        + usize::from(message.producer.is_some())
        + usize::from(ack.is_some());
    begin(form, "publish", 3 + optional);
    form.named_uint("id", message.id);
    form.named_str("stream", &message.stream);
    if let Some(partition) = message.partition {
        form.named_uint("partition", partition.get());
    }
    if let Some(producer) = message.producer {
        form.name("producer");
        form.map(3);
        form.named_uint("id", producer.id);
        form.named_uint("epoch", producer.epoch);
        form.named_uint("sequence", producer.sequence);
        form.end_map();
    }
    form.maybe_str("ack", ack.as_deref());
    match &message.payload {
        Payload::Batch(batch) => form.batch(batch, &[]),
        Payload::Records(records) => {
            form.name("records");
            form.array(records.len());
            for record in records {
                Fields::from(record).put(form, None);
            }
            form.end_array();
        }
    }
}

fn subscribe(form: &mut impl Form, message: &Subscribe<'_>) {
    let total = message.order != Order::Local;
    let batch = message.format != Format::Records;
    let optional = usize::from(!message.partitions.is_empty())
        + usize::from(message.keys != KeyFilter::All)
        + usize::from(message.from.is_some())
        + usize::from(total)
        + usize::from(batch);
    about(form, "subscribe", message.subscription, 2 + optional);
    form.named_str("stream", &message.stream);
    if !message.partitions.is_empty() {
        form.name("partitions");
        form.array(message.partitions.len());
        for partition in &message.partitions {
            form.uint(u64::from(partition.get()));
        }
        form.end_array();
    }
    match &message.keys {
        KeyFilter::All => {}
        KeyFilter::Key(key) => form.key("key", "key_base64", key),
        KeyFilter::Prefix(prefix) => form.key("prefix", "prefix_base64", prefix),
    }
    form.maybe_str("from", message.from.as_deref());
    if total {
        form.named_str("order", message.order.as_str());
    }
    if batch {
        form.named_str("format", message.format.as_str());
    }
    form.named_uint("credit", message.credit);
}

/// The fields of a record, from wherever they come.
pub(super) struct Fields<'r, H> {
    key: Option<&'r [u8]>,
    value: Option<&'r [u8]>,
    timestamp: Option<i64>,
    operation: Operation,
    header_count: usize,
    headers: H,
}

impl<'r> From<&'r Record<'_>>
    for Fields<'r, Box<dyn Iterator<Item = (&'r str, Option<&'r [u8]>)> + 'r>>
{
    fn from(record: &'r Record<'_>) -> Self {
        let headers = record.headers.iter();
        Self {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            timestamp: record.timestamp,
            operation: record.operation,
            header_count: record.headers.len(),
            headers: Box::new(headers.map(|(name, value)| (name.as_ref(), value.as_deref()))),
        }
    }
}

impl<'r> From<&batch::Record<'r>> for Fields<'r, batch::Headers<'r>> {
    fn from(record: &batch::Record<'r>) -> Self {
        Self {
            key: record.key,
            value: record.value,
            timestamp: Some(record.timestamp),
            operation: record.operation,
            header_count: record.headers().len(),
            headers: record.headers(),
        }
    }
}

impl<'r, H: Iterator<Item = (&'r str, Option<&'r [u8]>)>> Fields<'r, H> {
    pub(super) fn put(self, form: &mut impl Form, offset: Option<u64>) {
        let delete = self.operation != Operation::Put;
        form.map(
            usize::from(offset.is_some())
                + usize::from(self.timestamp.is_some())
                + usize::from(self.key.is_some())
                + usize::from(self.value.is_some())
                + usize::from(self.header_count > 0)
                + usize::from(delete),
        );
        if let Some(offset) = offset {
            form.named_uint("offset", offset);
        }
        if let Some(timestamp) = self.timestamp {
            form.name("timestamp");
            form.int(timestamp);
        }
        if let Some(key) = self.key {
            form.key("key", "key_base64", key);
        }
        if let Some(value) = self.value {
            form.value(value);
        }
        if self.header_count > 0 {
            form.headers(self.header_count, self.headers);
        }
        if delete {
            form.named_str("op", operation_name(self.operation));
        }
        form.end_map();
    }
}

pub(super) fn server(form: &mut impl Form, message: &ServerMessage<'_>) {
    match message {
        ServerMessage::Hello(message) => welcome(form, message),
        ServerMessage::Ack(message) => {
            let head = AckHead {
                origin: message.origin,
                sequence: message.sequence,
                durability: message.durability,
                token: &message.token,
            };
            let mark = ack_head(form, &head);
            for row in &message.rows {
                ack_row(form, row);
            }
            form.close_array(mark, message.rows.len());
        }
        ServerMessage::Deliver(message) => {
            let head = DeliverHead {
                subscription: message.subscription,
                cursor: &message.cursor,
                origin: message.origin,
                sequence: message.sequence,
                timestamp: message.timestamp,
            };
            let mark = deliver_head(form, &head);
            for each in &message.parts {
                part(form, each);
            }
            form.close_array(mark, message.parts.len());
        }
        ServerMessage::Rows { subscription, rows } => {
            about(form, "rows", *subscription, 1);
            form.name("rows");
            form.array(rows.len());
            for each in rows {
                row(form, &each.key, &each.value);
            }
            form.end_array();
        }
        ServerMessage::Live {
            subscription,
            cursor,
        } => at_cursor(form, "live", *subscription, cursor),
        ServerMessage::Unsubscribed {
            subscription,
            cursor,
        } => at_cursor(form, "unsubscribed", *subscription, cursor),
        ServerMessage::Error(message) => error(form, message),
        ServerMessage::Pong { id } => numbered(form, "pong", *id),
    }
    form.end_map();
}

fn at_cursor(form: &mut impl Form, kind: &'static str, subscription: SubscriptionId, cursor: &str) {
    about(form, kind, subscription, 1);
    form.named_str("cursor", cursor);
}

fn welcome(form: &mut impl Form, message: &Welcome<'_>) {
    begin(form, "hello", 6);
    form.named_uint("version", message.version);
    form.named_str("server", &message.server);
    form.named_str("cluster", &message.cluster);
    form.named_str("broker", &message.broker);
    form.named_str("region", &message.region);
    form.name("limits");
    form.map(2);
    form.named_uint("message_bytes", message.limits.message_bytes);
    form.named_uint("in_flight_bytes", message.limits.in_flight_bytes);
    form.end_map();
}

fn part(form: &mut impl Form, part: &Part<'_>) {
    let head = PartHead {
        partition: part.partition,
        offset: part.offset,
        index: part.index,
    };
    part_head(form, &head);
    match &part.payload {
        PartPayload::Batch(batch) => form.batch(batch, &[]),
        PartPayload::Records(records) => {
            form.name("records");
            form.array(records.len());
            for delivered in records {
                Fields::from(&delivered.record).put(form, Some(delivered.offset.get()));
            }
            form.end_array();
        }
    }
    form.end_map();
}

pub(super) fn row(form: &mut impl Form, key: &[u8], value: &[u8]) {
    form.map(2);
    form.key("key", "key_base64", key);
    form.value(value);
    form.end_map();
}

fn error(form: &mut impl Form, message: &ErrorMessage) {
    let problem = &message.problem;
    let optional = usize::from(message.id.is_some())
        + usize::from(message.subscription.is_some())
        + usize::from(problem.cursor.is_some())
        + usize::from(problem.oldest.is_some());
    begin(form, "error", 3 + optional);
    if let Some(id) = message.id {
        form.named_uint("id", id);
    }
    if let Some(subscription) = message.subscription {
        form.named_uint("subscription", subscription.get());
    }
    form.named_str("code", problem.code.code());
    form.named_str("message", &problem.detail);
    form.name("retryable");
    form.bool(problem.retryable);
    form.maybe_str("cursor", problem.cursor.as_deref());
    form.maybe_str("oldest", problem.oldest.as_deref());
}
