//! Many rows at one moment: `GET /v1/tables/{stream}/rows`, by range or by a list of keys.

use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::record::json::write_row;
use axum::extract::{Request, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;

use super::answer::{TOKEN, json_text, token_value};
use super::query::{Query, bad};
use super::refusal::Refusal;
use super::token::read_at;
use super::{Answer, App, path};
use crate::node::{KeyRange, Page, Read, ReadAt, Running};

/// Rows of one page when the request does not say.
const DEFAULT_ROWS: usize = 1_000;

/// Rows of one page at most. Bounds the time that one request holds a moment of the table.
const MAX_ROWS: usize = 10_000;

/// Bytes of keys and values at which a page ends, whatever its limit.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Keys of one read by key at most, so that they fit a request's head.
const MAX_KEYS: usize = 1_000;

const PARAMETERS: [&str; 5] = ["prefix", "after", "after_base64", "limit", "key"];

/// A page, and the key after which the next one begins.
pub(super) async fn read(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, _) = request.into_parts();
    let query = Query::read(&parts.uri, &PARAMETERS)?;
    let at = read_at(&parts.headers, running, surface.limits())?;
    let stream = path::stream(&parts.uri);
    let keys: Vec<Bytes> = query.all("key").map(Bytes::copy_from_slice).collect();
    let read = if keys.is_empty() {
        running.rows(&stream, range(&query)?, &at).await?
    } else {
        by_key(running, &stream, keys, &query, &at).await?
    };
    let token = token_value(running, &read.token);
    let mut response = json_text(StatusCode::OK, body(&read.value));
    response.headers_mut().insert(TOKEN, token);
    Ok(response)
}

fn range(query: &Query<'_>) -> Result<KeyRange, Refusal> {
    let after = query.one("after")?.map(Bytes::copy_from_slice);
    let packed = match query.one("after_base64")?.map(|text| STANDARD.decode(text)) {
        None => None,
        Some(Ok(key)) => Some(Bytes::from(key)),
        Some(Err(_)) => {
            return Err(bad(
                "after_base64 is not base64; pass on next_base64, with + as %2B".to_owned(),
            ));
        }
    };
    if after.is_some() && packed.is_some() {
        return Err(bad(
            "after and after_base64 are two forms of one thing; give one".to_owned(),
        ));
    }
    let prefix = query.one("prefix")?.unwrap_or_default();
    Ok(KeyRange {
        prefix: Bytes::copy_from_slice(prefix),
        after: after.or(packed),
        limit: query.count("limit", MAX_ROWS)?.unwrap_or(DEFAULT_ROWS),
        max_bytes: PAGE_BYTES,
    })
}

/// The rows of these keys that there are, in the order in which they were asked for.
async fn by_key(
    running: &std::sync::Arc<Running>,
    stream: &str,
    keys: Vec<Bytes>,
    query: &Query<'_>,
    at: &ReadAt,
) -> Result<Read<Page>, Problem> {
    let mixed = PARAMETERS
        .iter()
        .find(|&&name| name != "key" && query.all(name).next().is_some());
    if let Some(name) = mixed {
        return Err(Problem::new(
            Code::BadParameter,
            format!("{name} belongs to a range, key to a list of rows; give one of them"),
        ));
    }
    if keys.len() > MAX_KEYS {
        return Err(Problem::new(
            Code::BadParameter,
            format!("{} keys are more than the limit of {MAX_KEYS}", keys.len()),
        ));
    }
    running.rows_by_key(stream, keys, at).await
}

/// `{"rows": […], "next": …}`, written row by row. JSON text of rows needs no second copy.
fn body(page: &Page) -> Vec<u8> {
    let bytes: usize = page
        .rows
        .iter()
        .map(|(key, value)| key.len() + value.len() + 24)
        .sum();
    let mut out = Vec::with_capacity(bytes + 32);
    out.extend_from_slice(b"{\"rows\":[");
    for (index, (key, value)) in page.rows.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_row(&mut out, key, value);
    }
    out.push(b']');
    if let Some((last, _)) = page.rows.last().filter(|_| page.more) {
        write_next(&mut out, last);
    }
    out.push(b'}');
    out
}

fn write_next(out: &mut Vec<u8>, key: &[u8]) {
    let (name, text) = match std::str::from_utf8(key) {
        Ok(text) => (&b",\"next\":"[..], text.to_owned()),
        Err(_) => (&b",\"next_base64\":"[..], STANDARD.encode(key)),
    };
    out.extend_from_slice(name);
    serde_json::to_writer(out, &text).expect("writing to memory does not fail");
}
