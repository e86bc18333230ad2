//! A broker, its folder, and the machine's limits beside it.

use std::path::Path;

use anyhow::{Context, Result};
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
    /// Bytes a second of 1 MiB appends before the broker started.
    appends_before: f64,
}

impl Stage {
    /// Measures the disk, starts the broker and creates a stream.
    pub(crate) async fn set(setting: &Setting, name: &str, merge: Merge) -> Result<Self> {
        let place = Place::new(setting.dir.as_deref())?;
        let appends_before = disk::appends(place.path(), setting.quick)?;
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

    /// Ends the broker and measures the disk again; returns bytes a second of 1 MiB appends.
    pub(crate) async fn clear(self) -> Result<f64> {
        if self.setting.server.is_some() {
            let path = format!("/v1/streams/{}", self.stream);
            let answer = self.http().await?.delete(&path).await?.status;
            anyhow::ensure!(answer < 300, "the stream {} cannot be deleted", self.stream);
        }
        self.broker.stop().await?;
        let appends_after = disk::appends(self.place.path(), self.setting.quick)?;
        Ok(f64::midpoint(self.appends_before, appends_after))
    }
}

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

/// The disk's own rate, as a limit.
pub(crate) fn appends_limit(bytes_per_second: f64) -> Figure {
    let name = "1 MiB appends with fdatasync, mean of before and after";
    Figure::new(name, bytes_per_second / 1e6, Unit::MegabytesPerSecond)
}
