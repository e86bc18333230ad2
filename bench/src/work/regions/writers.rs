//! One publisher in each region, all at the same pace.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;

use crate::frames::Frames;
use crate::mesh::Mesh;
use crate::pace::Pace;
use crate::progress;
use crate::publisher::{Flow, Published, Publisher, Until};
use crate::work::load::Load;

/// The publishers, in the order of the brokers.
pub(super) struct Writers {
    members: Vec<Publisher>,
    flow: Speed,
    batch: usize,
}

/// How fast each of them sends.
#[derive(Clone, Copy)]
enum Speed {
    Rate(u64),
    Window(usize),
}

/// What one region took, and in how long.
#[derive(Debug)]
pub(super) struct Wrote {
    pub(super) published: Published,
    pub(super) seconds: f64,
}

impl Wrote {
    pub(super) fn rate(&self) -> f64 {
        self.published.records as f64 / self.seconds
    }
}

impl Writers {
    /// Makes messages ahead, `records` of them for each region, and connects.
    pub(super) async fn connect(mesh: &Mesh, load: &Load, records: usize) -> Result<Self> {
        let batch = load.shape.batch;
        let mut members = Vec::new();
        for (number, broker) in (0..).zip(mesh.brokers()) {
            let mut shape = load.shape.clone();
            let regions = u32::try_from(mesh.brokers().len())?;
            shape.keys = shape.keys.map(|keys| keys.share(number, regions));
            let count = records.div_ceil(batch).max(2 * load.window);
            let frames = Rc::new(Frames::build(&shape, count, u64::from(number))?);
            members.push(Publisher::connect(broker.address(), frames).await?);
        }
        let flow = load.rate.map_or(Speed::Window(load.window), Speed::Rate);
        Ok(Self {
            members,
            flow,
            batch,
        })
    }

    /// Writes in all regions for so long.
    pub(super) async fn run_for(&mut self, time: Duration) -> Result<Vec<Wrote>> {
        self.run(Until::Time(Instant::now() + time)).await
    }

    /// Writes in all regions.
    pub(super) async fn run(&mut self, until: Until<'_>) -> Result<Vec<Wrote>> {
        let bar = progress::bar("publishing", None);
        let count = self.members.len();
        let (flow, batch) = (self.flow, self.batch);
        let runs = self.members.iter_mut().enumerate().map(|(number, member)| {
            let bar = &bar;
            async move {
                let mut started = Instant::now();
                let published = match flow {
                    Speed::Window(window) => member.run(until, Flow::Window(window), bar).await?,
                    Speed::Rate(rate) => {
                        // Regions do not write in step.
                        let between = Duration::from_secs_f64(batch as f64 / rate as f64);
                        tokio::time::sleep(between.mul_f64(number as f64 / count as f64)).await;
                        let pace = Pace::start(rate, batch)?;
                        started = pace.began();
                        member.run(until, Flow::Pace(&pace), bar).await?
                    }
                };
                let seconds = started.elapsed().as_secs_f64();
                anyhow::Ok(Wrote { published, seconds })
            }
        });
        let wrote = try_join_all(runs).await?;
        bar.finish_and_clear();
        Ok(wrote)
    }

    /// Records acknowledged in all regions since the beginning.
    pub(super) fn acknowledged(&self) -> usize {
        let members = self.members.iter();
        members.map(Publisher::acknowledged_records).sum()
    }
}
