//! The body of a request: its type, its size, and what is wrong with it.

use anabranch_protocol::error::Code;
use anabranch_protocol::http::{JSON, NDJSON};
use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::query::cut;
use super::refusal::Refusal;
use crate::config::Limits;

/// How records may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MediaType {
    /// `application/json`
    Json,
    /// `application/x-ndjson`: one JSON value a line.
    Ndjson,
    /// `application/vnd.anabranch.batch`: one record batch.
    Batch,
}

impl MediaType {
    const fn name(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Ndjson => NDJSON,
            Self::Batch => "application/vnd.anabranch.batch",
        }
    }

    /// The type of a body, if it is one of those possible here. A body without a type is refused:
    /// a web page of anybody may send such a body, or a form, to a broker on the same machine, but
    /// needs permission for any of these types.
    pub(super) fn of(headers: &HeaderMap, possible: &[Self]) -> Result<Self, Refusal> {
        let said = content_type(headers);
        let found = possible
            .iter()
            .find(|known| said.eq_ignore_ascii_case(known.name()));
        found.copied().ok_or_else(|| {
            let names: Vec<_> = possible.iter().map(|known| known.name()).collect();
            let said = match said {
                "" => "no content type".to_owned(),
                said => format!("content type {:?}", cut(said)),
            };
            Refusal::new(
                Code::MediaType,
                format!(
                    "the body has {said}; send content-type: {}",
                    names.join(" or ")
                ),
            )
        })
    }
}

/// The content type without its parameters; empty when there is none.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let value = value.unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Reads a body, however long it says it is, up to the limit and within the time allowed.
pub(super) async fn read(body: Body, limits: &Limits) -> Result<Bytes, Refusal> {
    let most = limits.request_bytes;
    let said = axum::body::HttpBody::size_hint(&body).lower();
    if said > most.get() {
        return Err(too_large(&format!("{said} bytes"), limits));
    }
    let reading = Limited::new(body, most.in_memory()).collect();
    match tokio::time::timeout(limits.body_timeout_seconds, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large("longer", limits)),
        Ok(Err(error)) => Err(Refusal::new(
            Code::NotJson,
            format!("the body did not arrive whole: {error}"),
        )),
        Err(_) => Err(Refusal::new(
            Code::NotJson,
            format!(
                "the body did not arrive within {} s; send it faster, or in smaller requests",
                limits.body_timeout_seconds.as_secs()
            ),
        )),
    }
}

fn too_large(said: &str, limits: &Limits) -> Refusal {
    Refusal::new(
        Code::MessageTooLarge,
        format!(
            "the body is {said}; the limit is {} (limits.request_bytes); send smaller requests",
            limits.request_bytes
        ),
    )
}

/// A body that is one JSON value.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| not_json(&error))
}

fn not_json(error: &serde_json::Error) -> Refusal {
    Refusal::new(Code::NotJson, format!("the body: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (body, expected) in [
            (&b"[1,\n2,,]"[..], "line 2 column 3"),
            (b"[1] 2", "trailing characters at line 1 column 5"),
            (b"", "EOF while parsing"),
        ] {
            let error = json::<Vec<u64>>(body).unwrap_err();
            let error = error.into_problem().to_string();
            assert!(
                error.starts_with("AB1008 the body: ") && error.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn forms_and_untyped_bodies_are_refused() {
        let possible = [MediaType::Json, MediaType::Ndjson];
        for (said, expected) in [
            ("application/json", Some(MediaType::Json)),
            ("Application/JSON; charset=utf-8", Some(MediaType::Json)),
            ("application/x-ndjson", Some(MediaType::Ndjson)),
            ("application/vnd.anabranch.batch", None),
            ("application/x-www-form-urlencoded", None),
            ("text/plain", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, said.parse().unwrap());
            assert_eq!(MediaType::of(&headers, &possible).ok(), expected, "{said}");
        }
        assert!(MediaType::of(&HeaderMap::new(), &possible).is_err());
    }
}
