//! Requests over HTTP, on connections that are kept.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anabranch_protocol::error::Problem;
use anabranch_protocol::http::JSON;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::address::Address;
use crate::error::Error;

/// Connections kept for later requests.
const IDLE_CONNECTIONS: usize = 8;

/// Largest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// What stands in a path or a query as it is. A dot is not among it: a key may be `..`.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// Bytes as they stand in a path segment or a query value.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    percent_encode(bytes, PLAIN).to_string()
}

#[derive(Debug)]
pub(crate) struct HttpClient {
    address: Address,
    timeout: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// A request.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'a str, String)>,
    pub(crate) body: Bytes,
    pub(crate) content_type: &'static str,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            content_type: JSON,
        }
    }

    pub(crate) fn json(mut self, body: &impl serde::Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(body);
        self.body = body.map_err(|e| Error::Protocol(e.to_string()))?.into();
        Ok(self)
    }

    pub(crate) fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// An answer that is not an error.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Protocol(error.to_string()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    }
}

impl HttpClient {
    pub(crate) fn new(address: Address, timeout: Duration) -> Self {
        Self {
            address,
            timeout,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Asks and reads the whole answer. What the broker refuses is an [`Error::Refused`].
    pub(crate) async fn ask(&self, call: Call<'_>) -> Result<Answer, Error> {
        let timed_out = Error::TimedOut {
            what: "a request",
            after: self.timeout,
        };
        let asked = timeout(self.timeout, self.ask_unhurried(&call)).await;
        asked.unwrap_or(Err(timed_out))
    }

    async fn ask_unhurried(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let mut sender = self.sender().await?;
        let answer = match sender.send_request(self.request(call)?).await {
            // It was never sent: the broker closed a connection that was kept.
            Err(error) if error.is_canceled() => {
                sender = self.fresh().await?;
                sender.send_request(self.request(call)?).await
            }
            answer => answer,
        };
        let answer = answer.map_err(cut)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| Error::Disconnected(error.to_string()))?;
        self.keep(sender);
        understood(parts.status, parts.headers, body.to_bytes())
    }

    fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, self.address.authority())
            .header(ACCEPT, JSON);
        if !call.body.is_empty() {
            request = request.header(CONTENT_TYPE, call.content_type);
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(call.body.clone()));
        request.map_err(|error| Error::Protocol(error.to_string()))
    }

    /// A connection that was kept and still stands, or a new one.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        while let Some(mut sender) = self.kept() {
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        self.fresh().await
    }

    async fn fresh(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let tcp = crate::tcp::connect(&self.address).await?;
        let (sender, connection) = handshake(TokioIo::new(tcp)).await.map_err(cut)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection ended");
            }
        });
        Ok(sender)
    }

    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS && !sender.is_closed() {
            idle.push(sender);
        }
    }
}

fn cut(error: hyper::Error) -> Error {
    Error::Disconnected(error.to_string())
}

fn understood(status: StatusCode, headers: HeaderMap, body: Bytes) -> Result<Answer, Error> {
    if status.is_success() {
        return Ok(Answer { headers, body });
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Err(problem.into()),
        Err(_) => Err(Error::Protocol(format!("HTTP status {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_their_place_in_a_path() {
        assert_eq!(
            encoded(b"../a b?c#d%e\xff"),
            "%2E%2E%2Fa%20b%3Fc%23d%25e%FF"
        );
        assert_eq!(encoded(b"AA-1_x~"), "AA-1_x~");
    }

    #[test]
    fn a_problem_becomes_an_error_with_its_code() {
        let body = r#"{"code":"AB1501","detail":"no such stream","retryable":false}"#;
        let error = understood(StatusCode::NOT_FOUND, HeaderMap::new(), body.into()).unwrap_err();
        let code = error.code().map(|code| code.code());
        assert_eq!((code, error.retryable()), (Some("AB1501"), false));
        let error = understood(StatusCode::BAD_GATEWAY, HeaderMap::new(), "<html>".into());
        assert!(matches!(error, Err(Error::Protocol(_))));
    }
}
