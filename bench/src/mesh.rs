//! Brokers of several regions on this machine, each linked with every other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::broker::{Broker, Place, Region};
use crate::cli::{Merge, Setting};
use crate::cpu::Moment;
use crate::forward::Forwarder;
use crate::http::Http;

/// How long brokers may take to meet, or to hold the same.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often they are asked.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// What links go over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire {
    /// The loopback device alone.
    Direct,
    /// A forwarder on the way of each.
    Forwarded { delay: Duration },
}

impl Wire {
    /// With a forwarder only where there is a delay.
    pub(crate) fn with_delay(delay: Duration) -> Self {
        match delay.is_zero() {
            true => Self::Direct,
            false => Self::Forwarded { delay },
        }
    }
}

/// The brokers.
pub(crate) struct Mesh {
    brokers: Vec<Broker>,
    forwarders: Vec<Forwarder>,
    place: Place,
}

/// What a broker says of itself and its links.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    /// Its own identity.
    pub(crate) origin: String,
    /// Origin to the last sequence it holds.
    pub(crate) vector: BTreeMap<String, u64>,
    pub(crate) links: Vec<LinkStatus>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct LinkStatus {
    pub(crate) bytes_out: u64,
    pub(crate) frames_out: u64,
}

impl Mesh {
    /// Starts so many brokers, and waits until all links are up. Each dials those before it.
    pub(crate) async fn start(setting: &Setting, count: usize, wire: Wire) -> Result<Self> {
        ensure!(
            setting.server.is_none(),
            "the brokers of several regions are started here; leave --server out"
        );
        let mut mesh = Self {
            brokers: Vec::new(),
            forwarders: Vec::new(),
            place: Place::new(setting.dir.as_deref())?,
        };
        for number in 0..count {
            let mut peers = Vec::new();
            for earlier in &mesh.brokers {
                let direct = earlier.peer_address()?;
                peers.push(match wire {
                    Wire::Direct => direct,
                    Wire::Forwarded { delay } => {
                        mesh.forwarders.push(Forwarder::start(direct, delay)?);
                        let last = mesh.forwarders.last().context("one was added")?;
                        last.address()
                    }
                });
            }
            let name = format!("r{}", number + 1);
            let region = Region { name, peers };
            let broker = Broker::start_linked(setting, &mesh.place, &region).await?;
            mesh.brokers.push(broker);
        }
        mesh.wait_until_linked().await?;
        Ok(mesh)
    }

    pub(crate) fn brokers(&self) -> &[Broker] {
        &self.brokers
    }

    pub(crate) fn dir(&self) -> &Path {
        self.place.path()
    }

    pub(crate) async fn http(&self, broker: usize) -> Result<Http> {
        Http::connect(self.brokers[broker].address()).await
    }

    /// CPU time of all brokers together, and of this process.
    pub(crate) fn cpu(&self) -> Moment {
        Moment::now(self.brokers.iter().filter_map(Broker::pid))
    }

    /// Creates a stream in one region, and waits until all have it.
    pub(crate) async fn create_stream(&self, name: &str, merge: Merge) -> Result<()> {
        let definition = json!({"name": name, "merge": merge.as_str(), "partitions": 1});
        let mut http = self.http(0).await?;
        let answer = http.post("/v1/streams", &definition).await?;
        answer
            .json::<serde_json::Value>()
            .with_context(|| format!("cannot create the stream {name}"))?;
        let path = format!("/v1/streams/{name}");
        for broker in 0..self.brokers.len() {
            let mut http = self.http(broker).await?;
            let deadline = Deadline::new("have the stream");
            while http.get(&path, &[]).await?.status != 200 {
                deadline.wait().await?;
            }
        }
        Ok(())
    }

    /// Lets no link through any more, and waits until all are down.
    pub(crate) async fn cut(&self) -> Result<()> {
        self.forwarders.iter().for_each(Forwarder::cut);
        self.wait_for_links(0).await
    }

    /// Lets links through again.
    pub(crate) fn heal(&self) {
        self.forwarders.iter().for_each(Forwarder::heal);
    }

    async fn wait_until_linked(&self) -> Result<()> {
        self.wait_for_links(self.brokers.len() - 1).await
    }

    async fn wait_for_links(&self, links: usize) -> Result<()> {
        for broker in 0..self.brokers.len() {
            let mut http = self.http(broker).await?;
            let deadline = Deadline::new("have the links they should have");
            while status(&mut http).await?.links.len() != links {
                deadline.wait().await?;
            }
        }
        Ok(())
    }

    /// Waits until all brokers hold the same; returns how long that took.
    pub(crate) async fn converged(&self) -> Result<Duration> {
        let started = Instant::now();
        let deadline = Deadline::new("hold the same");
        loop {
            let mut vectors = Vec::new();
            for broker in 0..self.brokers.len() {
                vectors.push(status(&mut self.http(broker).await?).await?.vector);
            }
            if vectors.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(started.elapsed());
            }
            deadline.wait().await?;
        }
    }

    /// What each broker says of itself.
    pub(crate) async fn statuses(&self) -> Result<Vec<Status>> {
        let mut statuses = Vec::new();
        for broker in 0..self.brokers.len() {
            statuses.push(status(&mut self.http(broker).await?).await?);
        }
        Ok(statuses)
    }

    /// The end of a stream's log in every region.
    ///
    /// # Errors
    /// When a region holds another number of records than were acknowledged.
    pub(crate) async fn all_hold(&self, stream: &str, records: usize) -> Result<()> {
        #[derive(Deserialize)]
        struct Stream {
            offsets: Vec<Offsets>,
        }
        #[derive(Deserialize)]
        struct Offsets {
            next: u64,
        }
        for broker in 0..self.brokers.len() {
            let mut http = self.http(broker).await?;
            let answer = http.get(&format!("/v1/streams/{stream}"), &[]).await?;
            let held: u64 = answer
                .json::<Stream>()?
                .offsets
                .iter()
                .map(|o| o.next)
                .sum();
            ensure!(
                held == records as u64,
                "region {} holds {held} records, but {records} were acknowledged",
                broker + 1
            );
        }
        Ok(())
    }

    /// Ends all brokers.
    pub(crate) async fn stop(self) -> Result<()> {
        for broker in self.brokers {
            broker.stop().await?;
        }
        Ok(())
    }
}

/// Asks a broker about itself and its links.
pub(crate) async fn status(http: &mut Http) -> Result<Status> {
    http.get("/v1/regions", &[]).await?.json()
}

/// Waits again and again, but not forever.
pub(crate) struct Deadline {
    what: &'static str,
    end: Instant,
}

impl Deadline {
    /// For what brokers should do: `hold the same`.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            end: Instant::now() + PATIENCE,
        }
    }

    /// Waits a moment.
    ///
    /// # Errors
    /// When that was too often.
    pub(crate) async fn wait(&self) -> Result<()> {
        if Instant::now() >= self.end {
            bail!(
                "the brokers do not {} after {} s",
                self.what,
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
        Ok(())
    }
}
