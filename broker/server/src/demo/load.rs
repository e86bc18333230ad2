//! Publishing the flights and the tables beside them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anabranch_client::{
    AckFuture, Client, MergeMode, Publisher, PublisherOptions, Record, StreamDefinition,
    StreamHandle, StreamName,
};
use hdrhistogram::Histogram;

use super::dataset::Table;
use super::events::Flights;
use crate::cli::progress;

/// Every departure and arrival, in order.
pub(super) const EVENTS: &str = "flights";
/// The latest event of every flight.
pub(super) const STATUS: &str = "flight_status";

/// A table that is loaded as it is.
struct Reference {
    stream: &'static str,
    table: Table,
    /// The columns whose values make up the key.
    key: &'static [&'static str],
}

const REFERENCES: [Reference; 4] = [
    Reference {
        stream: "airlines",
        table: Table::Airlines,
        key: &["carrier"],
    },
    Reference {
        stream: "airports",
        table: Table::Airports,
        key: &["faa"],
    },
    Reference {
        stream: "planes",
        table: Table::Planes,
        key: &["tailnum"],
    },
    Reference {
        stream: "weather",
        table: Table::Weather,
        key: &["origin", "time_hour"],
    },
];

/// The keyed tables, in the order in which they are shown.
pub(super) const TABLES: [&str; 5] = [STATUS, "weather", "planes", "airports", "airlines"];

/// One acknowledgement in so many is timed.
const SAMPLE_EVERY: usize = 500;

/// Beyond a minute, longer is not told apart.
pub(super) const LONGEST_MICROSECONDS: u64 = 60_000_000;

/// What loading took.
pub(super) struct Loaded {
    /// Records that were published now.
    pub(super) published: u64,
    /// Records that an earlier run had published.
    pub(super) held: u64,
    /// From the first record to the last acknowledgement.
    pub(super) took: Duration,
    /// Microseconds from publishing a record to its acknowledgement.
    pub(super) acks: Histogram<u64>,
}

/// Publishes all tables, then all events, and waits until everything is on disk.
pub(super) async fn everything(client: &Client) -> anyhow::Result<Loaded> {
    let latencies = Latencies::new()?;
    let mut counts = Counts::default();
    let started = Instant::now();
    for reference in &REFERENCES {
        load_reference(client, reference, &latencies, &mut counts).await?;
    }
    load_events(client, &latencies, &mut counts).await?;
    let took = started.elapsed();
    Ok(Loaded {
        published: counts.published,
        held: counts.held,
        took,
        acks: latencies.taken().await,
    })
}

#[derive(Default)]
struct Counts {
    published: u64,
    held: u64,
}

async fn load_reference(
    client: &Client,
    reference: &Reference,
    latencies: &Latencies,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let columns = reference.table.unpack()?;
    let mut target = Target::open(client, reference.stream, MergeMode::Lww).await?;
    let key_columns: Result<Vec<_>, _> = reference
        .key
        .iter()
        .map(|name| columns.column(name))
        .collect();
    let key_columns = key_columns?;
    let bar = progress(Some(columns.rows() as u64), reference.stream);
    for (row, value) in columns.json_rows().enumerate() {
        let parts: Vec<_> = key_columns.iter().map(|column| column.get(row)).collect();
        let key = parts.join("-");
        let record = Record::put(key.as_bytes(), value.as_bytes());
        target.publish(row, record, latencies).await?;
        bar.inc(1);
    }
    target.publisher.flush().await?;
    bar.finish_and_clear();
    target.count(counts, columns.rows());
    Ok(())
}

async fn load_events(
    client: &Client,
    latencies: &Latencies,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let (flights, airports) = (Table::Flights.unpack()?, Table::Airports.unpack()?);
    let flights = Flights::new(&flights, &airports)?;
    let mut log = Target::open(client, EVENTS, MergeMode::Append).await?;
    let mut status = Target::open(client, STATUS, MergeMode::Lww).await?;
    let events = flights.events();
    let bar = progress(Some(events.len() as u64), EVENTS);
    for (index, &event) in events.iter().enumerate() {
        let (key, value) = (flights.key(event)?, flights.value(event)?);
        let at = i64::try_from(event.timestamp_ms())?;
        let record = || Record::put(key.as_bytes(), value.as_bytes()).at(at);
        log.publish(index, record(), latencies).await?;
        status.publish(index, record(), latencies).await?;
        bar.inc(1);
    }
    log.publisher.flush().await?;
    status.publisher.flush().await?;
    bar.finish_and_clear();
    log.count(counts, events.len());
    status.count(counts, events.len());
    Ok(())
}

/// A stream that is filled in an order that is always the same.
struct Target {
    publisher: Publisher,
    /// How many records an earlier run has published.
    held: usize,
}

impl Target {
    async fn open(client: &Client, name: &str, merge: MergeMode) -> anyhow::Result<Self> {
        let definition = StreamDefinition::new(StreamName::parse(name)?, merge);
        client.create_stream(&definition).await?;
        let stream = client.stream(name);
        Ok(Self {
            held: records_held(&stream).await?,
            publisher: stream.publisher(PublisherOptions::default()).await?,
        })
    }

    async fn publish(
        &mut self,
        index: usize,
        record: Record<'_>,
        latencies: &Latencies,
    ) -> anyhow::Result<()> {
        if index < self.held {
            return Ok(());
        }
        let sent = Instant::now();
        let ack = self.publisher.send(record).await?;
        if index.is_multiple_of(SAMPLE_EVERY) {
            latencies.time(sent, ack);
        }
        Ok(())
    }

    fn count(&self, counts: &mut Counts, records: usize) {
        let held = self.held.min(records);
        counts.held += held as u64;
        counts.published += (records - held) as u64;
    }
}

async fn records_held(stream: &StreamHandle) -> anyhow::Result<usize> {
    let partitions = stream.info().await?.offsets.unwrap_or_default();
    let records: u64 = partitions.iter().map(|partition| partition.next).sum();
    Ok(usize::try_from(records)?)
}

/// Times acknowledgements beside the publishing.
#[derive(Clone)]
struct Latencies {
    microseconds: Arc<Mutex<Histogram<u64>>>,
    waiting: tokio_util::task::TaskTracker,
}

impl Latencies {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            microseconds: Arc::new(Mutex::new(Histogram::new_with_bounds(
                1,
                LONGEST_MICROSECONDS,
                3,
            )?)),
            waiting: tokio_util::task::TaskTracker::new(),
        })
    }

    fn time(&self, sent: Instant, ack: AckFuture) {
        let microseconds = Arc::clone(&self.microseconds);
        self.waiting.spawn(async move {
            // A failure is reported by the flush.
            if ack.await.is_ok() {
                let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                let mut held = microseconds.lock().unwrap_or_else(PoisonError::into_inner);
                held.saturating_record(took);
            }
        });
    }

    async fn taken(&self) -> Histogram<u64> {
        self.waiting.close();
        self.waiting.wait().await;
        let held = self.microseconds.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
