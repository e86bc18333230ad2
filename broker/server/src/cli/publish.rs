//! Publishing what comes on standard input, or one record.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Instant;

use anabranch_client::{
    AckFuture, Client, Code, Publisher, PublisherOptions, Record, StreamDefinition, StreamName,
};
use anabranch_protocol::record::json::{RecordError, parse_record};
use indicatif::ProgressBar;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Ended;
use super::arguments::{Merge, PublishArguments};
use super::failure::Failure;
use super::output::{self, Output};
use super::waiting::Waiting;

/// Bytes of standard input that are read at once.
const READ_BYTES: usize = 256 * 1024;

/// Publishes, and waits until everything is on disk.
pub(super) async fn run(arguments: PublishArguments) -> Ended {
    let client = arguments.target.client()?;
    if let Some(merge) = arguments.create {
        create_if_missing(&client, &arguments.stream, merge).await?;
    }
    let stream = client.stream(&arguments.stream);
    let options = PublisherOptions {
        ack: arguments.ack.clone(),
        ..PublisherOptions::default()
    };
    let publisher = stream.publisher(options).await?;
    let mut waiting = Waiting::for_ack(&client, &arguments.ack);
    let mut sending = Sending {
        publisher,
        progress: output::progress(None, "published"),
        started: Instant::now(),
        records: 0,
        last: None,
    };
    let publishing = async {
        let sent = match &arguments.value {
            Some(value) => sending.one(arguments.key.as_deref(), value).await,
            None => sending.standard_input().await,
        };
        // What came before a bad line is published all the same, and counted.
        let done = sending.finish(Output::new(arguments.target.json)).await;
        sent.and(done)
    };
    waiting.over(publishing).await?;
    Ok(ExitCode::SUCCESS)
}

async fn create_if_missing(client: &Client, name: &str, merge: Merge) -> Result<(), Failure> {
    match client.stream(name).info().await {
        Err(error) if error.code() == Some(Code::NoSuchStream) => {
            let name = StreamName::parse(name)?;
            let definition = StreamDefinition::new(name, merge.mode());
            client.create_stream(&definition).await?;
            output::hint(&format!("created stream {}", definition.name));
        }
        info => drop(info?),
    }
    Ok(())
}

struct Sending {
    publisher: Publisher,
    progress: ProgressBar,
    started: Instant,
    records: u64,
    last: Option<AckFuture>,
}

impl Sending {
    async fn one(&mut self, key: Option<&str>, value: &str) -> Result<(), Failure> {
        let record = match key {
            Some(key) => Record::put(key.as_bytes(), value.as_bytes()),
            None => Record::value(value.as_bytes()),
        };
        self.send(record).await
    }

    async fn standard_input(&mut self) -> Result<(), Failure> {
        if io::stdin().is_terminal() {
            output::hint("reading records, one JSON object a line; Ctrl-D ends");
        }
        let mut input = BufReader::with_capacity(READ_BYTES, tokio::io::stdin());
        let (mut line, mut number) = (Vec::new(), 0_u64);
        while input.read_until(b'\n', &mut line).await? > 0 {
            number += 1;
            if !line.trim_ascii().is_empty() {
                let record = read(&line).map_err(|error| bad_line(number, &error))?;
                self.send(record).await?;
            }
            line.clear();
        }
        Ok(())
    }

    async fn send(&mut self, record: Record<'_>) -> Result<(), Failure> {
        self.last = Some(self.publisher.send(record).await?);
        self.records += 1;
        self.progress.inc(1);
        Ok(())
    }

    async fn finish(self, output: Output) -> Result<(), Failure> {
        self.publisher.flush().await?;
        self.progress.finish_and_clear();
        let Some(last) = self.last else {
            output::hint("nothing to publish");
            return Ok(());
        };
        let ack = last.await?;
        let seconds = self.started.elapsed().as_secs_f64();
        let (records, durability) = (self.records, ack.durability.as_str());
        if output.is_json() {
            let line = json!({
                "records": records,
                "seconds": seconds,
                "durability": durability,
                "token": &*ack.token,
            });
            output.line(&line.to_string())?;
        }
        output.done(&[&records.to_string(), durability, &ack.token])?;
        output::hint(&format!(
            "published {records} records in {seconds:.2} s, acknowledged from {durability}"
        ));
        Ok(())
    }
}

/// A record as people write it, or as `sub --json` prints it.
fn read(line: &[u8]) -> Result<Record<'_>, RecordError> {
    match parse_record(line) {
        Err(RecordError::UnknownField { index, reason }) => match without_place(line) {
            Some(line) => Ok(parse_record(&line)?.into_owned()),
            None => Err(RecordError::UnknownField { index, reason }),
        },
        read => read,
    }
}

/// The line without partition and offset, if it has them: where a record is says the broker that
/// it is published to.
fn without_place(line: &[u8]) -> Option<Vec<u8>> {
    let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_slice(line).ok()?;
    let had = [fields.remove("partition"), fields.remove("offset")];
    if had.iter().all(Option::is_none) {
        return None;
    }
    serde_json::to_vec(&fields).ok()
}

fn bad_line(number: u64, error: &RecordError) -> Failure {
    let reason = error.to_string();
    let reason = reason.strip_prefix("record 0: ").unwrap_or(&reason);
    anyhow::anyhow!("line {number}: {reason}; the lines before it are published").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_subscription_prints_can_be_published() {
        let line = br#"{"partition":0,"offset":7,"key":"a","value":1,"timestamp":5}"#;
        assert_eq!(read(line).unwrap().key.as_deref(), Some(&b"a"[..]));
        let line = br#"{"offset":7,"key":"a","valeu":1}"#;
        assert!(read(line).is_err());
        let line = br#"{"key":"a","valeu":1}"#;
        let error = bad_line(3, &read(line).unwrap_err());
        let text = format!("{error:?}");
        assert!(text.contains("line 3: unknown field `valeu`"), "{text}");
    }
}
