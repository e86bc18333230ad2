//! A broker, its folder, and the machine's limits beside it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::broker::{Broker, Place};
use crate::cli::{Merge, Setting};
use crate::cpu::Moment;
use crate::http::Http;
use crate::limits::disk;
use crate::report::{Figure, Report, Unit};

/// Where a measurement takes place.
pub(crate) struct Stage {
    pub(crate) setting: Setting,
    pub(crate) broker: Broker,
    place: Place,
    stream: String,
    /// Bytes a second of 1 MiB appends before the broker started, where that is a limit.
    appends_before: Option<f64>,
}

impl Stage {
    /// Starts the broker and creates a stream.
    pub(crate) async fn set(setting: &Setting, name: &str, merge: Merge) -> Result<Self> {
        let place = Place::new(setting.dir.as_deref())?;
        Self::set_at(place, None, setting, name, merge).await
    }

    /// The same, after the disk has been measured. Not for work that is about latency: a disk that
    /// was just given gigabytes stalls for a while.
    pub(crate) async fn set_beside_disk(
        setting: &Setting,
        name: &str,
        merge: Merge,
    ) -> Result<Self> {
        let place = Place::new(setting.dir.as_deref())?;
        let appends = disk::appends(place.path(), setting.quick)?;
        Self::set_at(place, Some(appends), setting, name, merge).await
    }

    async fn set_at(
        place: Place,
        appends_before: Option<f64>,
        setting: &Setting,
        name: &str,
        merge: Merge,
    ) -> Result<Self> {
        let broker = Broker::start(setting, &place).await?;
        let stage = Self {
            setting: setting.clone(),
            broker,
            place,
            stream: stream_name(name),
            appends_before,
        };
        stage.create_stream(merge).await?;
        Ok(stage)
    }

    async fn create_stream(&self, merge: Merge) -> Result<()> {
        let mut http = self.http().await?;
        let definition = json!({"name": self.stream, "merge": merge.as_str(), "partitions": 1});
        let answer = http.post("/v1/streams", &definition).await?;
        answer
            .json::<serde_json::Value>()
            .with_context(|| format!("cannot create the stream {}", self.stream))?;
        Ok(())
    }

    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    pub(crate) fn dir(&self) -> &Path {
        self.place.path()
    }

    pub(crate) async fn http(&self) -> Result<Http> {
        Http::connect(self.broker.address()).await
    }

    pub(crate) fn cpu(&self) -> Moment {
        self.broker.cpu()
    }

    /// A report without figures.
    pub(crate) fn report(&self, command: &str, work: String) -> Report {
        Report {
            command: format!("anabranch bench {command}"),
            work,
            goals: Vec::new(),
            limits: Vec::new(),
            latencies: Vec::new(),
            figures: Vec::new(),
            quick: self.setting.quick,
        }
    }

    /// Starts the broker again after it was ended.
    pub(crate) async fn start_again(self, end: End) -> Result<Self> {
        let Self {
            setting,
            broker,
            place,
            ..
        } = self;
        match end {
            End::Clean => broker.stop().await?,
            End::Killed => broker.kill().await?,
        };
        let broker = Broker::start(&setting, &place).await?;
        Ok(Self {
            setting,
            broker,
            place,
            ..self
        })
    }

    /// Ends the broker, and measures the disk again if it was measured before; adds that to the
    /// report's limits.
    pub(crate) async fn clear(self, report: &mut Report) -> Result<()> {
        if self.setting.server.is_some() {
            let path = format!("/v1/streams/{}", self.stream);
            let answer = self.http().await?.delete(&path).await?.status;
            ensure!(answer < 300, "the stream {} cannot be deleted", self.stream);
        }
        self.broker.stop().await?;
        if let Some(before) = self.appends_before {
            let after = disk::appends(self.place.path(), self.setting.quick)?;
            let mean = f64::midpoint(before, after) / 1e6;
            let limit = Figure::new(APPENDS, mean, Unit::MegabytesPerSecond);
            report.limits.push(limit);
        }
        Ok(())
    }
}

/// What the disk is measured with.
const APPENDS: &str = "1 MiB appends with fdatasync, mean of before and after";

/// How a broker ends before it is started again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Clean,
    Killed,
}

/// A name that no other run uses.
fn stream_name(name: &str) -> String {
    format!("bench-{name}-{:08x}", fastrand::u32(..))
}
