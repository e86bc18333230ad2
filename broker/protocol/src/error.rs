//! Error codes, and how an error looks on every surface.
//!
//! A code means the same on HTTP, on WebSocket and on the command line, and is never given a
//! second meaning.

use std::fmt;
use std::str::FromStr;

use anabranch_core::batch::BatchError;
use anabranch_core::id::{BadRegionName, BadStreamName};
use anabranch_core::producer::ProducerError;
use anabranch_core::sequencer::SequenceError;
use anabranch_core::stream::BadDefinition;
use anabranch_core::vector::BadVector;
use serde::de::{self, Deserializer};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($name:ident $code:literal $status:literal $retry:ident $title:literal)*) => {
        /// What went wrong, as a number that never changes its meaning.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!("`", $code, "`: ", $title, ".")] $name,)*
        }

        impl Code {
            /// Every code there is, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code as text, such as `AB1001`.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// What it means, in a few words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }

            /// The status of an HTTP response that carries it.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }

            /// Whether the same request may succeed later, unchanged.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => codes!(@ $retry)),* }
            }
        }

        impl FromStr for Code {
            type Err = UnknownCode;

            fn from_str(text: &str) -> Result<Self, UnknownCode> {
                match text {
                    $($code => Ok(Self::$name),)*
                    _ => Err(UnknownCode),
                }
            }
        }
    };
    (@ retry) => { true };
    (@ final) => { false };
}

codes! {
    Unknown            "AB0000" 500 final "a code that this software does not know"
    MalformedMessage   "AB1001" 400 final "malformed message"
    BeforeHello        "AB1002" 400 final "message before hello"
    UnknownField       "AB1003" 400 final "unknown message type or field"
    WrongFrameKind     "AB1004" 400 final "text where binary is due, or the reverse"
    MessageTooLarge    "AB1005" 413 final "message too large"
    UnsupportedVersion "AB1006" 400 final "unsupported version or subprotocol"
    BadParameter       "AB1007" 400 final "bad parameter"
    NotJson            "AB1008" 400 final "body is not JSON or NDJSON"
    MediaType          "AB1009" 415 final "unsupported media type"
    BadStreamName      "AB1101" 400 final "bad stream name"
    BadDefinition      "AB1102" 400 final "bad stream definition"
    FixedField         "AB1103" 409 final "this field of a stream cannot change"
    MalformedBatch     "AB1201" 400 final "malformed record batch"
    BatchCrc           "AB1202" 400 final "record batch does not match its CRC"
    Compression        "AB1203" 400 final "unknown compression"
    RecordTooLarge     "AB1204" 413 final "record too large"
    KeyMissing         "AB1205" 400 final "a keyed stream needs a key"
    NoSuchPartition    "AB1206" 400 final "no such partition"
    NotPossible        "AB1207" 400 final "operation not possible here"
    TransactionTooLarge "AB1208" 413 final "transaction too large"
    BatchTooLarge      "AB1209" 413 final "record batch too large"
    BadCursor          "AB1301" 400 final "not a token or cursor"
    OtherCluster       "AB1302" 400 final "token, cursor or client of another cluster"
    CursorTooOld       "AB1303" 410 final "cursor older than what is kept"
    BadFrom            "AB1304" 400 final "not a place to start from"
    ProducerFenced     "AB1401" 409 final "producer was replaced by a newer epoch"
    ProducerGap        "AB1402" 409 final "records of the producer are missing"
    NoSuchStream       "AB1501" 404 final "no such stream"
    NoSuchRow          "AB1502" 404 final "no such row"
    StreamExists       "AB1503" 409 final "stream exists and is defined differently"
    SubscriptionInUse  "AB1504" 409 final "subscription number in use"
    NoSuchSubscription "AB1505" 404 final "no such subscription"
    NoSuchRoute        "AB1506" 404 final "no such route"
    MethodNotAllowed   "AB1507" 405 final "method not allowed"
    PreconditionFailed "AB1508" 412 final "precondition failed"
    Overloaded         "AB2101" 503 retry "overloaded"
    DiskFull           "AB2104" 507 final "disk full"
    SlowSubscriber     "AB2201" 503 retry "subscriber too slow"
    TooManyConnections "AB2202" 503 retry "too many connections"
    NoCredit           "AB2203" 503 retry "credit never granted"
    TokenNotReached    "AB3101" 504 retry "token not reached in time"
    RegionsNotReached  "AB3102" 504 final "regions not reached in time"
    Foreign            "AB4001" 403 final "refused for this origin or host"
    OtherRegion        "AB4002" 403 final "the stream is kept in other regions"
    DuplicateLink      "AB4101" 409 retry "this link exists already"
    LinkRefused        "AB4102" 403 final "a broker that may not be linked"
    Parked             "AB4103" 403 final "this broker was parked"
    OtherFounding      "AB4104" 409 final "two clusters that were founded apart"
    BadFrame           "AB4105" 403 final "a frame that its sender cannot have"
    TooManyOrigins     "AB4106" 403 final "frames of too many origins"
    Internal           "AB5001" 500 final "internal error"
    LogDamaged         "AB5101" 500 final "log damaged"
    UnreadableRange    "AB5102" 500 final "unreadable range of the log"
    Forked             "AB5103" 500 final "a broker's log has forked"
    Starting           "AB6001" 503 retry "starting"
    ShuttingDown       "AB6002" 503 retry "shutting down"
    Stopped            "AB6003" 503 retry "broker stopped by a failure"
    Joining            "AB6004" 503 retry "not a member of the cluster yet"
    DataDirInUse       "AB7001" 500 final "data directory in use"
    NewerFormat        "AB7002" 500 final "data directory of a newer format"
    DataDirOtherCluster "AB7003" 500 final "data directory of another cluster"
    DataDirOtherRegion "AB7004" 500 final "data directory of another region"
    UnknownConfigKey   "AB7101" 500 final "unknown configuration key"
    BadConfigValue     "AB7102" 500 final "bad configuration value"
    AddressInUse       "AB7201" 500 final "address in use"
    NotLoopback        "AB7202" 500 final "refuses to listen beyond loopback without authentication"
}

impl Code {
    /// Whether a WebSocket connection ends after this error: the two sides no longer agree on what
    /// was said, or the broker is going away.
    #[must_use]
    pub const fn closes_connection(self) -> bool {
        self.close_code() != 0
    }

    /// The WebSocket close code (RFC 6455, 7.4.1) that follows this error; 0 when the connection
    /// stays open.
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::MalformedMessage | Self::BeforeHello | Self::UnknownField => 1002,
            Self::UnsupportedVersion => 1002,
            Self::WrongFrameKind => 1003,
            Self::MessageTooLarge => 1009,
            Self::Internal | Self::Stopped => 1011,
            Self::Starting | Self::ShuttingDown => 1012,
            Self::TooManyConnections => 1013,
            _ => 0,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A text that is not one of the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an error code of this version")]
pub struct UnknownCode;

impl From<&BatchError> for Code {
    fn from(error: &BatchError) -> Self {
        match error {
            BatchError::TooLarge(_) | BatchError::InflatesTooLarge => Self::BatchTooLarge,
            BatchError::Count(count) if *count > 0 => Self::BatchTooLarge,
            BatchError::Crc { .. } => Self::BatchCrc,
            BatchError::UnknownCompression(_) => Self::Compression,
            _ => Self::MalformedBatch,
        }
    }
}

/// One error, the same on every surface. As JSON it is an RFC 9457 problem.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{code} {detail}")]
pub struct Problem {
    /// What went wrong.
    pub code: Code,
    /// With which value, and what to do next.
    pub detail: String,
    /// Whether the same request may succeed later, unchanged.
    pub retryable: bool,
    /// Where a subscription resumes that this error has ended.
    pub cursor: Option<String>,
    /// The oldest place that a subscription can start from.
    pub oldest: Option<String>,
}

impl Problem {
    /// An error with this code.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retryable: code.retryable(),
            cursor: None,
            oldest: None,
        }
    }

    /// Says where the subscription resumes.
    #[must_use]
    pub fn with_cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// Says what the oldest place to start from is.
    #[must_use]
    pub fn with_oldest(mut self, oldest: impl Into<String>) -> Self {
        self.oldest = Some(oldest.into());
        self
    }

    /// What came over the wire. A code of a newer broker becomes [`Code::Unknown`]; its text is
    /// kept in front of the detail.
    #[must_use]
    pub fn received(code: &str, detail: &str, retryable: bool) -> Self {
        let (code, detail) = match code.parse() {
            Ok(code) => (code, detail.to_owned()),
            Err(UnknownCode) => (Code::Unknown, format!("{code} {detail}")),
        };
        Self {
            retryable,
            ..Self::new(code, detail)
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &format_args!("urn:anabranch:error:{}", self.code))?;
        map.serialize_entry("title", self.code.title())?;
        map.serialize_entry("status", &self.code.http_status())?;
        map.serialize_entry("detail", &self.detail)?;
        map.serialize_entry("code", &self.code)?;
        map.serialize_entry("retryable", &self.retryable)?;
        if let Some(cursor) = &self.cursor {
            map.serialize_entry("cursor", cursor)?;
        }
        if let Some(oldest) = &self.oldest {
            map.serialize_entry("oldest", oldest)?;
        }
        map.end()
    }
}

/// The members of the JSON form that say something of their own.
#[derive(Deserialize)]
struct Received {
    code: String,
    detail: String,
    #[serde(default)]
    retryable: bool,
    cursor: Option<String>,
    oldest: Option<String>,
}

impl<'de> Deserialize<'de> for Problem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let received = Received::deserialize(deserializer)?;
        if received.code.len() > 80 {
            return Err(de::Error::custom("the code is too long"));
        }
        let problem = Self::received(&received.code, &received.detail, received.retryable);
        Ok(Self {
            cursor: received.cursor,
            oldest: received.oldest,
            ..problem
        })
    }
}

impl From<BatchError> for Problem {
    fn from(error: BatchError) -> Self {
        Self::new(Code::from(&error), error.to_string())
    }
}

impl From<BadStreamName> for Problem {
    fn from(error: BadStreamName) -> Self {
        Self::new(Code::BadStreamName, error.to_string())
    }
}

impl From<BadRegionName> for Problem {
    fn from(error: BadRegionName) -> Self {
        Self::new(Code::BadDefinition, error.to_string())
    }
}

impl From<BadDefinition> for Problem {
    fn from(error: BadDefinition) -> Self {
        let code = match error {
            BadDefinition::Name(_) | BadDefinition::Reserved(_) => Code::BadStreamName,
            BadDefinition::Fixed(_) => Code::FixedField,
            _ => Code::BadDefinition,
        };
        Self::new(code, error.to_string())
    }
}

impl From<BadVector> for Problem {
    fn from(error: BadVector) -> Self {
        let code = match error {
            BadVector::Malformed(_) => Code::BadCursor,
            BadVector::OtherCluster => Code::OtherCluster,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ProducerError> for Problem {
    fn from(error: ProducerError) -> Self {
        let code = match error {
            ProducerError::Fenced { .. } => Code::ProducerFenced,
            ProducerError::Gap { .. } => Code::ProducerGap,
        };
        Self::new(code, error.to_string())
    }
}

impl From<SequenceError> for Problem {
    fn from(error: SequenceError) -> Self {
        match error {
            SequenceError::Producer(error) => error.into(),
            SequenceError::TooLarge { .. } => {
                Self::new(Code::TransactionTooLarge, error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn codes_are_unique_ascending_and_read_back() {
        let texts: Vec<_> = Code::ALL.iter().map(|code| code.code()).collect();
        assert!(texts.is_sorted_by(|a, b| a < b), "{texts:?}");
        for &code in Code::ALL {
            assert_eq!(code.code().parse(), Ok(code));
            assert!((400..600).contains(&code.http_status()), "{code}");
        }
    }

    #[test]
    fn a_problem_is_rfc_9457_json() {
        let problem = Problem::new(Code::CursorTooOld, "cursor is older than what is kept")
            .with_oldest("Yabc");
        let json = serde_json::to_string_pretty(&problem).unwrap();
        expect![[r#"
            {
              "type": "urn:anabranch:error:AB1303",
              "title": "cursor older than what is kept",
              "status": 410,
              "detail": "cursor is older than what is kept",
              "code": "AB1303",
              "retryable": false,
              "oldest": "Yabc"
            }"#]]
        .assert_eq(&json);
        assert_eq!(serde_json::from_str::<Problem>(&json).unwrap(), problem);
    }

    #[test]
    fn a_code_of_a_newer_broker_is_kept_as_text() {
        let problem = Problem::received("AB2999", "the moon is full", true);
        assert_eq!(problem.code, Code::Unknown);
        assert_eq!(problem.to_string(), "AB0000 AB2999 the moon is full");
        assert!(problem.retryable);
    }
}
