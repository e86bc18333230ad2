//! Writes what others have for the client: acknowledgements, deliveries, answers.
//!
//! Everything that is ready is put into the socket's buffer before it is flushed once, since a
//! write costs several microseconds whatever it carries.

use std::sync::Arc;
use std::time::Duration;

use anabranch_protocol::codec::Codec;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::ws::{ErrorMessage, ServerMessage};
use bytes::Bytes;
use futures_util::stream::SplitSink;
use futures_util::{Sink, SinkExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, Utf8Bytes};

use super::acks;
use crate::node::{AckSink, Left};

/// How long a connection that is being closed may take to accept the reason.
const CLOSING_BUDGET: Duration = Duration::from_secs(5);

/// Pieces of work that may wait for the socket; their bytes are bounded by [`Outbox::room`].
const OUTBOX_PIECES: usize = 256;

type Socket = SplitSink<WebSocketStream<TcpStream>, Message>;

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) messages: Vec<Bytes>,
    /// Its share of [`Outbox::room`]; given back once the messages are written.
    pub(super) room: Option<OwnedSemaphorePermit>,
    /// Asks the client for a sign of life.
    pub(super) ping: bool,
}

/// The way to the client, shared by all who have something for it.
#[derive(Clone)]
pub(super) struct Outbox {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    room_bytes: usize,
    end: Arc<End>,
}

/// Set once, by whoever ends the connection first.
#[derive(Default)]
struct End {
    reason: parking_lot::Mutex<Option<ErrorMessage>>,
    set: Notify,
}

/// The connection is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Outbox {
    /// An outbox for `room_bytes` of deliveries, and where its pieces come out.
    pub(super) fn new(room_bytes: usize) -> (Self, mpsc::Receiver<Piece>) {
        let (pieces, taken) = mpsc::channel(OUTBOX_PIECES);
        let outbox = Self {
            pieces,
            room: Arc::new(Semaphore::new(room_bytes)),
            room_bytes,
            end: Arc::default(),
        };
        (outbox, taken)
    }

    /// Hands over one message.
    pub(super) async fn send(&self, message: Bytes) -> Result<(), Gone> {
        let messages = vec![message];
        self.push(Piece {
            messages,
            ..Piece::default()
        })
        .await
    }

    pub(super) async fn push(&self, piece: Piece) -> Result<(), Gone> {
        self.pieces.send(piece).await.map_err(|_| Gone)
    }

    /// Waits for room for this many bytes of deliveries.
    pub(super) async fn room_for(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = bytes.clamp(1, self.room_bytes);
        let wanted = u32::try_from(permits).expect("buffers are below 4 GiB");
        Arc::clone(&self.room)
            .acquire_many_owned(wanted)
            .await
            .expect("the semaphore is never closed")
    }

    /// Ends the connection: what is queued may not reach the client any more, the reason is tried.
    pub(super) fn end(&self, reason: ErrorMessage) {
        self.end.reason.lock().get_or_insert(reason);
        self.end.set.notify_one();
    }
}

/// Writes until the connection ends. Returns when the socket is of no more use.
pub(super) async fn run(
    socket: Socket,
    codec: Codec,
    pieces: mpsc::Receiver<Piece>,
    outbox: Outbox,
    acks: Arc<AckSink>,
    tokens: Option<acks::Tokens>,
    patience: Duration,
) {
    let mut writer = Writer {
        socket,
        codec,
        acks,
        tokens,
        written: Vec::new(),
        acked: 0,
    };
    let end = outbox.end;
    drop(outbox.pieces);
    let reason = tokio::select! {
        biased;
        () = end.set.notified() => end.reason.lock().take(),
        reason = writer.pass_on(pieces, patience) => reason,
    };
    // Whoever gives the reason also lets go of the pieces, so both branches may have been ready.
    let reason = reason.or_else(|| end.reason.lock().take());
    if let Some(reason) = reason {
        let _ = timeout(CLOSING_BUDGET, writer.close(reason)).await;
    } else {
        let _ = timeout(CLOSING_BUDGET, writer.socket.close()).await;
    }
}

struct Writer {
    socket: Socket,
    codec: Codec,
    acks: Arc<AckSink>,
    tokens: Option<acks::Tokens>,
    /// The room of what is in the socket's buffer.
    written: Vec<OwnedSemaphorePermit>,
    /// Permits of the window whose outcomes are in the socket's buffer.
    acked: usize,
}

/// What there is to write.
enum Work {
    Outcomes(Left),
    Piece(Piece),
    /// The inbound side is gone.
    Nothing,
}

impl Writer {
    /// Writes until there is nothing more to come, or the client reads nothing for `patience`.
    async fn pass_on(
        &mut self,
        mut pieces: mpsc::Receiver<Piece>,
        patience: Duration,
    ) -> Option<ErrorMessage> {
        loop {
            let work = tokio::select! {
                biased;
                left = self.acks.take() => Work::Outcomes(left),
                piece = pieces.recv() => piece.map_or(Work::Nothing, Work::Piece),
            };
            match timeout(patience, self.write(work, &mut pieces)).await {
                Ok(Ok(true)) => {}
                // The socket is gone, or all is said.
                Ok(_) => return None,
                Err(_) => return Some(reads_nothing(patience).into()),
            }
        }
    }

    async fn write(
        &mut self,
        work: Work,
        pieces: &mut mpsc::Receiver<Piece>,
    ) -> Result<bool, SocketError> {
        match work {
            Work::Outcomes(left) => self.feed_outcomes(left).await?,
            Work::Piece(piece) => self.feed_piece(piece).await?,
            Work::Nothing => return Ok(false),
        }
        while let Ok(piece) = pieces.try_recv() {
            self.feed_piece(piece).await?;
        }
        self.socket.flush().await?;
        self.written.clear();
        self.acks.delivered(std::mem::take(&mut self.acked));
        Ok(true)
    }

    async fn feed_outcomes(&mut self, left: Left) -> Result<(), SocketError> {
        self.acked += left.permits;
        let Some(tokens) = self.tokens else {
            return Ok(());
        };
        for message in acks::encode(self.codec, left.outcomes, tokens) {
            self.feed(message).await?;
        }
        Ok(())
    }

    async fn feed_piece(&mut self, piece: Piece) -> Result<(), SocketError> {
        if piece.ping {
            self.socket.feed(Message::Ping(Bytes::new())).await?;
        }
        for message in piece.messages {
            self.feed(message).await?;
        }
        self.written.extend(piece.room);
        Ok(())
    }

    async fn feed(&mut self, message: Bytes) -> Result<(), SocketError> {
        feed(&mut self.socket, self.codec, message).await
    }

    /// The reason as a message, then as a close frame, which may hold 123 bytes of text.
    async fn close(&mut self, reason: ErrorMessage) -> Result<(), SocketError> {
        let code = reason.problem.code;
        let message = super::encode::server(self.codec, &ServerMessage::Error(reason));
        self.feed(message).await?;
        let close_code = match code.close_code() {
            0 => 1008,
            close_code => close_code,
        };
        let frame = CloseFrame {
            code: CloseCode::from(close_code),
            reason: Utf8Bytes::from_static(code.code()),
        };
        self.socket.send(Message::Close(Some(frame))).await?;
        self.socket.close().await
    }
}

fn reads_nothing(patience: Duration) -> Problem {
    Problem::new(
        Code::SlowSubscriber,
        format!(
            "what was sent was not read for {} s; connect again and go on",
            patience.as_secs()
        ),
    )
}

async fn feed<S>(socket: &mut S, codec: Codec, message: Bytes) -> Result<(), SocketError>
where
    S: Sink<Message, Error = SocketError> + Unpin,
{
    let message = match codec {
        Codec::Msgpack => Message::Binary(message),
        Codec::Json => Message::Text(
            Utf8Bytes::try_from(message).map_err(|_| SocketError::Utf8("not JSON".to_owned()))?,
        ),
    };
    socket.feed(message).await
}
