//! One stream to many subscribers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use tokio::sync::Notify;

use super::load::{Defaults, Length, Load};
use super::stage::Stage;
use crate::cli::{FanoutArguments, Format, Merge};
use crate::cpu::Spent;
use crate::frames::Frames;
use crate::limits::loopback;
use crate::progress;
use crate::publisher::{Flow, Gate, Publisher, Until};
use crate::report::{Figure, Goal, Report, Unit};
use crate::subscriber::{Look, Subscriber};

const DEFAULTS: Defaults = Defaults {
    records: None,
    seconds: 6.0,
    warm_up: 1.0,
    batch: 1000,
    keys: None,
    window: 16,
    connections: 1,
    rate: None,
    format: Format::Batch,
};

/// Messages made ahead; they are sent round and round.
const MESSAGES_AHEAD: usize = 256;

pub(crate) async fn run(arguments: &FanoutArguments, subscribers: usize) -> Result<Report> {
    let given = &arguments.load;
    let stage = Stage::set(&given.setting, "fanout", Merge::Append).await?;
    let load = Load::new(given, &DEFAULTS, stage.stream())?;
    let Length::Time(time) = load.length else {
        anyhow::bail!("fan-out goes by --seconds")
    };
    ensure!(
        load.rate.is_none(),
        "fan-out is measured as fast as the slowest subscriber takes it"
    );
    let limit = loopback::streams(subscribers, stage.setting.quick).await?;
    let mut audience = Vec::new();
    for _ in 0..subscribers {
        let subscriber =
            Subscriber::connect(stage.broker.address(), stage.stream(), load.shape.format);
        audience.push(subscriber.await?);
    }
    let ahead = MESSAGES_AHEAD.max(2 * load.window);
    let frames = Rc::new(Frames::build(&load.shape, ahead, 0)?);
    let mut publisher = Publisher::connect(stage.broker.address(), frames).await?;
    let hall = Hall::new(subscribers, arguments.behind, load.shape.batch);
    let schedule = Schedule {
        warm_up: load.warm_up,
        time,
    };
    let (delivered, spent) = hall
        .perform(&stage, &mut publisher, &mut audience, load.window, schedule)
        .await?;

    let work = format!(
        "fan-out to {subscribers} subscribers, durable, {}",
        load.words()
    );
    let mut report = stage.report("fanout", work);
    let rate = delivered as f64 / spent.seconds;
    report.goals.push(Goal::at_least(
        "deliveries",
        4_000_000.0,
        rate,
        Unit::PerSecond,
    ));
    let bytes = rate * load.shape.record_bytes() as f64 / 1e6;
    report.add("keys and values", bytes, Unit::MegabytesPerSecond);
    report.add_cpu(&spent, delivered, "delivery");
    let name = format!("bytes through {subscribers} loopback connections");
    report
        .limits
        .push(Figure::new(name, limit / 1e6, Unit::MegabytesPerSecond));
    stage.clear(&mut report).await?;
    Ok(report)
}

#[derive(Clone, Copy)]
struct Schedule {
    warm_up: Duration,
    time: Duration,
}

/// How far each subscriber is. Holds the publisher back while the slowest is too far behind.
struct Hall {
    /// Records taken by each.
    taken: Vec<Cell<usize>>,
    behind: usize,
    batch: usize,
    /// Records that each will have taken in the end, once that is known.
    total: Cell<Option<usize>>,
    progress: Notify,
}

impl Gate for Hall {
    fn allows(&self) -> usize {
        if self.total.get().is_some() {
            return usize::MAX;
        }
        let slowest = self.taken.iter().map(Cell::get).min().unwrap_or_default();
        slowest / self.batch + self.behind
    }

    fn changed(&self) -> &Notify {
        &self.progress
    }
}

impl Hall {
    fn new(subscribers: usize, behind: usize, batch: usize) -> Self {
        Self {
            taken: vec![Cell::new(0); subscribers],
            behind: behind.max(1),
            batch,
            total: Cell::new(None),
            progress: Notify::new(),
        }
    }

    /// Publishes to all; returns what was delivered after the warm-up.
    async fn perform(
        &self,
        stage: &Stage,
        publisher: &mut Publisher,
        audience: &mut [Subscriber],
        window: usize,
        schedule: Schedule,
    ) -> Result<(usize, Spent)> {
        let end = Instant::now() + schedule.warm_up + schedule.time;
        let taking = audience
            .iter_mut()
            .zip(&self.taken)
            .map(|(subscriber, taken)| self.take(subscriber, taken));
        let (measured, (), _) = tokio::try_join!(
            self.watch(stage, schedule),
            self.publish(publisher, Until::Time(end), Flow::Window(window)),
            try_join_all(taking),
        )?;
        Ok(measured)
    }

    async fn watch(&self, stage: &Stage, schedule: Schedule) -> Result<(usize, Spent)> {
        let all = || self.taken.iter().map(Cell::get).sum::<usize>();
        tokio::time::sleep(schedule.warm_up).await;
        let (before, first) = (stage.cpu(), all());
        tokio::time::sleep(schedule.time).await;
        Ok((all() - first, before.until(&stage.cpu())))
    }

    async fn publish(
        &self,
        publisher: &mut Publisher,
        until: Until<'_>,
        flow: Flow<'_>,
    ) -> Result<()> {
        let bar = progress::bar("publishing", None);
        let published = publisher.run_gated(until, flow, &bar, self).await?;
        // One message more, so that nobody waits for records without knowing how many there are.
        self.total.set(Some(published.records + self.batch));
        publisher.run(Until::Messages(1), flow, &bar).await?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn take(&self, subscriber: &mut Subscriber, taken: &Cell<usize>) -> Result<()> {
        while self.total.get() != Some(taken.get()) {
            let records = subscriber.take(Look::Count).await?;
            taken.set(taken.get() + records);
            let total = self.total.get().unwrap_or(usize::MAX);
            ensure!(
                taken.get() <= total,
                "a subscriber was given more than was published"
            );
            self.progress.notify_one();
        }
        Ok(())
    }
}
