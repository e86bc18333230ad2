//! Start after a clean end, and after a crash in the middle of writing.

use std::rc::Rc;
use std::time::Duration;

use anabranch_protocol::http::StreamInfo;
use anyhow::{Context, Result, ensure};

use super::load::{Defaults, Load};
use super::stage::{End, Stage};
use crate::cli::{Format, LoadArguments, Merge, RestartArguments};
use crate::frames::Frames;
use crate::progress;
use crate::publisher::{Flow, Publisher, Until};
use crate::report::{Goal, Report, Unit};

const MEGABYTES: usize = 1000;

/// How long it is written before it is killed while it is written.
const WRITING: Duration = Duration::from_millis(300);

const WINDOW: usize = 32;

/// Messages made ahead; they are sent round and round.
const MESSAGES_AHEAD: usize = 1_000;

pub(crate) async fn run(arguments: &RestartArguments) -> Result<Report> {
    let RestartArguments {
        megabytes,
        merge,
        setting,
    } = arguments;
    ensure!(
        setting.server.is_none(),
        "a broker that is to be killed must be started here: leave out --server"
    );
    let megabytes = megabytes.unwrap_or(if setting.quick { 5 } else { MEGABYTES });
    let stage = Stage::set(setting, "restart", *merge).await?;
    let load = load(arguments, stage.stream())?;
    let frames = Rc::new(Frames::build(&load.shape, MESSAGES_AHEAD, 0)?);

    let records = megabytes * 1_000_000 / load.shape.record_bytes();
    let written = write(&stage, Rc::clone(&frames), records).await?;
    let stage = stage.start_again(End::Clean).await?;
    let clean = Times::of(&stage);
    let kept = Kept::of(&stage).await?;
    ensure!(
        kept.records == written,
        "{written} records were acknowledged, {} are there",
        kept.records
    );

    let written = written + write_until_killed(&stage, frames).await?;
    let stage = stage.start_again(End::Killed).await?;
    let killed = Times::of(&stage);
    let after = Kept::of(&stage).await?;
    ensure!(
        after.records >= written,
        "{written} records were acknowledged, {} are there",
        after.records
    );

    let work = format!(
        "restart with {:.0} MB of log, {}",
        kept.bytes as f64 / 1e6,
        merge.as_str()
    );
    let mut report = stage.report("restart", work);
    report.goals = vec![
        Goal::at_most("clean, ready", 1.0, clean.ready, Unit::Seconds),
        Goal::at_most("killed, ready", 5.0, killed.ready, Unit::Seconds),
    ];
    report.add("clean, port open", clean.listening, Unit::Seconds);
    report.add("killed, port open", killed.listening, Unit::Seconds);
    report.add(
        "records acknowledged before the kill",
        written as f64,
        Unit::Pieces,
    );
    report.add("records there after it", after.records as f64, Unit::Pieces);
    stage.clear(&mut report).await?;
    Ok(report)
}

fn load(arguments: &RestartArguments, stream: &str) -> Result<Load> {
    let defaults = Defaults {
        records: None,
        seconds: 0.0,
        warm_up: 0.0,
        batch: 1000,
        keys: (arguments.merge == Merge::Lww).then_some(1_000_000),
        window: WINDOW,
        connections: 1,
        rate: None,
        format: Format::Batch,
    };
    let given = LoadArguments {
        setting: arguments.setting.clone(),
        ..LoadArguments::default()
    };
    Load::new(&given, &defaults, stream)
}

async fn write(stage: &Stage, frames: Rc<Frames>, records: usize) -> Result<usize> {
    let bar = progress::bar("filling the log", Some(records));
    let messages = Until::Messages(records.div_ceil(frames.batch()));
    let mut publisher = Publisher::connect(stage.broker.address(), frames).await?;
    let published = publisher.run(messages, Flow::Window(WINDOW), &bar).await?;
    bar.finish_and_clear();
    Ok(published.records)
}

/// Leaves publishes in flight; returns how many records were acknowledged.
async fn write_until_killed(stage: &Stage, frames: Rc<Frames>) -> Result<usize> {
    let bar = progress::bar("writing, to be killed", None);
    let mut publisher = Publisher::connect(stage.broker.address(), frames).await?;
    tokio::select! {
        ended = publisher.run(Until::Messages(usize::MAX), Flow::Window(WINDOW), &bar) => {
            ended.context("publishing ended before the kill")?;
        }
        () = tokio::time::sleep(WRITING) => {}
    }
    bar.finish_and_clear();
    Ok(publisher.acknowledged_records())
}

/// Seconds from the start of the process.
struct Times {
    listening: f64,
    ready: f64,
}

impl Times {
    fn of(stage: &Stage) -> Self {
        Self {
            listening: stage.broker.listening_after.as_secs_f64(),
            ready: stage.broker.ready_after.as_secs_f64(),
        }
    }
}

/// What the broker says it has.
struct Kept {
    records: usize,
    bytes: u64,
}

impl Kept {
    async fn of(stage: &Stage) -> Result<Self> {
        let path = format!("/v1/streams/{}", stage.stream());
        let info: StreamInfo = stage.http().await?.get(&path, &[]).await?.json()?;
        let offsets = info.offsets.unwrap_or_default();
        let records: u64 = offsets.iter().map(|partition| partition.next).sum();
        Ok(Self {
            records: usize::try_from(records)?,
            bytes: info.bytes.unwrap_or_default(),
        })
    }
}
