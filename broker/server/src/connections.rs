//! Accepting connections, within limits, and letting go of them at the end.

use std::sync::Arc;
use std::time::Duration;

use anabranch_protocol::error::Code;
use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{Gauge, counter, describe_gauge, gauge};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::Service;
use tracing::{debug, warn};

use crate::config::Limits;
use crate::cross_site;
use crate::refused::refused;

/// Connections beyond the limit that may still ask for health and metrics.
const RESERVED: usize = 16;

/// Pause after a failed accept: out of file handles is not cured by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Everything that is connected.
pub(crate) struct Connections {
    router: Router,
    header_timeout: Duration,
    slots: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    limit: usize,
    /// True once connections are to end.
    draining: watch::Sender<bool>,
    open: Gauge,
}

impl Connections {
    pub(crate) fn new(router: Router, limits: &Limits) -> Arc<Self> {
        describe_gauge!("anabranch_connections", "Open connections");
        Arc::new(Self {
            router,
            header_timeout: limits.header_timeout_seconds,
            slots: Arc::new(Semaphore::new(limits.connections)),
            reserved: Arc::new(Semaphore::new(RESERVED)),
            limit: limits.connections,
            draining: watch::Sender::new(false),
            open: gauge!("anabranch_connections"),
        })
    }

    /// Accepts until it is dropped.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) {
        // Small messages must not wait for a full packet.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection ended before it began");
            return;
        }
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            self.serve(stream, slot, false);
        } else if let Ok(slot) = Arc::clone(&self.reserved).try_acquire_owned() {
            self.serve(stream, slot, true);
        } else {
            counter!("anabranch_connections_refused_total").increment(1);
        }
    }

    fn serve(self: &Arc<Self>, stream: TcpStream, slot: OwnedSemaphorePermit, crowded: bool) {
        let (router, open, limit) = (self.router.clone(), self.open.clone(), self.limit);
        let slot = Arc::new(slot);
        let loopback = stream
            .local_addr()
            .is_ok_and(|local| local.ip().is_loopback());
        let held = Arc::clone(&slot);
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let mut router = router.clone();
            // An upgraded connection keeps its slot for as long as it lives.
            request.extensions_mut().insert(Slot(Arc::clone(&held)));
            let crowded = crowded && !answers_when_crowded(request.uri().path());
            let foreign = loopback.then(|| cross_site::check(request.headers()));
            async move {
                if crowded {
                    return Ok(too_many(limit));
                }
                if let Some(Err(problem)) = foreign {
                    return Ok(refused(&problem));
                }
                router.call(request).await
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout);
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut draining = self.draining.subscribe();
        tokio::spawn(async move {
            open.increment(1);
            tokio::pin!(connection);
            let asked_to_end = async move {
                // The sender lives as long as the listener; when it is gone, it is time to end.
                let _ = draining.wait_for(|draining| *draining).await;
            };
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = asked_to_end => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!(%error, "a connection ended badly");
            }
            open.decrement(1);
            drop(slot);
        });
    }

    /// Lets connections finish what they are answering, for at most this long.
    pub(crate) async fn drain(&self, budget: Duration) {
        self.draining.send_replace(true);
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let ended = tokio::time::timeout(budget, self.slots.acquire_many(all)).await;
        if ended.is_err() {
            warn!("some connections did not end in time and are cut");
        }
    }
}

/// A connection's place among those that are allowed.
#[derive(Clone)]
pub(crate) struct Slot(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

fn answers_when_crowded(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/metrics")
}

fn too_many(limit: usize) -> axum::response::Response {
    refused(&crate::node::Error::new(
        Code::TooManyConnections,
        format!(
            "{limit} connections are open, which is the limit; close some, or raise limits.connections"
        ),
    ))
}
