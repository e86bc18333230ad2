//! Durable publishing, in batches and one by one.

use anyhow::Result;

use super::load::{Defaults, Load};
use super::stage::Stage;
use super::team::Team;
use crate::cli::{Format, LoadArguments, Merge, PublishArguments};
use crate::cpu::Spent;
use crate::publisher::Published;
use crate::report::{Goal, Report, Unit};

/// Records made ahead: as much as stays in a CPU's cache.
const RECORDS_AHEAD: usize = 200_000;

const BATCHES: Defaults = Defaults {
    records: Some(30_000_000),
    seconds: 0.0,
    warm_up: 1.0,
    batch: 1000,
    keys: None,
    window: 32,
    connections: 1,
    rate: None,
    format: Format::Batch,
};

const SINGLES: Defaults = Defaults {
    records: Some(5_000_000),
    batch: 1,
    window: 1024,
    ..BATCHES
};

/// Ready-made batches.
pub(crate) async fn batches(arguments: &PublishArguments) -> Result<Report> {
    let PublishArguments { merge, load: given } = arguments;
    let defaults = Defaults {
        keys: (*merge == Merge::Lww).then_some(1_000_000),
        ..BATCHES
    };
    let stage = Stage::set_beside_disk(&given.setting, "publish", *merge).await?;
    let load = Load::new(given, &defaults, stage.stream())?;
    let (published, spent) = measure(&stage, &load).await?;
    let work = format!("durable publish, {}, {}", load.words(), merge.as_str());
    let mut report = stage.report("publish", work);
    describe(&mut report, &load, &published, &spent);
    stage.clear(&mut report).await?;
    let limit = report.limits.first().map_or(f64::NAN, |limit| limit.value);
    let bytes = published.records * load.shape.record_bytes();
    let share = bytes as f64 / spent.seconds / 1e6 / limit * 100.0;
    report.goals.push(Goal::at_least(
        "bytes, of the machine's appends",
        50.0,
        share,
        Unit::Percent,
    ));
    if let Some(broker) = spent.broker {
        let each = broker.as_secs_f64() * 1e6 / published.records as f64;
        report.goals.push(Goal::at_most(
            "broker CPU per record",
            0.2,
            each,
            Unit::Microseconds,
        ));
    }
    Ok(report)
}

/// One record a publish, many in flight.
pub(crate) async fn singles(given: &LoadArguments) -> Result<Report> {
    let stage = Stage::set_beside_disk(&given.setting, "singles", Merge::Append).await?;
    let load = Load::new(given, &SINGLES, stage.stream())?;
    let (published, spent) = measure(&stage, &load).await?;
    let work = format!("durable {}, append", load.words());
    let mut report = stage.report("singles", work);
    describe(&mut report, &load, &published, &spent);
    let rate = published.records as f64 / spent.seconds;
    report
        .goals
        .push(Goal::at_least("records", 500_000.0, rate, Unit::PerSecond));
    stage.clear(&mut report).await?;
    Ok(report)
}

async fn measure(stage: &Stage, load: &Load) -> Result<(Published, Spent)> {
    let ahead = load
        .records()
        .map_or(RECORDS_AHEAD, |records| records.min(RECORDS_AHEAD));
    let mut team = Team::connect(stage.broker.address(), load, ahead).await?;
    team.warm_up().await?;
    let before = stage.cpu();
    let published = team.measure().await?;
    let spent = before.until(&stage.cpu());
    Ok((published, spent))
}

/// Rate, bytes, CPU and latency of acknowledgements.
pub(crate) fn describe(report: &mut Report, load: &Load, published: &Published, spent: &Spent) {
    let records = published.records as f64 / spent.seconds;
    report.add("records", records, Unit::PerSecond);
    let bytes = records * load.shape.record_bytes() as f64 / 1e6;
    report.add("keys and values", bytes, Unit::MegabytesPerSecond);
    report.add_cpu(spent, published.records, "record");
    if let Some(percentiles) = published.latencies.percentiles() {
        report
            .latencies
            .push(("publish to acknowledgement", percentiles));
    }
}
