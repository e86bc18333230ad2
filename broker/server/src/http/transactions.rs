//! Writes to several streams, all or nothing: `POST /v1/transactions`.

use std::sync::Arc;

use anabranch_core::limits::MAX_BATCH_RECORDS;
use anabranch_core::sequencer::Publish;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::http::TransactionOperation;
use anabranch_protocol::record::Record;
use axum::extract::{Request, State};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::answer::{Streams, wish, written};
use super::body::{self, MediaType};
use super::publish::batches;
use super::query::Query;
use super::refusal::Refusal;
use super::{Answer, App};
use crate::node::{Group, Running};

/// Answers with where the operations went: one frame.
pub(super) async fn commit(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, body) = request.into_parts();
    let query = Query::read(&parts.uri, &["ack"])?;
    let wish = wish(&query, &parts.headers, surface.limits())?;
    MediaType::of(&parts.headers, &[MediaType::Json])?;
    running.check_writable()?;
    let body = body::read(body, surface.limits()).await?;
    let operations = operations(&body)?;
    let by_stream = by_stream(running, &operations)?;
    let mut publishes: Vec<Publish> = Vec::new();
    for (definition, records) in &by_stream {
        publishes.append(&mut batches(definition, records, None, None)?);
    }
    let ack = running.publish(Group::from(publishes), wish).await?;
    let streams: Vec<_> = by_stream.into_iter().map(|(stream, _)| stream).collect();
    Ok(written(running, &ack, Streams::Named(&streams)))
}

/// Counts before it reads closely, so that a body of many tiny operations costs no more memory
/// than one of few large ones.
fn operations(body: &Bytes) -> Result<Vec<TransactionOperation>, Refusal> {
    let raw: Vec<&RawValue> = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("the body must be a JSON array of operations: {error}");
        Refusal::new(Code::NotJson, detail)
    })?;
    match raw.len() {
        0 => Err(Refusal::new(
            Code::BadParameter,
            "a transaction needs at least one operation",
        )),
        n if n > MAX_BATCH_RECORDS => Err(Refusal::new(
            Code::TransactionTooLarge,
            format!("{n} operations are more than the limit of {MAX_BATCH_RECORDS}"),
        )),
        _ => raw
            .iter()
            .enumerate()
            .map(|(index, raw)| operation(index, raw))
            .collect(),
    }
}

fn operation(index: usize, raw: &RawValue) -> Result<TransactionOperation, Refusal> {
    serde_json::from_str(raw.get()).map_err(|error| {
        let detail = format!("operation {index}: {error}");
        let code = match error.to_string().starts_with("unknown field") {
            true => Code::UnknownField,
            false => Code::NotJson,
        };
        Refusal::new(code, detail)
    })
}

type Writes<'a> = (Arc<StreamDefinition>, Vec<Record<'a>>);

/// What each stream is given, in the order in which the streams come first.
fn by_stream<'a>(
    running: &Running,
    operations: &'a [TransactionOperation],
) -> Result<Vec<Writes<'a>>, Problem> {
    let mut by_stream: Vec<Writes<'a>> = Vec::new();
    let mut places = hashbrown::HashMap::new();
    for (index, operation) in operations.iter().enumerate() {
        let name = operation.stream.as_str();
        let place = match places.get(name) {
            Some(&place) => place,
            None => {
                by_stream.push((running.writable_stream(name)?, Vec::new()));
                places.insert(name, by_stream.len() - 1);
                by_stream.len() - 1
            }
        };
        by_stream[place].1.push(operation.record(index)?);
    }
    Ok(by_stream)
}
