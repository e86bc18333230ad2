//! A broker of one stream with one partition, in memory, that behaves as the real one does on the
//! wire, and misbehaves where it is told to.

use std::sync::{Arc, Mutex, MutexGuard};

use anabranch_client::{Code, Problem};
use anabranch_core::batch::{Batch, Check};
use anabranch_core::id::{
    BrokerId, Epoch, Offset, Origin, PartitionId, Position, Sequence, StreamId,
};
use anabranch_core::producer::{ProducerTable, Verdict};
use anabranch_protocol::codec::{Codec, FrameKind};
use anabranch_protocol::record::{Placement, Record, build_batches};
use anabranch_protocol::ws::*;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

const P0: PartitionId = PartitionId::new(0);
const STREAM: StreamId = StreamId::new(1);
const CODEC: Codec = Codec::Msgpack;

#[derive(Default)]
struct State {
    log: Vec<Batch>,
    producers: ProducerTable,
    rows: Vec<(String, String)>,
    connections: usize,
    refuse: Option<(String, Code)>,
    cut_after_publishes: Option<usize>,
    cut_after_deliveries: Option<usize>,
    cut_in_rows: bool,
}

impl State {
    fn next_offset(&self) -> u64 {
        self.log.iter().map(|batch| u64::from(batch.count())).sum()
    }

    /// Judges and appends; the offset of a duplicate may be forgotten.
    fn take(&mut self, batch: Batch) -> Result<(Option<Offset>, bool), Problem> {
        let (offset, position) = (Offset::new(self.next_offset()), Position::new(0));
        if let Some(stamp) = batch.producer() {
            let verdict = self.producers.judge(STREAM, P0, stamp, batch.count())?;
            if let Verdict::Duplicate(offset) = verdict {
                return Ok((offset, true));
            }
            if let Some((text, code)) = &self.refuse
                && texts(&batch).contains(text)
            {
                return Err(Problem::new(*code, "told to refuse it"));
            }
            self.producers
                .note(STREAM, P0, stamp, batch.count(), offset, position);
        }
        self.log.push(batch);
        Ok((Some(offset), false))
    }
}

fn texts(batch: &Batch) -> Vec<String> {
    let records = batch.records().unwrap();
    let value = |record: &[u8]| String::from_utf8(record.to_vec()).unwrap();
    records
        .iter()
        .map(|r| value(r.unwrap().value.unwrap()))
        .collect()
}

pub(crate) struct Broker {
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    held: Arc<watch::Sender<bool>>,
    cut: Arc<watch::Sender<u64>>,
    accepting: JoinHandle<()>,
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let changed = Arc::new(watch::Sender::new(0));
        let held = Arc::new(watch::Sender::new(false));
        let cut = Arc::new(watch::Sender::new(0));
        let cuts = Arc::clone(&cut);
        let (for_all, changes, holds) =
            (Arc::clone(&state), Arc::clone(&changed), Arc::clone(&held));
        let accepting = tokio::spawn(async move {
            // Connections end with the broker.
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (state, changed, held) =
                    (Arc::clone(&for_all), changes.subscribe(), holds.subscribe());
                let mut cut = cuts.subscribe();
                serving.spawn(async move {
                    tokio::select! {
                        () = serve(tcp, state, changed, held) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            address,
            state,
            changed,
            held,
            cut,
            accepting,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn stop(&self) {
        self.accepting.abort();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.state().log.iter().flat_map(texts).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state().connections
    }

    pub(crate) fn append(&self, text: &str) {
        let record = Record::value(text.as_bytes());
        let batch = build_batches(&[record], &Placement::new(1, 5)).unwrap();
        self.state()
            .log
            .extend(batch.into_iter().map(|(_, batch)| batch));
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn put_row(&self, key: &str, value: &str) {
        self.state().rows.push((key.to_owned(), value.to_owned()));
    }

    pub(crate) fn refuse(&self, text: &str, code: Code) {
        self.state().refuse = Some((text.to_owned(), code));
    }

    pub(crate) fn hold_acks(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// Takes this many publishes per connection, then cuts it before the last is acknowledged.
    pub(crate) fn cut_after_publishes(&self, publishes: usize) {
        self.state().cut_after_publishes = Some(publishes);
    }

    pub(crate) fn cut_after_deliveries(&self, deliveries: usize) {
        self.state().cut_after_deliveries = Some(deliveries);
    }

    /// Cuts every connection that there is.
    pub(crate) fn cut_all(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// Once, after the first row.
    pub(crate) fn cut_in_rows(&self) {
        self.state().cut_in_rows = true;
    }
}

type Shared = Arc<Mutex<State>>;

async fn serve(
    mut tcp: TcpStream,
    state: Shared,
    changed: watch::Receiver<u64>,
    held: watch::Receiver<bool>,
) {
    let mut start = [0; 11];
    while tcp.peek(&mut start).await.unwrap_or(0) < start.len() {
        tokio::task::yield_now().await;
    }
    if &start != b"GET /v1/ws " {
        let end = state.lock().unwrap().log.len();
        return answer_over_http(&mut tcp, end).await;
    }
    #[expect(clippy::result_large_err, reason = "the signature of the callback")]
    let accept = |_: &Request, mut response: Response| {
        let subprotocol = CODEC.subprotocol().parse().unwrap();
        response
            .headers_mut()
            .insert("sec-websocket-protocol", subprotocol);
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(tcp, accept).await else {
        return;
    };
    state.lock().unwrap().connections += 1;
    let mut session = Session {
        socket,
        state,
        changed,
        held,
        publishes: 0,
        deliveries: 0,
        feed: None,
    };
    // `None` is the end of the connection, asked for or not.
    while session.step().await.is_some() {}
}

/// Whatever was asked for over HTTP, it is what the stream is, and where it ends.
async fn answer_over_http(tcp: &mut TcpStream, end: usize) {
    let mut request = [0; 4096];
    let _ = tcp.read(&mut request).await;
    let info = r#""name":"numbers","merge":"append","partitions":1,"retention":{},"regions":null"#;
    let body = format!("{{{info},\"records\":[],\"cursor\":\"{}\"}}", cursor(end));
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = tcp.write_all(answer.as_bytes()).await;
}

struct Session {
    socket: WebSocketStream<TcpStream>,
    state: Shared,
    changed: watch::Receiver<u64>,
    held: watch::Receiver<bool>,
    publishes: usize,
    deliveries: usize,
    feed: Option<Feed>,
}

struct Feed {
    next: usize,
    credit: i64,
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn step(&mut self) -> Option<()> {
        self.deliver().await?;
        let message = tokio::select! {
            message = self.socket.next() => message?.ok()?,
            _ = self.changed.changed() => return Some(()),
        };
        let Message::Binary(bytes) = message else {
            return Some(());
        };
        match CODEC.decode_client(FrameKind::Binary, &bytes).unwrap() {
            ClientMessage::Hello(_) => self.greet().await,
            ClientMessage::Publish(publish) => self.publish(publish, &bytes).await,
            ClientMessage::Subscribe(subscribe) => self.subscribe(subscribe).await,
            ClientMessage::Credit { bytes, .. } => {
                self.feed.as_mut()?.credit += i64::try_from(bytes).unwrap();
                Some(())
            }
            ClientMessage::Ping { id } => self.say(&ServerMessage::Pong { id }).await.map(drop),
            ClientMessage::Unsubscribe { .. } => None,
        }
    }

    /// Sends a message; returns its length.
    async fn say(&mut self, message: &ServerMessage<'_>) -> Option<i64> {
        let mut out = Vec::new();
        CODEC.encode_server(message, &mut out);
        let length = i64::try_from(out.len()).unwrap();
        let sent = self.socket.send(Message::Binary(Bytes::from(out))).await;
        sent.ok().map(|()| length)
    }

    async fn greet(&mut self) -> Option<()> {
        let welcome = ServerMessage::Hello(Welcome {
            version: VERSION,
            server: "loopback".into(),
            cluster: "test".into(),
            broker: "1".into(),
            region: "here".into(),
            limits: Limits {
                message_bytes: 1 << 20,
                in_flight_bytes: 1 << 20,
            },
        });
        self.say(&welcome).await.map(drop)
    }

    async fn publish(&mut self, publish: Publish<'_>, bytes: &Bytes) -> Option<()> {
        let Payload::Batch(batch) = publish.payload else {
            panic!("the client publishes batches");
        };
        let batch = Batch::parse(shared(batch, bytes), Check::Records).unwrap();
        let records = batch.count();
        let taken = self.state().take(batch);
        self.publishes += 1;
        if self.state().cut_after_publishes == Some(self.publishes) {
            return None;
        }
        self.held.wait_for(|held| !held).await.ok()?;
        let sequence = Sequence::new(self.publishes as u64);
        let answer = match taken {
            Ok((offset, duplicate)) => ServerMessage::Ack(Ack {
                origin: origin(),
                sequence,
                durability: publish.ack.here(),
                token: "token".into(),
                rows: vec![AckRow {
                    id: publish.id,
                    partition: P0,
                    offset,
                    records,
                    index: (!duplicate).then_some(0),
                }],
            }),
            Err(problem) => ServerMessage::Error(ErrorMessage {
                id: Some(publish.id),
                subscription: None,
                problem,
            }),
        };
        self.say(&answer).await.map(drop)
    }

    async fn subscribe(&mut self, subscribe: Subscribe<'_>) -> Option<()> {
        let subscription = subscribe.subscription;
        let from = subscribe.from.as_deref().unwrap_or("latest");
        let credit = i64::try_from(subscribe.credit).unwrap();
        let next = match from {
            "earliest" => 0,
            "latest" => self.state().log.len(),
            "table" => {
                self.rows(&subscribe).await?;
                self.state().log.len()
            }
            cursor => match cursor.trim_start_matches('Y').parse() {
                Ok(next) => next,
                Err(_) => {
                    let problem = Problem::new(Code::CursorTooOld, "older than what is kept");
                    let error = ServerMessage::Error(ErrorMessage {
                        id: None,
                        subscription: Some(subscription),
                        problem,
                    });
                    return self.say(&error).await.map(drop);
                }
            },
        };
        self.feed = Some(Feed { next, credit });
        Some(())
    }

    async fn rows(&mut self, subscribe: &Subscribe<'_>) -> Option<()> {
        let subscription = subscribe.subscription;
        let (rows, cut) = {
            let mut state = self.state();
            (state.rows.clone(), std::mem::take(&mut state.cut_in_rows))
        };
        for (key, value) in rows {
            if !subscribe.keys.passes(Some(key.as_bytes())) {
                continue;
            }
            let row = Row {
                key: key.into_bytes().into(),
                value: value.into_bytes().into(),
            };
            let rows = vec![row];
            self.say(&ServerMessage::Rows { subscription, rows })
                .await?;
            if cut {
                return None;
            }
        }
        let cursor = cursor(self.state().log.len());
        let live = ServerMessage::Live {
            subscription,
            cursor: cursor.into(),
        };
        self.say(&live).await.map(drop)
    }

    /// Delivers what there is credit for.
    async fn deliver(&mut self) -> Option<()> {
        while let Some(feed) = self.feed.as_ref().filter(|feed| feed.credit > 0) {
            let next = feed.next;
            let found = {
                let state = self.state();
                let batch = state.log.get(next).cloned();
                let before = state.log.iter().take(next);
                let offset = before.map(|batch| u64::from(batch.count())).sum();
                batch.map(|batch| (batch, Offset::new(offset)))
            };
            let Some((batch, offset)) = found else {
                return Some(());
            };
            self.deliveries += 1;
            if self.state().cut_after_deliveries == Some(self.deliveries) {
                return None;
            }
            let stored = [&batch.stored_prefix(offset)[..], &batch.bytes()[16..]].concat();
            let deliver = ServerMessage::Deliver(Deliver {
                subscription: SubscriptionId::new(1),
                cursor: cursor(next + 1).into(),
                origin: origin(),
                sequence: Sequence::new(next as u64 + 1),
                timestamp: 5,
                parts: vec![Part {
                    partition: P0,
                    offset,
                    index: 0,
                    payload: PartPayload::Batch(stored.into()),
                }],
            });
            let spent = self.say(&deliver).await?;
            let feed = self.feed.as_mut()?;
            feed.credit -= spent;
            feed.next += 1;
        }
        Some(())
    }
}

fn origin() -> Origin {
    Origin {
        broker: BrokerId::new(1),
        epoch: Epoch::new(1),
    }
}

fn cursor(next: usize) -> String {
    format!("Y{next:07}")
}
