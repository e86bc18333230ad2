//! What is new to the other side of a link.

use std::collections::BTreeMap;

use anabranch_core::id::{BrokerId, Origin};
use anabranch_core::mesh::News;
use anabranch_core::recall::Recall;
use anabranch_core::stability::Report;
use anabranch_core::vector::VersionVector;

use super::PeerMessage;

/// What the other side of a link was told last.
#[derive(Clone, Debug, Default)]
pub struct Told {
    reports: BTreeMap<BrokerId, Report>,
    recalls: BTreeMap<Origin, Recall>,
    held: VersionVector,
}

impl Told {
    /// What of the news is to be said, from now on as if it had been.
    pub fn say(&mut self, news: News) -> Vec<PeerMessage> {
        let mut said = Vec::new();
        let mut fresh = news.reports;
        fresh.retain(|report| self.reports.get(&report.broker) != Some(report));
        if !fresh.is_empty() {
            let told = fresh.iter().map(|report| (report.broker, report.clone()));
            self.reports.extend(told);
            said.push(PeerMessage::Reports(fresh));
        }
        if let Some(held) = news.held.filter(|held| *held != self.held) {
            self.held.clone_from(&held);
            said.push(PeerMessage::Held(held));
        }
        let mut recalls = news.recalls;
        recalls.retain(|recall| self.recalls.get(&recall.origin) != Some(recall));
        if !recalls.is_empty() {
            let told = recalls.iter().map(|recall| (recall.origin, recall.clone()));
            self.recalls.extend(told);
            said.push(PeerMessage::Recalls(recalls));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anabranch_core::clock::HybridTimestamp;
    use anabranch_core::id::{Epoch, Sequence};

    fn report(broker: u64, promise: u64) -> Report {
        Report {
            broker: BrokerId::new(broker),
            applied: VersionVector::EMPTY,
            promise: HybridTimestamp::new(promise),
        }
    }

    #[test]
    fn nothing_is_said_twice_and_what_was_left_out_is_said_later() {
        let mut told = Told::default();
        let news = |reports: &[Report]| News {
            reports: reports.to_vec(),
            ..News::default()
        };
        let (one, two) = (report(1, 1), report(2, 1));
        let said = told.say(news(std::slice::from_ref(&one)));
        assert_eq!(said, [PeerMessage::Reports(vec![one.clone()])]);
        let said = told.say(news(&[one.clone(), two.clone()]));
        assert_eq!(said, [PeerMessage::Reports(vec![two])]);
        assert_eq!(told.say(news(&[one])), []);
        let newer = report(2, 9);
        let said = told.say(news(std::slice::from_ref(&newer)));
        assert_eq!(said, [PeerMessage::Reports(vec![newer])]);
        let origin = Origin {
            broker: BrokerId::new(1),
            epoch: Epoch::new(1),
        };
        let held = || News {
            held: Some([(origin, Sequence::new(4))].into_iter().collect()),
            ..News::default()
        };
        assert_eq!(told.say(held()).len(), 1);
        assert_eq!(told.say(held()), []);
    }
}
