//! Comparing rows with the peer of a link.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anabranch_core::audit::Audit;
use anabranch_protocol::peer::PeerMessage;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::link::{Ended, Told};
use crate::node::{Error, Peer, Running};

/// What a peer may ask ahead. What is more is left out: the next round says it again.
pub(super) const AHEAD: usize = 64;

/// How often it is looked whether both hold the same.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A round that took long is followed by so many times as long without one.
const REST: u32 = 20;

/// One side of the comparing.
pub(super) struct Auditing<'a> {
    pub(super) running: &'a Arc<Running>,
    pub(super) peer: Peer,
    pub(super) said: mpsc::Receiver<Audit>,
    pub(super) tell: mpsc::Sender<Told>,
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
        let mut last: Option<Vec<Audit>> = None;
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
                    // Where nothing has changed since, the other has compared it already.
                    if last.as_ref() != Some(&audits) {
                        self.tell(audits.clone()).await;
                        last = Some(audits);
                    }
                    next = Instant::now() + self.every.max(started.elapsed() * REST);
                }
                Some(theirs) = self.said.recv() => {
                    let peer = self.peer.clone();
                    let answers = self.on_thread(move |running| running.compare(&peer, &theirs));
                    let answers = answers.await?;
                    self.tell(answers).await;
                }
            }
        }
    }

    async fn tell(&self, audits: Vec<Audit>) {
        for audit in audits {
            // The writing half ends with the link.
            let _ = self.tell.send(Told::Say(PeerMessage::Audit(audit))).await;
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
