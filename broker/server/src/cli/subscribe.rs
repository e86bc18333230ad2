//! Printing records as they come.

use std::borrow::Cow;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::task::Poll;

use anabranch_client::{
    Delivered, Event, From, KeyFilter, Order, ReadOptions, Record, Row, RowRange, StreamHandle,
    SubscribeOptions,
};
use anabranch_protocol::record::json::{write_record, write_row};
use futures_util::poll;

use super::arguments::SubscribeArguments;
use super::failure::Failure;
use super::output::{self, Output};
use super::waiting::Waiting;
use super::{Ended, interrupted};

/// Prints until the limit, an interruption, or an error.
pub(super) async fn run(arguments: SubscribeArguments) -> Ended {
    let from: From = arguments
        .from
        .parse()
        .map_err(|error| Failure::usage(format!("{error}")))?;
    let options = SubscribeOptions {
        partitions: arguments.partitions.clone(),
        keys: filter(&arguments),
        order: arguments.order,
        ..SubscribeOptions::default()
    };
    let client = arguments.target.client()?;
    let stream = client.stream(&arguments.stream);
    if let Some(token) = &arguments.token {
        reach(&stream, token).await?;
    }
    let mut waiting = Waiting::for_order(&client, arguments.order == Order::Total);
    let mut subscription = stream.subscribe_with(from, options).await?;
    let mut stop = pin!(interrupted());
    let mut printer = Printer::new(arguments.target.json);
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let mut next = pin!(subscription.next());
        let event = match poll!(next.as_mut()) {
            Poll::Ready(event) => event?,
            Poll::Pending => {
                // Nothing more has come: show what has.
                printer.out.flush()?;
                tokio::select! {
                    event = waiting.over(next) => event?,
                    () = &mut stop => break,
                }
            }
        };
        left -= printer.print(event)?;
    }
    printer.out.flush()?;
    if let Some(cursor) = subscription.cursor() {
        output::hint(&format!("go on after this with: --from {cursor}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A read waits for a token; a subscription does not.
async fn reach(stream: &StreamHandle, token: &str) -> Result<(), Failure> {
    let none = RowRange {
        limit: Some(1),
        ..RowRange::default()
    };
    stream.rows_with(&none, &ReadOptions::after(token)).await?;
    Ok(())
}

fn filter(arguments: &SubscribeArguments) -> KeyFilter<'static> {
    let bytes = |text: &String| Cow::Owned(text.clone().into_bytes());
    match (&arguments.key, &arguments.prefix) {
        (Some(key), _) => KeyFilter::Key(bytes(key)),
        (None, Some(prefix)) => KeyFilter::Prefix(bytes(prefix)),
        (None, None) => KeyFilter::All,
    }
}

struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    output: Output,
    line: Vec<u8>,
}

impl Printer {
    fn new(json: bool) -> Self {
        Self {
            out: BufWriter::new(io::stdout().lock()),
            output: Output::new(json),
            line: Vec::new(),
        }
    }

    /// Prints an event; returns how many records or rows it was.
    fn print(&mut self, event: Event) -> io::Result<u64> {
        self.line.clear();
        match event {
            Event::Record(record) if self.output.is_json() => json_record(&mut self.line, &record),
            Event::Record(record) => plain_record(&mut self.line, &record)?,
            Event::Row(row) => self.row(&row)?,
            Event::Live => {
                output::hint("these were the rows; from here on, what changes");
                return Ok(0);
            }
            Event::Restarted => {
                output::hint("the connection was lost; the rows come again from the first");
                return Ok(0);
            }
        }
        self.line.push(b'\n');
        self.out.write_all(&self.line)?;
        Ok(1)
    }

    fn row(&mut self, row: &Row) -> io::Result<()> {
        if self.output.is_json() {
            write_row(&mut self.line, &row.key, &row.value);
            return Ok(());
        }
        let (key, value) = (output::text(&row.key), output::text(&row.value));
        write!(self.line, "{key}\t{value}")
    }
}

fn plain_record(line: &mut Vec<u8>, record: &Delivered) -> io::Result<()> {
    let key = record.key.as_deref().map(output::text).unwrap_or_default();
    let value = match &record.value {
        Some(value) if !record.is_delete() => output::text(value),
        _ => "(deleted)".into(),
    };
    write!(
        line,
        "{}:{}\t{key}\t{value}",
        record.partition, record.offset
    )
}

/// The form that `pub` reads, with partition and offset in front.
fn json_record(line: &mut Vec<u8>, delivered: &Delivered) {
    let bytes = |field: &Option<bytes::Bytes>| field.as_ref().map(|b| Cow::Owned(b.to_vec()));
    let header =
        |(name, value): &(String, Option<bytes::Bytes>)| (Cow::Owned(name.clone()), bytes(value));
    let record = Record {
        key: bytes(&delivered.key),
        value: bytes(&delivered.value),
        headers: delivered.headers.iter().map(header).collect(),
        timestamp: Some(delivered.timestamp),
        operation: delivered.operation,
    };
    let (partition, offset) = (delivered.partition, delivered.offset);
    line.extend_from_slice(format!("{{\"partition\":{partition},\"offset\":{offset}").as_bytes());
    let mut rest = Vec::new();
    write_record(&mut rest, &record);
    // Every record has a timestamp here, so there is a field to follow the comma.
    line.push(b',');
    line.extend_from_slice(rest.strip_prefix(b"{").unwrap_or(&rest));
}
