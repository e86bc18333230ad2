//! Requests and what is answered.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::condition::soon;

type Sender = SendRequest<Full<Bytes>>;

/// Requests to one broker, one after the other on one connection.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    connection: Mutex<Option<Sender>>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Http {
    /// Requests to this address. Nothing is connected yet.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connection: Mutex::new(None),
        }
    }

    /// Sends a request; the answer's body is read to its end.
    ///
    /// # Errors
    /// When the broker cannot be reached or goes away.
    pub async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let response = self.open(method, path, headers, body).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    /// Sends a request and leaves the body of the answer to be read.
    ///
    /// # Errors
    /// When the broker cannot be reached or goes away.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, String> {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_none_or(SendRequest::is_closed) {
            *connection = Some(connect(self.address).await?);
        }
        let sender = connection.as_mut().ok_or("not connected")?;
        sender.ready().await.map_err(|error| error.to_string())?;
        let host = self.address.to_string();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body.into()))
            .map_err(|error| error.to_string())?;
        let sent = sender.send_request(request).await;
        sent.map_err(|error| error.to_string())
    }

    /// Sends a request.
    ///
    /// # Panics
    /// When it is not answered in time.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let answer = soon(path, self.try_send(method, path, headers, body)).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// What `/metrics` says of a metric without labels; `None` while nothing was counted.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.get("/metrics").await;
        let text = String::from_utf8_lossy(&answer.body);
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// `GET`, of what must be there, as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.json()
    }

    /// `POST` of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.send("POST", path, &json, body.to_string()).await
    }

    /// `PUT` of JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.send("PUT", path, &json, body.to_string()).await
    }
}

async fn connect(address: SocketAddr) -> Result<Sender, String> {
    let socket = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    socket
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(socket))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header's text; empty when it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Checks that it is a problem with this status and code, as RFC 9457 has it, and gives its
    /// detail.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["type"], format!("urn:anabranch:error:{code}"));
        for text in ["title", "detail"] {
            assert!(problem[text].is_string(), "{text} is missing in {problem}");
        }
        problem
    }
}
