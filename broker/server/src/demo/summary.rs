//! What came of it, counted in what the broker answers, and what to paste next.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anabranch_client::{Client, RowRange, StreamHandle};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::load::{EVENTS, LONGEST_MICROSECONDS, Loaded, STATUS, TABLES};
use crate::cli::{command, server_flag};

/// Rows asked for at once when all are counted.
const PAGE: u32 = 1000;

/// Rows read one by one, to time it.
const READS: usize = 1000;

/// What the broker holds after the demo.
pub(super) struct Summary {
    loaded: Loaded,
    events: u64,
    rows: Vec<(&'static str, u64)>,
    reads: Histogram<u64>,
    scan: Duration,
}

/// Asks the broker for everything, over its sockets.
pub(super) async fn look(client: &Client, loaded: Loaded) -> anyhow::Result<Summary> {
    let info = client.stream(EVENTS).info().await?;
    let events = info.offsets.iter().flatten().map(|held| held.next).sum();
    let started = Instant::now();
    let mut rows = Vec::new();
    for table in TABLES {
        rows.push((table, count(&client.stream(table)).await?));
    }
    let scan = started.elapsed();
    Ok(Summary {
        loaded,
        events,
        rows,
        scan,
        reads: time_reads(&client.stream(STATUS)).await?,
    })
}

async fn count(table: &StreamHandle) -> anyhow::Result<u64> {
    let mut range = RowRange {
        limit: Some(PAGE),
        ..RowRange::default()
    };
    let mut rows = 0;
    loop {
        let page = table.rows(&range).await?.value;
        rows += page.rows.len() as u64;
        match page.next {
            Some(after) => range.after = Some(after),
            None => return Ok(rows),
        }
    }
}

/// Reads rows by key, one after the other, and times each.
async fn time_reads(table: &StreamHandle) -> anyhow::Result<Histogram<u64>> {
    let range = RowRange {
        limit: Some(PAGE),
        ..RowRange::default()
    };
    let page = table.rows(&range).await?.value;
    let mut microseconds = Histogram::new_with_bounds(1, LONGEST_MICROSECONDS, 3)?;
    for row in page.rows.iter().take(READS) {
        let started = Instant::now();
        let value = table.row(&row.key).await?;
        anyhow::ensure!(
            value.as_ref() == Some(&row.value),
            "a row changed by itself"
        );
        microseconds.saturating_record(u64::try_from(started.elapsed().as_micros())?);
    }
    Ok(microseconds)
}

impl Summary {
    fn rate(&self) -> f64 {
        as_float(self.loaded.published) / self.loaded.took.as_secs_f64()
    }

    /// For people.
    pub(super) fn text(&self, listen: SocketAddr) -> String {
        let loaded = &self.loaded;
        let mut out = String::new();
        let mut line = |name: &str, text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<14}{text}");
        };
        if loaded.held > 0 {
            line("held already", format!("{} records", grouped(loaded.held)));
        }
        if loaded.published > 0 {
            let (records, took) = (grouped(loaded.published), loaded.took.as_secs_f64());
            let rate = grouped(whole(self.rate()));
            line(
                "published",
                format!(
                    "{records} records in {took:.1} s: {rate} a second, each on disk before its acknowledgement"
                ),
            );
            line("acknowledged", percentiles(&loaded.acks));
        }
        line(
            "events",
            format!(
                "{} departures and arrivals in {EVENTS}",
                grouped(self.events)
            ),
        );
        for (table, rows) in &self.rows {
            line("rows", format!("{} in {table}", grouped(*rows)));
        }
        let all: u64 = self.rows.iter().map(|(_, rows)| rows).sum();
        line(
            "read all rows",
            format!(
                "{} in {:.1} s over HTTP",
                grouped(all),
                self.scan.as_secs_f64()
            ),
        );
        line("read one row", percentiles(&self.reads));
        let (command, server) = (command(), server_flag(listen));
        let _ = write!(
            out,
            "\n{command} get {STATUS} UA1545-EWR-2013-01-01{server}\
             \n{command} rows planes --prefix N1 --limit 5{server}\
             \n{command} sub {EVENTS} --from earliest --limit 5{server}"
        );
        out
    }

    /// For scripts.
    pub(super) fn json(&self, listen: SocketAddr) -> Value {
        let rows: serde_json::Map<_, _> = self
            .rows
            .iter()
            .map(|(table, rows)| ((*table).to_owned(), json!(rows)))
            .collect();
        json!({
            "listen": listen.to_string(),
            "published": self.loaded.published,
            "held": self.loaded.held,
            "seconds": self.loaded.took.as_secs_f64(),
            "records_per_second": self.rate(),
            "ack_microseconds": quantiles(&self.loaded.acks),
            "row_read_microseconds": quantiles(&self.reads),
            "events": self.events,
            "rows": rows,
        })
    }
}

fn quantiles(microseconds: &Histogram<u64>) -> Value {
    json!({
        "p50": microseconds.value_at_quantile(0.5),
        "p99": microseconds.value_at_quantile(0.99),
        "max": microseconds.max(),
    })
}

fn percentiles(microseconds: &Histogram<u64>) -> String {
    let at = |quantile| as_float(microseconds.value_at_quantile(quantile)) / 1000.0;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
        at(0.5),
        at(0.99),
        as_float(microseconds.max()) / 1000.0
    )
}

/// 656584 as 656,584.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "shown to three digits")]
fn as_float(number: u64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate, which is positive and small"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_in_threes() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (656_584, "656,584"),
        ];
        for (number, expected) in cases {
            assert_eq!(grouped(number), expected);
        }
    }
}
