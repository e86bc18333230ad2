//! From an HTTP request to a WebSocket connection (RFC 6455, section 4.2).

use std::sync::Arc;

use anabranch_protocol::codec::Codec;
use anabranch_protocol::error::Code;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;

use super::inbound;
use crate::connections::Slot;
use crate::node::{Error, Node};
use crate::refused::refused;

/// Bytes asked of the socket at once. The default of 128 KiB would be touched by every idle
/// connection; this costs bulk publishing a few more reads per batch.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Bytes gathered before the socket is written to without having been asked.
const WRITE_BUFFER_BYTES: usize = 128 * 1024;

/// `GET /v1/ws`.
pub(crate) async fn upgrade(
    State(node): State<Arc<Node>>,
    mut request: Request<axum::body::Body>,
) -> Response {
    let (codec, accept) = match negotiate(request.method(), request.headers()) {
        Ok(agreed) => agreed,
        Err(error) => return refused(&error),
    };
    let slot = request.extensions_mut().remove::<Slot>();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _slot = slot;
        match upgraded.await {
            Ok(upgraded) => serve(&node, upgraded, codec).await,
            Err(error) => debug!(%error, "a WebSocket was not upgraded"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(codec.subprotocol()),
    );
    response
}

fn negotiate(method: &Method, headers: &HeaderMap) -> Result<(Codec, HeaderValue), Error> {
    let refuse = |what: &str| Err(Error::new(Code::UnsupportedVersion, what));
    if method != Method::GET || !has_token(headers, &UPGRADE, "websocket") {
        return refuse("/v1/ws speaks WebSocket: send GET with Upgrade: websocket");
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .map(HeaderValue::as_bytes)
        != Some(b"13")
    {
        return refuse("only WebSocket version 13 is spoken; send Sec-WebSocket-Version: 13");
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return refuse("the header Sec-WebSocket-Key is missing");
    };
    let offered = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(Codec::offered);
    let Some(codec) = offered else {
        return refuse(
            "offer a subprotocol that is spoken here: Sec-WebSocket-Protocol: anabranch.v1.msgpack or anabranch.v1.json",
        );
    };
    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept)
        .map_err(|_| Error::new(Code::Internal, "the accept key is not a header value"))?;
    Ok((codec, accept))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

async fn serve(node: &Arc<Node>, upgraded: Upgraded, codec: Codec) {
    // Straight to the socket: hyper's own wrapper would cost an indirection per read and write.
    let parts = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => parts,
        Err(_) => {
            debug!("a WebSocket came through something that is not TCP");
            return;
        }
    };
    let limit = node.limits().message_bytes.in_memory();
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(usize::MAX)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let socket = WebSocketStream::from_partially_read(
        parts.io.into_inner(),
        parts.read_buf.to_vec(),
        Role::Server,
        Some(config),
    )
    .await;
    inbound::serve(node, socket, codec).await;
}
