//! The broker under load: a child process, or one that runs already.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::cli::Setting;
use crate::cpu::{self, Memory, Moment};
use crate::http::Http;

/// How long a broker may take to start or to end before a measurement is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `/readyz` answers until a broker is ready.
const STARTING: u16 = 503;

/// How often `/readyz` is asked.
const ASK_EVERY: Duration = Duration::from_millis(1);

/// A broker.
#[derive(Debug)]
pub(crate) struct Broker {
    address: SocketAddr,
    /// Where other brokers connect.
    peer_address: Option<SocketAddr>,
    process: Process,
    /// From the start of the process; zero for one that ran already.
    pub(crate) listening_after: Duration,
    /// The same.
    pub(crate) ready_after: Duration,
}

#[derive(Debug)]
enum Process {
    /// Started here. Its standard output is kept open, so that it never writes into the void.
    Child(Box<Child>, BufReader<ChildStdout>),
    /// Started by others, with its process id where that was told.
    Foreign(Option<u32>),
}

/// One of several brokers that are linked.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) name: String,
    /// Whom it dials.
    pub(crate) peers: Vec<SocketAddr>,
}

impl Region {
    fn flags(&self) -> Vec<String> {
        // Links that are not there yet, or are cut, are no news here.
        let quiet = ["--log-level", "error"];
        let listen = ["--region", &self.name, "--peer-listen", "127.0.0.1:0"];
        let dial = self.peers.iter();
        let dial = dial.flat_map(|peer| ["--peer".to_owned(), peer.to_string()]);
        let fixed = quiet.into_iter().chain(listen).map(str::to_owned);
        fixed.chain(dial).collect()
    }
}

/// Where data is kept while something is measured. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Place(TempDir);

impl Place {
    /// In the given folder, or in the system's temporary one unless that is memory.
    pub(crate) fn new(dir: Option<&Path>) -> Result<Self> {
        let parent = match dir {
            Some(dir) => dir.to_owned(),
            None => disk_for_temporary_files(),
        };
        tempfile::Builder::new()
            .prefix("anabranch-bench-")
            .tempdir_in(&parent)
            .map(Self)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

fn disk_for_temporary_files() -> PathBuf {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let dir = std::env::temp_dir();
    let in_memory =
        rustix::fs::statfs(&dir).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC));
    if in_memory { PathBuf::from(".") } else { dir }
}

impl Broker {
    /// The broker that the setting asks for, ready. `place` is for the data of one that is started.
    pub(crate) async fn start(setting: &Setting, place: &Place) -> Result<Self> {
        match &setting.server {
            Some(url) => Self::connect(url, setting.pid).await,
            None => {
                let flags = ["--log-level", "warn"].map(str::to_owned);
                Self::spawn(setting, &place.path().join("data"), &flags).await
            }
        }
    }

    /// A broker with links to others, ready.
    pub(crate) async fn start_linked(
        setting: &Setting,
        place: &Place,
        region: &Region,
    ) -> Result<Self> {
        let data = place.path().join(&region.name);
        Self::spawn(setting, &data, &region.flags()).await
    }

    async fn connect(url: &str, pid: Option<u32>) -> Result<Self> {
        let broker = Self {
            address: address_of(url)?,
            peer_address: None,
            process: Process::Foreign(pid),
            listening_after: Duration::ZERO,
            ready_after: Duration::ZERO,
        };
        broker
            .wait_until_ready()
            .await
            .with_context(|| format!("no broker is ready at {url}"))?;
        Ok(broker)
    }

    async fn spawn(setting: &Setting, data: &Path, flags: &[String]) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own path is unknown")?;
        let mut command = Command::new(&program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--print-addresses"])
            .arg("--data-dir")
            .arg(data)
            .args(flags);
        for pair in &setting.set {
            command.args(["--set", pair]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("the broker has no output")?;
        let mut output = BufReader::new(output);
        let addresses = read_addresses(&mut output).await?;
        let listening_after = started.elapsed();
        let mut broker = Self {
            address: addresses.listen,
            peer_address: addresses.peer_listen,
            process: Process::Child(Box::new(child), output),
            listening_after,
            ready_after: Duration::ZERO,
        };
        broker.wait_until_ready().await?;
        broker.ready_after = started.elapsed();
        Ok(broker)
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let started = Instant::now();
        let mut http = Http::connect(self.address).await?;
        loop {
            let answer = http.get("/readyz", &[]).await?;
            match answer.status {
                200 => return Ok(()),
                STARTING if started.elapsed() < PATIENCE => tokio::time::sleep(ASK_EVERY).await,
                STARTING => bail!("the broker is not ready after {} s", PATIENCE.as_secs()),
                status => bail!(
                    "the broker answers {status} when asked whether it is ready: {}",
                    String::from_utf8_lossy(answer.body)
                ),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where other brokers connect.
    ///
    /// # Errors
    /// When it takes no links.
    pub(crate) fn peer_address(&self) -> Result<SocketAddr> {
        self.peer_address.context("the broker takes no links")
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Child(child, _) => child.id(),
            Process::Foreign(pid) => *pid,
        }
    }

    /// CPU time of the broker and of this process.
    pub(crate) fn cpu(&self) -> Moment {
        Moment::now(self.pid())
    }

    /// The broker's memory; `None` when its process is unknown.
    pub(crate) fn memory(&self) -> Option<Memory> {
        self.pid().and_then(|pid| cpu::memory(pid).ok())
    }

    /// Ends a broker that was started here, gracefully; returns how long that took.
    pub(crate) async fn stop(self) -> Result<Duration> {
        self.end(Signal::TERM).await
    }

    /// Ends it at once, as a crash would.
    pub(crate) async fn kill(self) -> Result<Duration> {
        self.end(Signal::KILL).await
    }

    async fn end(self, signal: Signal) -> Result<Duration> {
        let Process::Child(mut child, _output) = self.process else {
            return Ok(Duration::ZERO);
        };
        let started = Instant::now();
        let pid = child.id().context("the broker has ended by itself")?;
        let pid = Pid::from_raw(pid.cast_signed()).context("zero is no process id")?;
        kill_process(pid, signal)?;
        let status = tokio::time::timeout(PATIENCE, child.wait())
            .await
            .with_context(|| format!("the broker did not end within {} s", PATIENCE.as_secs()))??;
        if signal == Signal::TERM && !status.success() {
            bail!("the broker ended with {status} instead of gracefully");
        }
        Ok(started.elapsed())
    }
}

/// What a broker prints once it listens.
#[derive(Deserialize)]
struct Addresses {
    listen: SocketAddr,
    peer_listen: Option<SocketAddr>,
}

async fn read_addresses(output: &mut BufReader<ChildStdout>) -> Result<Addresses> {
    let mut line = String::new();
    let read = tokio::time::timeout(PATIENCE, output.read_line(&mut line));
    if read
        .await
        .context("the broker does not say where it listens")??
        == 0
    {
        bail!("the broker ended before it listened");
    }
    serde_json::from_str(&line)
        .with_context(|| format!("the broker printed {line:?} instead of its addresses"))
}

fn address_of(url: &str) -> Result<SocketAddr> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let host = rest.trim_end_matches('/');
    host.to_socket_addrs()
        .with_context(|| format!("{url:?} is not http://HOST:PORT"))?
        .next()
        .with_context(|| format!("{host} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_from_urls() {
        let address = address_of("http://127.0.0.1:7070/").unwrap();
        assert_eq!(address, "127.0.0.1:7070".parse().unwrap());
        assert!(address_of("http://127.0.0.1").is_err());
    }
}
