//! Making, showing, changing, trimming and deleting streams.

use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::http::{PartitionOffsets, StreamInfo, StreamList};
use anabranch_protocol::position::From;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::answer::json;
use super::body::{self, MediaType};
use super::query::{Query, bad};
use super::{Answer, App, Surface, path, refusal::Refusal};
use crate::node::{Created, Running};

/// `GET /v1/streams`: those of users, by name.
pub(super) async fn list(State(surface): App, request: Request) -> Answer {
    Query::read(request.uri(), &[])?;
    let streams = surface.running()?.tables.streams();
    let users = streams.iter().filter(|held| !held.name.is_system());
    let list = StreamList {
        streams: users.map(|held| StreamInfo::from(&**held)).collect(),
    };
    Ok(json(StatusCode::OK, &list))
}

/// `POST /v1/streams`: 201 when it is new, 200 when it was there, defined the same.
pub(super) async fn create(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let wish = StreamDefinition::from_json(&json_body(&surface, request).await?)?;
    let (status, definition) = match running.create_stream(wish).await? {
        Created::New(definition) => (StatusCode::CREATED, definition),
        Created::Same(definition) => (StatusCode::OK, definition),
    };
    let mut response = shown(running, status, &definition);
    let location = format!("/v1/streams/{}", definition.name);
    let location = HeaderValue::try_from(location).expect("stream names are ASCII");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// `GET /v1/streams/{stream}`: the definition, and what its partitions hold.
pub(super) async fn show(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let definition = running.stream(&path::stream(request.uri()))?;
    Ok(shown(running, StatusCode::OK, &definition))
}

/// `PATCH /v1/streams/{stream}`: only the fields given change.
pub(super) async fn change(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let name = path::stream(request.uri()).into_owned();
    let change: Value = json_body(&surface, request).await?;
    let definition = running.change_stream(&name, &change).await?;
    Ok(shown(running, StatusCode::OK, &definition))
}

/// `DELETE /v1/streams/{stream}`.
pub(super) async fn delete(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let name = path::stream(request.uri()).into_owned();
    running.delete_stream(&name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trim {
    before: Value,
}

/// `POST /v1/streams/{stream}/trim`: what was appended before a time may go.
pub(super) async fn trim(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    Query::read(request.uri(), &[])?;
    let name = path::stream(request.uri()).into_owned();
    let trim: Trim = json_body(&surface, request).await?;
    let before_ms = milliseconds(&trim.before)?;
    let definition = running.changeable_stream(&name)?;
    running.trim_stream(&name, before_ms).await?;
    Ok(shown(running, StatusCode::ACCEPTED, &definition))
}

/// A time as a number of milliseconds or as RFC 3339.
fn milliseconds(before: &Value) -> Result<u64, Refusal> {
    let parsed = match before {
        Value::String(text) => From::parse(text).ok(),
        number => number.as_u64().map(From::Time),
    };
    match parsed {
        Some(From::Time(ms)) => Ok(ms),
        _ => Err(bad(
            "before: must be milliseconds since 1970, or a time such as \"2013-01-01T06:00:00Z\""
                .to_owned(),
        )),
    }
}

async fn json_body<T: serde::de::DeserializeOwned>(
    surface: &Surface,
    request: Request,
) -> Result<T, Refusal> {
    MediaType::of(request.headers(), &[MediaType::Json])?;
    let bytes = body::read(request.into_body(), surface.limits()).await?;
    body::json(&bytes)
}

fn shown(running: &Running, status: StatusCode, definition: &StreamDefinition) -> Response {
    let offsets = running.partitions(definition).into_iter();
    let offsets = offsets.map(|held| PartitionOffsets {
        partition: held.partition.get(),
        first: held.first.get(),
        next: held.next.get(),
    });
    let info = StreamInfo {
        offsets: Some(offsets.collect()),
        bytes: Some(running.reader.stored_bytes(definition.id())),
        ..StreamInfo::from(definition)
    };
    json(status, &info)
}
