//! Who belongs to the cluster: founding, joining, parking, removing.
//!
//! What is to be done is decided by [`anabranch_core::entry`]; here it is done.
//! What is written is a record of the stream of members, see [`anabranch_core::members`].

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::entry::Todo;
use anabranch_core::id::{BrokerId, PartitionId, RegionName};
use anabranch_core::members::{self, Standing};
use anabranch_core::sequencer::Publish;
use anabranch_core::stream::StreamDefinition;
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::Hello;
use tokio::time::Instant;

use super::publish::{Group, Wish};
use super::regions::Entry;
use super::{Error, Running, wall_clock_ms};

/// How often it is looked whether publishes have waited long enough for other regions.
const LOOK_AT_EXPECTED_EVERY: Duration = Duration::from_millis(100);

/// Keeps this broker a member, and makes members of those that are linked, until it is dropped.
pub(crate) async fn keep(running: Arc<Running>, patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut changed = running.regions.changed();
    loop {
        changed.mark_unchanged();
        let todo = running.regions.todo(Instant::now() >= deadline);
        let waits = todo.as_ref().is_some_and(Todo::waits);
        let admit = todo.map(|todo| todo.admit).unwrap_or_default();
        let mut written = true;
        for (broker, region) in admit {
            let admitted = running.write_member(broker, Standing::Active, &region);
            if let Err(error) = admitted.await {
                tracing::warn!(%broker, %region, %error, "a broker cannot be made a member yet");
                written = false;
            }
        }
        let again = match (written, waits) {
            (false, _) => Some(Instant::now() + Duration::from_secs(1)),
            (true, true) => Some(deadline),
            (true, false) => None,
        };
        let look_again = async {
            match again {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = look_again => {}
            changed = changed.changed() => if changed.is_err() { return },
        }
    }
}

/// Refuses publishes that have waited long enough for other regions, until it is dropped.
pub(crate) async fn keep_patience(running: Arc<Running>) {
    let mut look = tokio::time::interval(LOOK_AT_EXPECTED_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        running.regions.look_at_expected();
    }
}

impl Running {
    /// Whether this broker may write.
    ///
    /// # Errors
    /// While it is not a member, and once it was parked.
    pub(super) fn check_member(&self) -> Result<(), Error> {
        match &*self.regions.entry().borrow() {
            Entry::Open => Ok(()),
            Entry::Waiting(why) => Err(Error::new(
                Code::Joining,
                format!(
                    "this broker is joining its cluster: {why}; retry in a moment, or look at `anabranch regions`"
                ),
            )),
            Entry::Parked(why) => Err(Error::new(Code::Parked, why.clone())),
        }
    }

    async fn write_member(
        &self,
        broker: BrokerId,
        standing: Standing,
        region: &RegionName,
    ) -> Result<(), Error> {
        let batch = members::batch(broker, standing, region, wall_clock_ms())?;
        let publish = Publish {
            stream: StreamDefinition::members().id(),
            partition: PartitionId::new(0),
            batch,
        };
        let mut changed = self.regions.changed();
        self.publish_unchecked(Group::One(publish), Wish::default())
            .await?;
        // It is acknowledged a moment before what follows from it is seen.
        while self.regions.members().standing(broker) < Some(standing) {
            self.check_phase()?;
            if changed.changed().await.is_err() {
                break;
            }
        }
        tracing::info!(%broker, %region, standing = standing.as_str(), "member");
        Ok(())
    }

    /// Parks or removes a broker, given by its id or its region: nobody waits for it any more, and
    /// what it writes from now on is refused everywhere.
    ///
    /// # Errors
    /// When it is none that can be parked, or this broker may not write.
    pub(crate) async fn end_member(&self, name: &str, standing: Standing) -> Result<(), Error> {
        self.check_member()?;
        let (broker, region) = self.regions.member_to_end(name, standing)?;
        self.write_member(broker, standing, &region).await
    }
}

pub(super) fn parked_error(broker: BrokerId) -> Error {
    Error::new(
        Code::Parked,
        format!(
            "broker {broker} was parked, and nobody takes its frames any more; stop it, then let it join anew: anabranch rejoin --data-dir DIR"
        ),
    )
}

/// Why a peer's hello is not the one of a peer.
///
/// # Errors
/// When it is of another cluster, was parked, or its history contradicts ours.
pub(crate) fn check_hello(own: &Hello, hello: &Hello) -> Result<(), Error> {
    if hello.cluster != own.cluster {
        return Err(Error::new(
            Code::OtherCluster,
            "the peer belongs to another cluster; give both the same --cluster",
        ));
    }
    let (said, theirs) = (own.greeting(), hello.greeting());
    if said.knows_parked(&theirs) {
        return Err(parked_error(hello.origin.broker));
    }
    if let Some(origin) = hello.fork(&own.heads) {
        return Err(Error::new(
            Code::Forked,
            format!(
                "the two brokers hold different histories of {origin}: a data directory was copied or rolled back; restart the broker that was, with an empty directory"
            ),
        ));
    }
    if said.is_founded_apart(&theirs) {
        return Err(Error::new(
            Code::OtherFounding,
            "both brokers have written before they met, and one has dropped by now what the other's writes would need; start one of them with an empty data directory",
        ));
    }
    Ok(())
}
