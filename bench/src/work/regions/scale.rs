//! What each further region costs: all are written to at the same rate, on one machine.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::report;
use super::writers::{Writers, Wrote};
use crate::cli::{Format, Merge, RegionsScaleArguments};
use crate::cpu::Spent;
use crate::latency::Latencies;
use crate::mesh::{Mesh, Wire};
use crate::report::{Goal, Report, Unit};
use crate::work::load::{Defaults, Length, Load};

/// What each region writes. Little enough for seven of them to share two cores.
const DEFAULTS: Defaults = Defaults {
    records: None,
    seconds: 10.0,
    warm_up: 2.0,
    batch: 100,
    keys: None,
    window: 1,
    connections: 1,
    rate: Some(10_000),
    format: Format::Batch,
};

const STREAM: &str = "bench-scale";

/// Records made ahead for each publisher.
const RECORDS_AHEAD: usize = 100_000;

/// The counts that the goals compare.
const THIRD: usize = 3;
const SEVENTH: usize = 7;

/// A report for each count of regions, and one about what a further region costs.
pub(crate) async fn run(arguments: &RegionsScaleArguments) -> Result<Vec<Report>> {
    let given = &arguments.load;
    let load = Load::new(given, &DEFAULTS, STREAM)?;
    let Length::Time(time) = load.length else {
        anyhow::bail!("regions are measured by --seconds")
    };
    ensure!(load.connections == 1, "each region has one connection");
    ensure!(!arguments.regions.contains(&0), "--regions must not be 0");
    let mut measured = Vec::new();
    // Round by round, so that a machine that drifts does so for all counts alike.
    for round in 0..arguments.rounds.max(1) {
        for (index, &regions) in arguments.regions.iter().enumerate() {
            let one = measure(arguments, &load, regions, time).await?;
            match round {
                0 => measured.push(one),
                _ => measured[index].add(one),
            }
        }
    }
    let mut reports: Vec<_> = measured
        .iter()
        .map(|measured| measured.report(arguments, &load))
        .collect();
    reports.extend(compare(arguments, &load, &measured));
    Ok(reports)
}

/// What so many regions did.
struct Measured {
    regions: usize,
    rounds: usize,
    /// Records that all regions took together.
    records: usize,
    /// What the slowest region took, a second.
    slowest: f64,
    latencies: Latencies,
    seconds: f64,
    /// Of all brokers together.
    broker: Duration,
    generator: Duration,
    /// Cores that were busy with something else, at worst.
    others: f64,
    /// From the end of the writing until all held the same, at worst.
    converged: Duration,
    /// What links carried, and in how many frames.
    link_bytes: u64,
    link_frames: u64,
}

async fn measure(
    arguments: &RegionsScaleArguments,
    load: &Load,
    regions: usize,
    time: Duration,
) -> Result<Measured> {
    let setting = &arguments.load.setting;
    let mesh = Mesh::start(setting, regions, Wire::Direct).await?;
    mesh.create_stream(STREAM, Merge::Append).await?;
    let mut writers = Writers::connect(&mesh, load, RECORDS_AHEAD).await?;
    writers.run_for(load.warm_up).await?;
    mesh.converged().await?;
    let links = Links::of(&mesh).await?;
    let before = mesh.cpu();
    let wrote = writers.run_for(time).await?;
    let converged = mesh.converged().await?;
    let spent = before.until(&mesh.cpu());
    let carried = Links::of(&mesh).await?;
    mesh.all_hold(STREAM, writers.acknowledged()).await?;
    mesh.stop().await?;
    let mut measured = Measured::new(regions, &wrote, &spent, converged);
    measured.link_bytes = carried.bytes - links.bytes;
    measured.link_frames = carried.frames - links.frames;
    Ok(measured)
}

/// What all links have carried so far.
struct Links {
    bytes: u64,
    frames: u64,
}

impl Links {
    async fn of(mesh: &Mesh) -> Result<Self> {
        let statuses = mesh.statuses().await?;
        let links = || statuses.iter().flat_map(|status| &status.links);
        Ok(Self {
            bytes: links().map(|link| link.bytes_out).sum(),
            frames: links().map(|link| link.frames_out).sum(),
        })
    }
}

impl Measured {
    fn new(regions: usize, wrote: &[Wrote], spent: &Spent, converged: Duration) -> Self {
        let mut latencies = Latencies::default();
        for wrote in wrote {
            latencies.add(&wrote.published.latencies);
        }
        Self {
            regions,
            rounds: 1,
            records: wrote.iter().map(|wrote| wrote.published.records).sum(),
            slowest: wrote.iter().map(Wrote::rate).fold(f64::INFINITY, f64::min),
            latencies,
            seconds: spent.seconds,
            broker: spent.broker.unwrap_or_default(),
            generator: spent.generator,
            others: spent.others.unwrap_or_default(),
            converged,
            link_bytes: 0,
            link_frames: 0,
        }
    }

    /// The same again, in a further round.
    fn add(&mut self, again: Self) {
        self.rounds += 1;
        self.records += again.records;
        self.slowest = self.slowest.min(again.slowest);
        self.latencies.add(&again.latencies);
        self.seconds += again.seconds;
        self.broker += again.broker;
        self.generator += again.generator;
        self.others = self.others.max(again.others);
        self.converged = self.converged.max(again.converged);
        self.link_bytes += again.link_bytes;
        self.link_frames += again.link_frames;
    }

    /// Cores that one broker keeps busy.
    fn cores_each(&self) -> f64 {
        self.broker.as_secs_f64() / self.seconds / self.regions as f64
    }

    /// CPU seconds of one broker for a million records that it took or received, which is
    /// microseconds for one.
    fn each_applied(&self) -> f64 {
        // Every record is applied by every broker.
        self.broker.as_secs_f64() * 1e6 / (self.records * self.regions) as f64
    }

    fn report(&self, arguments: &RegionsScaleArguments, load: &Load) -> Report {
        let regions = self.regions;
        let work = format!(
            "{regions} regions, each linked with every other and written to: {}",
            load.words()
        );
        let mut report = report(
            &arguments.load.setting,
            &format!("regions-scale --regions {regions}"),
            work,
        );
        let rate = self.records as f64 / self.seconds / regions as f64;
        report.add("accepted in a region", rate, Unit::PerSecond);
        report.add("accepted in the slowest", self.slowest, Unit::PerSecond);
        report.add(
            "broker CPU per record taken or received",
            self.each_applied(),
            Unit::Microseconds,
        );
        report.add("each broker", self.cores_each(), Unit::Cores);
        let generator = self.generator.as_secs_f64() / self.seconds;
        report.add("generator", generator, Unit::Cores);
        report.add("busy with something else", self.others, Unit::Cores);
        let received = (self.records * (regions - 1)).max(1) as f64;
        let name = "link bytes per record received";
        report.add(name, self.link_bytes as f64 / received, Unit::Pieces);
        let per_second = self.link_frames as f64 / self.seconds / regions as f64;
        report.add("frames shipped by a broker", per_second, Unit::PerSecond);
        let name = "last acknowledgement to the same everywhere";
        let converged = self.converged.as_secs_f64() * 1e3;
        report.add(name, converged, Unit::Milliseconds);
        let percentiles = self.latencies.percentiles();
        let name = "publish to acknowledgement";
        report.latencies.extend(percentiles.map(|p| (name, p)));
        report
    }
}

/// What a further region costs each broker, where neighbouring counts were measured.
fn compare(
    arguments: &RegionsScaleArguments,
    load: &Load,
    measured: &[Measured],
) -> Option<Report> {
    let cost = |regions: usize| {
        let find = |wanted: usize| measured.iter().find(|one| one.regions == wanted);
        let (without, with) = (find(regions - 1)?, find(regions)?);
        Some(with.cores_each() - without.cores_each())
    };
    let further: Vec<_> = measured
        .iter()
        .filter_map(|one| Some((one.regions, cost(one.regions)?)))
        .collect();
    if further.is_empty() {
        return None;
    }
    let words = load.words();
    let work = format!("what a further region costs each broker: {words}");
    let mut report = report(&arguments.load.setting, "regions-scale", work);
    for (regions, cores) in &further {
        let name = format!("region {regions}");
        let percent = cores * 100.0;
        report.add(name + ", of a core", percent, Unit::Percent);
    }
    let find = |wanted: usize| further.iter().find(|(regions, _)| *regions == wanted);
    if let (Some((_, third)), Some((_, seventh))) = (find(THIRD), find(SEVENTH)) {
        let goal = "the seventh region's cost, of the third's";
        let share = seventh / third * 100.0;
        report
            .goals
            .push(Goal::at_most(goal, 100.0, share, Unit::Percent));
    }
    let rate = load.rate.unwrap_or_default() as f64;
    let slowest = measured.iter().map(|one| one.slowest);
    let slowest = slowest.fold(f64::INFINITY, f64::min);
    if rate > 0.0 {
        let goal = "accepted in the slowest region of all, of what was offered";
        let share = slowest / rate * 100.0;
        report
            .goals
            .push(Goal::at_least(goal, 95.0, share, Unit::Percent));
    }
    Some(report)
}
