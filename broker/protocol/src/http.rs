//! The JSON shapes of the HTTP interface.
//!
//! Records and rows have their form in [`crate::record::json`]; errors are
//! [`crate::error::Problem`]s.

use std::borrow::Cow;

use anabranch_core::stream::StreamDefinition;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::record::Record;
use crate::record::json::{Form, RecordError, Text, record_of};

/// Media type of JSON.
pub const JSON: &str = "application/json";
/// Media type of newline-delimited JSON.
pub const NDJSON: &str = "application/x-ndjson";
/// Media type of an error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// Header that carries a token: on answers what was seen, on requests what must be included.
pub const TOKEN_HEADER: &str = "anabranch-token";

/// A stream, as `GET /v1/streams/{stream}` shows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Its name.
    pub name: String,
    /// `append` or `lww`.
    pub merge: String,
    /// How many partitions it has.
    pub partitions: u16,
    /// What may be dropped.
    pub retention: Retention,
    /// The regions that may hold it; null for all.
    pub regions: Option<Vec<String>>,
    /// What its partitions hold. Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Vec<PartitionOffsets>>,
    /// Bytes of its records in the log. Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What may be dropped from the log of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// Records older than this.
    pub max_age_seconds: Option<u64>,
    /// The oldest records beyond this size.
    pub max_bytes: Option<u64>,
    /// Replaced records of a keyed stream.
    pub compact: bool,
}

/// What one partition holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionOffsets {
    /// The partition.
    pub partition: u16,
    /// Offset of the oldest record that is kept.
    pub first: u64,
    /// Offset that the next record gets.
    pub next: u64,
}

impl From<&StreamDefinition> for StreamInfo {
    fn from(definition: &StreamDefinition) -> Self {
        let names = |regions: &Vec<_>| regions.iter().map(ToString::to_string).collect();
        Self {
            name: definition.name.to_string(),
            merge: definition.merge.as_str().to_owned(),
            partitions: definition.partitions,
            retention: Retention {
                max_age_seconds: definition.retention.max_age_seconds,
                max_bytes: definition.retention.max_bytes,
                compact: definition.retention.compact,
            },
            regions: definition.regions.as_ref().map(names),
            offsets: None,
            bytes: None,
        }
    }
}

/// Answer of `GET /v1/streams`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StreamList {
    /// All streams, by name.
    pub streams: Vec<StreamInfo>,
}

/// Answer to a publish, to a write of a row, and to a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishAnswer {
    /// Where the records went.
    pub offsets: Vec<Published>,
    /// The global name of the first record; null when it was published before.
    pub dot: Option<String>,
    /// For reads, anywhere, that must include this.
    pub token: String,
    /// `disk`, `memory` or `regions`: what was reached.
    pub durability: String,
    /// The regions that hold it, where the request asked for some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
}

/// Records that went into one partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Published {
    /// The stream; in answers to transactions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The partition.
    pub partition: u16,
    /// Offset of the first one.
    pub offset: Option<u64>,
    /// How many.
    pub records: u32,
}

/// Answer of `GET /v1/streams/{stream}/records`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RecordsPage {
    /// Records, as [`crate::record::json::parse_delivered`] reads them; with `from=table`, rows.
    pub records: Vec<Box<RawValue>>,
    /// Where to go on.
    pub cursor: String,
}

/// Answer of `GET /v1/tables/{stream}/rows`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RowsPage {
    /// Rows in the order of their keys, as [`crate::record::json::parse_row`] reads them.
    pub rows: Vec<Box<RawValue>>,
    /// The last key, to be passed as `after`, when there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The same, to be passed as `after_base64`, when it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_base64: Option<String>,
}

/// One operation of `POST /v1/transactions`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransactionOperation {
    /// In which stream.
    pub stream: String,
    /// The key, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key, as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// `put` (when left out) or `delete`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// The value, as JSON.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "even_null"
    )]
    pub value: Option<Box<RawValue>>,
    /// The value, as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
}

impl TransactionOperation {
    /// What it writes; `index` is its place in the transaction, for errors.
    ///
    /// # Errors
    /// When `op` is neither, or a key or value comes in two forms or is not base64.
    pub fn record(&self, index: usize) -> Result<Record<'_>, RecordError> {
        let text = |field: &'_ Option<String>| field.clone().map(|text| Text(Cow::Owned(text)));
        let form = Form {
            key: self.key.as_deref().map(|key| Text(Cow::Borrowed(key))),
            key_base64: text(&self.key_base64),
            value: self.value.as_deref(),
            value_base64: text(&self.value_base64),
            op: text(&self.op),
            ..Form::default()
        };
        record_of(form, index)
    }
}

/// `"value": null` is a value, unlike no value at all.
fn even_null<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// Answer of `GET /v1/regions`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Regions {
    /// The cluster's name.
    pub cluster: String,
    /// The region of the broker that answers.
    pub region: String,
    /// Its id.
    pub broker: String,
    /// Its write identity.
    pub origin: String,
    /// Whether it takes writes: `open`, or what speaks against it.
    pub writes: String,
    /// What it holds: origin → sequence.
    pub vector: std::collections::BTreeMap<String, u64>,
    /// What every member has applied, as far as is known here: origin → sequence.
    pub stable: std::collections::BTreeMap<String, u64>,
    /// The brokers that belong to the cluster, this one included.
    pub members: Vec<Member>,
    /// Its links to other regions that are up.
    pub links: Vec<Link>,
    /// The peers that it was told to dial.
    pub peers: Vec<Peer>,
    /// Frames of other regions that wait here for what they follow.
    pub held: Held,
    /// What was written here and no other region has said that it holds.
    pub only_here: Behind,
    /// What the rows of each table came to when they were last compared with a peer.
    pub digests: Vec<Digest>,
    /// Rows that differ between brokers that hold the same frames.
    pub differing: Vec<String>,
    /// Origins whose histories contradict each other. Their frames are not taken over.
    pub forks: Vec<String>,
}

impl Regions {
    /// Whether there is a link to a broker.
    #[must_use]
    pub fn is_linked(&self, broker: &str) -> bool {
        let mut origins = self.links.iter().map(|link| link.origin.split_once('.'));
        origins.any(|origin| origin.is_some_and(|(linked, _)| linked == broker))
    }
}

/// A broker that belongs to the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub broker: String,
    /// Where it stands.
    pub region: String,
    /// `active` or `parked`.
    pub standing: String,
    /// Whether anything waits for it: of a parked one, until all others have said that they know.
    pub waited_for: bool,
    /// Frames that it has not said that it holds, linked or not.
    pub lacks_frames: u64,
}

/// A peer that a broker was told to dial.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Where: `host:port`.
    pub address: String,
    /// The broker that was met there; null if none was since the start.
    pub broker: Option<String>,
}

/// Frames that wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the rows of a table come to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digest {
    /// The table.
    pub stream: String,
    /// How many rows it has.
    pub rows: u64,
    /// The sum of the rows' hashes, in hexadecimal.
    pub sum: String,
    /// A hash of the vector whose frames are in: where it is the same, the sums must be.
    pub vector: String,
}

/// How far one side is behind.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Behind {
    /// Frames that it lacks.
    pub frames: u64,
    /// About their bytes.
    pub bytes: u64,
    /// For how long it has lacked the oldest of them.
    pub seconds: f64,
}

/// A link to a broker of another region.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// The region of the broker at the other end.
    pub region: String,
    /// Its write identity.
    pub origin: String,
    /// Who dialled: `here` or `there`.
    pub dialled: String,
    /// How long it has been up.
    pub up_seconds: u64,
    /// The brokers whose frames it is asked for: itself, and those that only it can relay.
    pub asked_of: Vec<String>,
    /// What the other end holds and this broker does not.
    pub behind: Behind,
    /// What this broker holds and the other end has not said that it holds.
    pub ahead: Behind,
    /// Tables that were found equal to those of the other end.
    pub equal_tables: u64,
    /// How many seconds ago the one was that was compared longest ago; null before any was.
    pub compared_seconds: Option<u64>,
    /// Frames that came over the link since it is up.
    pub frames_in: u64,
    /// Bytes that came, as they crossed the link.
    pub bytes_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Bytes sent, as they crossed the link.
    pub bytes_out: u64,
}

/// Answer of `GET /livez` and `GET /readyz`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Health {
    /// `ok`, `starting`, `stopping` or `failed`.
    pub status: String,
    /// How far starting has come, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
