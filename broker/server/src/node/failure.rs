//! Why a broker ends by itself, and what notices a thread that panics.

use std::fmt;
use std::sync::Arc;

use anabranch_core::sequencer::AcceptError;
use tokio::sync::watch;

use super::Phase;

/// What has happened, and what to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    what: String,
    next: &'static str,
}

impl Failure {
    /// Log or tables cannot be written.
    pub(super) fn of_write(error: impl fmt::Display) -> Self {
        Self {
            what: format!("a write failed: {error}"),
            next: "free or repair the disk, then start it again",
        }
    }

    /// Peers hold frames of this broker that its log lacks, and the next start knows it.
    pub(super) fn of_lost_log(error: &AcceptError) -> Self {
        Self {
            what: format!("{error}: its data directory was rolled back"),
            next: "start it again as it is: it takes a new identity, and gets back what its peers hold before it writes",
        }
    }

    /// Peers hold other frames under the names of those that are here.
    pub(super) fn of_fork(error: &AcceptError) -> Self {
        Self {
            what: format!(
                "{error}: its data directory was copied or rolled back, and both were written to"
            ),
            next: "put the directory aside and start it with an empty one: it gets all that its peers hold; what it has written since is in the old one only",
        }
    }

    /// A thread or task has panicked, and what it held may be half done.
    fn of_panic(name: &str) -> Self {
        Self {
            what: format!("its {name} panicked, which is a mistake in the broker"),
            next: "start it again, and report what it printed",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.next)
    }
}

/// The broker has failed. What comes first stays: the rest follows from it.
pub(super) fn fail(phase: &watch::Sender<Phase>, failure: Failure) {
    phase.send_if_modified(|held| {
        let is_first = !matches!(held, Phase::Failed(_));
        if is_first {
            tracing::error!(%failure, "the broker stops");
            *held = Phase::Failed(failure);
        }
        is_first
    });
}

/// Held for its whole life by a thread or task that the broker cannot do without. Dropped by a panic,
/// it makes the broker fail as it does when its disk fails; dropped otherwise, it does nothing.
pub(crate) struct Alarm {
    phase: Arc<watch::Sender<Phase>>,
    name: &'static str,
}

impl Alarm {
    pub(super) fn new(phase: &Arc<watch::Sender<Phase>>, name: &'static str) -> Self {
        Self {
            phase: Arc::clone(phase),
            name,
        }
    }

    /// Runs a task under it. One that is aborted has not panicked.
    pub(crate) async fn over<T>(self, task: impl Future<Output = T>) -> T {
        let done = task.await;
        drop(self);
        done
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(&self.phase, Failure::of_panic(self.name));
        }
    }
}
