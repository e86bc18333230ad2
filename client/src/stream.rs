//! One stream, as a sequence of records and as a table.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::cursor::Order;
use anabranch_protocol::http::{PublishAnswer, RecordsPage, RowsPage, StreamInfo, TOKEN_HEADER};
use anabranch_protocol::position::From;
use anabranch_protocol::record::Record;
use anabranch_protocol::record::json::parse_row;
use anabranch_protocol::ws::{AckLevel, KeyFilter};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use http::header::ETAG;
use tokio::sync::Mutex;

use crate::ack::Ack;
use crate::client::Inner;
use crate::delivered::Row;
use crate::error::Error;
use crate::http::{Call, encoded};
use crate::publisher::{Publisher, PublisherOptions};
use crate::subscription::{SubscribeOptions, Subscription, Watch};

/// A stream of a broker. Cloning is cheap and shares the connection of
/// [`StreamHandle::publish`].
#[derive(Clone, Debug)]
pub struct StreamHandle {
    client: Arc<Inner>,
    name: Arc<str>,
    publisher: Arc<Mutex<Option<Arc<Publisher>>>>,
}

/// A value that was read, with what it takes to read no older one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read<T> {
    /// What was read.
    pub value: T,
    /// For reads, anywhere, that must be no older.
    pub token: Option<String>,
}

impl<T> Deref for Read<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// How a read is made.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// What the answer must include, from an [`Ack`] or an earlier read. The broker waits for it.
    pub token: Option<String>,
    /// How long the broker may wait for the token; its own default when left out.
    pub wait: Option<Duration>,
}

impl ReadOptions {
    /// Reads no older than this token.
    #[must_use]
    pub fn after(token: impl Into<String>) -> Self {
        Self {
            token: Some(token.into()),
            wait: None,
        }
    }

    fn apply<'a>(&self, mut call: Call<'a>) -> Call<'a> {
        if let Some(token) = &self.token {
            call = call.header(TOKEN_HEADER, token.as_str());
        }
        if let Some(wait) = self.wait {
            call = call.header("prefer", format!("wait={}", wait.as_secs().max(1)));
        }
        call
    }
}

/// A row's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowValue {
    /// The bytes that were published.
    pub bytes: Bytes,
    /// Names this value: it differs when the value does.
    pub etag: Option<String>,
}

/// Which rows to read.
#[derive(Clone, Debug, Default)]
pub struct RowRange {
    /// Only keys that begin with this.
    pub prefix: Bytes,
    /// Only keys behind this one.
    pub after: Option<Bytes>,
    /// At most so many rows; the broker's own limit when left out.
    pub limit: Option<u32>,
}

impl RowRange {
    /// All rows whose keys begin with this.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self {
            prefix: prefix.into(),
            ..Self::default()
        }
    }

    fn query(&self) -> String {
        let mut parts = Vec::new();
        if !self.prefix.is_empty() {
            parts.push(format!("prefix={}", encoded(&self.prefix)));
        }
        if let Some(after) = &self.after {
            parts.push(match std::str::from_utf8(after) {
                Ok(_) => format!("after={}", encoded(after)),
                Err(_) => format!(
                    "after_base64={}",
                    encoded(STANDARD.encode(after).as_bytes())
                ),
            });
        }
        if let Some(limit) = self.limit {
            parts.push(format!("limit={limit}"));
        }
        match parts.is_empty() {
            true => String::new(),
            false => format!("?{}", parts.join("&")),
        }
    }
}

/// Some rows, in the order of their keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rows {
    /// The rows.
    pub rows: Vec<Row>,
    /// To be passed as [`RowRange::after`] when there are more.
    pub next: Option<Bytes>,
}

impl StreamHandle {
    pub(crate) fn new(client: Arc<Inner>, name: &str) -> Self {
        Self {
            client,
            name: name.into(),
            publisher: Arc::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is and what it holds.
    ///
    /// # Errors
    /// When there is no such stream, or the broker does not answer.
    pub async fn info(&self) -> Result<StreamInfo, Error> {
        let path = format!("/v1/streams/{}", encoded(self.name.as_bytes()));
        self.client
            .http
            .ask(Call::new(Method::GET, path))
            .await?
            .json()
    }

    /// Publishes a record and waits until it is acknowledged. Calls that run at the same time share
    /// a connection and a write to disk.
    ///
    /// # Errors
    /// When the record is refused, or the broker cannot be reached.
    pub async fn publish(&self, record: Record<'_>) -> Result<Ack, Error> {
        let publisher = self.shared_publisher().await?;
        publisher.send(record).await?.await
    }

    async fn shared_publisher(&self) -> Result<Arc<Publisher>, Error> {
        let mut place = self.publisher.lock().await;
        if let Some(publisher) = place.as_ref().filter(|publisher| !publisher.is_closed()) {
            return Ok(Arc::clone(publisher));
        }
        let at_once = PublisherOptions {
            linger: Duration::ZERO,
            ..PublisherOptions::default()
        };
        let publisher = Arc::new(self.publisher(at_once).await?);
        *place = Some(Arc::clone(&publisher));
        Ok(publisher)
    }

    /// A publisher for many records.
    ///
    /// # Errors
    /// When there is no such stream, or the broker does not answer.
    pub async fn publisher(&self, options: PublisherOptions) -> Result<Publisher, Error> {
        let partitions = self.info().await?.partitions;
        Ok(Publisher::start(
            self.client.address.clone(),
            self.client.connect.clone(),
            self.name.to_string(),
            partitions,
            options,
        ))
    }

    /// Subscribes to all records.
    ///
    /// # Errors
    /// When there is no such stream, the place to start from is gone, or the broker does not answer.
    pub async fn subscribe(&self, from: From) -> Result<Subscription, Error> {
        self.subscribe_with(from, SubscribeOptions::default()).await
    }

    /// Subscribes to some partitions or keys.
    ///
    /// # Errors
    /// As [`StreamHandle::subscribe`].
    pub async fn subscribe_with(
        &self,
        from: From,
        options: SubscribeOptions,
    ) -> Result<Subscription, Error> {
        let (address, connect) = (self.client.address.clone(), self.client.connect.clone());
        let from = match from {
            From::Latest => self.end(options.order).await?,
            other => other,
        };
        Subscription::open(address, connect, self.name.to_string(), from, options).await
    }

    /// The end of the stream as a cursor, so that a subscription from there misses nothing should it
    /// lose its connection before its first record.
    async fn end(&self, order: Order) -> Result<From, Error> {
        let (name, order) = (encoded(self.name.as_bytes()), order.as_str());
        let path = format!("/v1/streams/{name}/records?from=latest&limit=1&order={order}");
        let answer = self.client.http.ask(Call::new(Method::GET, path)).await?;
        let page: RecordsPage = answer.json()?;
        Ok(From::Cursor(page.cursor))
    }

    /// The state of one row, and every change of it.
    ///
    /// # Errors
    /// As [`StreamHandle::subscribe`].
    pub async fn watch(&self, key: &[u8]) -> Result<Watch, Error> {
        let options = SubscribeOptions {
            keys: KeyFilter::Key(key.to_vec().into()),
            ..SubscribeOptions::default()
        };
        let subscription = self.subscribe_with(From::Table, options).await?;
        Ok(Watch::new(subscription))
    }

    /// The row of a key.
    ///
    /// # Errors
    /// When there is no such stream, or the broker does not answer.
    pub async fn row(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let read = self.row_with(key, &ReadOptions::default()).await?;
        Ok(read.value.map(|row| row.bytes))
    }

    /// The row of a key, with its token and entity tag.
    ///
    /// # Errors
    /// As [`StreamHandle::row`]; and when the token is not reached in time.
    pub async fn row_with(
        &self,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Read<Option<RowValue>>, Error> {
        let call = options.apply(Call::new(Method::GET, self.row_path(key)));
        match self.client.http.ask(call).await {
            Ok(answer) => Ok(Read {
                token: answer.header(TOKEN_HEADER),
                value: Some(RowValue {
                    etag: answer.header(ETAG.as_str()),
                    bytes: answer.body,
                }),
            }),
            Err(error) if error.code() == Some(crate::Code::NoSuchRow) => Ok(Read {
                value: None,
                token: options.token.clone(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Rows in the order of their keys, as of one moment.
    ///
    /// # Errors
    /// As [`StreamHandle::row`].
    pub async fn rows(&self, range: &RowRange) -> Result<Read<Rows>, Error> {
        self.rows_with(range, &ReadOptions::default()).await
    }

    /// Rows no older than a token.
    ///
    /// # Errors
    /// As [`StreamHandle::row_with`].
    pub async fn rows_with(
        &self,
        range: &RowRange,
        options: &ReadOptions,
    ) -> Result<Read<Rows>, Error> {
        let path = format!("{}{}", self.rows_path(), range.query());
        let call = options.apply(Call::new(Method::GET, path));
        let answer = self.client.http.ask(call).await?;
        let page: RowsPage = answer.json()?;
        let row = |raw: &serde_json::value::RawValue| {
            let (key, value) = parse_row(raw.get().as_bytes())?;
            Ok(Row {
                key: Bytes::from(key.into_owned()),
                value: Bytes::from(value.into_owned()),
            })
        };
        let rows: Result<Vec<_>, anabranch_protocol::record::json::RecordError> =
            page.rows.iter().map(|raw| row(raw)).collect();
        let packed = page.next_base64.map(|packed| STANDARD.decode(packed));
        let packed = packed
            .transpose()
            .map_err(|e| Error::Protocol(e.to_string()))?;
        Ok(Read {
            token: answer.header(TOKEN_HEADER),
            value: Rows {
                rows: rows.map_err(|error| Error::Protocol(error.to_string()))?,
                next: page.next.map(Bytes::from).or(packed.map(Bytes::from)),
            },
        })
    }

    /// Writes the row of a key.
    ///
    /// # Errors
    /// When the stream has no rows by key, or the broker does not answer; then it may have been
    /// written all the same.
    pub async fn put_row(
        &self,
        key: &[u8],
        value: impl Into<Bytes>,
    ) -> Result<PublishAnswer, Error> {
        self.put_row_with(key, value, &AckLevel::Disk).await
    }

    /// Writes the row of a key, and waits until it is acknowledged at this level.
    ///
    /// # Errors
    /// As [`StreamHandle::put_row`]; and when other regions do not have it in time. Then it is
    /// written here all the same.
    pub async fn put_row_with(
        &self,
        key: &[u8],
        value: impl Into<Bytes>,
        ack: &AckLevel,
    ) -> Result<PublishAnswer, Error> {
        let mut call = Call::new(Method::PUT, self.write_path(key, ack));
        call.body = value.into();
        call.content_type = "application/octet-stream";
        self.client.http.ask(call).await?.json()
    }

    /// Deletes the row of a key; not to be there already is fine.
    ///
    /// # Errors
    /// As [`StreamHandle::put_row`].
    pub async fn delete_row(&self, key: &[u8]) -> Result<PublishAnswer, Error> {
        self.delete_row_with(key, &AckLevel::Disk).await
    }

    /// The same, and waits until it is acknowledged at this level.
    ///
    /// # Errors
    /// As [`StreamHandle::put_row_with`].
    pub async fn delete_row_with(
        &self,
        key: &[u8],
        ack: &AckLevel,
    ) -> Result<PublishAnswer, Error> {
        let call = Call::new(Method::DELETE, self.write_path(key, ack));
        self.client.http.ask(call).await?.json()
    }

    fn rows_path(&self) -> String {
        format!("/v1/tables/{}/rows", encoded(self.name.as_bytes()))
    }

    fn write_path(&self, key: &[u8], ack: &AckLevel) -> String {
        let path = self.row_path(key);
        match ack {
            AckLevel::Disk => path,
            ack => format!("{path}?ack={}", encoded(ack.to_string().as_bytes())),
        }
    }

    fn row_path(&self, key: &[u8]) -> String {
        format!("{}/{}", self.rows_path(), encoded(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_queries() {
        assert_eq!(RowRange::default().query(), "");
        let range = RowRange {
            prefix: Bytes::from_static(b"a b"),
            after: Some(Bytes::from_static(b"a b&c")),
            limit: Some(10),
        };
        assert_eq!(range.query(), "?prefix=a%20b&after=a%20b%26c&limit=10");
        let range = RowRange {
            after: Some(Bytes::from_static(b"\xff")),
            ..RowRange::default()
        };
        assert_eq!(range.query(), "?after_base64=%2Fw%3D%3D");
    }
}
