//! Rows over HTTP, each compared with what was written.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;

use super::load::{Defaults, Length, Load};
use super::rows::{path_of, wait_until_readable};
use super::stage::Stage;
use super::team::Team;
use crate::cli::{Format, LoadArguments, Merge};
use crate::frames::Values;
use crate::http::Http;
use crate::keys::{self, KeySpace};
use crate::latency::{Latencies, nanoseconds};
use crate::limits::loopback;
use crate::progress;
use crate::report::{Figure, Goal, Report, Unit};

const DEFAULTS: Defaults = Defaults {
    records: None,
    seconds: 10.0,
    warm_up: 1.0,
    batch: 1000,
    keys: Some(1_000_000),
    window: 16,
    connections: 50,
    rate: None,
    format: Format::Batch,
};

/// About what an answer's head takes, for the machine's limit.
const HEAD_BYTES: usize = 200;

pub(crate) async fn run(given: &LoadArguments) -> Result<Report> {
    let stage = Stage::set(&given.setting, "reads", Merge::Lww).await?;
    let load = Load::new(given, &DEFAULTS, stage.stream())?;
    ensure!(
        load.rate.is_none(),
        "reads are measured in a closed loop only"
    );
    let keys = load.keys.context("a table has keys")?;
    fill(&stage, &load, keys).await?;

    let table = Table {
        head: request_head(stage.stream()),
        tail: format!(" HTTP/1.1\r\nHost: {}\r\n\r\n", stage.broker.address()),
        space: KeySpace::new(keys, given.zipf),
        values: Values::new(load.shape.value_bytes),
    };
    let mut readers = Vec::new();
    for _ in 0..load.connections {
        readers.push(stage.http().await?);
    }
    table.read(&mut readers, load.warm_up).await?;
    let time = match load.length {
        Length::Time(time) => time,
        Length::Records(_) => anyhow::bail!("reads go by --seconds"),
    };
    let before = stage.cpu();
    let latencies = table.read(&mut readers, time).await?;
    let spent = before.until(&stage.cpu());

    let connections = load.connections;
    let work =
        format!("HTTP row reads, {connections} connections, {keys} keys, every value compared");
    let mut report = stage.report("reads", work);
    let (request, answer) = (
        table.head.len() + keys::KEY_BYTES + table.tail.len(),
        HEAD_BYTES + load.shape.value_bytes,
    );
    let trips = loopback::round_trips(connections, request, answer, stage.setting.quick).await?;
    let name = format!("round trips of {request} and {answer} bytes over as many connections");
    report
        .limits
        .push(Figure::new(name, trips, Unit::PerSecond));
    let rate = latencies.len() as f64 / spent.seconds;
    report
        .goals
        .push(Goal::at_least("reads", 40_000.0, rate, Unit::PerSecond));
    report.add_cpu(&spent, latencies.len(), "read");
    report
        .latencies
        .extend(latencies.percentiles().map(|p| ("read", p)));
    stage.clear(&mut report).await?;
    Ok(report)
}

/// Writes every key once.
async fn fill(stage: &Stage, load: &Load, keys: u32) -> Result<()> {
    let mut filling = load.clone();
    filling.connections = 1;
    filling.length = Length::Records(keys as usize);
    filling.shape.keys = Some(KeySpace::in_turn(keys));
    let mut team = Team::connect(stage.broker.address(), &filling, keys as usize).await?;
    team.measure().await?;
    wait_until_readable(stage, &team.latest()?.token).await
}

/// What is read.
struct Table {
    /// A request up to the key.
    head: String,
    /// From behind the key on.
    tail: String,
    space: KeySpace,
    values: Values,
}

fn request_head(stream: &str) -> String {
    let path = path_of(stream, 0);
    format!("GET {}", &path[..path.len() - keys::KEY_BYTES])
}

impl Table {
    async fn read(&self, readers: &mut [Http], time: Duration) -> Result<Latencies> {
        let spinner = progress::step("reading");
        let latencies = RefCell::new(Latencies::default());
        let end = Instant::now() + time;
        let reading = readers
            .iter_mut()
            .enumerate()
            .map(|(seed, http)| self.read_until(http, seed as u64, end, &latencies));
        try_join_all(reading).await?;
        spinner.finish_and_clear();
        Ok(latencies.into_inner())
    }

    async fn read_until(
        &self,
        http: &mut Http,
        seed: u64,
        end: Instant,
        latencies: &RefCell<Latencies>,
    ) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut request = Vec::new();
        loop {
            let started = Instant::now();
            if started >= end {
                return Ok(());
            }
            let key = self.space.draw(0, &mut random);
            request.clear();
            request.extend_from_slice(self.head.as_bytes());
            request.extend_from_slice(&keys::text(key));
            request.extend_from_slice(self.tail.as_bytes());
            let answer = http.exchange(&request).await?;
            ensure!(
                answer.status == 200 && answer.body == self.values.value(u64::from(key)),
                "row {key} is {:?} ({})",
                String::from_utf8_lossy(answer.body),
                answer.status
            );
            latencies
                .borrow_mut()
                .record(nanoseconds(started.elapsed()));
        }
    }
}
