//! Whether this broker may write, and who has to be made a member.

use anabranch_core::id::{BrokerId, RegionName};
use anabranch_core::members::Standing;
use anabranch_protocol::error::Code;
use tokio::sync::watch;

use super::super::Error;
use super::super::membership::{Todo, parked_error};
use super::{Link, Regions, State};

/// Whether this broker may write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// It may.
    Open,
    /// Not yet, and why.
    Waiting(&'static str),
    /// Never again: others do not take its frames any more.
    Parked(String),
}

impl Regions {
    /// Whether this broker may write, and from when on.
    pub(in crate::node) fn entry(&self) -> &watch::Sender<Entry> {
        &self.entry
    }

    /// Raised when links or members change.
    pub(in crate::node) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A peer says that this broker was parked.
    pub(crate) fn note_parked(&self, why: String) {
        tracing::error!(%why, "this broker was parked");
        self.entry.send_replace(Entry::Parked(why));
    }

    /// What is to be done so that this broker, and those that are linked, become members. Opens the
    /// entry once nothing speaks against it.
    pub(in crate::node) fn todo(&self, patience_is_over: bool) -> Todo {
        let mut state = self.state.lock();
        let all_linked = self.expected.is_none_or(|peers| state.links.len() >= peers);
        if state.fetching {
            let has_all = state.holds_what_peers_have();
            state.fetching = !(patience_is_over || (all_linked && has_all));
            if !state.fetching {
                // It reports what it holds from now on.
                self.heard.send_modify(|count| *count += 1);
            }
        }
        let standing = state.mesh.members().standing(self.own.broker);
        let mut todo = Todo::default();
        let entry = match standing {
            Some(Standing::Active) if state.fetching => {
                todo.waits = true;
                Entry::Waiting("what it has lost of its log is fetched from its peers")
            }
            Some(Standing::Active) => {
                todo.admit = state.strangers();
                Entry::Open
            }
            Some(Standing::Parked | Standing::Removed) => {
                Entry::Parked(parked_error(self.own.broker).detail)
            }
            None if state.links.values().any(Link::is_of_member) => {
                Entry::Waiting("a member has to write that it is one")
            }
            None if all_linked || patience_is_over => {
                todo.admit.push((self.own.broker, self.region.clone()));
                Entry::Waiting("it is founding one")
            }
            None => {
                todo.waits = true;
                Entry::Waiting("it has not met its peers yet")
            }
        };
        drop(state);
        self.entry.send_if_modified(|held| {
            let differs = *held != entry && !matches!(held, Entry::Parked(_));
            if differs {
                *held = entry;
            }
            differs
        });
        todo
    }

    /// The broker of this id or region, if it can be parked.
    pub(in crate::node) fn member_to_end(
        &self,
        name: &str,
        standing: Standing,
    ) -> Result<(BrokerId, RegionName), Error> {
        let state = self.state.lock();
        let members = state.mesh.members().iter();
        let named: Vec<_> = members
            .filter(|(broker, member)| {
                let is_named = broker.to_string() == name || member.region.as_str() == name;
                is_named && member.standing < standing
            })
            .collect();
        let refused = |what: String| Err(Error::new(Code::NotPossible, what));
        let (broker, member) = match named.as_slice() {
            [one] => *one,
            [] => {
                return refused(format!(
                    "no member that is not {} yet has the id or region {name:?}; see `anabranch regions`",
                    standing.as_str()
                ));
            }
            several => {
                return refused(format!(
                    "{} members stand in region {name:?}; give the id of one, see `anabranch regions`",
                    several.len()
                ));
            }
        };
        if broker == self.own.broker {
            return refused("a broker cannot park itself; ask one of another region".to_owned());
        }
        if state.links.contains_key(&broker) {
            return refused(format!(
                "broker {broker} in region {} is linked, and would lose what it has not shipped; stop it first",
                member.region
            ));
        }
        Ok((broker, member.region.clone()))
    }
}

impl Link {
    fn is_of_member(&self) -> bool {
        let members = &self.hello.members;
        members.get(&self.hello.origin.broker) == Some(&Standing::Active)
    }
}

impl State {
    /// Linked brokers that are no members, and of whom no frame that is on its way says that they
    /// are.
    fn strangers(&self) -> Vec<(BrokerId, RegionName)> {
        let members = self.mesh.members();
        let is_stranger = |(peer, link): &(&BrokerId, &Link)| {
            let told = link.is_of_member()
                && link
                    .hello
                    .members
                    .keys()
                    .any(|&held| members.get(held).is_some());
            members.get(**peer).is_none() && !told
        };
        let strangers = self.links.iter().filter(is_stranger);
        strangers
            .map(|(&peer, link)| (peer, link.hello.region.clone()))
            .collect()
    }

    /// Whether everything is here that linked peers had when they were linked. Not only this broker's
    /// own frames: it may have reported that it held the others, and what it writes has to follow all
    /// that it has reported.
    fn holds_what_peers_have(&self) -> bool {
        let held = self.mesh.applied();
        let hellos = self.links.values().map(|link| link.hello.vector());
        hellos.into_iter().all(|theirs| held.covers(&theirs))
    }
}
