//! A lean HTTP/1.1 connection: one request after the other, kept alive.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room for an answer's head and a row.
const BUFFER_BYTES: usize = 8 * 1024;

/// The status of an answer that has no body, and does not say so.
const NO_CONTENT: u16 = 204;

/// A connection.
#[derive(Debug)]
pub(crate) struct Http {
    stream: TcpStream,
    /// What the broker is called; it refuses requests for others.
    host: String,
    buffer: Vec<u8>,
    filled: usize,
}

/// An answer, borrowed from the connection.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    /// The body as JSON, if the status says that all went well.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        if !(200..300).contains(&self.status) {
            let body = String::from_utf8_lossy(self.body);
            bail!("the broker answers {}: {body}", self.status);
        }
        serde_json::from_slice(self.body).context("the broker's answer is not what was expected")
    }
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            host: address.to_string(),
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
        })
    }

    /// A `GET` with headers.
    pub(crate) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer<'_>> {
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        self.exchange(request.as_bytes()).await
    }

    /// A `DELETE`.
    pub(crate) async fn delete(&mut self, path: &str) -> Result<Answer<'_>> {
        let request = format!("DELETE {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.exchange(request.as_bytes()).await
    }

    /// A `POST` of JSON.
    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Result<Answer<'_>> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.exchange(request.as_bytes()).await
    }

    /// Sends a whole request and reads the whole answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.filled = 0;
        let head = loop {
            self.fill().await?;
            if let Some(head) = Head::find(&self.buffer[..self.filled])? {
                break head;
            }
        };
        while self.filled < head.bytes + head.body {
            self.fill().await?;
        }
        Ok(Answer {
            status: head.status,
            body: &self.buffer[head.bytes..head.bytes + head.body],
        })
    }

    async fn fill(&mut self) -> Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => bail!("the broker closed the connection in the middle of an answer"),
            read => self.filled += read,
        }
        Ok(())
    }
}

/// What matters of an answer's head.
#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    /// Its own length.
    bytes: usize,
    /// Length of the body.
    body: usize,
}

impl Head {
    /// `None` until the head is complete.
    fn find(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes[..end])?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.get(9..12));
        let status: u16 = status.context("the answer is not HTTP")?.parse()?;
        let lengths = lines.filter_map(|line| line.split_once(':'));
        let length = lengths
            .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map(|(_, value)| value.trim().parse())
            .next()
            .or((status == NO_CONTENT).then_some(Ok(0)));
        Ok(Some(Self {
            status,
            bytes: end + 4,
            body: length
                .transpose()?
                .context("the answer has no Content-Length")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_once_they_are_complete() {
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nx: y\r\n\r\nok";
        assert_eq!(Head::find(&answer[..40]).unwrap(), None);
        let head = Head::find(answer).unwrap().unwrap();
        assert_eq!(
            (head.status, head.bytes, head.body),
            (404, answer.len() - 2, 2)
        );
        let head = Head::find(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(head.body, 0);
        assert!(Head::find(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
