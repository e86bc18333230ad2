//! One row: `/v1/tables/{stream}/rows/{key}`.
//!
//! Reading one is the hottest call of this surface: nothing is parsed that is not there, nothing
//! waits for a thread, and the value is passed on as the table has it.

use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::record::Record;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use serde::de::IgnoredAny;
use twox::xxh3::xxh3_128;

use super::answer::{Streams, TOKEN, token_value, wish, written};
use super::body::{self, content_type};
use super::publish::batches;
use super::query::{Query, cut};
use super::refusal::Refusal;
use super::token::read_at;
use super::{Answer, App, path};
use crate::config::Limits;
use crate::node::{Group, Running};
use crate::refused::refused;

const JSON: HeaderValue = HeaderValue::from_static(anabranch_protocol::http::JSON);
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The value, as stored.
pub(super) async fn read(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, _) = request.into_parts();
    Query::read(&parts.uri, &[])?;
    let at = read_at(&parts.headers, running, surface.limits())?;
    let stream = path::stream(&parts.uri);
    let key = path::key(&parts.uri);
    let read = running.row(&stream, &key, &at).await?;
    let token = token_value(running, &read.token);
    let mut response = match read.value {
        Some(value) => found(value, &parts.headers),
        None => refused(&no_such_row(&stream, &key)),
    };
    response.headers_mut().insert(TOKEN, token);
    Ok(response)
}

fn found(value: Bytes, headers: &HeaderMap) -> Response {
    let etag = etag(&value);
    if let Some(wanted) = headers.get(IF_MATCH)
        && !names(wanted, &etag)
    {
        return refused(&Problem::new(
            Code::PreconditionFailed,
            "the row has changed: its ETag is none of those in If-Match; read it again",
        ));
    }
    let held = headers.get(IF_NONE_MATCH);
    let mut response = if held.is_some_and(|held| names(held, &etag)) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let content_type = if is_json(&value) { JSON } else { BYTES };
        let mut response = Response::new(Body::from(value));
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    };
    response.headers_mut().insert(ETAG, etag);
    response
}

fn is_json(value: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(value).is_ok()
}

/// A strong tag: equal bytes have equal tags, and no others do in practice.
fn etag(value: &[u8]) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut tag = [b'"'; 34];
    let hash = xxh3_128(value).to_be_bytes();
    for (pair, byte) in tag[1..33].chunks_exact_mut(2).zip(hash) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    HeaderValue::from_bytes(&tag).expect("hexadecimal digits in quotes")
}

/// Whether a list of entity tags names this one, or everything.
fn names(list: &HeaderValue, etag: &HeaderValue) -> bool {
    let wanted = etag.as_bytes();
    list.as_bytes().split(|&b| b == b',').any(|tag| {
        let tag = tag.trim_ascii();
        tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == wanted
    })
}

fn no_such_row(stream: &str, key: &[u8]) -> Problem {
    let key = cut(&String::from_utf8_lossy(key));
    Problem::new(
        Code::NoSuchRow,
        format!("stream {stream} has no row {key:?}"),
    )
}

/// `PUT`: the body is the value. A body that says it is JSON must be.
pub(super) async fn write(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, body) = request.into_parts();
    check_unconditional(&parts.headers)?;
    let definition = keyed_stream(running, &parts.uri)?;
    running.check_writable()?;
    let value = body::read(body, surface.limits()).await?;
    if content_type(&parts.headers).eq_ignore_ascii_case(anabranch_protocol::http::JSON) {
        body::json::<IgnoredAny>(&value)?;
    }
    let record = Record::put(path::key(&parts.uri), &value[..]);
    store(running, &definition, record, (&parts, surface.limits())).await
}

/// `DELETE`: the row is gone afterwards, whether or not it was there.
pub(super) async fn delete(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, _) = request.into_parts();
    check_unconditional(&parts.headers)?;
    let definition = keyed_stream(running, &parts.uri)?;
    let record = Record::delete(path::key(&parts.uri));
    store(running, &definition, record, (&parts, surface.limits())).await
}

/// `PATCH`: for streams whose rows are documents, which there are none of yet.
pub(super) async fn patch(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let definition = running.writable_stream(&path::stream(request.uri()))?;
    Err(Refusal::new(
        Code::NotPossible,
        format!(
            "rows of stream {} are replaced whole (merge \"{}\"); PUT the whole value",
            definition.name,
            definition.merge.as_str()
        ),
    ))
}

async fn store(
    running: &std::sync::Arc<Running>,
    definition: &std::sync::Arc<StreamDefinition>,
    record: Record<'_>,
    (parts, limits): (&Parts, &Limits),
) -> Answer {
    let wish = wish(&Query::read(&parts.uri, &["ack"])?, &parts.headers, limits)?;
    let publishes = batches(definition, &[record], None, None)?;
    let ack = running.publish(Group::from(publishes), wish).await?;
    Ok(written(running, &ack, Streams::Implied))
}

/// The stream whose rows can be written one by one.
fn keyed_stream(running: &Running, uri: &Uri) -> Result<std::sync::Arc<StreamDefinition>, Refusal> {
    let definition = running.writable_stream(&path::stream(uri))?;
    match definition.merge {
        MergeMode::Lww => Ok(definition),
        MergeMode::Append => Err(Refusal::new(
            Code::NotPossible,
            format!(
                "each record of stream {0} is a row of its own (merge \"append\"), so a row cannot be written; publish to it: POST /v1/streams/{0}/records",
                definition.name
            ),
        )),
    }
}

/// Writes commute and are decided by their stamps, so a condition on what a row holds at one
/// broker would promise what no broker can keep.
fn check_unconditional(headers: &HeaderMap) -> Result<(), Refusal> {
    let conditions: [HeaderName; 2] = [IF_MATCH, IF_NONE_MATCH];
    match conditions.iter().find(|name| headers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(Refusal::new(
            Code::NotPossible,
            format!("{name} is not possible on writes: the last writer wins; leave it out"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list() {
        let tag = etag(b"value");
        assert_eq!(tag, etag(b"value"));
        assert_ne!(tag, etag(b"other"));
        let list = format!("\"x\", W/{}", tag.to_str().unwrap());
        assert!(names(&list.parse().unwrap(), &tag));
        assert!(names(&HeaderValue::from_static("*"), &tag));
        assert!(!names(&HeaderValue::from_static("\"x\""), &tag));
    }
}
