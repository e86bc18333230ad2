//! What can go wrong with tables.

use std::path::{Path, PathBuf};

use anabranch_core::batch::BatchError;
use anabranch_core::id::{Position, StreamId};

/// Why tables cannot be opened, read or written. All of them are internal: no request causes one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TablesError {
    /// What is on the disk contradicts itself or is incomplete. Nothing is lost by it:
    /// [`destroy`](super::destroy) the directory and apply the log from its start.
    #[error(
        "the tables in {dir} are damaged: {what}; delete that directory and start again, they are rebuilt from the log"
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// The store below failed: the disk is full, a file cannot be opened …
    #[error("the tables in {dir} cannot be {doing}: {what}")]
    Store {
        /// The directory.
        dir: PathBuf,
        /// Read or written.
        doing: &'static str,
        /// As the store says it.
        what: String,
    },
    /// The thread that writes them has panicked.
    #[error("the thread that writes the tables panicked")]
    Panicked,
    /// What was folded before has to be folded again, and cannot be read.
    #[error("the log cannot be read again: {what}")]
    History {
        /// What is wrong.
        what: String,
    },
    /// A batch in the log does not read.
    #[error("entry {position} of the log cannot be folded into stream {stream}: {source}")]
    Batch {
        /// Of the entry.
        position: Position,
        /// Of the batch.
        stream: StreamId,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A row of the system stream is not the definition of a stream.
    #[error("the system stream defines {name:?} in a way that does not read: {what}")]
    Definition {
        /// The row's key.
        name: String,
        /// What is wrong with its value.
        what: String,
    },
}

impl TablesError {
    pub(super) fn damaged(dir: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            dir: dir.to_owned(),
            what: what.into(),
        }
    }

    pub(super) fn io(dir: &Path, doing: &'static str, error: &std::io::Error) -> Self {
        Self::Store {
            dir: dir.to_owned(),
            doing,
            what: error.to_string(),
        }
    }
}
