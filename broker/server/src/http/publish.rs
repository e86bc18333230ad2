//! Records in: `POST /v1/streams/{stream}/records`. Whatever one request brings goes into one
//! frame, or none of it does.

use std::sync::Arc;

use anabranch_core::id::PartitionId;
use anabranch_core::producer::ProducerStamp;
use anabranch_core::sequencer::Publish;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::record::json::{RecordError, parse_array, parse_ndjson};
use anabranch_protocol::record::{Placement, Record, build_batches};
use axum::extract::{Request, State};
use bytes::Bytes;
use http::HeaderMap;

use super::answer::{Streams, wish, written};
use super::body::{self, MediaType};
use super::query::{Query, bad, cut};
use super::refusal::Refusal;
use super::{Answer, App, path};
use crate::node::{Group, check_batch, check_keys, check_partition, wall_clock_ms};

/// Header of an idempotent producer: `id/epoch/sequence`.
pub(super) const PRODUCER_HEADER: &str = "anabranch-producer";

const POSSIBLE: [MediaType; 3] = [MediaType::Json, MediaType::Ndjson, MediaType::Batch];

/// Answers with where the records went.
pub(super) async fn publish(State(surface): App, request: Request) -> Answer {
    let running = surface.running()?;
    let (parts, body) = request.into_parts();
    let query = Query::read(&parts.uri, &["partition", "ack"])?;
    let wish = wish(&query, &parts.headers, surface.limits())?;
    let media_type = MediaType::of(&parts.headers, &POSSIBLE)?;
    let definition = running.writable_stream(&path::stream(&parts.uri))?;
    let partition = match query.text("partition")? {
        Some(text) => Some(check_partition(&definition, partition_number(text)?)?),
        None => None,
    };
    let producer = producer(&parts.headers)?;
    // Refused before the body is read where that is possible.
    running.check_writable()?;
    let body = body::read(body, surface.limits()).await?;
    let publishes = match media_type {
        MediaType::Batch if producer.is_some() => {
            return Err(bad(format!(
                "a record batch carries its own producer; leave out the header {PRODUCER_HEADER}"
            )));
        }
        MediaType::Batch => vec![Publish {
            stream: definition.id(),
            partition: partition.unwrap_or_default(),
            batch: check_batch(&definition, body)?,
        }],
        MediaType::Json => batches(&definition, &array(&body)?, partition, producer)?,
        MediaType::Ndjson => batches(&definition, &lines(&body)?, partition, producer)?,
    };
    let ack = running.publish(Group::from(publishes), wish).await?;
    Ok(written(running, &ack, Streams::Implied))
}

/// One batch for every partition that these records fall into.
pub(super) fn batches(
    definition: &Arc<StreamDefinition>,
    records: &[Record<'_>],
    partition: Option<PartitionId>,
    producer: Option<ProducerStamp>,
) -> Result<Vec<Publish>, Problem> {
    check_keys(
        definition,
        records.iter().map(|record| record.key.is_some()),
    )?;
    let placement = Placement {
        partition,
        // Spreads publishes without key, and keeps each of them together.
        keyless: PartitionId::new(fastrand::u16(0..definition.partitions)),
        producer,
        ..Placement::new(definition.partitions, wall_clock_ms().cast_signed())
    };
    let stream = definition.id();
    let batches = build_batches(records, &placement)?.into_iter();
    let publish = |(partition, batch)| Publish {
        stream,
        partition,
        batch,
    };
    Ok(batches.map(publish).collect())
}

fn array(body: &Bytes) -> Result<Vec<Record<'_>>, Problem> {
    if body.trim_ascii_start().first() != Some(&b'[') {
        return Err(Problem::new(
            Code::NotJson,
            "the body must be a JSON array of records: [{\"key\": \"a\", \"value\": 1}, …]; for one record a line send content-type: application/x-ndjson",
        ));
    }
    Ok(parse_array(body)?)
}

fn lines(body: &Bytes) -> Result<Vec<Record<'_>>, Problem> {
    parse_ndjson(body).map_err(|error| {
        let index = match &error {
            RecordError::Json { index, .. }
            | RecordError::UnknownField { index, .. }
            | RecordError::Field { index, .. } => Some(*index),
            RecordError::TooMany => None,
        };
        let line = index.and_then(|index| line_of(body, index));
        let problem = Problem::from(error);
        match line {
            Some(line) => Problem::new(
                problem.code,
                format!("body line {line}, {}", problem.detail),
            ),
            None => problem,
        }
    })
}

/// On which line, from 1, the record with this index stands: blank lines are no records.
fn line_of(body: &[u8], index: usize) -> Option<usize> {
    let lines = body.split(|&b| b == b'\n').enumerate();
    let mut records = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    records.nth(index).map(|(line, _)| line + 1)
}

/// A partition as text.
pub(super) fn partition_number(text: &str) -> Result<PartitionId, Refusal> {
    text.parse().map(PartitionId::new).map_err(|_| {
        bad(format!(
            "partition={}: must be the number of a partition",
            cut(text)
        ))
    })
}

fn producer(headers: &HeaderMap) -> Result<Option<ProducerStamp>, Refusal> {
    let Some(value) = headers.get(PRODUCER_HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    parse_producer(text).map(Some).ok_or_else(|| {
        bad(format!(
            "{PRODUCER_HEADER}: {}: must be ID/EPOCH/SEQUENCE, below 2^63, 2^15 and 2^31",
            cut(text)
        ))
    })
}

fn parse_producer(text: &str) -> Option<ProducerStamp> {
    let mut fields = text.split('/');
    let stamp = ProducerStamp {
        id: fields.next()?.trim().parse().ok()?,
        epoch: fields.next()?.trim().parse().ok()?,
        sequence: fields.next()?.trim().parse().ok()?,
    };
    let in_range = stamp.id < 1 << 63 && stamp.epoch < 1 << 15 && stamp.sequence < 1 << 31;
    (in_range && fields.next().is_none()).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_is_three_numbers() {
        let stamp = parse_producer("7/0/41").unwrap();
        assert_eq!((stamp.id, stamp.epoch, stamp.sequence), (7, 0, 41));
        for bad in [
            "",
            "7",
            "7/0",
            "7/0/1/2",
            "-1/0/0",
            "7/0/2147483648",
            "9223372036854775808/0/0",
        ] {
            assert_eq!(parse_producer(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_line_of_a_record_counts_blank_lines() {
        assert_eq!(line_of(b"{}\n\n \n{}\n", 1), Some(4));
        assert_eq!(line_of(b"{}\n", 1), None);
    }
}
