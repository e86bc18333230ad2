//! Messages of a subscription, and others, as bytes.

use anabranch_protocol::codec::{Codec, DeliverEncoder, DeliverHead, PartHead};
use anabranch_protocol::ws::{ErrorMessage, Format, ServerMessage, SubscriptionId};
use bytes::Bytes;

use crate::node::{Delivered, Error, Subscription, unreadable_batch};

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

    /// The message of the frame that its subscription has passed last, without the first `skip`
    /// records of the frame; `None` when nothing of it is selected.
    pub(super) fn deliver(
        self,
        frame: &Delivered,
        subscription: &Subscription,
        skip: u32,
    ) -> Option<Bytes> {
        let stream = subscription.definition().id();
        let selection = subscription.selection();
        let parts = frame.commit.parts.iter();
        let wanted = parts.filter(|part| {
            part.header.stream == stream
                && selection.wants_part(part)
                && part.first_index + part.header.records > skip
        });
        let mut encoder = self.begin(frame, &subscription.cursor_after(frame));
        for part in wanted {
            let Some(batch) = &part.batch else { continue };
            let head = PartHead {
                partition: part.header.partition,
                offset: part.base_offset,
                index: part.first_index,
            };
            // Of a batch that was delivered in part, only the rest.
            if self.format == Format::Batch && part.first_index >= skip {
                encoder.batch(&head, batch);
            } else if let Err(error) = encoder.records(&head, batch, selection.keys(), skip) {
                unreadable_batch(&frame.commit, &error);
            }
        }
        (encoder.parts() > 0).then(|| Bytes::from(encoder.finish()))
    }

    /// A message without records: only how far the subscription is.
    pub(super) fn progress(self, frame: &Delivered, cursor: &str) -> Bytes {
        Bytes::from(self.begin(frame, cursor).finish())
    }

    fn begin(self, frame: &Delivered, cursor: &str) -> DeliverEncoder {
        let header = &frame.commit.header;
        let head = DeliverHead {
            subscription: self.subscription,
            cursor,
            origin: header.origin,
            sequence: header.sequence,
            timestamp: header.timestamp.millis(),
        };
        DeliverEncoder::begin(self.codec, &head, frame.commit.size())
    }
}
