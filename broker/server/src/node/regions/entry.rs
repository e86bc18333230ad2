//! Whether this broker may write, and who has to be made a member.

use anabranch_core::id::{BrokerId, RegionName};
use anabranch_core::members::Standing;
use anabranch_protocol::error::Code;
use anabranch_protocol::peer::Hello;
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

    /// Somebody was met where a peer was said to be.
    pub(crate) fn note_met(&self, address: String, broker: BrokerId) {
        self.state.lock().named_met.insert(address, broker);
        self.note_change();
    }

    /// What is to be done so that this broker, and those that are linked, become members. Opens the
    /// entry once nothing speaks against it.
    pub(in crate::node) fn todo(&self, patience_is_over: bool) -> Todo {
        if matches!(&*self.entry.borrow(), Entry::Parked(_)) {
            return Todo::default();
        }
        let mut state = self.state.lock();
        let named = self.expected.unwrap_or(0);
        let all_met = state.named_met.len() + state.ended_unmet() >= named;
        if all_met {
            state.mesh.know_all();
        }
        if state.fetching {
            let has_met_all = named > 0 && all_met;
            if state.stops_fetching(has_met_all, patience_is_over) {
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
                if state.mesh.has_to_tell() {
                    todo.admit.push((self.own.broker, self.region.clone()));
                }
                Entry::Open
            }
            Some(Standing::Parked | Standing::Removed) => {
                Entry::Parked(parked_error(self.own.broker).detail)
            }
            None if state.links.values().any(Link::is_of_founded) => {
                Entry::Waiting("a member has to write that it is one")
            }
            None if all_met || patience_is_over => {
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
        if !state.mesh.is_founded() {
            return refused(
                "the cluster is being founded: not all that are named as peers were met".to_owned(),
            );
        }
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

    /// Whether its peer can make others members.
    fn is_of_founded(&self) -> bool {
        self.is_of_member() && self.hello.complete
    }
}

impl State {
    /// Parked brokers that were not met since the start: an address at which nobody answers is theirs.
    fn ended_unmet(&self) -> usize {
        let ended = (self.mesh.members().iter()).filter(|(_, member)| member.has_ended());
        let is_met = |broker: BrokerId| self.named_met.values().any(|held| *held == broker);
        ended.filter(|(broker, _)| !is_met(*broker)).count()
    }

    /// Whether a link may be up, by what is known now: it may have changed since the hellos.
    pub(super) fn check_seat(&self, own: &Hello, hello: &Hello) -> Result<(), Error> {
        let peer = hello.origin.broker;
        let members = self.mesh.members();
        if members.has_ended(peer) {
            return Err(parked_error(peer));
        }
        if let Some(parked) = self.mesh.brings_back(peer, &hello.vector()) {
            // Somebody else may have them, too, and ship them here first.
            let code = match self.mesh.has_left(parked) {
                true => Code::Parked,
                false => Code::LinkRefused,
            };
            return Err(Error::new(
                code,
                format!(
                    "it holds frames of broker {parked}, which was parked, that are not here; if it stays so, stop it, and let it join anew: anabranch rejoin --data-dir DIR"
                ),
            ));
        }
        // Whoever has become a member since its hello has to say so.
        match own.members == members.standings() && own.complete == self.mesh.may_have_dropped() {
            true => Ok(()),
            false => Err(Error::new(
                Code::Joining,
                "the members have changed since the hello; dial again",
            )),
        }
    }

    /// Linked brokers that are no members, and of whom no frame that is on its way says that they
    /// are.
    fn strangers(&self) -> Vec<(BrokerId, RegionName)> {
        if !self.mesh.is_founded() {
            // Who joins learns from the record that makes it a member who the others are.
            return Vec::new();
        }
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

    /// Whether from now on nothing is fetched any more that this broker may have lost. All members are
    /// waited for, or, by one that is new, those that are named; and none for longer than the patience
    /// lasts. Of a history that has forked nothing more comes.
    fn stops_fetching(&mut self, has_met_all: bool, patience_is_over: bool) -> bool {
        let holds_linked = self.holds_what_peers_have() || !self.forks.is_empty();
        let has_all = match self.mesh.recalls_itself() {
            true => self.mesh.is_recalled() && holds_linked,
            false => holds_linked && has_met_all,
        };
        self.fetching = !(has_all || patience_is_over && holds_linked);
        if self.fetching {
            return false;
        }
        if !has_all && self.mesh.recalls_itself() {
            tracing::warn!(
                "not all members have said what they hold, and this broker writes nevertheless: it may have reported more than it holds"
            );
        }
        self.mesh.end_recall();
        true
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
