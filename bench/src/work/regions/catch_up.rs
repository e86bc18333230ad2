//! A region that was cut off gets what it missed, while all go on writing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::report;
use super::writers::{Writers, Wrote};
use crate::cli::{Format, LoadArguments, Merge, RegionsCatchUpArguments, Setting};
use crate::cpu::Spent;
use crate::limits::disk;
use crate::mesh::{self, Deadline, Mesh, Wire};
use crate::progress;
use crate::publisher::Until;
use crate::report::{Figure, Goal, Report, Unit};
use crate::work::load::{Defaults, Length, Load};
use crate::work::team::Team;

/// What both regions write all the time.
const LOCAL: Defaults = Defaults {
    records: None,
    seconds: 5.0,
    warm_up: 1.0,
    batch: 100,
    keys: None,
    window: 4,
    connections: 1,
    rate: Some(100_000),
    format: Format::Batch,
};

/// What one of them writes while the other is cut off.
const MISSED: Defaults = Defaults {
    records: Some(0),
    batch: 1000,
    window: 32,
    rate: None,
    ..LOCAL
};

/// Bytes that are missed, by default.
const MEGABYTES: usize = 1000;
const MEGABYTES_WHEN_QUICK: usize = 2;

const APPENDS_BEFORE: &str = "1 MiB appends with fdatasync, before";

const STREAM: &str = "bench-catch-up";

/// Records made ahead for each publisher: five seconds, which a disk that stalls may take.
const RECORDS_AHEAD: usize = 500_000;

/// Who is behind: the second region. The first has what it missed.
const AHEAD: usize = 0;
const BEHIND: usize = 1;

pub(crate) async fn run(arguments: &RegionsCatchUpArguments) -> Result<Report> {
    let setting = &arguments.load.setting;
    let load = local_load(&arguments.load)?;
    let Length::Time(time) = load.length else {
        anyhow::bail!("catching up goes by --seconds")
    };
    let delay = Duration::ZERO;
    let mesh = Mesh::start(setting, 2, Wire::Forwarded { delay }).await?;
    let appends = disk::appends(mesh.dir(), setting.quick)?;
    mesh.create_stream(STREAM, Merge::Append).await?;
    let mut writers = Writers::connect(&mesh, &load, RECORDS_AHEAD).await?;
    writers.run_for(load.warm_up).await?;
    let before = writers.run_for(time).await?;
    mesh.converged().await?;

    mesh.cut().await?;
    let missed = miss(&mesh, setting, &load, arguments.megabytes).await?;
    let caught = catch_up(&mesh, &mut writers).await?;
    mesh.converged().await?;
    mesh.all_hold(STREAM, writers.acknowledged() + missed.records)
        .await?;
    mesh.stop().await?;

    let megabytes = missed.bytes as f64 / 1e6;
    let work = format!(
        "catching up {megabytes:.0} MB after a cut, while both regions write {}",
        load.words()
    );
    let mut report = report(setting, "regions-catch-up", work);
    fill(&mut report, megabytes, &before, &caught);
    let limit = Figure::new(APPENDS_BEFORE, appends / 1e6, Unit::MegabytesPerSecond);
    report.limits.push(limit);
    Ok(report)
}

/// A window makes it a closed loop.
fn local_load(given: &LoadArguments) -> Result<Load> {
    let defaults = Defaults {
        rate: LOCAL.rate.filter(|_| given.window.is_none()),
        ..LOCAL
    };
    let load = Load::new(given, &defaults, STREAM)?;
    ensure!(load.connections == 1, "each region has one connection");
    Ok(load)
}

/// What one region does not have.
struct Missed {
    records: usize,
    /// Of keys and values.
    bytes: usize,
}

/// Writes in the region that is ahead.
async fn miss(
    mesh: &Mesh,
    setting: &Setting,
    local: &Load,
    megabytes: Option<usize>,
) -> Result<Missed> {
    let by_default = match setting.quick {
        true => MEGABYTES_WHEN_QUICK,
        false => MEGABYTES,
    };
    let wanted = megabytes.unwrap_or(by_default) * 1_000_000;
    let each = local.shape.record_bytes();
    let given = LoadArguments {
        records: Some(wanted / each),
        record_bytes: Some(local.shape.value_bytes),
        setting: setting.clone(),
        ..LoadArguments::default()
    };
    let load = Load::new(&given, &MISSED, STREAM)?;
    let address = mesh.brokers()[AHEAD].address();
    let mut team = Team::connect(address, &load, RECORDS_AHEAD).await?;
    let records = team.measure().await?.records;
    Ok(Missed {
        records,
        bytes: records * each,
    })
}

struct Caught {
    /// From the heal until there was a link.
    link_after: Duration,
    /// From then until everything missed was there.
    took: Duration,
    /// What was written meanwhile.
    wrote: Vec<Wrote>,
    spent: Spent,
}

async fn catch_up(mesh: &Mesh, writers: &mut Writers) -> Result<Caught> {
    let ahead = mesh::status(&mut mesh.http(AHEAD).await?).await?;
    let last = ahead.vector.get(&ahead.origin);
    let last = *last.context("the region that is ahead has written nothing")?;
    let mut http = mesh.http(BEHIND).await?;
    let step = progress::step("waiting for the link");
    let healed = Instant::now();
    mesh.heal();
    let deadline = Deadline::new("have a link again");
    while mesh::status(&mut http).await?.links.is_empty() {
        deadline.wait().await?;
    }
    step.finish_and_clear();
    let (linked, before) = (Instant::now(), mesh.cpu());
    let done = Cell::new(false);
    let watching = async {
        let deadline = Deadline::new("catch up");
        loop {
            let behind = mesh::status(&mut http).await?;
            let held = behind.vector.get(&ahead.origin);
            if held.is_some_and(|held| *held >= last) {
                done.set(true);
                return anyhow::Ok(linked.elapsed());
            }
            deadline.wait().await?;
        }
    };
    let (took, wrote) = tokio::try_join!(watching, writers.run(Until::Told(&done)))?;
    Ok(Caught {
        link_after: linked - healed,
        took,
        wrote,
        spent: before.until(&mesh.cpu()),
    })
}

fn fill(report: &mut Report, megabytes: f64, before: &[Wrote], caught: &Caught) {
    let rate = megabytes / caught.took.as_secs_f64();
    let goal = Goal::at_least("catching up", 150.0, rate, Unit::MegabytesPerSecond);
    report.goals.push(goal);
    let shares = before.iter().zip(&caught.wrote);
    let shares = shares.map(|(before, during)| during.rate() / before.rate() * 100.0);
    let share = shares.fold(f64::INFINITY, f64::min);
    let name = "local writes meanwhile, of what they were, in the slower region";
    let goal = Goal::at_least(name, 80.0, share, Unit::Percent);
    report.goals.push(goal);
    report.add("it took", caught.took.as_secs_f64(), Unit::Seconds);
    let link = caught.link_after.as_secs_f64();
    report.add("heal to link", link, Unit::Seconds);
    for (when, wrote) in [("before", before), ("meanwhile", &caught.wrote)] {
        for (wrote, region) in wrote.iter().zip(["ahead", "behind"]) {
            let name = format!("records written {when} in the region that is {region}");
            report.add(name, wrote.rate(), Unit::PerSecond);
        }
    }
    let broker = caught.spent.broker.unwrap_or_default().as_secs_f64();
    let cores = broker / caught.spent.seconds;
    report.add("both brokers, meanwhile", cores, Unit::Cores);
    let generator = caught.spent.generator.as_secs_f64() / caught.spent.seconds;
    report.add("generator and link, meanwhile", generator, Unit::Cores);
    if let Some(others) = caught.spent.others {
        report.add("busy with something else", others, Unit::Cores);
    }
    let names = [
        ("publish to acknowledgement before, ahead", &before[AHEAD]),
        ("publish to acknowledgement before, behind", &before[BEHIND]),
        (
            "publish to acknowledgement meanwhile, ahead",
            &caught.wrote[AHEAD],
        ),
        (
            "publish to acknowledgement meanwhile, behind",
            &caught.wrote[BEHIND],
        ),
    ];
    for (name, wrote) in names {
        let percentiles = wrote.published.latencies.percentiles();
        report.latencies.extend(percentiles.map(|p| (name, p)));
    }
}
