//! The broker that a command talks to.

use anabranch_client::{Address, Client, Error, MergeMode, Problem};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

use super::arguments::{Merge, Target};
use super::failure::Failure;

impl Target {
    /// A client of that broker. It connects when it is used.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::builder(&self.server).lazy()?)
    }

    /// Sends what the client library has no call for.
    pub(super) async fn post(&self, path: &str, body: &serde_json::Value) -> Result<(), Failure> {
        let address: Address = self.server.parse()?;
        let authority = address.authority();
        let refused = |error: std::io::Error| Error::Connect {
            address: authority.clone(),
            reason: error.to_string(),
        };
        let socket = tokio::net::TcpStream::connect(&authority).await;
        let io = TokioIo::new(socket.map_err(refused)?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        let request = http::Request::post(path)
            .header(http::header::HOST, &authority)
            .header(http::header::CONTENT_TYPE, anabranch_protocol::http::JSON)
            .body(Full::new(Bytes::from(body.to_string())))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        if parts.status.is_success() {
            return Ok(());
        }
        let problem: Problem = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        Err(problem.into())
    }
}

impl Merge {
    /// The same, as the client names it.
    pub(super) fn mode(self) -> MergeMode {
        match self {
            Self::Append => MergeMode::Append,
            Self::Lww => MergeMode::Lww,
        }
    }
}
