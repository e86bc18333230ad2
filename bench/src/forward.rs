//! A forwarder in front of a broker's peer port: the link between two regions, with a delay, and
//! with a knife.
//!
//! It has threads of its own. A runtime's timers tick in milliseconds, and the generator's one
//! thread would add its own work to the time that a link takes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Read from a socket at once.
const READ_BYTES: usize = 256 * 1024;

/// Chunks that are on their way over a link with a delay: a bound, so that a slow side slows the
/// other.
const CHUNKS: usize = 4096;

/// A link's way to one broker.
#[derive(Debug)]
pub(crate) struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// How long every byte takes, in each direction.
    delay: Duration,
    cut: AtomicBool,
    ended: AtomicBool,
    /// Both ends of every connection that was made.
    open: Mutex<Vec<TcpStream>>,
}

impl Forwarder {
    /// A way to this address on which every byte takes `delay`.
    pub(crate) fn start(target: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            delay,
            cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        spawn("forward", move || own.accept(&listener))?;
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends what is connected, and lets nothing through from now on.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.close();
    }

    /// Lets everything through again.
    pub(crate) fn heal(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; when that is gone already there is nothing to wake.
        let _ = TcpStream::connect(self.address);
        self.shared.close();
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            if let Ok(client) = client
                && !self.cut.load(Ordering::SeqCst)
            {
                // One that cannot be carried is closed, and dialled again by the broker.
                let _ = self.carry(client);
            }
        }
    }

    /// Carries a connection in both directions.
    fn carry(&self, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect(self.target)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        {
            let mut open = self.open();
            open.push(client.try_clone()?);
            open.push(server.try_clone()?);
        }
        pump(client.try_clone()?, server.try_clone()?, self.delay)?;
        pump(server, client, self.delay)?;
        // It may have been cut while it was made.
        if self.cut.load(Ordering::SeqCst) || self.ended.load(Ordering::SeqCst) {
            self.close();
        }
        Ok(())
    }

    fn open(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        for stream in self.open().drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).context("cannot start a thread")?;
    Ok(())
}

/// Carries bytes in one direction until either side ends.
fn pump(mut from: TcpStream, mut to: TcpStream, delay: Duration) -> Result<()> {
    if delay.is_zero() {
        return spawn("pump", move || {
            let mut buffer = vec![0; READ_BYTES];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    let (sender, receiver) = sync_channel(CHUNKS);
    spawn("late", move || write_late(&receiver, &mut to))?;
    spawn("pump", move || read_early(&mut from, &sender, delay))
}

type Chunk = (Instant, Vec<u8>);

fn read_early(from: &mut TcpStream, sender: &SyncSender<Chunk>, delay: Duration) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let chunk = (Instant::now() + delay, buffer[..read].to_vec());
        if sender.send(chunk).is_err() {
            return;
        }
    }
}

fn write_late(receiver: &Receiver<Chunk>, to: &mut TcpStream) {
    for (due, chunk) in receiver {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what comes.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, mut buffer) = (client.unwrap(), [0; 16]);
                while let Ok(read @ 1..) = client.read(&mut buffer) {
                    client.write_all(&buffer[..read]).unwrap();
                }
            }
        });
        address
    }

    fn ask(stream: &mut TcpStream) -> std::io::Result<[u8; 4]> {
        stream.write_all(b"ping")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn every_byte_takes_the_delay_in_each_direction() {
        let delay = Duration::from_millis(15);
        let forwarder = Forwarder::start(echo(), delay).unwrap();
        let mut stream = TcpStream::connect(forwarder.address()).unwrap();
        let started = Instant::now();
        assert_eq!(&ask(&mut stream).unwrap(), b"ping");
        assert!(started.elapsed() >= 2 * delay, "{:?}", started.elapsed());
    }

    #[test]
    fn what_is_cut_is_closed_and_opens_again_once_it_is_healed() {
        let forwarder = Forwarder::start(echo(), Duration::ZERO).unwrap();
        let connect = || TcpStream::connect(forwarder.address()).unwrap();
        let mut before = connect();
        assert!(ask(&mut before).is_ok());
        forwarder.cut();
        assert!(ask(&mut before).is_err());
        assert!(ask(&mut connect()).is_err());
        forwarder.heal();
        assert!(ask(&mut connect()).is_ok());
    }
}
