//! Why bytes are not a message.

use anabranch_core::limits::MAX_BATCH_RECORDS;

use super::{Codec, FrameKind};
use crate::error::{Code, Problem};
use crate::msgpack::Fault;
use crate::ws::{ErrorMessage, SubscriptionId};

/// Why bytes are not a message, and what they were about as far as that could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DecodeError {
    /// What is wrong.
    pub reason: Reason,
    /// The `id` of the message.
    pub id: Option<u64>,
    /// The `subscription` of the message.
    pub subscription: Option<SubscriptionId>,
}

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Text where binary is due, or the reverse.
    #[error("a {} frame came, but messages of {} travel in {} frames", .kind.as_str(), .codec.subprotocol(), .codec.frame_kind().as_str())]
    FrameKind {
        /// The subprotocol of the connection.
        codec: Codec,
        /// What came.
        kind: FrameKind,
    },
    /// A length reaches beyond the end.
    #[error("the message ends early, or a length in it reaches beyond its end")]
    Ends,
    /// Something follows the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Not JSON, or a field of the wrong type.
    #[error("the message cannot be read: {0}")]
    Json(String),
    /// No `type`.
    #[error("the message has no type")]
    NoType,
    /// No such `type`.
    #[error("message type {0:?} is unknown")]
    UnknownType(String),
    /// No such field.
    #[error("message field {0} is unknown")]
    UnknownField(String),
    /// The field exists, but not in this type of message.
    #[error("a {kind} message has no field {field}")]
    Misplaced {
        /// Type of the message.
        kind: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field is missing.
    #[error("a {kind} message needs the field {field}")]
    Missing {
        /// Type of the message.
        kind: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field came twice.
    #[error("message field {0} comes twice")]
    Twice(&'static str),
    /// A field has the wrong type.
    #[error("message field {field} must be {expected}")]
    Type {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("message field {field} must be {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// More records than fit a batch.
    #[error("more than {MAX_BATCH_RECORDS} records in one message; publish fewer at once")]
    TooManyRecords,
}

impl Reason {
    /// The code that it has on the wire.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::FrameKind { .. } => Code::WrongFrameKind,
            Self::UnknownType(_) | Self::UnknownField(_) | Self::Misplaced { .. } => {
                Code::UnknownField
            }
            Self::Value { .. } => Code::BadParameter,
            Self::TooManyRecords => Code::BatchTooLarge,
            _ => Code::MalformedMessage,
        }
    }
}

impl From<Reason> for DecodeError {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            id: None,
            subscription: None,
        }
    }
}

impl From<DecodeError> for ErrorMessage {
    fn from(error: DecodeError) -> Self {
        Self {
            id: error.id,
            subscription: error.subscription,
            problem: Problem::new(error.reason.code(), error.reason.to_string()),
        }
    }
}

/// Says at which field a fault is.
pub(super) trait At<T> {
    fn at(self, field: &'static str) -> Result<T, Reason>;
}

impl<T> At<T> for Result<T, Fault> {
    fn at(self, field: &'static str) -> Result<T, Reason> {
        self.map_err(|fault| match fault {
            Fault::Ends => Reason::Ends,
            Fault::Expected(expected) => Reason::Type { field, expected },
        })
    }
}

/// A name from a message, cut to what an error may show.
pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(80)]);
    format!("{text:?}")
}
