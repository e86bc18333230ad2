//! `dev` with several regions as a process: started, told what to do, stopped, killed.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::broker::command;
use crate::condition::{eventually, soon};
use crate::home::Home;
use crate::http::Http;

/// Regions on one machine, started by one process. They are gone when it is dropped.
#[derive(Debug)]
pub struct Dev {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    regions: Vec<Region>,
}

/// A region, as the process has told of it.
#[derive(Debug)]
struct Region {
    address: SocketAddr,
    pid: u32,
}

/// What became of a process that should have started regions.
#[derive(Debug)]
pub struct Refused {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard error.
    pub said: String,
}

impl Dev {
    /// Starts regions on free ports, and waits until they are linked.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn start(home: &Home, flags: &[&str]) -> Self {
        let all = [&["--listen", "127.0.0.1:0"], flags].concat();
        match Self::try_start(home, &all).await {
            Ok(dev) => dev,
            Err(refused) => panic!("{}: {}", refused.status, refused.said),
        }
    }

    /// Starts regions, and waits until they are linked, or it has ended.
    ///
    /// # Errors
    /// With how it ended.
    ///
    /// # Panics
    /// When it does neither in time.
    pub async fn try_start(home: &Home, flags: &[&str]) -> Result<Self, Refused> {
        let mut command = Command::from(command());
        command.args(["dev", "--json", "--data-dir"]);
        command.arg(home.data()).args(flags).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = child.stdout.take().unwrap();
        let mut output = BufReader::new(output).lines();
        let first = soon("regions", output.next_line()).await.unwrap();
        let Some(line) = first else {
            let mut said = String::new();
            let mut stderr = child.stderr.take().unwrap();
            stderr.read_to_string(&mut said).await.unwrap();
            let status = soon("its end", child.wait()).await.unwrap();
            return Err(Refused { status, said });
        };
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["event"], "ready", "{ready}");
        let regions = ready["regions"].as_array().unwrap().iter();
        Ok(Self {
            child,
            input,
            output,
            regions: regions.map(Region::told).collect(),
        })
    }

    /// HTTP requests to a region.
    #[must_use]
    pub fn http(&self, region: usize) -> Http {
        Http::new(self.regions[region].address)
    }

    /// Where a region listens.
    #[must_use]
    pub fn address(&self, region: usize) -> SocketAddr {
        self.regions[region].address
    }

    /// The processes of all regions.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.regions.iter().map(|region| region.pid).collect()
    }

    /// Types a line, and returns what is said to it.
    ///
    /// # Panics
    /// When nothing is said in time.
    pub async fn order(&mut self, line: &str) -> Value {
        let line = format!("{line}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.told().await
    }

    /// The next thing that is told.
    ///
    /// # Panics
    /// When nothing is told in time.
    pub async fn told(&mut self) -> Value {
        let line = soon("an event", self.output.next_line()).await.unwrap();
        serde_json::from_str(&line.expect("it runs")).unwrap()
    }

    /// Creates a stream in the first region, and waits until all know it.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn create(&self, definition: Value) {
        let answer = self.http(0).post("/v1/streams", &definition).await;
        assert!(answer.status < 300, "{answer:?}");
        let path = format!("/v1/streams/{}", definition["name"].as_str().unwrap());
        for region in 1..self.regions.len() {
            eventually("the stream", async || {
                let answer = self.http(region).get(&path).await;
                (answer.status == 200).then_some(())
            })
            .await;
        }
    }

    /// Writes a row in a region.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn put(&self, region: usize, stream: &str, key: &str, value: &str) {
        let path = format!("/v1/tables/{stream}/rows/{key}");
        let answer = self.http(region).put(&path, &json!(value)).await;
        assert!(answer.status < 300, "{answer:?}");
    }

    /// A row as a region sees it.
    pub async fn row(&self, region: usize, stream: &str, key: &str) -> Option<Value> {
        let path = format!("/v1/tables/{stream}/rows/{key}");
        let answer = self.http(region).get(&path).await;
        (answer.status == 200).then(|| answer.json())
    }

    /// Waits until a region has a row with this value.
    pub async fn reads(&self, region: usize, stream: &str, key: &str, value: &str) {
        eventually(key, async || {
            let row = self.row(region, stream, key).await?;
            (row == json!(value)).then_some(())
        })
        .await;
    }

    /// Waits until all regions have the same rows of a stream, this many.
    pub async fn agree(&self, stream: &str, count: usize) {
        let path = format!("/v1/tables/{stream}/rows?limit=1000");
        eventually("the same rows everywhere", async || {
            let first = self.http(0).json(&path).await["rows"].clone();
            for region in 1..self.regions.len() {
                if self.http(region).json(&path).await["rows"] != first {
                    return None;
                }
            }
            (first.as_array()?.len() == count).then_some(())
        })
        .await;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is not running.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs");
        kill_process(pid_of(pid), signal).unwrap();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("its end", self.child.wait()).await.unwrap()
    }
}

impl Region {
    fn told(object: &Value) -> Self {
        let url = object["http"].as_str().unwrap();
        let address = url.strip_prefix("http://").unwrap();
        Self {
            address: address.parse().unwrap(),
            pid: object["pid"].as_u64().unwrap().try_into().unwrap(),
        }
    }
}

/// Kills a process.
///
/// # Panics
/// When there is none.
pub fn kill(pid: u32) {
    kill_process(pid_of(pid), Signal::KILL).unwrap();
}

/// Waits until a process has ended. Nobody may have asked how.
pub async fn gone(pid: u32) {
    eventually("the end of a process", async || {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return Some(());
        };
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.trim_start().starts_with('Z').then_some(())
    })
    .await;
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}
