//! Whether this broker may write, and who has to be made a member.

use anabranch_core::entry::{self, Around, Greeting, Todo, Unendable, Unfit};
use anabranch_core::id::{BrokerId, RegionName};
use anabranch_core::members::Standing;
use anabranch_protocol::error::Code;
use tokio::sync::watch;

use super::super::Error;
use super::super::membership::parked_error;
use super::{Regions, State};

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
    pub(in crate::node) fn todo(&self, patience_is_over: bool) -> Option<Todo> {
        if matches!(&*self.entry.borrow(), Entry::Parked(_)) {
            return None;
        }
        let mut state = self.state.lock();
        let State {
            mesh,
            named_met,
            links,
            forks,
            fetching,
            ..
        } = &mut *state;
        let around = Around {
            region: &self.region,
            named: self.expected.unwrap_or(0),
            met: named_met.values().copied().collect(),
            linked: links.values().map(|link| &link.greeting).collect(),
            has_forked: !forks.is_empty(),
            patience_is_over,
        };
        let todo = mesh.todo(&around, fetching);
        drop(state);
        if todo.unanswered {
            tracing::warn!(
                "not all members have said what they hold, and this broker writes nevertheless: it may have reported more than it holds"
            );
        }
        if todo.has_fetched {
            // It reports what it holds from now on.
            self.heard.send_modify(|count| *count += 1);
        }
        let entry = Entry::of(todo.entry, self.own.broker);
        self.entry.send_if_modified(|held| {
            let differs = *held != entry && !matches!(held, Entry::Parked(_));
            if differs {
                *held = entry;
            }
            differs
        });
        Some(todo)
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
        let is_linked = state.links.contains_key(&broker);
        let Err(unendable) = state.mesh.check_end(broker, is_linked) else {
            return Ok((broker, member.region.clone()));
        };
        refused(match unendable {
            Unendable::Unfounded => {
                "the cluster is being founded: not all that are named as peers were met".to_owned()
            }
            Unendable::Itself => {
                "a broker cannot park itself; ask one of another region".to_owned()
            }
            Unendable::Linked => format!(
                "broker {broker} in region {} is linked, and would lose what it has not shipped; stop it first",
                member.region
            ),
        })
    }
}

impl Entry {
    /// With what is said of it.
    fn of(entry: entry::Entry, own: BrokerId) -> Self {
        match entry {
            entry::Entry::Open => Self::Open,
            entry::Entry::Fetching => {
                Self::Waiting("what it has lost of its log is fetched from its peers")
            }
            entry::Entry::Joining => Self::Waiting("a member has to write that it is one"),
            entry::Entry::Founding => Self::Waiting("it is founding one"),
            entry::Entry::Waiting => Self::Waiting("it has not met its peers yet"),
            entry::Entry::Parked => Self::Parked(parked_error(own).detail),
        }
    }
}

impl State {
    /// Whether a link may be up, by what is known now: it may have changed since the hellos.
    pub(super) fn check_seat(&self, own: &Greeting, peer: &Greeting) -> Result<(), Error> {
        let Err(unfit) = self.mesh.check_link(own, peer) else {
            return Ok(());
        };
        Err(match unfit {
            Unfit::Parked => parked_error(peer.origin.broker),
            Unfit::BringsBack { parked, for_good } => Error::new(
                // Somebody else may have them, too, and ship them here first.
                match for_good {
                    true => Code::Parked,
                    false => Code::LinkRefused,
                },
                format!(
                    "it holds frames of broker {parked}, which was parked, that are not here; if it stays so, stop it, and let it join anew: anabranch rejoin --data-dir DIR"
                ),
            ),
            Unfit::Outdated => Error::new(
                Code::Joining,
                "the members have changed since the hello; dial again",
            ),
        })
    }
}
