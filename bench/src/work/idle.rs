//! Memory without work.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;

use super::stage::Stage;
use crate::cli::{Format, IdleArguments, Merge};
use crate::progress;
use crate::report::{Goal, Report, Unit};
use crate::subscriber::Subscriber;

const SUBSCRIBERS: usize = 1000;

/// Connected at once.
const AT_ONCE: usize = 50;

/// After which what a start or a handshake needed for a moment has been given back.
const SETTLING: Duration = Duration::from_secs(3);

pub(crate) async fn run(arguments: &IdleArguments) -> Result<Report> {
    let IdleArguments {
        subscribers,
        setting,
    } = arguments;
    let subscribers = subscribers.unwrap_or(if setting.quick { 20 } else { SUBSCRIBERS });
    let stage = Stage::set(setting, "idle", Merge::Append).await?;
    let step = progress::step("settling");
    let before = settled(&stage).await?;
    let mut audience = Vec::new();
    while audience.len() < subscribers {
        let few = AT_ONCE.min(subscribers - audience.len());
        let connecting = (0..few)
            .map(|_| Subscriber::connect(stage.broker.address(), stage.stream(), Format::Records));
        audience.extend(try_join_all(connecting).await?);
    }
    let after = settled(&stage).await?;
    step.finish_and_clear();
    drop(audience);

    let work = format!("idle memory, and {subscribers} idle subscribers with a connection each");
    let mut report = stage.report("idle", work);
    let each = after.saturating_sub(before) as f64 / subscribers as f64 / 1e3;
    report.goals = vec![
        Goal::at_most("idle broker", 60.0, before as f64 / 1e6, Unit::Megabytes),
        Goal::at_most("each subscriber", 40.0, each, Unit::Kilobytes),
    ];
    report.add("with all subscribers", after as f64 / 1e6, Unit::Megabytes);
    stage.clear(&mut report).await?;
    Ok(report)
}

/// Resident bytes, once they have settled.
async fn settled(stage: &Stage) -> Result<u64> {
    let settling = if stage.setting.quick {
        SETTLING / 10
    } else {
        SETTLING
    };
    tokio::time::sleep(settling).await;
    let memory = stage.broker.memory();
    Ok(memory
        .context("the broker's process id is needed: --pid")?
        .resident)
}
