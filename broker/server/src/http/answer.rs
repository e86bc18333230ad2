//! Answers as JSON, and the one answer that all writes share.

use anabranch_core::id::Dot;
use anabranch_core::sequencer::Placed;
use anabranch_core::stream::StreamDefinition;
use anabranch_core::vector::Token;
use anabranch_protocol::http::{JSON, PublishAnswer, Published, TOKEN_HEADER};
use anabranch_protocol::ws::AckLevel;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use super::query::{Query, bad, cut};
use super::refusal::Refusal;
use super::token;
use crate::config::Limits;
use crate::node::{Ack, AckRow, Running, Wish};

/// [`TOKEN_HEADER`], ready for a map of headers.
pub(super) const TOKEN: HeaderName = HeaderName::from_static(TOKEN_HEADER);

/// Something as JSON.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("answers are maps with text keys");
    json_text(status, body)
}

/// Text that is JSON already.
pub(super) fn json_text(status: StatusCode, body: Vec<u8>) -> Response {
    let content_type = (CONTENT_TYPE, HeaderValue::from_static(JSON));
    (status, [content_type], Body::from(body)).into_response()
}

/// A token as a header's value.
pub(super) fn token_value(running: &Running, token: &Token) -> HeaderValue {
    let text = token.encode(running.cluster());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("base64 is visible ASCII")
}

/// Whether an answer names the stream of each batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Streams<'a> {
    /// All batches are of the stream that the path names.
    Implied,
    /// They may be of any of these.
    Named(&'a [std::sync::Arc<StreamDefinition>]),
}

/// The answer to a write: where it went, and the token that stands for it.
pub(super) fn written(running: &Running, ack: &Ack, streams: Streams<'_>) -> Response {
    let token = ack.token().encode(running.cluster());
    let body = PublishAnswer {
        offsets: ack.rows.iter().map(|row| published(row, streams)).collect(),
        dot: first_dot(ack).map(|dot| dot.to_string()),
        token,
        durability: ack.durability.as_str().to_owned(),
        regions: ack.regions.iter().map(ToString::to_string).collect(),
    };
    let mut response = json(StatusCode::OK, &body);
    let value = token_value(running, &ack.token());
    response.headers_mut().insert(TOKEN, value);
    response
}

fn published(row: &AckRow, streams: Streams<'_>) -> Published {
    let stream = match streams {
        Streams::Implied => None,
        Streams::Named(streams) => streams
            .iter()
            .find(|definition| definition.id() == row.stream)
            .map(|definition| definition.name.to_string()),
    };
    let offset = match row.placed {
        Placed::Appended { base_offset, .. } => Some(base_offset),
        Placed::Duplicate { base_offset } => base_offset,
    };
    Published {
        stream,
        partition: row.partition.get(),
        offset: offset.map(anabranch_core::id::Offset::get),
        records: row.records,
    }
}

fn first_dot(ack: &Ack) -> Option<Dot> {
    let appended = ack.rows.iter().filter_map(|row| match row.placed {
        Placed::Appended { first_index, .. } => Some(first_index),
        Placed::Duplicate { .. } => None,
    });
    appended.min().map(|index| Dot {
        origin: ack.origin,
        sequence: ack.sequence,
        index,
    })
}

/// The parameter `ack` and the preference `wait`, which all writes have.
pub(super) fn wish(
    query: &Query<'_>,
    headers: &HeaderMap,
    limits: &Limits,
) -> Result<Wish, Refusal> {
    let level = match query.text("ack")? {
        None => AckLevel::Disk,
        Some(text) => AckLevel::parse(text).ok_or_else(|| {
            bad(format!(
                "ack={}: must be disk, memory, regions:N or region:NAME,NAME…",
                cut(text)
            ))
        })?,
    };
    let wait = token::wait(headers)?;
    Ok(Wish {
        level,
        patience: wait.map(|wait| wait.min(limits.longest_wait_seconds)),
    })
}
