//! `dev` with several regions: a broker for each, with links that can be slow and cut.
//!
//! ```text
//!              this process                        processes of their own
//! console ──▶ orders ──▶ network: forwarders ◀──── broker of r1
//!                  └───▶ processes ──────────────▶ broker of r2 …
//! ```
//!
//! The brokers are the same as anywhere: `serve`, with flags. What dials another region dials a
//! forwarder of this process.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | what is to be started, read from the flags |
//! | `names` | the regions' names, and which links are meant by them |
//! | `process` | the broker of one region |
//! | `network`, `forward` | the links, and one way into a broker |
//! | `console` | what can be typed meanwhile |
//! | `report` | what is told about all of it |

mod console;
mod forward;
mod names;
mod network;
mod plan;
mod process;
mod report;

use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::arguments::DevArguments;
use super::{Ended, Failure, broker, interrupted, output};
use console::Order;
use names::Between;
use network::Network;
use plan::Plan;
use process::{Launch, Process};
use report::Report;

/// One broker, or several regions.
pub(super) async fn run(arguments: DevArguments) -> Ended {
    match Plan::of(&arguments)? {
        None => broker::dev(arguments.flags).await,
        Some(plan) => {
            let report = Report::new(arguments.json, plan.names.clone());
            Box::pin(run_regions(plan, report)).await
        }
    }
}

async fn run_regions(plan: Plan, report: Report) -> Ended {
    let began = Instant::now();
    let (ended, mut ends) = mpsc::channel(plan.names.count());
    let stop = interrupted();
    tokio::pin!(stop);
    let mut regions = tokio::select! {
        regions = Regions::start(&plan, report, ended) => regions?,
        // Those that have started see their input end.
        () = &mut stop => return Ok(ExitCode::SUCCESS),
    };
    regions.tell_ready(&plan, began.elapsed());
    let mut lines = console::lines();
    loop {
        tokio::select! {
            // What has ended is known before the next order.
            biased;
            () = &mut stop => break,
            Some((region, status)) = ends.recv() => regions.note_end(region, status),
            Some(line) = lines.recv() => match console::parse(&line, &plan.names) {
                Ok(Some(Order::Quit)) => break,
                Ok(Some(order)) => regions.obey(order).await,
                Ok(None) => (),
                Err(message) => regions.report.refused(&message),
            },
        }
    }
    regions.stop(&mut ends).await;
    output::hint("stopped; everything acknowledged is on disk");
    Ok(ExitCode::SUCCESS)
}

/// How long regions may take to find each other and to become members before it is said that they
/// are ready: they may hold logs that have forked, which is for their own logs to tell. More than
/// `links.join_seconds`, after which a broker goes on without those that do not answer.
const SETTLING: Duration = Duration::from_secs(8);

/// How often they are asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How long brokers may take to stop: more than what they allow themselves.
const STOPPING: Duration = Duration::from_secs(30);

/// All regions, and the links between them.
struct Regions {
    network: Network,
    launches: Vec<Launch>,
    /// What runs of it.
    running: Vec<Option<Process>>,
    /// Whether all were linked and took writes when they were ready.
    settled: bool,
    ended: mpsc::Sender<(usize, ExitStatus)>,
    report: Report,
}

impl Regions {
    async fn start(
        plan: &Plan,
        report: Report,
        ended: mpsc::Sender<(usize, ExitStatus)>,
    ) -> Result<Self, Failure> {
        let network = Network::start(plan.names.count()).await?;
        for (between, delay) in &plan.delays {
            network.change(*between, |link| link.delay = *delay);
        }
        let names = plan.names.iter().zip(&plan.listen).enumerate();
        let launches = names.map(|(region, (name, listen))| Launch {
            name: name.to_string(),
            data: plan.folder.join(name.as_str()),
            log: plan.folder.join(format!("{name}.log")),
            listen: *listen,
            peers: network.peers_of(region),
            flags: plan.flags.clone(),
        });
        let mut regions = Self {
            launches: launches.collect(),
            network,
            running: Vec::new(),
            settled: false,
            ended,
            report,
        };
        regions.start_all().await?;
        regions.settled = timeout(SETTLING, regions.settle()).await.is_ok();
        Ok(regions)
    }

    async fn start_all(&mut self) -> Result<(), Failure> {
        let regions = 0..self.launches.len();
        let started = try_join_all(regions.map(|region| self.launch(region))).await?;
        for (launch, process) in self.launches.iter_mut().zip(&started) {
            // The port that was free is kept: clients know it by now.
            launch.listen = process.addresses.listen;
        }
        self.running = started.into_iter().map(Some).collect();
        Ok(())
    }

    async fn launch(&self, region: usize) -> Result<Process, Failure> {
        let process = self.launches[region]
            .start(region, self.ended.clone())
            .await?;
        let peers = Some(process.addresses.peer_listen);
        self.network.lead_to(region, peers);
        Ok(process)
    }

    /// Waits until each takes writes and has links to all others.
    async fn settle(&self) {
        for process in self.running.iter().flatten() {
            settle(process, self.launches.len() - 1).await;
        }
    }

    fn tell_ready(&self, plan: &Plan, took: Duration) {
        self.report.ready(plan, &self.running, self.settled, took);
    }

    async fn obey(&mut self, order: Order) {
        let changed = match order {
            Order::Cut(between) => self.network.change(between, |link| link.cut = true),
            Order::Heal(between) => self.network.change(between, |link| link.cut = false),
            Order::Delay(between, delay) => self.network.change(between, |link| link.delay = delay),
            Order::Links => self.network.conditions(Between::All),
            Order::Kill(region) => return self.kill(region).await,
            Order::Start(region) => return self.start_again(region).await,
            Order::Help => return self.report.help(),
            // The caller ends.
            Order::Quit => return,
        };
        self.report.links(&changed);
    }

    /// Its end is told as any other.
    async fn kill(&mut self, region: usize) {
        match self.running[region].take() {
            Some(process) => process.kill().await,
            None => self.report.refused("it is not running"),
        }
    }

    async fn start_again(&mut self, region: usize) {
        if self.running[region].is_some() {
            return self.report.refused("it is running");
        }
        match self.launch(region).await {
            Ok(process) => {
                // Whether others can be reached or not: it does not wait for them forever.
                let _ = timeout(SETTLING, settle(&process, 0)).await;
                self.report.started(region, &process);
                self.running[region] = Some(process);
            }
            Err(failure) => self.report.refused(&failure.message()),
        }
    }

    fn note_end(&mut self, region: usize, status: ExitStatus) {
        self.running[region] = None;
        self.network.lead_to(region, None);
        self.report.ended(region, status);
    }

    /// Asks all to stop, and waits until they have.
    async fn stop(&mut self, ends: &mut mpsc::Receiver<(usize, ExitStatus)>) {
        let mut left = self.running.iter_mut().filter_map(Option::take).count();
        let stopped = async {
            while left > 0 && ends.recv().await.is_some() {
                left -= 1;
            }
        };
        if timeout(STOPPING, stopped).await.is_err() {
            output::hint("a broker does not stop and is killed; see its log");
        }
    }
}

/// Waits until a broker takes writes and has so many links.
async fn settle(process: &Process, links: usize) {
    let Ok(client) = process.client() else { return };
    loop {
        let regions = client.regions().await;
        if regions.is_ok_and(|it| it.writes == "open" && it.links.len() >= links) {
            return;
        }
        sleep(ASK_EVERY).await;
    }
}
