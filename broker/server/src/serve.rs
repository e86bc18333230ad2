//! A broker from start to graceful end: listener, node, surfaces, signals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::id::ClusterId;
use anabranch_storage::data_dir::DataDirError;
use anabranch_storage::log::OpenError;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::config::Config;
use crate::connections::Connections;
use crate::node::{Failure, Node, NodeInfo, Phase, StartError, Stopper};
use crate::peer::PeerAddress;
use crate::{http, node, peer, websocket};

/// Where a broker listens, once it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// HTTP, WebSocket and server-sent events.
    pub(crate) listen: SocketAddr,
    /// Links from other brokers, if they are taken.
    pub(crate) peer_listen: Option<SocketAddr>,
}

/// Why a broker did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The address.
    #[error(
        "AB7201 cannot listen on {address}: {error}; stop what uses it, or choose another: {flag} 127.0.0.1:0 takes any free port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What chooses another.
        flag: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// The data directory, the log or the tables.
    #[error("{code}{0}", code = start_code(.0))]
    Start(#[from] StartError),
    /// The metrics recorder.
    #[error("metrics cannot be recorded: {0}")]
    Metrics(#[from] BuildError),
    /// The broker failed while it ran.
    #[error("AB6003 the broker has stopped: {0}")]
    Failed(Failure),
}

fn start_code(error: &StartError) -> &'static str {
    match error {
        StartError::DataDir(DataDirError::InUse { .. }) => "AB7001 ",
        StartError::DataDir(DataDirError::NewerFormat { .. }) => "AB7002 ",
        StartError::DataDir(DataDirError::OtherCluster { .. }) => "AB7003 ",
        StartError::OtherRegion { .. } => "AB7004 ",
        StartError::Log(OpenError::Damaged { .. } | OpenError::Missing { .. }) => "AB5101 ",
        StartError::Log(OpenError::NewerFormat { .. }) => "AB7002 ",
        _ => "AB5001 ",
    }
}

/// Runs a broker until `shutdown` resolves, then ends it gracefully. `ready` is told once it
/// serves.
///
/// # Errors
/// When it cannot start, or its disk fails while it runs.
pub(crate) async fn serve(
    config: Config,
    listening: impl FnOnce(Addresses),
    ready: impl FnOnce(&Arc<Node>),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let metrics = recorder()?;
    let (listener, listen) = bind(config.listen.address, "--listen").await?;
    let has_peers = !config.listen.peers.is_empty();
    let peer_listener = match config.listen.peer_address.address(has_peers) {
        Some(address) => Some(bind(address, "--peer-listen").await?),
        None => None,
    };
    listening(Addresses {
        listen,
        peer_listen: peer_listener.as_ref().map(|(_, address)| *address),
    });

    let info = NodeInfo {
        cluster_name: config.broker.cluster.as_str().to_owned(),
        cluster: ClusterId::of(config.broker.cluster.as_str()),
        region: config.broker.region.clone(),
    };
    let node = Arc::new(Node::new(info, config.limits.clone()));
    let router = http::router(&node, metrics.clone()).route(
        "/v1/ws",
        axum::routing::any(websocket::upgrade).with_state(Arc::clone(&node)),
    );
    let connections = Connections::new(router, &config.limits);
    let accepting = Arc::clone(&connections).accept(listener);
    let accepting = tokio::spawn(node.alarm("listener").over(accepting));
    let upkeep = tokio::spawn(node.alarm("metrics").over(keep_metrics(metrics)));
    let links = link(Arc::clone(&node), config.clone(), peer_listener);
    let links = tokio::spawn(node.alarm("links").over(links));

    tokio::pin!(shutdown);
    let mut starting = start_on_thread(&node, &config);
    tokio::select! {
        started = &mut starting => {
            let stopper = started.map_err(|_| StartError::System("starting panicked".to_owned()))??;
            info!(%listen, "ready");
            ready(&node);
            run_until(&mut shutdown, node.phase()).await;
            links.abort();
            stop(stopper, &connections, config.limits.shutdown_seconds).await;
        }
        () = &mut shutdown => {
            warn!("asked to stop while starting");
            // RocksDB aborts a process that exits while it is being opened, so the start ends first.
            let budget = config.limits.shutdown_seconds;
            if let Ok(Ok(Ok(stopper))) = tokio::time::timeout(budget, starting).await {
                stop(stopper, &connections, budget).await;
            }
        }
    }
    accepting.abort();
    upkeep.abort();
    links.abort();
    // They hold the tables. RocksDB aborts the process when it is closed while the process exits.
    let _ = tokio::join!(accepting, upkeep, links);
    // It may also have failed while it stopped.
    match &*node.phase().borrow() {
        Phase::Failed(failure) => Err(ServeError::Failed(failure.clone())),
        _ => Ok(()),
    }
}

async fn bind(
    address: SocketAddr,
    flag: &'static str,
) -> Result<(TcpListener, SocketAddr), ServeError> {
    let refused = |error| ServeError::Listen {
        address,
        flag,
        error,
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

/// Keeps links to other brokers, from when this one serves until the task is dropped.
async fn link(node: Arc<Node>, config: Config, listener: Option<(TcpListener, SocketAddr)>) {
    let mut phase = node.phase();
    if phase.wait_for(Phase::is_ready).await.is_err() {
        return;
    }
    let Ok(running) = node.running().cloned() else {
        return;
    };
    let has_links = running.regions.has_links();
    let membership = async {
        match has_links {
            true => {
                let patience = node::keep_patience(Arc::clone(&running));
                let members = node::keep_membership(running, config.links.join_seconds);
                tokio::join!(patience, members);
            }
            false => std::future::pending().await,
        }
    };
    let peers = config.listen.peers.iter();
    let peers = peers.map(|peer| PeerAddress(peer.as_str().to_owned()));
    let common = peer::Common::new(config.links.clone());
    let dialling = peer::dial_all(Arc::clone(&node), peers.collect(), common.clone());
    match listener {
        Some((listener, _)) => {
            let accepting = peer::accept(Arc::clone(&node), listener, common);
            tokio::join!(membership, dialling, accepting);
        }
        None => {
            tokio::join!(membership, dialling);
        }
    }
}

/// Waits for the wish to stop, or for a failure.
async fn run_until(
    shutdown: &mut (impl Future<Output = ()> + Unpin),
    mut phase: watch::Receiver<Phase>,
) {
    tokio::select! {
        () = shutdown => (),
        // The node, which holds the sender, outlives this.
        _ = phase.wait_for(|phase| matches!(phase, Phase::Failed(_))) => (),
    }
}

async fn stop(stopper: Stopper, connections: &Arc<Connections>, budget: Duration) {
    stopper.announce();
    connections.drain(budget).await;
    if tokio::task::spawn_blocking(|| stopper.stop())
        .await
        .is_err()
    {
        tracing::error!("stopping panicked");
    }
}

/// Starting reads files, so it has a thread of its own.
fn start_on_thread(
    node: &Arc<Node>,
    config: &Config,
) -> oneshot::Receiver<Result<Stopper, StartError>> {
    let (done, started) = oneshot::channel();
    let (node, config) = (Arc::clone(node), config.clone());
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let _inside = runtime.enter();
        // Nobody listens any more when the broker was asked to stop meanwhile.
        let _ = done.send(node::start(&node, &config));
    });
    started
}

/// Installs the process-wide recorder, or shares the one that is there.
fn recorder() -> Result<PrometheusHandle, BuildError> {
    static HANDLE: std::sync::OnceLock<PrometheusHandle> = std::sync::OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets(&[
            0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
        ])?
        .set_buckets_for_metric(
            metrics_exporter_prometheus::Matcher::Full("anabranch_group_bytes".to_owned()),
            &[1e3, 1e4, 1e5, 1e6, 4e6, 1.6e7],
        )?
        .install_recorder()?;
    Ok(HANDLE.get_or_init(|| handle).clone())
}

/// How often histograms are folded; without it their samples would pile up between scrapes.
const FOLD_METRICS_EVERY: Duration = Duration::from_secs(5);

async fn keep_metrics(metrics: PrometheusHandle) {
    let mut tick = tokio::time::interval(FOLD_METRICS_EVERY);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `main` makes an exit code of it, as of a disk that fails.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_thread_that_panics_ends_the_broker_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().join("data");
        config.listen.address = ([127, 0, 0, 1], 0).into();
        let ready = |node: &Arc<Node>| node.running().unwrap().break_upkeep();
        let ended = serve(config, |_| (), ready, std::future::pending()).await;
        let said = ended.unwrap_err().to_string();
        let panicked = "AB6003 the broker has stopped: its upkeep panicked";
        assert!(said.starts_with(panicked), "{said}");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_noticed_and_one_that_is_aborted_is_not() {
        let info = NodeInfo {
            cluster_name: "test".to_owned(),
            cluster: ClusterId::of("test"),
            region: Config::default().broker.region,
        };
        let node = Node::new(info, Config::default().limits);
        let waiting = tokio::spawn(node.alarm("waiting").over(std::future::pending::<()>()));
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert!(!matches!(&*node.phase().borrow(), Phase::Failed(_)));
        let broken = tokio::spawn(node.alarm("links").over(async { panic!("injected") }));
        assert!(broken.await.unwrap_err().is_panic());
        assert!(matches!(&*node.phase().borrow(), Phase::Failed(_)));
    }
}
