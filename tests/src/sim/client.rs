//! Clients that carry a token from broker to broker.

use std::collections::BTreeMap;

use anabranch_core::frame::Commit;
use anabranch_core::lww::Stamp;
use anabranch_core::vector::{Token, VersionVector};

use super::broker::cluster;
use super::table::{Key, Table, each_write};
use super::truth::{Fact, name_of};
use super::verdict::{Checked, ensure};

/// One that reads and writes, wherever it happens to be connected.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// Everything it has seen and written.
    seen: VersionVector,
    /// The write of each key that it has seen or made last.
    marks: BTreeMap<Key, Stamp>,
    /// The broker of which it waits for an acknowledgement.
    pub(super) waits: Option<usize>,
}

impl Client {
    /// What it has seen, as the text that it carries.
    fn token(&self) -> VersionVector {
        let text = Token {
            seen: self.seen.clone(),
        }
        .encode(cluster());
        let token = Token::decode(&text, cluster());
        token.expect("a broker has made it").seen
    }

    /// Whether a broker has what a read waits for.
    pub(super) fn may_read(&self, table: &Table) -> bool {
        table.folded().covers(&self.token())
    }

    /// Reads what it has read or written before, or something newer.
    pub(super) fn read(&mut self, table: &Table, key: &[u8]) -> Checked {
        table.check(key)?;
        let found = table.oracle().winner(key).map(|(stamp, _)| *stamp);
        let mark = self.marks.get(key).copied();
        ensure(found >= mark, || {
            format!(
                "a client reads {found:?} of {} after {mark:?}",
                String::from_utf8_lossy(key)
            )
        })?;
        if let Some(found) = found {
            self.marks.insert(key.to_vec(), found);
        }
        self.seen.merge(table.folded());
        Ok(())
    }

    /// Its write is durable.
    pub(super) fn acked(&mut self, commit: &Commit, fact: &Fact) -> Checked {
        self.waits = None;
        let name = name_of(commit);
        ensure(fact.known.covers(&self.seen), || {
            format!("{name:?} does not follow what its writer had read")
        })?;
        self.seen.advance(name.0, name.1);
        each_write(commit, |key, (stamp, _)| {
            let mark = self.marks.entry(key.to_vec()).or_insert(stamp);
            *mark = stamp.max(*mark);
        });
        Ok(())
    }
}
