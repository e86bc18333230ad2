//! Why a link has ended.

use std::fmt;

use anabranch_protocol::error::Code;

use super::wire::ReadError;
use crate::node::Error;

/// Why a link ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// This broker is not ready, or refuses the other.
    Refused(Error),
    /// The other one said so.
    Bye(Code, String),
    /// The connection, or what came over it.
    Read(ReadError),
    /// The connection.
    Write(std::io::Error),
    /// Nothing came for too long.
    Silent,
    /// The other side says much and takes nothing.
    Clogged,
    /// Another link to the same broker takes its place.
    Replaced,
    /// The log cannot be read.
    Log(String),
    /// The other side broke the protocol.
    Protocol(&'static str),
}

impl Ended {
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(error) => Some(error.code),
            Self::Bye(code, _) => Some(*code),
            _ => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "{} {}", error.code.code(), error.detail),
            Self::Bye(code, why) => write!(f, "the peer says {} {why}", code.code()),
            Self::Read(error) => error.fmt(f),
            Self::Write(error) => write!(f, "the connection ended: {error}"),
            Self::Silent => f.write_str("the peer was silent for too long"),
            Self::Clogged => f.write_str("the peer took nothing for too long"),
            Self::Replaced => f.write_str("another link to the same broker took its place"),
            Self::Log(error) => write!(f, "the log cannot be shipped: {error}"),
            Self::Protocol(what) => write!(f, "the peer breaks the protocol: {what}"),
        }
    }
}

impl From<ReadError> for Ended {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}
