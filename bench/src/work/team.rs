//! Several publishers that share the work.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use indicatif::ProgressBar;

use super::load::Load;
use crate::frames::Frames;
use crate::pace::Pace;
use crate::progress;
use crate::publisher::{Flow, Latest, Published, Publisher, Until};

/// Publishers with a connection each.
pub(crate) struct Team {
    members: Vec<Publisher>,
    frames: Vec<Rc<Frames>>,
    load: Load,
}

impl Team {
    /// Makes `records` records ahead, at least what the windows need, and connects.
    pub(crate) async fn connect(address: SocketAddr, load: &Load, records: usize) -> Result<Self> {
        let making = progress::step("making messages ahead");
        let writers = u32::try_from(load.connections).context("too many connections")?;
        let each = records.div_ceil(load.connections * load.shape.batch);
        let each = each
            .max(2 * load.window)
            .max(MESSAGES_WHEN_PACED / load.shape.batch);
        let mut team = Self {
            members: Vec::new(),
            frames: Vec::new(),
            load: load.clone(),
        };
        for writer in 0..writers {
            let mut shape = load.shape.clone();
            shape.keys = shape.keys.map(|keys| keys.share(writer, writers));
            let frames = Rc::new(Frames::build(&shape, each, u64::from(writer))?);
            team.members
                .push(Publisher::connect(address, Rc::clone(&frames)).await?);
            team.frames.push(frames);
        }
        making.finish_and_clear();
        Ok(team)
    }

    pub(crate) async fn warm_up(&mut self) -> Result<()> {
        let bar = progress::bar("warming up", None);
        self.publish(self.load.until_warm(), &bar).await?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Publishes what is to be measured.
    pub(crate) async fn measure(&mut self) -> Result<Published> {
        let bar = progress::bar("publishing", self.load.records());
        let published = self.publish(self.load.until(), &bar).await?;
        bar.finish_and_clear();
        Ok(published)
    }

    async fn publish(&mut self, until: Until<'_>, bar: &ProgressBar) -> Result<Published> {
        let (load, batch) = (&self.load, self.load.shape.batch);
        let each = |rate: u64| rate / load.connections as u64;
        let pace = load.rate.map(|rate| Pace::start(each(rate).max(1), batch));
        let pace = pace.transpose()?;
        let flow = match &pace {
            Some(pace) => Flow::Pace(pace),
            None => Flow::Window(load.window),
        };
        let runs = self
            .members
            .iter_mut()
            .map(|member| member.run(until, flow, bar));
        let mut all = Published::default();
        for one in try_join_all(runs).await? {
            all.messages += one.messages;
            all.records += one.records;
            all.latencies.add(&one.latencies);
        }
        Ok(all)
    }

    /// The last acknowledgement of all.
    pub(crate) fn latest(&self) -> Result<&Latest> {
        let latest = self.members.iter().filter_map(Publisher::latest);
        latest
            .max_by_key(|latest| latest.sequence)
            .context("nothing was acknowledged")
    }

    /// The value that each key must have by now.
    pub(crate) fn expected(&self) -> HashMap<u32, Vec<u8>> {
        let pairs = self.members.iter().zip(&self.frames);
        let mut expected = HashMap::new();
        for (member, frames) in pairs {
            expected.extend(frames.last_values(member.sent()));
        }
        expected
    }
}

/// Records made ahead for an open loop, so that a broker that stalls for seconds is charged for it
/// instead of ending the measurement.
const MESSAGES_WHEN_PACED: usize = 60_000;
