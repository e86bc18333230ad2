//! The loopback device, as it would serve a broker that takes no time.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const MEASURING: Duration = Duration::from_secs(2);

/// Written at once when the rate of a stream is measured.
const CHUNK: usize = 64 * 1024;

fn duration(quick: bool) -> Duration {
    if quick { MEASURING / 20 } else { MEASURING }
}

/// Round trips a second over so many connections: a request, and an answer from another thread.
pub(crate) async fn round_trips(
    connections: usize,
    request: usize,
    answer: usize,
    quick: bool,
) -> Result<f64> {
    let server = Server::start(move |stream| echo(stream, request, answer))?;
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(server.connect().await?);
    }
    let (count, started) = (Cell::new(0u64), Instant::now());
    let clients = streams.into_iter().map(|mut stream| {
        let (count, sent) = (&count, vec![b'x'; request]);
        let mut received = vec![0; answer];
        async move {
            while started.elapsed() < duration(quick) {
                stream.write_all(&sent).await?;
                stream.read_exact(&mut received).await?;
                count.set(count.get() + 1);
            }
            anyhow::Ok(())
        }
    });
    try_join_all(clients).await?;
    Ok(count.get() as f64 / started.elapsed().as_secs_f64())
}

/// Bytes a second from another thread to here, over so many connections.
pub(crate) async fn streams(connections: usize, quick: bool) -> Result<f64> {
    let server = Server::start(pour)?;
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(server.connect().await?);
    }
    let (bytes, started) = (Cell::new(0usize), Instant::now());
    let clients = streams.into_iter().map(|mut stream| {
        let bytes = &bytes;
        async move {
            let mut buffer = vec![0; 4 * CHUNK];
            while started.elapsed() < duration(quick) {
                let read = stream.read(&mut buffer).await?;
                bytes.set(bytes.get() + read);
            }
            anyhow::Ok(())
        }
    });
    try_join_all(clients).await?;
    Ok(bytes.get() as f64 / started.elapsed().as_secs_f64())
}

async fn echo(mut stream: TcpStream, request: usize, answer: usize) -> std::io::Result<()> {
    let (mut received, sent) = (vec![0; request], vec![b'y'; answer]);
    loop {
        stream.read_exact(&mut received).await?;
        stream.write_all(&sent).await?;
    }
}

async fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let chunk = vec![b'z'; CHUNK];
    loop {
        stream.write_all(&chunk).await?;
    }
}

/// A thread that serves connections until it is dropped.
struct Server {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Server {
    fn start<S, F>(serve: S) -> Result<Self>
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = std::io::Result<()>> + 'static,
    {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("loopback".to_owned())
            .spawn(move || {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, async {
                    tokio::select! {
                        _ = accept(listener, serve) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            _stop: stop,
        })
    }

    async fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address)
            .await
            .context("cannot connect over loopback")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

async fn accept<S, F>(listener: std::net::TcpListener, serve: S) -> std::io::Result<()>
where
    S: Fn(TcpStream) -> F,
    F: Future<Output = std::io::Result<()>> + 'static,
{
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let serving = serve(stream);
        tokio::task::spawn_local(async move {
            // Ends when the other side has measured enough.
            let _ = serving.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_is_measured() {
        assert!(round_trips(2, 100, 200, true).await.unwrap() > 0.0);
        assert!(streams(2, true).await.unwrap() > 0.0);
    }
}
