//! WebSocket connections, message by message: what a client library hides is seen here.

use std::net::SocketAddr;

use anabranch_core::cursor::Order;
use anabranch_core::id::PartitionId;
use anabranch_protocol::codec::{Codec, FrameKind};
use anabranch_protocol::error::Code;
use anabranch_protocol::record::Record;
use anabranch_protocol::ws::{
    AckLevel, ClientMessage, ErrorMessage, Format, Hello, KeyFilter, PATH, Payload, Publish,
    ServerMessage, Subscribe, SubscriptionId, VERSION,
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, Utf8Bytes};

use crate::condition::soon;

/// A connection.
#[derive(Debug)]
pub struct Wire {
    socket: WebSocketStream<TcpStream>,
    codec: Codec,
}

/// A message of the broker, as it came.
#[derive(Clone, Debug)]
pub struct Incoming {
    codec: Codec,
    kind: FrameKind,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Incoming {
    /// What it says.
    ///
    /// # Panics
    /// When it is not a message.
    #[must_use]
    pub fn message(&self) -> ServerMessage<'_> {
        let decoded = self.codec.decode_server(self.kind, &self.bytes);
        decoded.unwrap_or_else(|error| panic!("{error}: {:?}", self.bytes))
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// With a close frame.
    Code(u16),
    /// Without one.
    Cut(String),
}

impl Wire {
    /// Connects and exchanges hellos, in `MessagePack`.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::connect_as(address, Codec::Msgpack).await
    }

    /// Connects and exchanges hellos.
    ///
    /// # Panics
    /// When the broker does not welcome.
    pub async fn connect_as(address: SocketAddr, codec: Codec) -> Self {
        let wire = Self::try_connect(address, codec).await;
        wire.unwrap_or_else(|reason| panic!("no connection to {address}: {reason}"))
    }

    /// The same.
    ///
    /// # Errors
    /// When the broker does not welcome.
    pub async fn try_connect(address: SocketAddr, codec: Codec) -> Result<Self, String> {
        let mut wire = Self::try_mute(address, codec).await?;
        wire.try_send(&hello(VERSION, None)).await?;
        let welcome = wire.next().await.map_err(|closed| format!("{closed:?}"))?;
        match welcome.message() {
            ServerMessage::Hello(_) => Ok(wire),
            other => Err(format!("{other:?}")),
        }
    }

    /// Connects without saying hello.
    ///
    /// # Panics
    /// When that is refused.
    pub async fn mute(address: SocketAddr, codec: Codec) -> Self {
        Self::try_mute(address, codec).await.unwrap()
    }

    async fn try_mute(address: SocketAddr, codec: Codec) -> Result<Self, String> {
        let text = |error: SocketError| error.to_string();
        let tcp = TcpStream::connect(address).await;
        let tcp = tcp.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let url = format!("ws://{address}{PATH}");
        let mut request = url.into_client_request().map_err(text)?;
        let subprotocol = codec.subprotocol().parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", subprotocol);
        let shaken = tokio_tungstenite::client_async(request, tcp);
        let (socket, _) = soon("the handshake", shaken).await.map_err(text)?;
        Ok(Self { socket, codec })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn try_send(&mut self, message: &ClientMessage<'_>) -> Result<(), String> {
        let mut bytes = Vec::new();
        self.codec.encode_client(message, &mut bytes);
        let message = match self.codec {
            Codec::Msgpack => Message::Binary(bytes.into()),
            Codec::Json => Message::Text(Utf8Bytes::try_from(bytes).unwrap()),
        };
        self.try_send_raw(message).await
    }

    /// Sends a message.
    ///
    /// # Panics
    /// When the connection has ended.
    pub async fn send(&mut self, message: &ClientMessage<'_>) {
        self.try_send(message).await.unwrap();
    }

    /// Sends what may not be a message.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn try_send_raw(&mut self, message: Message) -> Result<(), String> {
        let sent = self.socket.send(message).await;
        sent.map_err(|error| error.to_string())
    }

    /// Sends bytes past the WebSocket layer.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = self.socket.get_mut().write_all(bytes).await;
        sent.map_err(|error| error.to_string())
    }

    /// The next message.
    ///
    /// # Errors
    /// With how the connection ended.
    ///
    /// # Panics
    /// When nothing comes in time.
    pub async fn next(&mut self) -> Result<Incoming, Closed> {
        soon("a message", self.next_unhurried()).await
    }

    /// The next message, whenever it comes.
    ///
    /// # Errors
    /// With how the connection ended.
    pub async fn next_unhurried(&mut self) -> Result<Incoming, Closed> {
        loop {
            let (kind, bytes) = match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => (FrameKind::Binary, bytes),
                Some(Ok(Message::Text(text))) => (FrameKind::Text, Bytes::from(text)),
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(Closed::Code(close.code.into()));
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(Closed::Cut(error.to_string())),
                None => return Err(Closed::Cut("the end".to_owned())),
            };
            return Ok(Incoming {
                codec: self.codec,
                kind,
                bytes,
            });
        }
    }

    /// The next message, which must be an error with this code.
    ///
    /// # Panics
    /// When it is not.
    pub async fn refusal(&mut self, code: Code) -> ErrorMessage {
        let message = self.next().await.unwrap();
        match message.message() {
            ServerMessage::Error(error) if error.problem.code == code => error,
            other => panic!("expected {code}, got {other:?}"),
        }
    }

    /// Checks that the broker ends the connection with the close code that belongs to this error.
    ///
    /// # Panics
    /// When it does not.
    pub async fn closed_after(&mut self, code: Code) {
        let closed = self.next().await.map(|it| format!("{:?}", it.message()));
        let expected = match code.close_code() {
            // A refusal that does not always end the connection, here does.
            0 => 1008,
            close_code => close_code,
        };
        assert_eq!(closed, Err(Closed::Code(expected)), "{code}");
    }

    /// Publishes records and waits for the acknowledgement, whose token is returned.
    ///
    /// # Panics
    /// When they are refused.
    pub async fn publish(&mut self, stream: &str, records: Vec<Record<'_>>) -> String {
        self.send(&publish(0, stream, records)).await;
        let message = self.next().await.unwrap();
        match message.message() {
            ServerMessage::Ack(ack) => ack.token.into_owned(),
            other => panic!("expected an acknowledgement, got {other:?}"),
        }
    }

    /// Checks that the broker still listens and answers on this connection.
    ///
    /// # Panics
    /// When it does not.
    pub async fn lives(&mut self) {
        self.send(&ClientMessage::Ping { id: 77 }).await;
        let message = self.next().await.unwrap();
        assert_eq!(message.message(), ServerMessage::Pong { id: 77 });
    }

    /// Waits until so many publishes are acknowledged.
    ///
    /// # Panics
    /// When one is not.
    pub async fn acknowledged(&mut self, publishes: usize) {
        let mut acknowledged = 0;
        while acknowledged < publishes {
            let message = self.next().await.unwrap();
            match message.message() {
                ServerMessage::Ack(ack) => acknowledged += ack.rows.len(),
                other => panic!("expected an acknowledgement, got {other:?}"),
            }
        }
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // Whether the other side hears it is not what is tested.
        let _ = self.socket.close(None).await;
    }
}

/// A hello of this version, to any cluster or to a certain one.
#[must_use]
pub fn hello(version: u64, cluster: Option<&str>) -> ClientMessage<'_> {
    ClientMessage::Hello(Hello {
        version,
        client: Some("anabranch-tests".into()),
        cluster: cluster.map(Into::into),
    })
}

/// A publish of records, durable, without a producer.
#[must_use]
pub fn publish<'a>(id: u64, stream: &'a str, records: Vec<Record<'a>>) -> ClientMessage<'a> {
    ClientMessage::Publish(Publish {
        id,
        stream: stream.into(),
        partition: None,
        payload: Payload::Records(records),
        producer: None,
        ack: AckLevel::Disk,
    })
}

/// A publish of a ready batch.
#[must_use]
pub fn publish_batch<'a>(id: u64, stream: &'a str, batch: &'a [u8]) -> ClientMessage<'a> {
    ClientMessage::Publish(Publish {
        id,
        stream: stream.into(),
        partition: Some(PartitionId::new(0)),
        payload: Payload::Batch(batch.into()),
        producer: None,
        ack: AckLevel::Disk,
    })
}

/// A subscription to everything of a stream, with credit without end.
#[must_use]
pub fn subscribe<'a>(subscription: u32, stream: &'a str, from: &'a str) -> Subscribe<'a> {
    Subscribe {
        subscription: SubscriptionId::new(subscription),
        stream: stream.into(),
        partitions: Vec::new(),
        keys: KeyFilter::All,
        from: Some(from.into()),
        order: Order::Local,
        format: Format::Records,
        credit: 1 << 40,
    }
}
