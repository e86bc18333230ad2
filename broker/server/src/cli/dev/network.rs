//! The links between all regions.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tokio::sync::watch;

use super::forward::{Condition, Forwarder};
use super::names::Between;

/// A link for each two regions.
#[derive(Debug)]
pub(super) struct Network {
    links: BTreeMap<(usize, usize), Link>,
}

/// A link between two regions: each of them dials the other.
#[derive(Debug)]
struct Link {
    condition: watch::Sender<Condition>,
    /// To the lower place, and to the higher one.
    ways: (Forwarder, Forwarder),
}

impl Network {
    /// Links all of so many regions.
    pub(super) async fn start(regions: usize) -> io::Result<Self> {
        let mut links = BTreeMap::new();
        for a in 0..regions {
            for b in a + 1..regions {
                let condition = watch::Sender::new(Condition::default());
                let to_a = Forwarder::start(condition.subscribe()).await?;
                let to_b = Forwarder::start(condition.subscribe()).await?;
                let ways = (to_a, to_b);
                links.insert((a, b), Link { condition, ways });
            }
        }
        Ok(Self { links })
    }

    /// What the broker of a region dials.
    pub(super) fn peers_of(&self, region: usize) -> Vec<SocketAddr> {
        let ways = self.links.iter().filter_map(|(pair, link)| match *pair {
            (a, _) if a == region => Some(link.ways.1.address()),
            (_, b) if b == region => Some(link.ways.0.address()),
            _ => None,
        });
        ways.collect()
    }

    /// Where the broker of a region listens for others, while it runs.
    pub(super) fn lead_to(&self, region: usize, address: Option<SocketAddr>) {
        for (pair, link) in &self.links {
            match *pair {
                (a, _) if a == region => link.ways.0.lead_to(address),
                (_, b) if b == region => link.ways.1.lead_to(address),
                _ => {}
            }
        }
    }

    /// Changes links, and returns which, with how they are now.
    pub(super) fn change(
        &self,
        between: Between,
        change: impl Fn(&mut Condition),
    ) -> Vec<((usize, usize), Condition)> {
        for (pair, link) in &self.links {
            if between.means(*pair) {
                link.condition.send_modify(&change);
            }
        }
        self.conditions(between)
    }

    /// How links are.
    pub(super) fn conditions(&self, between: Between) -> Vec<((usize, usize), Condition)> {
        let links = self.links.iter().filter(|(pair, _)| between.means(**pair));
        links
            .map(|(pair, link)| (*pair, *link.condition.borrow()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_region_dials_each_other_by_a_way_of_its_own() {
        let network = Network::start(4).await.unwrap();
        let mut ways = BTreeSet::new();
        for region in 0..4 {
            let peers = network.peers_of(region);
            assert_eq!(peers.len(), 3);
            ways.extend(peers);
        }
        assert_eq!(ways.len(), 12);
    }

    #[tokio::test]
    async fn a_change_reaches_the_links_that_are_meant() {
        let network = Network::start(3).await.unwrap();
        let delay = Duration::from_millis(5);
        network.change(Between::All, |link| link.delay = delay);
        let changed = network.change(Between::Region(2), |link| link.cut = true);
        let cut = Condition { cut: true, delay };
        let whole = Condition { cut: false, delay };
        assert_eq!(changed, [((0, 2), cut), ((1, 2), cut)]);
        network.change(Between::Pair(0, 2), |link| link.cut = false);
        let all = network.conditions(Between::All);
        assert_eq!(all, [((0, 1), whole), ((0, 2), whole), ((1, 2), cut)]);
    }
}
