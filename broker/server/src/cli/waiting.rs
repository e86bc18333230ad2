//! What a command waits for in other regions, said once when that takes long.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use anabranch_client::{AckLevel, Client, Regions};
use anabranch_core::quorum::Quorum;
use anabranch_protocol::http::Member;

use super::output;

/// How often it is looked. What lags at two looks in a row is more than a moment behind.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often at most while nothing lags.
const LOOK_SELDOM: Duration = Duration::from_secs(8);

/// Tells, once, which regions something waits for.
pub(super) struct Waiting {
    client: Client,
    what: What,
    said: bool,
}

enum What {
    /// Nothing that other regions have to do with.
    Nothing,
    /// The order of all records.
    Total,
    /// An acknowledgement.
    Ack(Quorum),
}

impl Waiting {
    /// For acknowledgements of this level.
    pub(super) fn for_ack(client: &Client, level: &AckLevel) -> Self {
        let what = match level {
            AckLevel::Regions(quorum) => What::Ack(quorum.clone()),
            AckLevel::Disk | AckLevel::Memory => What::Nothing,
        };
        Self::of(client, what)
    }

    /// For records in order `total`, or in a broker's own.
    pub(super) fn for_order(client: &Client, is_total: bool) -> Self {
        let what = match is_total {
            true => What::Total,
            false => What::Nothing,
        };
        Self::of(client, what)
    }

    fn of(client: &Client, what: What) -> Self {
        Self {
            client: client.clone(),
            said: matches!(what, What::Nothing),
            what,
        }
    }

    /// Does something. Where that takes long because other regions are behind, it is said.
    pub(super) async fn over<T>(&mut self, work: impl Future<Output = T>) -> T {
        if self.said {
            return work.await;
        }
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            reason = self.reason() => output::notice(&reason),
        }
        self.said = true;
        work.await
    }

    /// Waits until there is one.
    async fn reason(&self) -> String {
        let (mut before, mut pause) = (BTreeSet::new(), LOOK_EVERY);
        loop {
            tokio::time::sleep(pause).await;
            let Ok(regions) = self.client.regions().await else {
                continue;
            };
            let now = self.behind(&regions);
            let still: Vec<&str> = now.intersection(&before).map(String::as_str).collect();
            if !still.is_empty() {
                return self.sentence(&regions, &still);
            }
            pause = match now.is_empty() {
                true => (pause * 2).min(LOOK_SELDOM),
                false => LOOK_EVERY,
            };
            before = now;
        }
    }

    /// Brokers, by their ids, and peers, by their addresses, that it waits for.
    fn behind(&self, regions: &Regions) -> BTreeSet<String> {
        let is_wanted = |member: &&Member| match &self.what {
            What::Ack(Quorum::Named(names)) => {
                names.iter().any(|name| name.as_str() == member.region)
            }
            _ => true,
        };
        let lacking = regions.members.iter().filter(is_wanted);
        let lacking = lacking.filter(|member| member.lacks_frames > 0);
        let mut behind: BTreeSet<_> = lacking.map(|member| member.broker.clone()).collect();
        // Without them, nothing is known to have been applied by all.
        if matches!(self.what, What::Total) && regions.stable.is_empty() {
            let unmet = regions.peers.iter().filter(|peer| peer.broker.is_none());
            behind.extend(unmet.map(|peer| peer.address.clone()));
        }
        behind
    }

    fn sentence(&self, regions: &Regions, behind: &[&str]) -> String {
        let names: Vec<_> = behind.iter().map(|name| shown(regions, name)).collect();
        let names = names.join(", and for ");
        match &self.what {
            What::Ack(quorum) => format!(
                "waiting for {quorum}: {names}; it is on disk here, see `anabranch regions`"
            ),
            _ => format!(
                "order total waits for {names}; what is gone for good can be parked, see `anabranch regions`"
            ),
        }
    }
}

fn shown(regions: &Regions, name: &str) -> String {
    let Some(member) = regions.members.iter().find(|member| member.broker == name) else {
        return format!("the peer {name}, which was never met");
    };
    let linked = match regions.is_linked(&member.broker) {
        true => "",
        false => "is not linked and ",
    };
    format!(
        "region {}, which {linked}lacks {} frames",
        member.region, member.lacks_frames
    )
}
