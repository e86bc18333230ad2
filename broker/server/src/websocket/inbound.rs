//! Reads messages and acts on them.

use std::sync::Arc;
use std::time::Duration;

use anabranch_protocol::codec::{Codec, DecodeError, FrameKind};
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::ws::{
    ClientMessage, ErrorMessage, Hello, KeyFilter, Limits, ServerMessage, Subscribe,
    SubscriptionId, VERSION, Welcome,
};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{SplitStream, StreamExt};
use hashbrown::HashMap;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tracing::debug;

use super::acks::Tokens;
use super::delivery::{Credit, Delivery, Feed, Patience};
use super::encode::{self, Shape};
use super::outbound::{self, Outbox, Piece};
use super::publishing::Publisher;
use crate::node::{AckSink, Error, Node, Phase, Running, SubscribeRequest};

/// How long a connection that ends may take to write the answers to what it was sent.
const ANSWERING_BUDGET: Duration = Duration::from_secs(5);

/// Serves a connection until it ends.
pub(super) async fn serve(node: &Arc<Node>, socket: WebSocketStream<TcpStream>, codec: Codec) {
    let limits = node.limits();
    let (sink, stream) = socket.split();
    let (outbox, pieces) = Outbox::new(limits.subscriber_buffer_bytes.in_memory());
    let window = limits.connection_in_flight_bytes.in_memory();
    let acks = Arc::new(AckSink::new(window));
    let running = node.running().map(Arc::clone);
    let tokens = running.as_ref().ok().map(|running| Tokens::of(running));
    let mut writing = tokio::spawn(outbound::run(
        sink,
        codec,
        pieces,
        outbox.clone(),
        Arc::clone(&acks),
        tokens,
        2 * limits.slow_subscriber_seconds,
    ));
    match running {
        Ok(running) => {
            let mut session = Session {
                publisher: Publisher::new(Arc::clone(&running), acks),
                node: Arc::clone(node),
                running,
                stream,
                codec,
                outbox,
                feeds: HashMap::new(),
                greeted: false,
                ended: false,
            };
            let ended = tokio::select! {
                ended = session.run() => ended,
                // Nothing can be said to the client any more.
                _ = &mut writing => {
                    session.abandon();
                    return;
                }
            };
            if let Err(reason) = ended {
                // What was taken is answered, so that the client is left in no doubt.
                tokio::select! {
                    _ = timeout(ANSWERING_BUDGET, session.publisher.all_answered()) => {}
                    _ = &mut writing => {
                        session.abandon();
                        return;
                    }
                }
                session.outbox.end(reason);
            }
            session.abandon();
        }
        Err(reason) => outbox.end(reason.into()),
    }
    if writing.await.is_err() {
        tracing::error!("writing to a WebSocket panicked");
    }
}

struct Session {
    node: Arc<Node>,
    running: Arc<Running>,
    stream: SplitStream<WebSocketStream<TcpStream>>,
    codec: Codec,
    outbox: Outbox,
    publisher: Publisher,
    feeds: HashMap<SubscriptionId, Feed>,
    greeted: bool,
    /// Nothing more comes from the client.
    ended: bool,
}

/// What reading came to.
enum Came {
    Message(Message),
    Nothing,
    End,
}

impl Session {
    /// Returns when the client has gone, or with the reason to end the connection.
    async fn run(&mut self) -> Result<(), ErrorMessage> {
        let mut phase = self.node.phase();
        let patience = self.node.limits().ping_interval_seconds;
        let mut pinged = false;
        let header_timeout = self.node.limits().header_timeout_seconds;
        let opened = Instant::now();
        while !self.ended {
            let wait = if self.greeted {
                patience
            } else {
                header_timeout
            };
            let came = tokio::select! {
                biased;
                problem = going_away(&mut phase) => return Err(problem.into()),
                came = next(&mut self.stream, wait) => came?,
            };
            match came {
                Came::End => return Ok(()),
                Came::Message(message) => {
                    pinged = false;
                    self.take(message).await?;
                    self.take_what_is_there().await?;
                }
                Came::Nothing if !self.greeted && opened.elapsed() >= header_timeout => {
                    let what = "no hello came in time; send it first";
                    return Err(Problem::new(Code::BeforeHello, what).into());
                }
                Came::Nothing if pinged => {
                    debug!("a client gave no sign of life and is let go");
                    return Ok(());
                }
                Came::Nothing => {
                    pinged = true;
                    let ping = Piece {
                        ping: true,
                        ..Piece::default()
                    };
                    if self.outbox.push(ping).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// A message that was not understood. Where the two sides still agree on what was said, only
    /// that is refused.
    async fn not_understood(&mut self, error: DecodeError) -> Result<(), ErrorMessage> {
        let message = ErrorMessage::from(error);
        if message.problem.code.closes_connection() || !self.greeted {
            return Err(message);
        }
        self.say(&ServerMessage::Error(message)).await;
        Ok(())
    }

    /// Takes messages that have arrived already, so that they go to the writer together.
    async fn take_what_is_there(&mut self) -> Result<(), ErrorMessage> {
        while !self.publisher.is_full() {
            let Some(item) = self.stream.next().now_or_never() else {
                break;
            };
            match classify(item)? {
                Came::Message(message) => self.take(message).await?,
                Came::Nothing | Came::End => {
                    self.ended = true;
                    break;
                }
            }
        }
        self.pass_on().await
    }

    async fn pass_on(&mut self) -> Result<(), ErrorMessage> {
        let Err((ids, problem)) = self.publisher.pass_on().await else {
            return Ok(());
        };
        for id in ids {
            self.answer_error(Some(id), None, &problem).await;
        }
        match problem.code.closes_connection() {
            true => Err(problem.into()),
            false => Ok(()),
        }
    }

    async fn take(&mut self, message: Message) -> Result<(), ErrorMessage> {
        let (kind, payload) = match message {
            Message::Binary(bytes) => (FrameKind::Binary, bytes),
            Message::Text(text) => (FrameKind::Text, text.into()),
            // The WebSocket layer puts the answer into the socket's buffer; that it is written comes
            // before reading on, lest a client that only asks fills the memory.
            Message::Ping(_) => {
                let _ = self.outbox.push(Piece::default()).await;
                return Ok(());
            }
            // Closing is done by the WebSocket layer.
            _ => return Ok(()),
        };
        let decoded = match self.codec.decode_client(kind, &payload) {
            Ok(decoded) => decoded,
            Err(error) => return self.not_understood(error).await,
        };
        if !self.greeted && !matches!(decoded, ClientMessage::Hello(_)) {
            let what = "the first message must be hello";
            return Err(Problem::new(Code::BeforeHello, what).into());
        }
        match decoded {
            ClientMessage::Publish(publish) => {
                let id = publish.id;
                if let Err(problem) = self.publisher.add(publish, &payload) {
                    self.answer_error(Some(id), None, &problem).await;
                }
            }
            other => {
                // Acts in the order in which the client spoke.
                self.pass_on().await?;
                self.act(other).await?;
            }
        }
        if self.publisher.is_full() {
            self.pass_on().await?;
        }
        Ok(())
    }

    async fn act(&mut self, message: ClientMessage<'_>) -> Result<(), ErrorMessage> {
        match message {
            ClientMessage::Hello(hello) => self.greet(&hello).await?,
            ClientMessage::Subscribe(subscribe) => {
                let number = subscribe.subscription;
                if let Err(problem) = self.subscribe(&subscribe) {
                    self.answer_error(None, Some(number), &problem).await;
                }
            }
            ClientMessage::Credit {
                subscription,
                bytes,
            } => match self.feeds.get(&subscription) {
                Some(feed) => feed.credit.grant(bytes),
                None => self.no_such_subscription(subscription).await,
            },
            ClientMessage::Unsubscribe { subscription } => self.unsubscribe(subscription).await,
            ClientMessage::Ping { id } => self.say(&ServerMessage::Pong { id }).await,
            ClientMessage::Publish(_) => unreachable!("taken before"),
        }
        Ok(())
    }

    async fn greet(&mut self, hello: &Hello<'_>) -> Result<(), Problem> {
        if hello.version != VERSION {
            return Err(Problem::new(
                Code::UnsupportedVersion,
                format!(
                    "version {} is not spoken here; use {VERSION}",
                    hello.version
                ),
            ));
        }
        let info = self.node.info();
        let cluster = hello.cluster.as_deref();
        if cluster.is_some_and(|cluster| cluster != info.cluster_name) {
            return Err(Problem::new(
                Code::OtherCluster,
                format!(
                    "this broker belongs to cluster {:?}; check the address",
                    info.cluster_name
                ),
            ));
        }
        self.greeted = true;
        let limits = self.node.limits();
        let broker = self.running.broker().to_string();
        let welcome = Welcome {
            version: VERSION,
            server: concat!("anabranch/", env!("CARGO_PKG_VERSION")).into(),
            cluster: info.cluster_name.as_str().into(),
            broker: broker.into(),
            region: info.region.as_str().into(),
            limits: Limits {
                message_bytes: limits.message_bytes.get(),
                in_flight_bytes: limits.connection_in_flight_bytes.get(),
            },
        };
        self.say(&ServerMessage::Hello(welcome)).await;
        Ok(())
    }

    fn subscribe(&mut self, subscribe: &Subscribe<'_>) -> Result<(), Problem> {
        let number = subscribe.subscription;
        self.feeds.retain(|_, feed| !feed.task.is_finished());
        if self.feeds.contains_key(&number) {
            return Err(Problem::new(
                Code::SubscriptionInUse,
                format!("subscription {number} exists on this connection; choose another number"),
            ));
        }
        let limits = self.node.limits();
        if self.feeds.len() >= limits.subscriptions {
            return Err(Problem::new(
                Code::Overloaded,
                format!(
                    "{} subscriptions on one connection are the limit; open another connection",
                    limits.subscriptions
                ),
            ));
        }
        let request = request(subscribe)?;
        let subscription = self.running.subscribe(&request)?;
        let start = subscription.encode_cursor(&subscription.cursor()?);
        let reached = Arc::new(parking_lot::Mutex::new(start));
        let credit = Arc::new(Credit::default());
        credit.grant(subscribe.credit);
        let delivery = Delivery {
            shape: Shape {
                codec: self.codec,
                format: subscribe.format,
                subscription: number,
            },
            credit: Arc::clone(&credit),
            outbox: self.outbox.clone(),
            patience: Patience {
                without_credit: limits.credit_timeout_seconds,
                with_full_buffer: limits.slow_subscriber_seconds,
            },
            reached: Arc::clone(&reached),
            subscription,
            last_message: Instant::now(),
            reserved: None,
        };
        let task = tokio::spawn(delivery.run());
        let feed = Feed {
            credit,
            reached,
            task,
        };
        self.feeds.insert(number, feed);
        Ok(())
    }

    async fn unsubscribe(&mut self, number: SubscriptionId) {
        match self.feeds.remove(&number) {
            Some(feed) => {
                feed.task.abort();
                // After this nothing more of it is handed over.
                let _ = feed.task.await;
                let cursor = feed.reached.lock().clone();
                let message = ServerMessage::Unsubscribed {
                    subscription: number,
                    cursor: cursor.into(),
                };
                self.say(&message).await;
            }
            None => self.no_such_subscription(number).await,
        }
    }

    async fn no_such_subscription(&mut self, number: SubscriptionId) {
        let problem = Problem::new(
            Code::NoSuchSubscription,
            format!("there is no subscription {number} on this connection"),
        );
        self.answer_error(None, Some(number), &problem).await;
    }

    async fn answer(&self, message: Bytes) {
        // The connection may have gone; then reading ends as well.
        let _ = self.outbox.send(message).await;
    }

    async fn say(&self, message: &ServerMessage<'_>) {
        self.answer(encode::server(self.codec, message)).await;
    }

    async fn answer_error(
        &self,
        id: Option<u64>,
        subscription: Option<SubscriptionId>,
        problem: &Error,
    ) {
        let message = encode::error(self.codec, id, subscription, problem);
        self.answer(message).await;
    }

    fn abandon(&mut self) {
        for (_, feed) in self.feeds.drain() {
            feed.task.abort();
        }
    }
}

/// Waits until the broker stops or has failed.
async fn going_away(phase: &mut watch::Receiver<Phase>) -> Problem {
    let ends = |phase: &Phase| matches!(phase, Phase::Stopping | Phase::Failed(_));
    match phase.wait_for(ends).await.as_deref() {
        Ok(Phase::Failed(failure)) => {
            Problem::new(Code::Stopped, format!("the broker has stopped: {failure}"))
        }
        // The sender lives as long as the broker.
        _ => Problem::new(
            Code::ShuttingDown,
            "the broker is shutting down; connect again in a moment and resume at the last cursor",
        ),
    }
}

fn request(subscribe: &Subscribe<'_>) -> Result<SubscribeRequest, Problem> {
    let from = subscribe
        .position()
        .map_err(|error| Problem::new(Code::BadFrom, error.to_string()))?;
    let partitions = match &subscribe.partitions[..] {
        [] => None,
        asked => Some(asked.iter().copied().collect()),
    };
    Ok(SubscribeRequest {
        stream: subscribe.stream.to_string(),
        partitions,
        keys: KeyFilter::into_owned(subscribe.keys.clone()),
        from,
        order: subscribe.order,
    })
}

/// The next message, if one comes in time.
async fn next(
    stream: &mut SplitStream<WebSocketStream<TcpStream>>,
    wait: Duration,
) -> Result<Came, Problem> {
    match timeout(wait, stream.next()).await {
        Err(_) => Ok(Came::Nothing),
        Ok(item) => classify(item),
    }
}

fn classify(item: Option<Result<Message, SocketError>>) -> Result<Came, Problem> {
    let error = match item {
        None | Some(Ok(Message::Close(_))) => return Ok(Came::End),
        Some(Ok(message)) => return Ok(Came::Message(message)),
        Some(Err(error)) => error,
    };
    let malformed = |what: String| Err(Problem::new(Code::MalformedMessage, what));
    match error {
        SocketError::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
            Err(Problem::new(
                Code::MessageTooLarge,
                format!("a message of {size} bytes came; the limit is {max_size}"),
            ))
        }
        // A client that just went away is no mistake of its.
        SocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ok(Came::End),
        SocketError::Protocol(error) => malformed(error.to_string()),
        SocketError::Utf8(_) => malformed("a text frame is not UTF-8".to_owned()),
        error => {
            debug!(%error, "a WebSocket ended");
            Ok(Came::End)
        }
    }
}
