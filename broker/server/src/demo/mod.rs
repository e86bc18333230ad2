//! A year of flights, streamed into a broker over a real socket.
//!
//! | module | holds |
//! |---|---|
//! | [`dataset`] | the packed tables, and their rows as JSON |
//! | [`calendar`] | dates and clocks, without a time zone database |
//! | [`events`] | from the table of flights to departures and arrivals in order |
//! | [`load`] | publishing all of it |
//! | [`summary`] | what came of it, and what to paste next |
//!
//! Every run goes on where the last one on the same folder ended: the log says how many events
//! it has, and they always come in the same order.

mod calendar;
mod dataset;
mod events;
mod load;
mod summary;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anabranch_client::Client;
use anyhow::Context;
use tokio::sync::oneshot;

use crate::cli::{BrokerFlags, DemoArguments, Failure, Output, hint, interrupted, start_logging};
use crate::serve::serve;

/// Where the demo's data goes unless it is told.
const FOLDER: &str = "./anabranch-demo";

/// Runs the demo.
pub(crate) async fn run(arguments: DemoArguments) -> Result<ExitCode, Failure> {
    let flags = BrokerFlags {
        data_dir: Some(arguments.data_dir.unwrap_or(PathBuf::from(FOLDER))),
        listen: Some(arguments.listen.to_string()),
        ..BrokerFlags::default()
    };
    let loaded = flags.load()?;
    start_logging(&loaded);
    let (listening, bound) = oneshot::channel();
    let (ready, serving) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    // Nobody waits for these any more once the demo has been interrupted.
    let mut broker = pin!(serve(
        loaded.config,
        move |addresses| {
            let _ = listening.send(addresses.listen);
        },
        move |_| {
            let _ = ready.send(());
        },
        async move { drop(stopped.await) },
    ));
    let demo = async {
        serving.await.context("the broker did not become ready")?;
        let listen = bound.await.context("the broker does not listen")?;
        show(listen, Output::new(arguments.json)).await?;
        if arguments.exit {
            return Ok(());
        }
        hint("\nthe broker goes on running; Ctrl-C ends it");
        std::future::pending().await
    };
    let shown = tokio::select! {
        ended = &mut broker => {
            ended?;
            return Err(anyhow::anyhow!("the broker ended by itself").into());
        }
        shown = Box::pin(demo) => shown,
        () = interrupted() => Ok(()),
    };
    // The broker ends gracefully, whatever became of the demo.
    let _ = stop.send(());
    broker.await?;
    shown.map(|()| ExitCode::SUCCESS)
}

async fn show(listen: SocketAddr, output: Output) -> Result<(), Failure> {
    let client = Client::connect(&format!("http://{listen}")).await?;
    let loaded = Box::pin(load::everything(&client)).await?;
    let found = summary::look(&client, loaded).await?;
    if output.is_json() {
        output.line(&found.json(listen).to_string())?;
    } else {
        output.line(&found.text(listen))?;
    }
    Ok(())
}
