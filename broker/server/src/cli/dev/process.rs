//! The broker of one region, a process of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anabranch_client::Client;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::cli::Failure;

/// How to start the broker of a region.
#[derive(Debug)]
pub(super) struct Launch {
    /// The region.
    pub(super) name: String,
    /// Where its data lies.
    pub(super) data: PathBuf,
    /// What it tells of itself.
    pub(super) log: PathBuf,
    /// Where it listens for clients.
    pub(super) listen: SocketAddr,
    /// Whom it dials.
    pub(super) peers: Vec<SocketAddr>,
    /// Flags of all regions.
    pub(super) flags: Vec<OsString>,
}

/// A broker that runs. It stops when this is dropped, and when this process ends, in whatever way.
#[derive(Debug)]
pub(super) struct Process {
    /// Where it listens.
    pub(super) addresses: Addresses,
    /// Its number for the operating system.
    pub(super) pid: Option<u32>,
    /// It stops when this is closed, which the operating system does if nobody else does.
    _input: ChildStdin,
    kill: oneshot::Sender<()>,
    watched: JoinHandle<()>,
}

/// The line that a broker prints of itself.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Addresses {
    /// For clients.
    pub(super) listen: SocketAddr,
    /// For other brokers.
    pub(super) peer_listen: SocketAddr,
}

/// How often a broker is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(20);

impl Launch {
    /// Starts the broker and waits until it is ready. Its end will be told to `ended`.
    pub(super) async fn start(
        &self,
        region: usize,
        ended: mpsc::Sender<(usize, ExitStatus)>,
    ) -> Result<Process, Failure> {
        let mut child = self.command()?.spawn()?;
        let input = child.stdin.take().expect("it is a pipe");
        let output = child.stdout.take().expect("it is a pipe");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let Ok(addresses) = serde_json::from_str::<Addresses>(&line) else {
            let status = child.wait().await?;
            return Err(self.did_not_start(status));
        };
        tokio::select! {
            status = child.wait() => return Err(self.did_not_start(status?)),
            ready = ready(addresses.listen) => ready?,
        }
        let (kill, killed) = oneshot::channel();
        let pid = child.id();
        Ok(Process {
            addresses,
            pid,
            _input: input,
            kill,
            watched: tokio::spawn(watch(child, killed, region, ended)),
        })
    }

    fn command(&self) -> Result<Command, Failure> {
        // Its path may be another program by now, or none: it was built anew meanwhile.
        let this = match cfg!(target_os = "linux") {
            true => PathBuf::from("/proc/self/exe"),
            false => std::env::current_exe()?,
        };
        let mut command = Command::new(this);
        command.arg("serve").arg("--data-dir").arg(&self.data);
        command.args([
            "--region",
            &self.name,
            "--until-stdin-ends",
            "--print-addresses",
        ]);
        command.args([
            "--listen",
            &self.listen.to_string(),
            "--peer-listen",
            "127.0.0.1:0",
        ]);
        for peer in &self.peers {
            command.args(["--peer", &peer.to_string()]);
        }
        command.args(&self.flags);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(self.open_log()?);
        // Ctrl-C on the terminal is for this process, which then ends the others in order.
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }

    fn open_log(&self) -> Result<File, Failure> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        Ok(log?)
    }

    fn did_not_start(&self, status: ExitStatus) -> Failure {
        let (name, log) = (&self.name, self.log.display());
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let last = said.lines().last().unwrap_or_default();
        let reason = last.strip_prefix("error: ").unwrap_or(last);
        let text = format!("{name} did not start ({status}): {reason}; see {log}");
        Failure::of_process(status.code(), text)
    }
}

impl Process {
    /// Ends it at once, as `kill -9` does, and waits until its end has been told.
    pub(super) async fn kill(self) {
        // It may have ended by itself.
        let _ = self.kill.send(());
        let _ = self.watched.await;
    }

    /// A client of it.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        client(self.addresses.listen)
    }
}

fn client(listen: SocketAddr) -> Result<Client, Failure> {
    Ok(Client::builder(&format!("http://{listen}")).lazy()?)
}

/// Waits until a broker answers.
async fn ready(listen: SocketAddr) -> Result<(), Failure> {
    let client = client(listen)?;
    while client.regions().await.is_err() {
        sleep(ASK_EVERY).await;
    }
    Ok(())
}

/// Tells of its end.
async fn watch(
    mut child: Child,
    killed: oneshot::Receiver<()>,
    region: usize,
    ended: mpsc::Sender<(usize, ExitStatus)>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        Ok(()) = killed => match child.start_kill() {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    if let Ok(status) = status {
        // Nobody listens once everything ends.
        let _ = ended.send((region, status)).await;
    }
}
