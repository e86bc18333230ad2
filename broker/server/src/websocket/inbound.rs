//! Reads messages and acts on them.

use std::sync::Arc;
use std::time::Duration;

use anabranch_protocol::codec::Encoding;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::position::From as Start;
use anabranch_protocol::ws::{ClientMessage, ServerHello, Subscribe};
use bytes::Bytes;
use futures_util::stream::{SplitStream, StreamExt};
use futures_util::FutureExt;
use hashbrown::HashMap;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tracing::debug;

use super::acks::Tokens;
use super::delivery::{Credit, Delivery, Feed, Patience};
use super::encode::Format;
use super::outbound::{self, Outbox, Piece};
use super::publishing::Publisher;
use crate::node::{AckSink, Error, Keys, Node, Phase, Running, SubscribeRequest};

/// Serves a connection until it ends.
pub(super) async fn serve(node: &Arc<Node>, socket: WebSocketStream<TcpStream>, encoding: Encoding) {
    let limits = node.limits();
    let (sink, stream) = socket.split();
    let (outbox, pieces) = Outbox::new(limits.subscriber_buffer_bytes.in_memory());
    let acks = Arc::new(AckSink::default());
    let running = node.running().map(Arc::clone);
    let tokens = Tokens::of(running.as_ref().ok());
    let writing = tokio::spawn(outbound::run(
        sink,
        encoding,
        pieces,
        outbox.clone(),
        Arc::clone(&acks),
        tokens,
    ));
    match running {
        Ok(running) => {
            let window = limits.connection_in_flight_bytes.in_memory();
            let mut session = Session {
                publisher: Publisher::new(Arc::clone(&running), acks, window),
                node: Arc::clone(node),
                running,
                stream,
                encoding,
                outbox,
                feeds: HashMap::new(),
                greeted: false,
            };
            if let Err(reason) = session.run().await {
                session.outbox.end(reason);
            }
            session.abandon();
        }
        Err(reason) => outbox.end(reason),
    }
    if writing.await.is_err() {
        tracing::error!("writing to a WebSocket panicked");
    }
}

struct Session {
    node: Arc<Node>,
    running: Arc<Running>,
    stream: SplitStream<WebSocketStream<TcpStream>>,
    encoding: Encoding,
    outbox: Outbox,
    publisher: Publisher,
    feeds: HashMap<u32, Feed>,
    greeted: bool,
}

/// What reading came to.
enum Came {
    Message(Message),
    Nothing,
    End,
}

impl Session {
    /// Returns when the client has gone, or with the reason to end the connection.
    async fn run(&mut self) -> Result<(), Problem> {
        let mut phase = self.node.phase();
        let patience = self.node.limits().ping_interval_seconds;
        let mut pinged = false;
        let header_timeout = self.node.limits().header_timeout_seconds;
        let opened = Instant::now();
        loop {
            let wait = if self.greeted { patience } else { header_timeout };
            let came = tokio::select! {
                biased;
                came = next(&mut self.stream, wait) => came?,
                _ = phase.wait_for(|phase| *phase == Phase::Stopping) => return Err(self.stopping()),
            };
            match came {
                Came::End => return Ok(()),
                Came::Message(message) => {
                    pinged = false;
                    self.take(message).await?;
                    self.take_what_is_there().await?;
                }
                Came::Nothing if !self.greeted && opened.elapsed() >= header_timeout => {
                    return Err(Problem::new(
                        Code::BeforeHello,
                        "no hello came in time; send it first",
                    ));
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
    }

    fn stopping(&self) -> Problem {
        Problem::new(
            Code::ShuttingDown,
            "the broker is shutting down; connect again in a moment and resume at the last cursor",
        )
    }

    /// Takes messages that have arrived already, so that they go to the writer together.
    async fn take_what_is_there(&mut self) -> Result<(), Problem> {
        while !self.publisher.is_full() {
            match self.stream.next().now_or_never() {
                Some(Some(Ok(message))) => self.take(message).await?,
                // The end, or an error, comes again at the next look.
                _ => break,
            }
        }
        self.pass_on().await
    }

    async fn pass_on(&mut self) -> Result<(), Problem> {
        if let Err((ids, problem)) = self.publisher.pass_on().await {
            for id in ids {
                self.answer_error(Some(id), None, &problem).await;
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: Message) -> Result<(), Problem> {
        let payload: Bytes = match (message, self.encoding) {
            (Message::Binary(bytes), Encoding::Msgpack) => bytes,
            (Message::Text(text), Encoding::Json) => text.into(),
            (Message::Binary(_), Encoding::Json) => {
                return Err(wrong_kind("a binary frame came, but anabranch.v1.json is text"));
            }
            (Message::Text(_), Encoding::Msgpack) => {
                return Err(wrong_kind("a text frame came, but anabranch.v1.msgpack is binary"));
            }
            // Pings are answered, and closing is done, by the WebSocket layer.
            _ => return Ok(()),
        };
        let decoded = self.encoding.decode_client(&payload)?;
        if !self.greeted && !matches!(decoded, ClientMessage::Hello(_)) {
            return Err(Problem::new(
                Code::BeforeHello,
                "the first message must be hello",
            ));
        }
        match decoded {
            ClientMessage::Publish(publish) => {
                let id = publish.id;
                if let Err(problem) = self.publisher.add(&publish, &payload) {
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

    async fn act(&mut self, message: ClientMessage<'_>) -> Result<(), Problem> {
        match message {
            ClientMessage::Hello(hello) => {
                if let Some(cluster) = hello.cluster
                    && *cluster != *self.node.info().cluster_name
                {
                    return Err(Problem::new(
                        Code::OtherCluster,
                        format!(
                            "this broker belongs to cluster {:?}; check the address",
                            self.node.info().cluster_name
                        ),
                    ));
                }
                if !std::mem::replace(&mut self.greeted, true) {
                    self.answer(self.encoding.encode_hello(&self.hello())).await;
                }
            }
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
            ClientMessage::Ping { id } => self.answer(self.encoding.encode_pong(id)).await,
            ClientMessage::Publish(_) => unreachable!("taken before"),
        }
        Ok(())
    }

    fn hello(&self) -> ServerHello<'_> {
        let info = self.node.info();
        let limits = self.node.limits();
        ServerHello {
            version: 1,
            server: concat!("anabranch/", env!("CARGO_PKG_VERSION")).into(),
            cluster: info.cluster_name.as_str().into(),
            broker: self.running.broker().to_string().into(),
            region: info.region.as_str().into(),
            message_bytes: limits.message_bytes.get(),
            in_flight_bytes: limits.connection_in_flight_bytes.get(),
        }
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
                format!("{} subscriptions on one connection are the limit; open another connection", limits.subscriptions),
            ));
        }
        let request = request(subscribe)?;
        let subscription = self.running.subscribe(&request)?;
        let credit = Arc::new(Credit::default());
        credit.grant(subscribe.credit);
        let delivery = Delivery {
            number,
            encoding: self.encoding,
            format: Format::from(subscribe.format),
            credit: Arc::clone(&credit),
            outbox: self.outbox.clone(),
            patience: Patience {
                without_credit: limits.credit_timeout_seconds,
                with_full_buffer: limits.slow_subscriber_seconds,
            },
            reached: subscription.start_cursor()?,
            subscription,
            last_message: Instant::now(),
        };
        let task = tokio::spawn(delivery.run());
        self.feeds.insert(number, Feed { credit, task });
        Ok(())
    }

    async fn unsubscribe(&mut self, number: u32) {
        match self.feeds.remove(&number) {
            Some(feed) => {
                feed.task.abort();
                // After this nothing more of it is handed over.
                let _ = feed.task.await;
                self.answer(self.encoding.encode_unsubscribed(number)).await;
            }
            None => self.no_such_subscription(number).await,
        }
    }

    async fn no_such_subscription(&mut self, number: u32) {
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

    async fn answer_error(&self, id: Option<u64>, subscription: Option<u32>, problem: &Error) {
        let message = self.encoding.encode_error(id, subscription, problem);
        self.answer(message).await;
    }

    fn abandon(&mut self) {
        for (_, feed) in self.feeds.drain() {
            feed.task.abort();
        }
    }
}

fn wrong_kind(what: &str) -> Problem {
    Problem::new(Code::WrongFrameKind, what)
}

fn request(subscribe: &Subscribe<'_>) -> Result<SubscribeRequest, Problem> {
    let keys = match (&subscribe.key, &subscribe.prefix) {
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                Code::BadParameter,
                "give a key or a prefix, not both",
            ));
        }
        (Some(key), None) => Keys::Exact(Bytes::copy_from_slice(key)),
        (None, Some(prefix)) => Keys::Prefix(Bytes::copy_from_slice(prefix)),
        (None, None) => Keys::All,
    };
    let from = match &subscribe.from {
        None => Start::Latest,
        Some(text) => Start::parse(text)
            .map_err(|error| Problem::new(Code::BadFrom, error.to_string()))?,
    };
    let partitions = subscribe.partitions.as_ref();
    Ok(SubscribeRequest {
        stream: subscribe.stream.to_string(),
        partitions: partitions.map(|numbers| numbers.iter().copied().collect()),
        keys,
        from,
    })
}

/// The next message, if one comes in time.
async fn next(
    stream: &mut SplitStream<WebSocketStream<TcpStream>>,
    wait: Duration,
) -> Result<Came, Problem> {
    match timeout(wait, stream.next()).await {
        Err(_) => Ok(Came::Nothing),
        Ok(None) => Ok(Came::End),
        Ok(Some(Ok(Message::Close(_)))) => Ok(Came::End),
        Ok(Some(Ok(message))) => Ok(Came::Message(message)),
        Ok(Some(Err(SocketError::Capacity(CapacityError::MessageTooLong { size, max_size })))) => {
            Err(Problem::new(
                Code::MessageTooLarge,
                format!("a message of {size} bytes came; the limit is {max_size}"),
            ))
        }
        Ok(Some(Err(SocketError::Protocol(error)))) => {
            Err(Problem::new(Code::MalformedMessage, error.to_string()))
        }
        Ok(Some(Err(SocketError::Utf8(_)))) => Err(Problem::new(
            Code::MalformedMessage,
            "a text frame is not UTF-8",
        )),
        Ok(Some(Err(error))) => {
            debug!(%error, "a WebSocket ended");
            Ok(Came::End)
        }
    }
}
