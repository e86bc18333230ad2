//! A broker, and what can be asked of it beside its streams.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::http::{
    PublishAnswer, Regions, StreamInfo, StreamList, TransactionOperation,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;

use crate::address::Address;
use crate::connection::{ConnectOptions, Connection};
use crate::error::Error;
use crate::http::{Call, HttpClient, encoded};
use crate::stream::StreamHandle;

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) address: Address,
    pub(crate) connect: ConnectOptions,
    pub(crate) http: HttpClient,
}

/// A broker. Cloning is cheap and shares connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

/// Makes a [`Client`] with other settings than the defaults.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    connect: ConnectOptions,
    request_timeout: Duration,
}

impl ClientBuilder {
    /// How long making a connection may take; 10 seconds if not set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect.timeout = timeout;
        self
    }

    /// How long an HTTP request may take; 30 seconds if not set.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// The name of the cluster that is expected; any if not set.
    #[must_use]
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.connect.cluster = Some(name.into());
        self
    }

    /// How WebSocket connections are made.
    #[must_use]
    pub fn connect_options(mut self, options: ConnectOptions) -> Self {
        self.connect = options;
        self
    }

    /// Makes the client, and one connection to see whether the broker is there.
    ///
    /// # Errors
    /// When the address is not one, or the broker cannot be reached or refuses.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.lazy()?;
        let connection = client.connection().await?;
        let (sender, _) = connection.split();
        sender.close().await;
        Ok(client)
    }

    /// Makes the client without connecting.
    ///
    /// # Errors
    /// When the address is not one.
    pub fn lazy(self) -> Result<Client, Error> {
        let address: Address = self.url.parse()?;
        let inner = Inner {
            http: HttpClient::new(address.clone(), self.request_timeout),
            address,
            connect: self.connect,
        };
        Ok(Client {
            inner: Arc::new(inner),
        })
    }
}

impl Client {
    /// Connects to the broker at `http://HOST:PORT`.
    ///
    /// # Errors
    /// When the address is not one, or the broker cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// A client with settings of its own.
    #[must_use]
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder {
            url: url.to_owned(),
            connect: ConnectOptions::default(),
            request_timeout: Duration::from_secs(30),
        }
    }

    /// A stream, whether or not it exists yet. Keep the handle: what it needs is set up once.
    #[must_use]
    pub fn stream(&self, name: &str) -> StreamHandle {
        StreamHandle::new(Arc::clone(&self.inner), name)
    }

    /// A WebSocket connection of its own, message by message.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub async fn connection(&self) -> Result<Connection, Error> {
        Connection::open(&self.inner.address, &self.inner.connect).await
    }

    /// Creates a stream. That it exists already, defined the same, is fine.
    ///
    /// # Errors
    /// When it exists and is defined differently, or the definition is refused.
    pub async fn create_stream(&self, definition: &StreamDefinition) -> Result<StreamInfo, Error> {
        let call = Call::new(Method::POST, "/v1/streams").json(&definition.to_json())?;
        self.inner.http.ask(call).await?.json()
    }

    /// Changes what can be changed of a stream: an object with the fields that are to differ.
    ///
    /// # Errors
    /// When there is no such stream, or the change is refused.
    pub async fn change_stream(
        &self,
        name: &str,
        change: &serde_json::Value,
    ) -> Result<StreamInfo, Error> {
        let call = Call::new(Method::PATCH, stream_path(name)).json(change)?;
        self.inner.http.ask(call).await?.json()
    }

    /// Deletes a stream with all its records.
    ///
    /// # Errors
    /// When there is no such stream, or the broker does not answer.
    pub async fn delete_stream(&self, name: &str) -> Result<(), Error> {
        let call = Call::new(Method::DELETE, stream_path(name));
        self.inner.http.ask(call).await.map(drop)
    }

    /// All streams, by name.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn streams(&self) -> Result<Vec<StreamInfo>, Error> {
        let call = Call::new(Method::GET, "/v1/streams");
        let list: StreamList = self.inner.http.ask(call).await?.json()?;
        Ok(list.streams)
    }

    /// The regions, as the broker sees them.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn regions(&self) -> Result<Regions, Error> {
        let call = Call::new(Method::GET, "/v1/regions");
        self.inner.http.ask(call).await?.json()
    }

    /// Ends the waiting for a broker that is gone, given by its id or its region.
    ///
    /// # Errors
    /// When it is none that can be parked, or the broker does not answer.
    pub async fn park(&self, member: &str) -> Result<Regions, Error> {
        self.end_member(member, "park").await
    }

    /// The same, and it is not shown any more.
    ///
    /// # Errors
    /// As [`Client::park`].
    pub async fn remove_member(&self, member: &str) -> Result<Regions, Error> {
        self.end_member(member, "remove").await
    }

    async fn end_member(&self, member: &str, how: &str) -> Result<Regions, Error> {
        let path = format!("/v1/regions/{}/{how}", encoded(member.as_bytes()));
        let call = Call::new(Method::POST, path);
        self.inner.http.ask(call).await?.json()
    }

    /// A transaction to be filled and committed.
    pub fn transaction(&self) -> Transaction {
        Transaction {
            inner: Arc::clone(&self.inner),
            operations: Vec::new(),
        }
    }
}

fn stream_path(name: &str) -> String {
    format!("/v1/streams/{}", encoded(name.as_bytes()))
}

/// Writes that become visible together, or not at all.
#[derive(Debug)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Transaction {
    inner: Arc<Inner>,
    operations: Vec<TransactionOperation>,
}

impl Transaction {
    /// Writes a row.
    pub fn put(self, stream: &str, key: &[u8], value: &[u8]) -> Self {
        self.with(stream, Some(key), Some(value), None)
    }

    /// Deletes a row.
    pub fn delete(self, stream: &str, key: &[u8]) -> Self {
        self.with(stream, Some(key), None, Some("delete"))
    }

    /// Appends a record without a key.
    pub fn append(self, stream: &str, value: &[u8]) -> Self {
        self.with(stream, None, Some(value), None)
    }

    fn with(
        mut self,
        stream: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        op: Option<&str>,
    ) -> Self {
        let text = key.and_then(|key| std::str::from_utf8(key).ok());
        self.operations.push(TransactionOperation {
            stream: stream.to_owned(),
            key: text.map(str::to_owned),
            key_base64: key
                .filter(|_| text.is_none())
                .map(|key| STANDARD.encode(key)),
            op: op.map(str::to_owned),
            value: None,
            // Exact, whether or not it is JSON.
            value_base64: value.map(|value| STANDARD.encode(value)),
        });
        self
    }

    /// Commits.
    ///
    /// # Errors
    /// When an operation is refused: then none has happened. When the broker does not answer, all
    /// may have happened.
    pub async fn commit(self) -> Result<PublishAnswer, Error> {
        let call = Call::new(Method::POST, "/v1/transactions").json(&self.operations)?;
        self.inner.http.ask(call).await?.json()
    }
}
