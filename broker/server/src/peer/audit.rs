//! Comparing rows with the peer of a link.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::audit::Audit;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::ended::Ended;
use crate::node::{Error, Peer, Running};

/// What one side may say ahead. What is more is left out: a later round says it again.
pub(super) const AHEAD: usize = 64;

/// Tables that are told of in a round at most, with room for what is answered meanwhile. The next round
/// goes on behind them.
const A_ROUND: usize = AHEAD / 2;

/// How often it is looked whether both hold the same.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A round that took long is followed by so many times as long without one.
const REST: u32 = 20;

/// One side of the comparing.
pub(super) struct Auditing<'a> {
    pub(super) running: &'a Arc<Running>,
    pub(super) peer: Peer,
    pub(super) said: mpsc::Receiver<Audit>,
    pub(super) tell: mpsc::Sender<Audit>,
    pub(super) every: Duration,
}

impl Auditing<'_> {
    /// Runs until its link ends.
    pub(super) async fn run(mut self) -> Ended {
        match self.rounds().await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn rounds(&mut self) -> Result<Infallible, Ended> {
        let mut next = Instant::now() + self.every;
        let mut told = 0;
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    if !self.running.is_level_with(self.peer.broker) {
                        sleep(LOOK_EVERY).await;
                        continue;
                    }
                    let started = Instant::now();
                    let peer = self.peer.clone();
                    let audits = self.on_thread(move |running| running.audit_all(&peer)).await?;
                    // Also where nothing has changed: what was left out is nowhere else, and who has
                    // compared it already has not to read its rows again.
                    self.tell(of_round(&audits, told));
                    told += A_ROUND;
                    next = Instant::now() + self.every.max(started.elapsed() * REST);
                }
                Some(theirs) = self.said.recv() => {
                    let peer = self.peer.clone();
                    let answers = self.on_thread(move |running| running.compare(&peer, &theirs));
                    let answers = answers.await?;
                    self.tell(answers);
                }
            }
        }
    }

    /// Never waits: two sides that both did would take nothing from each other.
    fn tell(&self, audits: Vec<Audit>) {
        for audit in audits {
            let _ = self.tell.try_send(audit);
        }
    }

    /// Tables and log are read where that blocks nobody.
    async fn on_thread(
        &self,
        read: impl FnOnce(&Running) -> Result<Vec<Audit>, Error> + Send + 'static,
    ) -> Result<Vec<Audit>, Ended> {
        let running = Arc::clone(self.running);
        let done = tokio::task::spawn_blocking(move || read(&running)).await;
        match done {
            Ok(Ok(audits)) => Ok(audits),
            Ok(Err(error)) => Err(Ended::Log(error.detail)),
            Err(_) => Err(Ended::Log("comparing rows panicked".to_owned())),
        }
    }
}

/// What is told in a round, when so many have been told of in the rounds before.
fn of_round(audits: &[Audit], told: usize) -> Vec<Audit> {
    let from = told.checked_rem(audits.len()).unwrap_or(0);
    let on = audits.iter().cycle().skip(from);
    on.take(audits.len().min(A_ROUND)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anabranch_core::id::StreamId;

    use super::*;

    fn audits(tables: u64) -> Vec<Audit> {
        let audit = |table| Audit {
            stream: StreamId::new(table),
            from: bytes::Bytes::new(),
            to: None,
            vector: 0,
            sum: 0,
            rows: 0,
        };
        (0..tables).map(audit).collect()
    }

    #[test]
    fn however_many_tables_there_are_each_has_its_turn() {
        for tables in [0, 1, 31, 32, 33, 64, 1000] {
            let all = audits(tables);
            let rounds = all.len().div_ceil(A_ROUND).max(1);
            let told: Vec<_> = (0..rounds)
                .flat_map(|round| of_round(&all, 7 * A_ROUND + round * A_ROUND))
                .collect();
            let streams: BTreeSet<_> = told.iter().map(|audit| audit.stream).collect();
            assert_eq!(streams.len(), all.len());
            assert!(of_round(&all, 0).len() <= A_ROUND);
        }
    }
}
