//! Acked in one region, delivered and readable in another.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::report;
use crate::cli::{Format, Merge, RegionsLatencyArguments};
use crate::cpu::Spent;
use crate::frames::{Frames, Values};
use crate::http::Http;
use crate::keys;
use crate::latency::{Latencies, nanoseconds};
use crate::limits::disk;
use crate::mesh::{Mesh, Wire};
use crate::pace::Pace;
use crate::progress;
use crate::publisher::{Flow, Newest, Published, Publisher, Until, Witness};
use crate::report::{Goal, Report, Unit};
use crate::subscriber::Subscriber;
use crate::work::latency::{Expected, limits};
use crate::work::load::{Defaults, Load, records_in};
use crate::work::publish::describe;
use crate::work::rows::path_of;

const DEFAULTS: Defaults = Defaults {
    records: None,
    seconds: 20.0,
    warm_up: 2.0,
    batch: 1,
    keys: Some(100_000),
    window: 1,
    connections: 1,
    rate: Some(10_000),
    format: Format::Batch,
};

const STREAM: &str = "bench-latency";

/// Messages made ahead; they are sent round and round.
const MESSAGES_AHEAD: usize = 100_000;

/// How often a row is read with the token of its publish. Seldom, so that reads do not become the
/// load.
const READ_EVERY: Duration = Duration::from_millis(10);

/// What a record may take beyond the link's delay.
const P50_BEYOND: f64 = 2.0;
const P99_BEYOND: f64 = 10.0;

pub(crate) async fn run(arguments: &RegionsLatencyArguments) -> Result<Report> {
    let given = &arguments.load;
    let delay = arguments.link_delay;
    let mesh = Mesh::start(&given.setting, 2, Wire::with_delay(delay)).await?;
    mesh.create_stream(STREAM, Merge::Lww).await?;
    let syncs = disk::small_syncs(mesh.dir(), given.setting.quick)?;
    let load = Load::new(given, &DEFAULTS, STREAM)?;
    ensure!(
        load.connections == 1,
        "latency is measured with one connection"
    );
    let rate = load.rate.context("an open loop has a rate")?;
    let mut ends = Ends::connect(&mesh, &load).await?;
    ends.run(rate, records_in(rate, load.warm_up)).await?;
    let records = load.records().context("an open loop has a length")?;
    let before = mesh.cpu();
    let (published, seen) = ends.run(rate, records).await?;
    let spent = before.until(&mesh.cpu());

    let delay = delay.as_secs_f64() * 1e3;
    let work = format!(
        "acked in one region, delivered in another, link delay {delay} ms, lww, durable {}",
        load.words()
    );
    let command = match delay > 0.0 {
        true => format!("regions-latency --link-delay {delay}ms"),
        false => "regions-latency".to_owned(),
    };
    let mut report = report(&given.setting, &command, work);
    fill(&mut report, &load, &published, &seen, &spent, delay)?;
    report.limits = limits(&syncs);
    mesh.converged().await?;
    mesh.stop().await?;
    Ok(report)
}

fn fill(
    report: &mut Report,
    load: &Load,
    published: &Published,
    seen: &Seen,
    spent: &Spent,
    delay: f64,
) -> Result<()> {
    let crossed = seen.since_ack.percentiles().context("nothing came")?;
    for (name, reached, beyond) in [
        ("p50, ack to delivery there", crossed.p50, P50_BEYOND),
        ("p99, ack to delivery there", crossed.p99, P99_BEYOND),
    ] {
        let goal = Goal::at_most(name, delay + beyond, reached, Unit::Milliseconds);
        report.goals.push(goal);
    }
    let named = [
        ("ack to delivery there", &seen.since_ack),
        ("intended publish to delivery there", &seen.since_due),
        ("ack to row read there with the token", &seen.reads),
    ];
    for (name, latencies) in named {
        let percentiles = latencies.percentiles();
        report.latencies.extend(percentiles.map(|p| (name, p)));
    }
    let read = seen.reads.len() as f64;
    report.add(
        "rows read there with the token of their publish",
        read,
        Unit::Pieces,
    );
    describe(report, load, published, spent);
    Ok(())
}

/// How long records took.
#[derive(Default)]
struct Seen {
    since_due: Latencies,
    since_ack: Latencies,
    /// From an acknowledgement to the answer of a read with its token.
    reads: Latencies,
}

/// Both ends of the link.
struct Ends {
    publisher: Publisher,
    witness: Rc<Witness>,
    frames: Rc<Frames>,
    subscriber: Subscriber,
    reader: Http,
}

impl Ends {
    async fn connect(mesh: &Mesh, load: &Load) -> Result<Self> {
        let frames = Rc::new(Frames::build(&load.shape, MESSAGES_AHEAD, 0)?);
        let (here, there) = (&mesh.brokers()[0], &mesh.brokers()[1]);
        let mut publisher = Publisher::connect(here.address(), Rc::clone(&frames)).await?;
        let format = load.shape.format;
        Ok(Self {
            witness: publisher.witnessed(),
            publisher,
            frames,
            subscriber: Subscriber::connect(there.address(), STREAM, format).await?,
            reader: mesh.http(1).await?,
        })
    }

    /// Publishes so many records here, and takes and reads them there.
    async fn run(&mut self, rate: u64, records: usize) -> Result<(Published, Seen)> {
        let batch = self.publisher.batch();
        let messages = records.div_ceil(batch).max(1);
        let bar = progress::bar("publishing", Some(records));
        let (first, made) = (self.publisher.sent(), MESSAGES_AHEAD);
        let expected = Expected {
            first: first * batch,
            records: messages * batch,
            made: made * batch,
        };
        let pace = Pace::start(rate, batch)?;
        let (seen, done) = (RefCell::new(Seen::default()), Cell::new(false));
        let mut note = |record: usize| {
            let now = nanoseconds(pace.began().elapsed());
            let message = record / batch;
            let seen = &mut *seen.borrow_mut();
            seen.since_due
                .record(now.saturating_sub(pace.intended(message)));
            // What is delivered before its acknowledgement has been read took no time at all.
            let acked = self.witness.acknowledged((first + message) % made);
            seen.since_ack
                .record(now.saturating_sub(acked.unwrap_or(now)));
        };
        let taking = async {
            let taken = expected.take(&mut self.subscriber, &mut note).await;
            done.set(true);
            taken
        };
        let reads = Reads {
            witness: &self.witness,
            frames: &self.frames,
            seen: &seen,
            done: &done,
        };
        let until = Until::Messages(messages);
        let publishing = self.publisher.run(until, Flow::Pace(&pace), &bar);
        let reading = reads.run(&mut self.reader);
        let (published, (), ()) = tokio::try_join!(publishing, taking, reading)?;
        bar.finish_and_clear();
        Ok((published, seen.into_inner()))
    }
}

/// Reads of rows, each with the token of the publish that wrote it.
struct Reads<'a> {
    witness: &'a Witness,
    frames: &'a Frames,
    seen: &'a RefCell<Seen>,
    done: &'a Cell<bool>,
}

impl Reads<'_> {
    async fn run(&self, reader: &mut Http) -> Result<()> {
        while !self.done.get() {
            tokio::time::sleep(READ_EVERY).await;
            if let Some(newest) = self.witness.take_newest() {
                self.read(reader, &newest).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, reader: &mut Http, newest: &Newest) -> Result<()> {
        let record = newest.message * self.frames.batch();
        let key = self.frames.key(record).context("a table has keys")?;
        let headers = [
            ("Anabranch-Token", newest.token.as_str()),
            ("Prefer", "wait=60"),
        ];
        let answer = reader.get(&path_of(STREAM, key), &headers).await?;
        let took = nanoseconds(newest.at.elapsed());
        let number = Values::number_of(answer.body);
        // A later record may have the same key.
        let held = number.and_then(|number| self.frames.key(number));
        ensure!(
            answer.status == 200 && held == Some(key),
            "row {:?}, read with its token, is {:?} ({})",
            String::from_utf8_lossy(&keys::text(key)),
            String::from_utf8_lossy(answer.body),
            answer.status
        );
        self.seen.borrow_mut().reads.record(took);
        Ok(())
    }
}
