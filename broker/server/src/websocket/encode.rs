//! Messages of a subscription, and others, as bytes.

use std::ops::Range;

use anabranch_protocol::codec::{Codec, DeliverEncoder, DeliverHead, PartHead};
use anabranch_protocol::ws::{ErrorMessage, Format, ServerMessage, SubscriptionId};
use bytes::Bytes;

use crate::node::{Error, Given, Subscription, touches, unreadable_batch};

/// Encodes a message that is not worth a way of its own.
pub(super) fn server(codec: Codec, message: &ServerMessage<'_>) -> Bytes {
    let mut out = Vec::new();
    codec.encode_server(message, &mut out);
    Bytes::from(out)
}

/// An error about a publish, a subscription, or the connection.
pub(super) fn error(
    codec: Codec,
    id: Option<u64>,
    subscription: Option<SubscriptionId>,
    problem: &Error,
) -> Bytes {
    let message = ErrorMessage {
        id,
        subscription,
        problem: problem.clone(),
    };
    server(codec, &ServerMessage::Error(message))
}

/// How a subscription's frames are encoded.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) codec: Codec,
    pub(super) format: Format,
    pub(super) subscription: SubscriptionId,
}

impl Shape {
    /// A number that differs where messages would.
    pub(super) fn number(self) -> u8 {
        let codec = match self.codec {
            Codec::Msgpack => 0,
            Codec::Json => 2,
        };
        let format = match self.format {
            Format::Records => 0,
            Format::Batch => 1,
        };
        codec + format
    }

    /// The message of what its subscription has passed last: these records of the frame; `None`
    /// when nothing of it is selected.
    pub(super) fn deliver(
        self,
        given: &Given,
        subscription: &Subscription,
        indexes: &Range<u32>,
    ) -> Option<Bytes> {
        let frame = given.frame();
        let stream = subscription.definition().id();
        let selection = subscription.selection();
        let parts = frame.commit.parts.iter().enumerate();
        let wanted = parts.filter(|(_, part)| {
            part.header.stream == stream && selection.wants_part(part) && touches(part, indexes)
        });
        let mut encoder = self.begin(given, &subscription.cursor_after(given));
        for (number, part) in wanted {
            let Some(batch) = &part.batch else { continue };
            let head = PartHead {
                partition: part.header.partition,
                offset: part.base_offset,
                index: part.first_index,
            };
            let end = part.first_index + part.header.records;
            let is_whole = indexes.start <= part.first_index && end <= indexes.end;
            // Of a batch that is delivered in part, only these.
            if self.format == Format::Batch && is_whole {
                encoder.batch(&head, batch);
                continue;
            }
            let records = frame.records(number, batch, indexes);
            let keys = selection.keys();
            let written = records.and_then(|it| encoder.records(&head, it.walk(), keys, indexes));
            if let Err(error) = written {
                unreadable_batch(&frame.commit, &error);
            }
        }
        (encoder.parts() > 0).then(|| Bytes::from(encoder.finish()))
    }

    /// A message without records: only how far the subscription is.
    pub(super) fn progress(self, given: &Given, cursor: &str) -> Bytes {
        Bytes::from(self.begin(given, cursor).finish())
    }

    fn begin(self, given: &Given, cursor: &str) -> DeliverEncoder {
        let commit = given.commit();
        let header = &commit.header;
        let head = DeliverHead {
            subscription: self.subscription,
            cursor,
            origin: header.origin,
            sequence: header.sequence,
            timestamp: header.timestamp.millis(),
        };
        DeliverEncoder::begin(self.codec, &head, commit.size())
    }
}
