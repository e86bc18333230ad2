//! A WebSocket connection, message by message: what everything else here is built on, and what
//! to use for full control.

use std::time::Duration;

use anabranch_protocol::codec::{Codec, FrameKind};
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::ws::{self, ClientMessage, Hello, Limits, ServerMessage};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt, StreamExt};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use crate::address::Address;
use crate::error::Error;

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Encoding of messages.
    pub codec: Codec,
    /// Bytes asked of the socket at once. Each connection has a buffer of this size.
    pub read_buffer_bytes: usize,
    /// Bytes gathered before they are written without having been flushed.
    pub write_buffer_bytes: usize,
    /// Longest message that is accepted.
    pub message_bytes: usize,
    /// How long making the connection may take.
    pub timeout: Duration,
    /// The cluster that is expected, by name.
    pub cluster: Option<String>,
    /// Who we are, for the broker's logs.
    pub client: String,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            codec: Codec::Msgpack,
            // The default of the WebSocket library, 128 KiB, is a lot for a quiet subscriber.
            read_buffer_bytes: 16 * 1024,
            write_buffer_bytes: 128 * 1024,
            // The largest frame of the log, with room for what is around it.
            message_bytes: 64 * 1024 * 1024,
            timeout: Duration::from_secs(10),
            cluster: None,
            client: concat!("anabranch-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Who answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokerInfo {
    /// Its software.
    pub server: String,
    /// Its cluster's name.
    pub cluster: String,
    /// Its id.
    pub broker: String,
    /// Its region.
    pub region: String,
    /// What it accepts on this connection.
    pub limits: Limits,
}

type Socket = WebSocketStream<TcpStream>;

/// A connection that has said hello.
#[derive(Debug)]
pub struct Connection {
    info: BrokerInfo,
    pub(crate) sender: ConnectionSender,
    pub(crate) receiver: ConnectionReceiver,
}

impl Connection {
    /// Connects and exchanges hellos.
    ///
    /// # Errors
    /// When the broker cannot be reached in time, or refuses.
    pub async fn open(address: &Address, options: &ConnectOptions) -> Result<Self, Error> {
        let after = options.timeout;
        let timed_out = Error::TimedOut {
            what: "connecting",
            after,
        };
        let opened = timeout(after, Self::open_unhurried(address, options)).await;
        opened.unwrap_or(Err(timed_out))
    }

    async fn open_unhurried(address: &Address, options: &ConnectOptions) -> Result<Self, Error> {
        let socket = handshake(address, options).await?;
        let codec = options.codec;
        let (sink, stream) = socket.split();
        let mut sender = ConnectionSender {
            sink,
            codec,
            scratch: Vec::new(),
        };
        let mut receiver = ConnectionReceiver { stream, codec };
        let hello = ClientMessage::Hello(Hello {
            version: ws::VERSION,
            client: Some(options.client.as_str().into()),
            cluster: options.cluster.as_deref().map(Into::into),
        });
        sender.feed(&hello).await?;
        sender.flush().await?;
        let received = receiver.receive().await?;
        let info = match received.message()? {
            ServerMessage::Hello(welcome) => BrokerInfo {
                server: welcome.server.into_owned(),
                cluster: welcome.cluster.into_owned(),
                broker: welcome.broker.into_owned(),
                region: welcome.region.into_owned(),
                limits: welcome.limits,
            },
            ServerMessage::Error(error) => return Err(error.problem.into()),
            other => return Err(unexpected(&other)),
        };
        Ok(Self {
            info,
            sender,
            receiver,
        })
    }

    /// Who answered.
    #[must_use]
    pub fn info(&self) -> &BrokerInfo {
        &self.info
    }

    /// Sends a message and flushes.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send(&mut self, message: &ClientMessage<'_>) -> Result<(), Error> {
        self.sender.feed(message).await?;
        self.sender.flush().await
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn receive(&mut self) -> Result<Received, Error> {
        self.receiver.receive().await
    }

    /// The two directions apart, for use by different tasks.
    #[must_use]
    pub fn split(self) -> (ConnectionSender, ConnectionReceiver) {
        (self.sender, self.receiver)
    }
}

async fn handshake(address: &Address, options: &ConnectOptions) -> Result<Socket, Error> {
    let tcp = crate::tcp::connect(address).await?;
    let failed = |reason: String| Error::Connect {
        address: address.to_string(),
        reason,
    };
    let url = format!("ws://{}{}", address.authority(), ws::PATH);
    let mut request = url
        .into_client_request()
        .map_err(|error| failed(error.to_string()))?;
    let subprotocol = http::HeaderValue::from_static(options.codec.subprotocol());
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    let config = WebSocketConfig::default()
        .read_buffer_size(options.read_buffer_bytes)
        .write_buffer_size(options.write_buffer_bytes)
        .max_message_size(Some(options.message_bytes))
        .max_frame_size(Some(options.message_bytes));
    let shaken = tokio_tungstenite::client_async_with_config(request, tcp, Some(config)).await;
    match shaken {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            match serde_json::from_slice::<Problem>(body) {
                Ok(problem) => Err(problem.into()),
                Err(_) => Err(failed(format!("HTTP status {}", response.status()))),
            }
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Something came that does not belong here.
pub(crate) fn unexpected(message: &ServerMessage<'_>) -> Error {
    let shown: String = format!("{message:?}").chars().take(80).collect();
    Error::Protocol(format!("unexpected {shown}"))
}

/// The sending direction.
#[derive(Debug)]
pub struct ConnectionSender {
    sink: SplitSink<Socket, Message>,
    codec: Codec,
    scratch: Vec<u8>,
}

impl ConnectionSender {
    /// Adds a message to what the next flush sends. Waits when too much is buffered.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn feed(&mut self, message: &ClientMessage<'_>) -> Result<(), Error> {
        self.ready().await?;
        self.start(message)
    }

    /// Adds a message that is encoded already.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn feed_encoded(&mut self, message: Bytes) -> Result<(), Error> {
        self.ready().await?;
        self.start_encoded(message)
    }

    /// Waits until there is room for a message. May be cancelled.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let ready = std::future::poll_fn(|cx| std::pin::Pin::new(&mut self.sink).poll_ready(cx));
        ready.await.map_err(ended)
    }

    /// Adds a message, after [`ConnectionSender::ready`].
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn start(&mut self, message: &ClientMessage<'_>) -> Result<(), Error> {
        self.scratch.clear();
        self.codec.encode_client(message, &mut self.scratch);
        let encoded = Bytes::copy_from_slice(&self.scratch);
        self.start_encoded(encoded)
    }

    fn start_encoded(&mut self, message: Bytes) -> Result<(), Error> {
        let message = match self.codec.frame_kind() {
            FrameKind::Binary => Message::Binary(message),
            FrameKind::Text => {
                let text = Utf8Bytes::try_from(message);
                Message::Text(text.map_err(|error| Error::Protocol(error.to_string()))?)
            }
        };
        std::pin::Pin::new(&mut self.sink)
            .start_send(message)
            .map_err(ended)
    }

    /// Writes everything to the socket. May be cancelled.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.sink.flush().await.map_err(ended)
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // Whether the other side still hears it does not matter.
        let _ = timeout(Duration::from_secs(1), self.sink.close()).await;
    }
}

/// The receiving direction.
#[derive(Debug)]
pub struct ConnectionReceiver {
    stream: SplitStream<Socket>,
    codec: Codec,
}

impl ConnectionReceiver {
    /// Waits for the next message. May be cancelled.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn receive(&mut self) -> Result<Received, Error> {
        loop {
            let message = self.stream.next().await;
            let message = message.ok_or_else(|| Error::Disconnected("it was closed".to_owned()))?;
            let (kind, bytes) = match message.map_err(ended)? {
                Message::Binary(bytes) => (FrameKind::Binary, bytes),
                Message::Text(text) => (FrameKind::Text, Bytes::from(text)),
                Message::Close(Some(close)) => {
                    return Err(Error::Disconnected(format!(
                        "closed with {} {}",
                        close.code, close.reason
                    )));
                }
                _ => continue,
            };
            return Ok(Received {
                codec: self.codec,
                kind,
                bytes,
            });
        }
    }
}

fn ended(error: tungstenite::Error) -> Error {
    Error::Disconnected(error.to_string())
}

/// A message as it came.
#[derive(Clone, Debug)]
pub struct Received {
    codec: Codec,
    kind: FrameKind,
    bytes: Bytes,
}

impl Received {
    /// The message, borrowed from its bytes.
    ///
    /// # Errors
    /// When it is not one.
    pub fn message(&self) -> Result<ServerMessage<'_>, Error> {
        let decoded = self.codec.decode_server(self.kind, &self.bytes);
        decoded.map_err(|error| Error::Protocol(error.to_string()))
    }

    /// Whether it is a message of a type that this software does not know, which is to be passed
    /// over.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        let decoded = self.codec.decode_server(self.kind, &self.bytes);
        decoded.is_err_and(|error| error.reason.code() == Code::UnknownField)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
