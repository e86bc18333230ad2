//! What a run may end with.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) type Checked<T = ()> = Result<T, Violation>;

/// A violation unless `holds`.
pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked {
    match holds {
        true => Ok(()),
        false => Err(Violation(what())),
    }
}

/// What a run was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// A hash of everything that happened, in order.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Frames that were written.
    pub frames: u64,
    /// Writes that were acknowledged.
    pub acked: u64,
    /// Times that a broker took a frame of another over.
    pub taken: u64,
    /// Starts after a crash.
    pub restarts: u64,
    /// Links that came up.
    pub links: u64,
    /// Messages that were damaged on their way.
    pub damaged: u64,
    /// Reads of sessions that carry a token.
    pub reads: u64,
    /// Clusters that were founded under faults.
    pub founded: u64,
    /// Brokers that joined.
    pub joined: u64,
    /// Of these, those that have founded a cluster of their own instead.
    pub apart: u64,
    /// Brokers that were parked.
    pub parked: u64,
    /// Of these, those that were started again on their old disk.
    pub returned: u64,
    /// Links that were refused since one of the two was parked.
    pub refused: u64,
    /// Frames that only parked brokers hold.
    pub left_behind: u64,
    /// Virtual microseconds.
    pub lasted: u64,
}

/// Takes in what happens.
#[derive(Debug)]
pub(super) struct Trace(DefaultHasher);

impl Default for Trace {
    fn default() -> Self {
        // Always the same keys, unlike those of a map.
        Self(DefaultHasher::new())
    }
}

impl Trace {
    pub(super) fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.finish()
    }
}
