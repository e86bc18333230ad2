//! A way into a broker that can be slow, and cut.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// How a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Condition {
    /// Nothing gets through, and what was connected is not any more.
    pub(super) cut: bool,
    /// How long every byte takes, in each direction.
    pub(super) delay: Duration,
}

/// Connections at the same time. A broker needs one; another may be on its way out.
const MOST_CONNECTIONS: usize = 16;

/// Bytes on their way in one direction of a connection. More than the default window of a link, so
/// that the delay and the window decide how much a link carries, and not this.
const MOST_BYTES: usize = 32 << 20;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// What a chunk costs beside its bytes, so that tiny ones are bounded too.
const CHUNK_COST: usize = 128;

/// Chunks of the least size that fit into [`MOST_BYTES`].
const MOST_CHUNKS: usize = MOST_BYTES / CHUNK_COST;

/// How long a listener that failed is left alone: out of file handles, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for one broker on behalf of another.
#[derive(Debug)]
pub(super) struct Forwarder {
    address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    accepting: JoinHandle<()>,
}

impl Forwarder {
    /// Listens on any free port of this machine. What connects waits until it is known where it is
    /// led.
    pub(super) async fn start(condition: watch::Receiver<Condition>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (target, targets) = watch::channel(None);
        let accepting = tokio::spawn(accept(listener, targets, condition));
        Ok(Self {
            address,
            target,
            accepting,
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it leads from now on; nowhere while the broker is down.
    pub(super) fn lead_to(&self, target: Option<SocketAddr>) {
        self.target.send_replace(target);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: watch::Receiver<Option<SocketAddr>>,
    condition: watch::Receiver<Condition>,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((client, _)) => {
                connections.spawn(carry_until_cut(client, target.clone(), condition.clone()));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn carry_until_cut(
    client: TcpStream,
    target: watch::Receiver<Option<SocketAddr>>,
    condition: watch::Receiver<Condition>,
) {
    let mut cut = condition.clone();
    tokio::select! {
        biased;
        _ = cut.wait_for(|condition| condition.cut) => (),
        // Whichever side fails, both see the end of their connection.
        _ = carry(client, target, condition) => (),
    }
}

async fn carry(
    client: TcpStream,
    mut target: watch::Receiver<Option<SocketAddr>>,
    condition: watch::Receiver<Condition>,
) -> io::Result<()> {
    let target = target.wait_for(Option::is_some).await.map(|it| *it);
    let Ok(Some(target)) = target else {
        return Ok(());
    };
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        pump(from_client, to_server, condition.clone()),
        pump(from_server, to_client, condition),
    );
    Ok(())
}

/// Bytes on their way, and their share of [`MOST_BYTES`].
struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

/// Carries one direction to its end, and tells the other side that it has ended.
async fn pump(from: OwnedReadHalf, to: OwnedWriteHalf, condition: watch::Receiver<Condition>) {
    let (sender, receiver) = mpsc::channel(MOST_CHUNKS);
    tokio::join!(take(from, sender, condition), give(to, receiver));
}

async fn take(
    mut from: OwnedReadHalf,
    sender: mpsc::Sender<Chunk>,
    condition: watch::Receiver<Condition>,
) {
    let room = Arc::new(Semaphore::new(MOST_BYTES));
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = sender.closed() => return,
        };
        let Ok(read @ 1..) = read else { return };
        // Before it waits for room: that wait is no part of the way.
        let due = Instant::now() + condition.borrow().delay;
        let cost = u32::try_from(read + CHUNK_COST).expect("a chunk is small");
        let Ok(share) = Arc::clone(&room).acquire_many_owned(cost).await else {
            return;
        };
        let chunk = Chunk {
            due,
            bytes: buffer[..read].to_vec(),
            _share: share,
        };
        if sender.send(chunk).await.is_err() {
            return;
        }
    }
}

async fn give(mut to: OwnedWriteHalf, mut chunks: mpsc::Receiver<Chunk>) {
    while let Some(chunk) = chunks.recv().await {
        sleep_until(chunk.due).await;
        if to.write_all(&chunk.bytes).await.is_err() {
            return;
        }
    }
    // It may be gone already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(60);

    struct Scene {
        condition: watch::Sender<Condition>,
        forwarder: Forwarder,
        listener: TcpListener,
    }

    impl Scene {
        async fn new(condition: Condition) -> Self {
            let (condition, conditions) = watch::channel(condition);
            let forwarder = Forwarder::start(conditions).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            forwarder.lead_to(Some(listener.local_addr().unwrap()));
            Self {
                condition,
                forwarder,
                listener,
            }
        }

        async fn connect(&self) -> (TcpStream, TcpStream) {
            let dialled = TcpStream::connect(self.forwarder.address());
            let (dialled, accepted) = tokio::join!(dialled, self.listener.accept());
            (dialled.unwrap(), accepted.unwrap().0)
        }
    }

    fn slow() -> Condition {
        Condition {
            cut: false,
            delay: DELAY,
        }
    }

    async fn cross(from: &mut TcpStream, to: &mut TcpStream) -> Duration {
        let started = Instant::now();
        from.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        to.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        started.elapsed()
    }

    /// On a machine that is busy, some crossings take long without anybody's will. Not all do.
    async fn cross_soon(from: &mut TcpStream, to: &mut TcpStream) {
        for _ in 0..100 {
            if cross(from, to).await < DELAY {
                return;
            }
        }
        panic!("every crossing takes {DELAY:?}");
    }

    #[tokio::test]
    async fn every_byte_takes_the_delay_in_each_direction() {
        let scene = Scene::new(slow()).await;
        let (mut here, mut there) = scene.connect().await;
        assert!(cross(&mut here, &mut there).await >= DELAY);
        assert!(cross(&mut there, &mut here).await >= DELAY);
        scene.condition.send_replace(Condition::default());
        cross_soon(&mut here, &mut there).await;
    }

    #[tokio::test]
    async fn bytes_keep_their_order_and_their_end_when_the_delay_changes() {
        let scene = Scene::new(slow()).await;
        let (mut here, mut there) = scene.connect().await;
        let sent: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            here.write_all(&sent[..400_000]).await.unwrap();
            scene.condition.send_replace(Condition::default());
            here.write_all(&sent[400_000..]).await.unwrap();
            here.shutdown().await.unwrap();
            (here, scene)
        });
        let mut got = Vec::new();
        there.read_to_end(&mut got).await.unwrap();
        assert!(got == expected, "{} bytes", got.len());
        // The other direction goes on.
        let (mut here, _scene) = writing.await.unwrap();
        cross_soon(&mut there, &mut here).await;
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_connected_and_what_connects() {
        let scene = Scene::new(slow()).await;
        let (mut here, mut there) = scene.connect().await;
        here.write_all(b"lost").await.unwrap();
        scene.condition.send_replace(Condition {
            cut: true,
            delay: DELAY,
        });
        let mut got = Vec::new();
        // An end or a reset, as it comes.
        let _ = there.read_to_end(&mut got).await;
        assert_eq!(got, b"", "what was on its way is lost");
        let mut again = TcpStream::connect(scene.forwarder.address()).await.unwrap();
        let _ = again.read_to_end(&mut got).await;
        assert_eq!(got, b"");
        scene.condition.send_replace(Condition::default());
        let (mut here, mut there) = scene.connect().await;
        cross(&mut here, &mut there).await;
    }

    #[tokio::test]
    async fn what_connects_before_the_broker_is_there_waits_for_it() {
        let scene = Scene::new(Condition::default()).await;
        scene.forwarder.lead_to(None);
        let mut here = TcpStream::connect(scene.forwarder.address()).await.unwrap();
        here.write_all(b"hello").await.unwrap();
        scene
            .forwarder
            .lead_to(Some(scene.listener.local_addr().unwrap()));
        let (mut there, _) = scene.listener.accept().await.unwrap();
        let mut got = [0; 5];
        there.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    }

    /// Who sends into a link whose far end takes nothing is stopped, and costs bounded memory.
    #[tokio::test]
    async fn who_is_not_read_is_stopped() {
        let scene = Scene::new(Condition::default()).await;
        let (mut here, _there) = scene.connect().await;
        let chunk = vec![0; 1 << 20];
        let mut sent = 0;
        let filling = async {
            while sent < 8 * MOST_BYTES {
                here.write_all(&chunk).await.unwrap();
                sent += chunk.len();
            }
        };
        // The time only bounds how long the test looks: what cannot be sent stays unsent.
        let filled = tokio::time::timeout(Duration::from_secs(2), filling).await;
        assert!(filled.is_err());
        assert!(sent < 3 * MOST_BYTES, "{sent} bytes");
    }
}
