//! Whether brokers that hold the same frames have the same rows, see [`anabranch_core::audit`].

use std::collections::BTreeMap;
use std::time::Duration;

use anabranch_core::audit::{Audit, Compared, Rows, compare};
use anabranch_core::id::{BrokerId, RegionName, StreamId};
use anabranch_core::stream::{MergeMode, StreamDefinition};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use twox::xxh3::xxh3_64;

use super::{Error, Peer, Running, error};

/// Differences that are remembered. More say nothing that these do not.
const MOST_FOUND: usize = 100;

/// What comparing has led to.
#[derive(Default)]
pub(crate) struct Audits {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the rows of each table came to when they were last looked at.
    own: BTreeMap<StreamId, Audit>,
    /// When the whole of a table was last found equal to that of a peer.
    equal: BTreeMap<(BrokerId, StreamId), Instant>,
    found: BTreeMap<(StreamId, Option<Bytes>), String>,
}

impl Audits {
    /// How many tables of a peer were found equal to those here, and how long ago the one was that was
    /// compared longest ago.
    pub(crate) fn with(&self, peer: BrokerId) -> (usize, Option<Duration>) {
        let state = self.state.lock();
        let times = state.equal.iter().filter(|((of, _), _)| *of == peer);
        let times: Vec<Instant> = times.map(|(_, &at)| at).collect();
        (times.len(), times.iter().min().map(Instant::elapsed))
    }

    /// What the rows of each table came to when they were last looked at.
    pub(crate) fn own(&self) -> Vec<Audit> {
        self.state.lock().own.values().cloned().collect()
    }

    /// Whether the whole of a table came to just that in this broker's last round. What is asked while
    /// nothing is written is answered by that; its own next round looks at the rows again.
    fn has_said(&self, theirs: &Audit) -> bool {
        self.state.lock().own.get(&theirs.stream) == Some(theirs)
    }

    /// A peer's rows are those here. If they are the whole table, that is remembered.
    fn note_equal(&self, peer: &Peer, theirs: &Audit) {
        if !theirs.is_whole() {
            return;
        }
        let mut state = self.state.lock();
        let compared = (peer.broker, theirs.stream);
        state.equal.insert(compared, Instant::now());
        state
            .found
            .retain(|(stream, _), _| *stream != theirs.stream);
    }

    /// Rows that differ though the frames are the same.
    pub(crate) fn found(&self) -> Vec<String> {
        self.state.lock().found.values().cloned().collect()
    }
}

impl Running {
    /// Whether a peer has said that it holds what is held here, no more and no less. Only then is it
    /// of use to compare.
    pub(crate) fn is_level_with(&self, peer: BrokerId) -> bool {
        self.regions.is_level_with(peer)
    }

    /// What the rows of every table come to that both may hold. Blocks.
    ///
    /// # Errors
    /// When tables or log cannot be read.
    pub(crate) fn audit_all(&self, peer: &Peer) -> Result<Vec<Audit>, Error> {
        let streams = self.tables.streams();
        let tables = streams.iter().filter(|table| self.is_compared(table, peer));
        let audits: Result<Vec<Audit>, Error> = tables
            .map(|definition| self.table(definition.id()).audit(&Bytes::new(), None))
            .collect();
        let audits = audits?;
        let own = audits.iter().map(|audit| (audit.stream, audit.clone()));
        let mut state = self.audits.state.lock();
        // Another peer may hold other tables.
        state.own.retain(|stream, _| streams.get(*stream).is_some());
        state.own.extend(own);
        Ok(audits)
    }

    fn is_compared(&self, table: &StreamDefinition, peer: &Peer) -> bool {
        let may_hold = |region: &RegionName| {
            let regions = table.regions.as_ref();
            regions.is_none_or(|regions| regions.contains(region))
        };
        // An append table is the log itself, whose chain says more than a digest.
        let has_rows = table.merge == MergeMode::Lww;
        has_rows && may_hold(&peer.region) && may_hold(self.regions.region())
    }

    /// Compares what a peer says of its rows. Gives what to tell it. Blocks.
    ///
    /// # Errors
    /// When tables or log cannot be read.
    pub(crate) fn compare(&self, peer: &Peer, theirs: &Audit) -> Result<Vec<Audit>, Error> {
        let streams = self.tables.streams();
        let Some(table) = streams.get(theirs.stream) else {
            return Ok(Vec::new());
        };
        if !self.is_compared(table, peer) {
            return Ok(Vec::new());
        }
        if self.audits.has_said(theirs) {
            self.audits.note_equal(peer, theirs);
            return Ok(Vec::new());
        }
        Ok(match compare(&self.table(theirs.stream), theirs)? {
            Compared::OtherFrames => Vec::new(),
            Compared::Equal => {
                self.audits.note_equal(peer, theirs);
                Vec::new()
            }
            Compared::Tell(audits) => audits,
            Compared::Differs(key, tell) => {
                self.note_difference(peer, table, key);
                tell.into_iter().collect()
            }
        })
    }

    fn note_difference(&self, peer: &Peer, table: &StreamDefinition, key: Option<Bytes>) {
        let name = &table.name;
        let what = match &key {
            Some(key) => format!("row {:?}", String::from_utf8_lossy(key)),
            None => "a row that is missing here".to_owned(),
        };
        let what = format!(
            "{what} of table {name} is another one in region {} (broker {}), though both hold the same frames; stop the broker that is wrong and delete its folder `tables`: they are made anew from the log",
            peer.region, peer.broker
        );
        let mut state = self.audits.state.lock();
        let place = (table.id(), key);
        if state.found.len() < MOST_FOUND && !state.found.contains_key(&place) {
            // Without the key: a log may go where the table may not.
            tracing::error!(stream = %name, peer = %peer.broker, "a row differs between brokers that hold the same frames; see `anabranch regions`");
            metrics::counter!("anabranch_differing_rows_total").increment(1);
            state.found.insert(place, what);
        }
    }

    fn table(&self, stream: StreamId) -> Table<'_> {
        Table {
            running: self,
            stream,
        }
    }
}

/// The rows of one table.
struct Table<'a> {
    running: &'a Running,
    stream: StreamId,
}

impl Rows for Table<'_> {
    type Error = Error;

    fn audit(&self, from: &Bytes, to: Option<&Bytes>) -> Result<Audit, Error> {
        let tables = &self.running.tables;
        let digest = tables.digest(self.stream, from, to.map(AsRef::as_ref));
        let digest = digest.map_err(|error| error::tables(&error))?;
        let mut vector = Vec::new();
        self.running
            .vector_before(digest.applied)?
            .encode(&mut vector);
        Ok(Audit {
            stream: self.stream,
            from: from.clone(),
            to: to.cloned(),
            vector: xxh3_64(&vector),
            sum: digest.sum,
            rows: digest.rows,
        })
    }

    fn key_at(
        &self,
        from: &Bytes,
        to: Option<&Bytes>,
        number: u64,
    ) -> Result<Option<Bytes>, Error> {
        let span = (from.as_ref(), to.map(AsRef::as_ref));
        let key = self.running.tables.key_at(self.stream, span, number);
        let key = key.map_err(|error| error::tables(&error))?;
        Ok(key.map(Bytes::from))
    }
}
