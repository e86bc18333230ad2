//! Load generator: measures a broker beside what the machine itself can do.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the commands and their flags |
//! | `work` | one file per measurement |
//! | `broker` | the broker under load: a child process, or one that runs already |
//! | `mesh` `forward` | brokers of several regions, and the links between them |
//! | `cpu` | CPU time and memory, of broker and generator apart |
//! | `limits` | what the disk and the loopback do without a broker |
//! | `keys` `frames` | which keys, and publish messages made ahead of the clock |
//! | `pace` | when each message of an open loop is due |
//! | `publisher` | sends frames, by window or by pace, and accounts for every acknowledgement |
//! | `subscriber` | takes deliveries and checks that nothing is missing |
//! | `wire` `http` | lean connections, so that the generator is not the limit |
//! | `latency` | percentiles |
//! | `report` | figures, goals, and how they are printed |
//! | `progress` | a bar for people, nothing for scripts |
//!
//! Latency counts from the moment at which a message *was due*: a broker that stalls is charged for
//! everything that should have been sent meanwhile.

mod broker;
pub mod cli;
mod cpu;
mod forward;
mod frames;
mod http;
mod keys;
mod latency;
mod limits;
mod mesh;
mod pace;
mod progress;
mod publisher;
mod report;
mod subscriber;
mod wire;
mod work;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Runs a measurement and prints what came of it.
///
/// The generator has a thread of its own with a runtime of its own, so that none of its work moves
/// between cores while it is timed.
///
/// # Errors
/// When the broker cannot be started or reached, refuses what it is sent, or loses something.
pub async fn run(command: cli::Command) -> Result<()> {
    let (done, finished) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("bench".to_owned())
        .spawn(move || {
            // Nobody waits any more when the caller was dropped.
            let _ = done.send(run_on_this_thread(command));
        })
        .context("cannot start the generator's thread")?;
    finished.await.context("the generator panicked")?
}

fn run_on_this_thread(command: cli::Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    cpu::allow_many_connections();
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        // What is dropped here takes its broker and its folder with it.
        tokio::select! {
            ended = Box::pin(work::run(command)) => ended,
            _ = interrupt.recv() => anyhow::bail!("interrupted"),
            _ = terminate.recv() => anyhow::bail!("interrupted"),
        }
    })
}
