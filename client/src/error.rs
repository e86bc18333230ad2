//! What can go wrong, and who can do something about it.

use std::time::Duration;

use anabranch_core::batch::BatchError;
use anabranch_protocol::error::{Code, Problem};
use anabranch_protocol::record::TooLarge;

/// Why something did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker refused. The code is the same on every surface.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// The address is not one.
    #[error("{0:?} is not an address of a broker; use http://HOST:PORT")]
    Address(String),
    /// No connection could be made.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// To what.
        address: String,
        /// The system's words.
        reason: String,
    },
    /// The connection ended.
    #[error("the connection to the broker ended: {0}")]
    Disconnected(String),
    /// It took too long.
    #[error("{what} took longer than {after:?}")]
    TimedOut {
        /// What.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The other side does not speak as agreed.
    #[error("the broker's answer cannot be understood: {0}")]
    Protocol(String),
    /// A record is over a limit.
    #[error(transparent)]
    Record(#[from] TooLarge),
    /// A record does not fit a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The publisher or subscription has ended.
    #[error("it is closed")]
    Closed,
}

impl Error {
    /// The broker's code, when it was the broker that refused.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later, unchanged.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(problem) => problem.retryable,
            Self::Connect { .. } | Self::Disconnected(_) | Self::TimedOut { .. } => true,
            _ => false,
        }
    }
}
