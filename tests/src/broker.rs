//! The program as a process: started, asked to stop, killed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::condition::{PATIENCE, eventually, soon};
use crate::home::Home;
use crate::http::Http;
use crate::wire::Wire;

/// Segments of tests are small, so that a few megabytes of records make several.
const SMALL_SEGMENTS: &str = "log.segment_bytes=8MiB";

/// The program under test, which was built beside the tests.
///
/// # Panics
/// When it was not.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(other) = std::env::var_os("ANABRANCH_TEST_PROGRAM") {
        return other.into();
    }
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("anabranch");
    assert!(
        program.exists(),
        "{} is missing; build it: cargo build --release --locked -p anabranch-server",
        program.display()
    );
    program
}

/// The program with nothing of the test's environment that would configure it.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANABRANCH_") {
            command.env_remove(name);
        }
    }
    command
}

/// A running broker. It is killed when it is dropped.
#[derive(Debug)]
pub struct Broker {
    child: Option<Child>,
    address: SocketAddr,
    peer_address: Option<SocketAddr>,
    log: PathBuf,
}

/// A broker that ended instead of serving.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// What it wrote to standard error.
    pub said: String,
}

impl Broker {
    /// Starts a broker on this home, with its settings at their defaults, and waits until it is
    /// ready.
    pub async fn start(home: &Home) -> Self {
        Self::start_with(home, &[]).await
    }

    /// Starts a broker with some settings, each `section.key=value`, and waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn start_with(home: &Home, settings: &[&str]) -> Self {
        match Self::try_start(home, &flags_of(settings)).await {
            Ok(broker) => broker,
            Err(ended) => panic!("the broker did not start: {}\n{}", ended.status, ended.said),
        }
    }

    /// Starts a broker with some settings, and kills it after a while, ready or not.
    ///
    /// # Panics
    /// When there is no such process to kill.
    pub async fn start_and_kill(home: &Home, settings: &[&str], after: Duration) {
        let (mut child, _) = spawn(home, &flags_of(settings));
        tokio::time::sleep(after).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a broker and sends it a signal after a while, ready or not. Returns how it ended.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn start_and_signal(home: &Home, signal: Signal, after: Duration) -> ExitStatus {
        let (mut child, _) = spawn(home, &[]);
        tokio::time::sleep(after).await;
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        wait(&mut child).await
    }

    /// Starts a broker with some flags and waits until it is ready, or has ended.
    ///
    /// # Errors
    /// With how it ended.
    ///
    /// # Panics
    /// When it does neither in time.
    pub async fn try_start(home: &Home, flags: &[&str]) -> Result<Self, Ended> {
        let (mut broker, written_before) = Self::listening(home, flags).await?;
        if broker.ready().await {
            return Ok(broker);
        }
        let child = broker.child.take().unwrap();
        Err(ended(child, home, written_before).await)
    }

    /// Starts a broker with some flags and waits until it listens, ready or not.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn start_unready(home: &Home, flags: &[&str]) -> Self {
        match Self::listening(home, flags).await {
            Ok((broker, _)) => broker,
            Err(ended) => panic!("the broker did not start: {}\n{}", ended.status, ended.said),
        }
    }

    async fn listening(home: &Home, flags: &[&str]) -> Result<(Self, usize), Ended> {
        let (mut child, written_before) = spawn(home, flags);
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let read = spawn_blocking(move || out.read_line(&mut line).map(|_| line));
        let line = soon("the address", read).await.unwrap().unwrap();
        let addresses: Value = match serde_json::from_str(&line) {
            Ok(addresses) => addresses,
            Err(_) => return Err(ended(child, home, written_before).await),
        };
        let broker = Self {
            child: Some(child),
            address: addresses["listen"].as_str().unwrap().parse().unwrap(),
            peer_address: addresses["peer_listen"]
                .as_str()
                .map(|address| address.parse().unwrap()),
            log: home.log(),
        };
        Ok((broker, written_before))
    }

    /// Waits until it is ready; false when it ended.
    async fn ready(&mut self) -> bool {
        let http = self.http();
        eventually("ready", async || {
            if self.child.as_mut()?.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let answer = http.try_send("GET", "/readyz", &[], "").await.ok()?;
            // With its disk full, or parked, it has started, though it takes no writes.
            let says = |code: &[u8]| answer.body.windows(6).any(|it| it == code);
            let no_writes = answer.status == 507 || says(b"AB2104") || says(b"AB4103");
            (answer.status == 200 || no_writes).then_some(true)
        })
        .await
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it takes links of other brokers, if it does.
    #[must_use]
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peer_address
    }

    /// Its process.
    ///
    /// # Panics
    /// Never: it runs until it is stopped, killed or dropped.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// HTTP requests to it.
    #[must_use]
    pub fn http(&self) -> Http {
        Http::new(self.address)
    }

    /// A WebSocket connection that has exchanged hellos.
    pub async fn connect(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// Creates a stream.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn create(&self, definition: Value) {
        let answer = self.http().post("/v1/streams", &definition).await;
        assert!(answer.status < 300, "{answer:?}");
    }

    /// Kills it, as a power cut would end it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal without waiting for what comes of it.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn ended(mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        wait(&mut child).await
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Panics
    /// When it does not end well, in time.
    pub async fn stop(mut self) {
        self.end().await;
    }

    /// The same, of one that is started again in its place.
    ///
    /// # Panics
    /// When it does not end well, in time.
    pub async fn end(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("it runs");
        let status = wait(&mut child).await;
        assert!(status.success(), "{status}\n{}", last_lines(&self.log));
    }

    /// The most memory that it ever had, in bytes.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// The memory that it has, in bytes.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field));
        let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the broker's last words:\n{}", last_lines(&self.log));
        }
    }
}

fn flags_of<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings
        .iter()
        .flat_map(|&setting| ["--set", setting])
        .collect()
}

fn spawn(home: &Home, flags: &[&str]) -> (Child, usize) {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.log())
        .unwrap();
    let written_before = log.metadata().unwrap().len();
    let mut command = command();
    command.arg("serve").arg("--data-dir").arg(home.data());
    command.args(["--listen", "127.0.0.1:0", "--print-addresses"]);
    command.args(["--set", SMALL_SEGMENTS]).args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(log);
    (
        command.spawn().unwrap(),
        usize::try_from(written_before).unwrap(),
    )
}

async fn ended(mut child: Child, home: &Home, written_before: usize) -> Ended {
    let status = wait(&mut child).await;
    let said = std::fs::read(home.log()).unwrap();
    Ended {
        status,
        said: String::from_utf8_lossy(&said[written_before..]).into_owned(),
    }
}

/// Waits for the end of a child, and ends it when that takes too long.
async fn wait(child: &mut Child) -> ExitStatus {
    let ended = eventually_ended(child);
    if let Ok(status) = timeout(PATIENCE, ended).await {
        return status;
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    panic!("it had to be killed: {status}");
}

async fn eventually_ended(child: &mut Child) -> ExitStatus {
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn last_lines(log: &PathBuf) -> String {
    let Ok(file) = File::open(log) else {
        return String::new();
    };
    let lines: Vec<String> = BufReader::new(file).lines().map_while(Result::ok).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
