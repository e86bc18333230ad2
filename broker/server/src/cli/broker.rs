//! `dev` and `serve`: a broker in the foreground.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::arguments::{BrokerFlags, ServeArguments};
use super::output::{self, Output};
use super::{Ended, logging};
use crate::config::Config;
use crate::node::Node;
use crate::serve::{Addresses, serve as serve_broker};

/// A broker for trying things out.
pub(super) async fn dev(flags: BrokerFlags) -> Ended {
    let started = Instant::now();
    let loaded = flags.load()?;
    logging::start_quietly(&loaded);
    let config = loaded.config.clone();
    let output = Output::new(false);
    let chosen = std::cell::Cell::new(config.listen.address);
    let listening = |addresses: Addresses| {
        chosen.set(addresses.listen);
        announce(flags.print_addresses, addresses);
    };
    let ready = |node: &std::sync::Arc<Node>| {
        let banner = Banner {
            config: &config,
            node,
            listen: chosen.get(),
            started,
        };
        // A closed standard output is no reason to stop a broker.
        let _ = output.line(&banner.text());
    };
    let served = serve_broker(loaded.config.clone(), listening, ready, interrupted());
    Box::pin(served).await?;
    output::hint("stopped; everything acknowledged is on disk");
    Ok(ExitCode::SUCCESS)
}

/// A broker for good.
pub(super) async fn serve(arguments: ServeArguments) -> Ended {
    let loaded = arguments.flags.load()?;
    logging::start(&loaded);
    let input_ended = end_of_input(arguments.until_stdin_ends);
    let asked_to_stop = async {
        tokio::select! {
            () = interrupted() => (),
            () = input_ended => (),
        }
    };
    let listening = |addresses| announce(arguments.flags.print_addresses, addresses);
    let served = serve_broker(loaded.config, listening, |_| (), asked_to_stop);
    Box::pin(served).await?;
    Ok(ExitCode::SUCCESS)
}

/// Resolves at SIGINT or SIGTERM.
pub(crate) async fn interrupted() {
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        // Without handlers, signals end the process as they always do.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
}

/// Resolves when standard input has ended; never, if nobody cares.
///
/// The operating system closes a pipe when the process at its other end has gone, however it went.
/// A thread of its own reads, since reading standard input cannot be interrupted and would hold up
/// the end of the runtime.
async fn end_of_input(cared_for: bool) {
    if !cared_for {
        return std::future::pending().await;
    }
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        // An input that cannot be read has ended as well.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}

fn announce(asked: bool, addresses: Addresses) {
    if asked {
        let listen = addresses.listen;
        let line = json!({
            "listen": listen.to_string(),
            "http": format!("http://{listen}"),
            "websocket": format!("ws://{listen}/v1/ws"),
            "peer_listen": addresses.peer_listen.map(|address| address.to_string()),
        });
        let _ = Output::new(true).line(&line.to_string());
    }
}

/// What `dev` prints: at most twelve lines, with something to paste.
struct Banner<'a> {
    config: &'a Config,
    node: &'a Node,
    listen: SocketAddr,
    started: Instant,
}

impl Banner<'_> {
    fn text(&self) -> String {
        let (version, listen) = (env!("CARGO_PKG_VERSION"), self.listen);
        let seconds = self.started.elapsed().as_secs_f64();
        let dir = self.config.data.dir.display();
        let region = self.config.broker.region.as_str();
        let running = self.node.running();
        let broker = running.map_or_else(|_| "?".to_owned(), |it| it.broker().to_string());
        let server = server_flag(listen);
        let command = command();
        format!(
            "anabranch {version}, ready after {seconds:.2} s\n\
             \n  data        {dir}\
             \n  durability  acknowledged after fdatasync\
             \n  listening   http://{listen}  ws://{listen}/v1/ws\
             \n  region      {region}, broker {broker}\n\
             \npublish:    echo '{{\"key\":\"jfk\",\"value\":{{\"temp\":21}}}}' | {command} pub weather --create lww{server}\
             \nsubscribe:  {command} sub weather --from table{server}\
             \nread:       {command} get weather jfk{server}"
        )
    }
}

/// The flag that client commands need for a broker elsewhere than at the default address.
pub(crate) fn server_flag(listen: SocketAddr) -> String {
    if listen == SocketAddr::from(([127, 0, 0, 1], 7070)) {
        return String::new();
    }
    format!(" --server http://{listen}")
}

/// How this program was called, so that what is printed can be pasted.
pub(crate) fn command() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if called.is_empty() {
        return "anabranch".to_owned();
    }
    called
}
