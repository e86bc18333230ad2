//! From outcomes of the writer to messages: one acknowledgement per frame, however many publishes
//! it took in.

use anabranch_core::id::{ClusterId, Origin, Sequence};
use anabranch_core::sequencer::Placed;
use anabranch_protocol::codec::{AckEncoder, AckHead, Codec};
use anabranch_protocol::ws::{AckRow, Durability, ErrorMessage, ServerMessage};
use bytes::Bytes;

use crate::node::{self, Outcome, Running, token_of};

/// What the tokens of acknowledgements are made of.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    origin: Origin,
    cluster: ClusterId,
}

impl Tokens {
    pub(super) fn of(running: &Running) -> Self {
        Self {
            origin: running.origin(),
            cluster: running.cluster(),
        }
    }
}

/// Encodes outcomes in their order.
pub(super) fn encode(codec: Codec, outcomes: Vec<Outcome>, tokens: Tokens) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let mut open: Option<((Sequence, Durability), AckEncoder)> = None;
    let rows = outcomes.len();
    for outcome in outcomes {
        match outcome {
            Outcome::Row {
                id,
                sequence,
                durability,
                row,
            } => {
                let frame = (sequence, durability);
                if open.as_ref().is_some_and(|(held, _)| *held != frame) {
                    finish(open.take(), &mut messages);
                }
                let (_, encoder) =
                    open.get_or_insert_with(|| (frame, begin(codec, frame, tokens, rows)));
                encoder.row(&ack_row(id, &row));
            }
            Outcome::Refused { id, error } => {
                finish(open.take(), &mut messages);
                let message = ErrorMessage {
                    id: Some(id),
                    subscription: None,
                    problem: error,
                };
                messages.push(super::encode::server(codec, &ServerMessage::Error(message)));
            }
        }
    }
    finish(open.take(), &mut messages);
    messages
}

fn begin(codec: Codec, frame: (Sequence, Durability), tokens: Tokens, rows: usize) -> AckEncoder {
    let (sequence, durability) = frame;
    let token = token_of(tokens.origin, sequence).encode(tokens.cluster);
    let head = AckHead {
        origin: tokens.origin,
        sequence,
        durability,
        token: &token,
    };
    AckEncoder::begin(codec, &head, rows)
}

fn finish(open: Option<((Sequence, Durability), AckEncoder)>, messages: &mut Vec<Bytes>) {
    if let Some((_, encoder)) = open {
        messages.push(Bytes::from(encoder.finish()));
    }
}

fn ack_row(id: u64, row: &node::AckRow) -> AckRow {
    let (offset, index) = match row.placed {
        Placed::Appended {
            base_offset,
            first_index,
        } => (Some(base_offset), Some(first_index)),
        Placed::Duplicate { base_offset } => (base_offset, None),
    };
    AckRow {
        id,
        partition: row.partition,
        offset,
        records: row.records,
        index,
    }
}
