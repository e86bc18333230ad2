//! From publish to delivery, open loop.

use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

use super::load::{Defaults, Load, records_in};
use super::publish::describe;
use super::stage::Stage;
use crate::cli::{Format, LoadArguments, Merge};
use crate::frames::{Frames, Values};
use crate::latency::{Latencies, Percentiles};
use crate::limits::disk;
use crate::pace::Pace;
use crate::progress;
use crate::publisher::{Flow, Published, Publisher, Until};
use crate::report::{Figure, Goal, Report, Unit};
use crate::subscriber::{Look, Subscriber};

const DEFAULTS: Defaults = Defaults {
    records: None,
    seconds: 20.0,
    warm_up: 2.0,
    batch: 1,
    keys: None,
    window: 1,
    connections: 1,
    rate: Some(10_000),
    format: Format::Batch,
};

/// Messages made ahead; they are sent round and round.
const MESSAGES_AHEAD: usize = 100_000;

pub(crate) async fn run(given: &LoadArguments) -> Result<Report> {
    let stage = Stage::set(&given.setting, "latency", Merge::Append).await?;
    let syncs = disk::small_syncs(stage.dir(), given.setting.quick)?;
    let load = Load::new(given, &DEFAULTS, stage.stream())?;
    ensure!(
        load.connections == 1,
        "latency is measured with one connection"
    );
    let rate = load.rate.context("an open loop has a rate")?;
    let mut ends = Ends::connect(&stage, &load, rate).await?;
    ends.run(records_in(rate, load.warm_up)).await?;
    let records = load.records().context("an open loop has a length")?;
    let before = stage.cpu();
    let (published, delivered) = ends.run(records).await?;
    let spent = before.until(&stage.cpu());

    let work = format!("publish to delivery, durable {}", load.words());
    let mut report = stage.report("latency", work);
    let delivery = delivered.percentiles().context("nothing was delivered")?;
    report.goals = vec![
        Goal::at_most("p50 of delivery", 1.0, delivery.p50, Unit::Milliseconds),
        Goal::at_most("p99 of delivery", 5.0, delivery.p99, Unit::Milliseconds),
    ];
    let name = "intended publish to delivery";
    report.latencies.push((name, delivery));
    report.limits = limits(&syncs);
    describe(&mut report, &load, &published, &spent);
    stage.clear(&mut report).await?;
    Ok(report)
}

/// What the disk does with small writes.
pub(super) fn limits(syncs: &Percentiles) -> Vec<Figure> {
    let limit = |percentile, value| {
        let name = format!("4 KiB write with fdatasync, {percentile}");
        Figure::new(name, value, Unit::Milliseconds)
    };
    vec![
        limit("p50", syncs.p50),
        limit("p99", syncs.p99),
        limit("p99.9", syncs.p999),
    ]
}

/// Both ends of the stream.
struct Ends {
    subscriber: Subscriber,
    publisher: Publisher,
    rate: u64,
}

impl Ends {
    async fn connect(stage: &Stage, load: &Load, rate: u64) -> Result<Self> {
        let frames = Rc::new(Frames::build(&load.shape, MESSAGES_AHEAD, 0)?);
        let address = stage.broker.address();
        let format = load.shape.format;
        Ok(Self {
            subscriber: Subscriber::connect(address, stage.stream(), format).await?,
            publisher: Publisher::connect(address, frames).await?,
            rate,
        })
    }

    /// Publishes so many records and takes them again.
    async fn run(&mut self, records: usize) -> Result<(Published, Latencies)> {
        let batch = self.publisher.batch();
        let messages = records.div_ceil(batch).max(1);
        let bar = progress::bar("publishing", Some(records));
        let pace = Pace::start(self.rate, batch)?;
        let expected = Expected {
            first: self.publisher.sent() * batch,
            records: messages * batch,
            made: MESSAGES_AHEAD * batch,
        };
        let mut latencies = Latencies::default();
        let mut note = |record| latencies.record(pace.late(record / batch));
        let taking = expected.take(&mut self.subscriber, &mut note);
        let until = Until::Messages(messages);
        let publishing = self.publisher.run(until, Flow::Pace(&pace), &bar);
        let (published, ()) = tokio::try_join!(publishing, taking)?;
        bar.finish_and_clear();
        Ok((published, latencies))
    }
}

/// What the subscriber is to be given.
pub(super) struct Expected {
    /// Number of the first record.
    pub(super) first: usize,
    pub(super) records: usize,
    /// Records made ahead; their numbers come round and round.
    pub(super) made: usize,
}

impl Expected {
    /// Takes records, each of which must be the one that comes next, and notes how many came before
    /// it.
    pub(super) async fn take(
        &self,
        subscriber: &mut Subscriber,
        note: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let mut taken = 0;
        let mut wrong = None;
        while taken < self.records {
            let mut look = |value: &[u8]| {
                let next = (self.first + taken) % self.made;
                if Values::number_of(value) != Some(next) {
                    wrong.get_or_insert(next);
                }
                note(taken);
                taken += 1;
            };
            subscriber.take(Look::Values(&mut look)).await?;
            if let Some(next) = wrong {
                bail!("another record was delivered where number {next} is next");
            }
        }
        Ok(())
    }
}
