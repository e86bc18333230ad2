//! Publishing into a table, until every row is applied and readable.

use std::collections::HashMap;

use anyhow::{Result, ensure};

use super::load::{Defaults, Load};
use super::publish::describe;
use super::stage::Stage;
use super::team::Team;
use crate::cli::{Format, LoadArguments, Merge};
use crate::http::Http;
use crate::keys;
use crate::progress;
use crate::report::{Goal, Report, Unit};

const DEFAULTS: Defaults = Defaults {
    records: Some(20_000_000),
    seconds: 0.0,
    warm_up: 1.0,
    batch: 1000,
    keys: Some(1_000_000),
    window: 32,
    connections: 1,
    rate: None,
    format: Format::Batch,
};

/// Most records that are made ahead; beyond, they are sent round and round. About 3.5 GB.
const RECORDS_AHEAD: usize = 24_000_000;

/// Rows read back and compared with what was written last.
const SAMPLED_ROWS: usize = 20_000;

pub(crate) async fn run(given: &LoadArguments) -> Result<Report> {
    let stage = Stage::set_beside_disk(&given.setting, "rows", Merge::Lww).await?;
    let load = Load::new(given, &DEFAULTS, stage.stream())?;
    let ahead = load.records().unwrap_or(RECORDS_AHEAD).min(RECORDS_AHEAD);
    let mut team = Team::connect(stage.broker.address(), &load, ahead).await?;
    team.warm_up().await?;
    wait_until_readable(&stage, &team.latest()?.token).await?;

    let before = stage.cpu();
    let published = team.measure().await?;
    let acknowledged = before.until(&stage.cpu());
    wait_until_readable(&stage, &team.latest()?.token).await?;
    let spent = before.until(&stage.cpu());

    let mut http = stage.http().await?;
    let checked = check_rows(&mut http, stage.stream(), team.expected()).await?;
    let keys = load.keys.unwrap_or_default();
    let work = format!(
        "the same into an lww table of {keys} keys, applied and readable, {}",
        load.words()
    );
    let mut report = stage.report("rows", work);
    describe(&mut report, &load, &published, &spent);
    let lag = (spent.seconds - acknowledged.seconds) * 1e3;
    report.add("last acknowledgement to readable", lag, Unit::Milliseconds);
    report.add(
        "rows compared with the last value written",
        checked as f64,
        Unit::Pieces,
    );
    if let Some(memory) = stage.broker.memory() {
        report.add(
            "broker memory, peak",
            memory.peak as f64 / 1e6,
            Unit::Megabytes,
        );
    }
    let rate = published.records as f64 / spent.seconds;
    report.goals.push(Goal::at_least(
        "records",
        1_500_000.0,
        rate,
        Unit::PerSecond,
    ));
    stage.clear(&mut report).await?;
    Ok(report)
}

/// Reads with a token, which waits until everything up to it is applied.
pub(crate) async fn wait_until_readable(stage: &Stage, token: &str) -> Result<()> {
    let path = path_of(stage.stream(), 0);
    let headers = [("Anabranch-Token", token), ("Prefer", "wait=60")];
    let mut http = stage.http().await?;
    let answer = http.get(&path, &headers).await?;
    let status = answer.status;
    ensure!(
        status == 200 || status == 404,
        "a read with the last token answers {status}: {}",
        String::from_utf8_lossy(answer.body)
    );
    Ok(())
}

/// Where a row is.
pub(crate) fn path_of(stream: &str, key: u32) -> String {
    let key = keys::text(key);
    let key = std::str::from_utf8(&key).expect("hexadecimal digits are text");
    format!("/v1/tables/{stream}/rows/{key}")
}

async fn check_rows(
    http: &mut Http,
    stream: &str,
    expected: HashMap<u32, Vec<u8>>,
) -> Result<usize> {
    let bar = progress::bar("comparing rows", Some(SAMPLED_ROWS.min(expected.len())));
    let mut checked = 0;
    // A map iterates in random order, so this is a sample.
    for (key, value) in expected.iter().take(SAMPLED_ROWS) {
        let answer = http.get(&path_of(stream, *key), &[]).await?;
        ensure!(
            answer.status == 200 && answer.body == value,
            "row {} is {:?} ({}) instead of {:?}",
            path_of(stream, *key),
            String::from_utf8_lossy(answer.body),
            answer.status,
            String::from_utf8_lossy(value)
        );
        checked += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(checked)
}
