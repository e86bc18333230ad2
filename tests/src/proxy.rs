//! A link between brokers that can be slow, cut and noisy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// What a proxy does to what goes through it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Weather {
    /// Nothing gets through, and what was connected is not any more.
    pub cut: bool,
    /// How long every byte takes, in each direction.
    pub delay: Duration,
    /// Every so many bytes one is changed.
    pub corrupt_every: Option<usize>,
}

/// All bytes that went one way over one connection.
pub type Recording = Arc<Mutex<Vec<u8>>>;

/// What went over the connections through a proxy.
#[derive(Debug, Default)]
pub struct Recordings {
    /// From those who dialled.
    pub there: Vec<Recording>,
    /// From whoever was dialled.
    pub back: Vec<Recording>,
}

/// A proxy in front of one broker's peer port.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    recordings: Arc<Mutex<Option<Recordings>>>,
    target: Arc<Mutex<Option<SocketAddr>>>,
    weather: watch::Sender<Weather>,
    accepting: JoinHandle<()>,
}

/// Chunks on their way: a bound, so that a slow side slows the other.
const CHUNKS: usize = 1024;

impl Proxy {
    /// A proxy that leads nowhere yet.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(None));
        let weather = watch::Sender::new(Weather::default());
        let recordings = Arc::default();
        let accepting = tokio::spawn(accept(
            listener,
            Arc::clone(&target),
            weather.subscribe(),
            Arc::clone(&recordings),
        ));
        Self {
            address,
            recordings,
            target,
            weather,
            accepting,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it leads to from now on.
    ///
    /// # Panics
    /// Never.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = Some(target);
    }

    /// Keeps all that goes over connections from now on.
    ///
    /// # Panics
    /// Never.
    pub fn record(&self) {
        *self.recordings.lock().unwrap() = Some(Recordings::default());
    }

    /// What went over each connection so far; first those who dialled, then who was dialled.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn recorded(&self) -> [Vec<Vec<u8>>; 2] {
        let recordings = self.recordings.lock().unwrap();
        let copy = |all: &Vec<Recording>| {
            let copies = all.iter().map(|one| one.lock().unwrap().clone());
            copies.collect()
        };
        match &*recordings {
            Some(Recordings { there, back }) => [copy(there), copy(back)],
            None => Default::default(),
        }
    }

    /// What it does from now on.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: Arc<Mutex<Option<SocketAddr>>>,
    weather: watch::Receiver<Weather>,
    recordings: Arc<Mutex<Option<Recordings>>>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let target = *target.lock().unwrap();
        let (Some(target), false) = (target, weather.borrow().cut) else {
            continue;
        };
        let tapes = recordings.lock().unwrap().as_mut().map(|kept| {
            let tapes = [Recording::default(), Recording::default()];
            kept.there.push(Arc::clone(&tapes[0]));
            kept.back.push(Arc::clone(&tapes[1]));
            tapes
        });
        tokio::spawn(carry(client, target, weather.clone(), tapes));
    }
}

async fn carry(
    client: TcpStream,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    tapes: Option<[Recording; 2]>,
) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let nodelay = client.set_nodelay(true).and(server.set_nodelay(true));
    if nodelay.is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let [tape_there, tape_back] = match tapes {
        Some([there, back]) => [Some(there), Some(back)],
        None => [None, None],
    };
    let there = pump(from_client, to_server, weather.clone(), tape_there);
    let back = pump(from_server, to_client, weather.clone(), tape_back);
    tokio::select! {
        () = there => (),
        () = back => (),
        _ = weather.wait_for(|weather| weather.cut) => (),
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
    tape: Option<Recording>,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let reading = async {
        let mut passed = 0;
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let Weather {
                delay,
                corrupt_every,
                ..
            } = *weather.borrow();
            let mut chunk = buffer[..read].to_vec();
            if let Some(tape) = &tape {
                tape.lock().unwrap().extend_from_slice(&chunk);
            }
            if let Some(every) = corrupt_every {
                let noise = (0..read).filter(|at| (passed + at + 1).is_multiple_of(every));
                noise.for_each(|at| chunk[at] ^= 0x10);
            }
            passed += read;
            if sender.send((Instant::now() + delay, chunk)).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let writing = async {
        while let Some((due, chunk)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}
