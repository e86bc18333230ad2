//! Who belongs to the cluster: founding, joining, parking, removing.
//!
//! | this broker | does |
//! |---|---|
//! | is no member, and linked to one whose cluster is founded | waits until that one has written that it is |
//! | is no member, and all its peers were met and are none either, or do not answer for a while | founds: writes that it is one |
//! | is a member, and so are all that were named or met | writes something that follows all their records, once: then its cluster is founded |
//! | is a member of a cluster that is founded, and linked to one that is none | writes that it is |
//! | was parked | writes nothing any more |
//!
//! What is written is a record of the stream of members, see [`anabranch_core::members`].

use std::sync::Arc;
use std::time::Duration;

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

/// What is to be done for the members' sake.
#[derive(Debug, Default)]
pub(super) struct Todo {
    /// Brokers that become members, with their regions.
    pub(super) admit: Vec<(BrokerId, RegionName)>,
    /// This broker has not heard of all its peers, and would rather wait.
    pub(super) waits: bool,
}

/// Keeps this broker a member, and makes members of those that are linked, until it is dropped.
pub(crate) async fn keep(running: Arc<Running>, patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut changed = running.regions.changed();
    loop {
        changed.mark_unchanged();
        let todo = running.regions.todo(Instant::now() >= deadline);
        let mut written = true;
        for (broker, region) in todo.admit {
            let admitted = running.write_member(broker, Standing::Active, &region);
            if let Err(error) = admitted.await {
                tracing::warn!(%broker, %region, %error, "a broker cannot be made a member yet");
                written = false;
            }
        }
        let again = match (written, todo.waits) {
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
    let peer = hello.origin.broker;
    if own
        .members
        .get(&peer)
        .is_some_and(|held| *held > Standing::Active)
    {
        return Err(parked_error(peer));
    }
    if let Some(origin) = hello.fork(&own.heads) {
        return Err(Error::new(
            Code::Forked,
            format!(
                "the two brokers hold different histories of {origin}: a data directory was copied or rolled back; restart the broker that was, with an empty directory"
            ),
        ));
    }
    if (own.complete || hello.complete)
        && has_written(own)
        && has_written(hello)
        && !is_related(own, hello)
    {
        return Err(Error::new(
            Code::OtherFounding,
            "both brokers have written before they met, and one has dropped by now what the other's writes would need; start one of them with an empty data directory",
        ));
    }
    Ok(())
}

/// Whether a broker has written, or may write.
fn has_written(hello: &Hello) -> bool {
    let own = hello.origin.broker;
    let mut origins = hello.heads.keys();
    hello.members.contains_key(&own) || origins.any(|origin| origin.broker == own)
}

/// Whether the log of one of them will tell the other who belongs to the cluster.
fn is_related(one: &Hello, other: &Hello) -> bool {
    one.members
        .keys()
        .any(|broker| other.members.contains_key(broker))
}
