//! Which regions may hold what of the payload.
//!
//! A stream may name the regions that its records may go to. Other regions get a stub: the frame's
//! header as it is, without the batches of those streams. So vectors stay dense everywhere, and the
//! chain still verifies.
//!
//! Where a stream's records may go is part of its id, so it never changes. A definition is causally
//! before the records of its stream; so whoever holds a frame knows where its parts may go, if it
//! notes every definition as it takes it over, also of streams that are deleted or were displaced.
//!
//! A stub is never taken in place of what may be held: a broker that may not hold a part relays its
//! frame only to those that may not hold it either.

use hashbrown::HashMap;

use crate::definition::Said;
use crate::frame::Commit;
use crate::gap::Gap;
use crate::id::{BrokerId, RegionName, StreamId, StreamName};
use crate::sequencer::Foreign;
use crate::stream::StreamDefinition;

/// What is known of where payloads may go.
#[derive(Clone, Debug)]
pub struct Residency {
    own: RegionName,
    /// The stream of definitions.
    system: StreamId,
    /// Streams that only these regions may hold.
    kept: HashMap<StreamId, Vec<RegionName>>,
}

/// What goes to a region in place of a frame.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// The frame as it is.
    Whole,
    /// The frame without what the region may not hold.
    Stub(Commit),
    /// Nothing: a part that the region may hold is a stub here. Nor does anything of its origin go
    /// that comes behind it.
    Withheld,
}

impl Residency {
    /// Knows of no streams yet.
    #[must_use]
    pub fn new(own: RegionName) -> Self {
        Self {
            own,
            system: StreamDefinition::system().id(),
            kept: HashMap::new(),
        }
    }

    /// Where this broker stands.
    #[must_use]
    pub fn own(&self) -> &RegionName {
        &self.own
    }

    /// A stream may only be held by these regions; by all if none are named.
    pub fn keep(&mut self, stream: StreamId, regions: &[RegionName]) {
        if !regions.is_empty() {
            self.kept.insert(stream, regions.to_vec());
        }
    }

    /// Whether a frame defines streams.
    #[must_use]
    pub fn teaches(&self, commit: &Commit) -> bool {
        let mut parts = commit.parts.iter();
        parts.any(|part| part.header.stream == self.system)
    }

    /// Notes what a frame defines. What does not read is nobody's: no broker writes to it.
    pub fn learn(&mut self, commit: &Commit) {
        let parts = commit.parts.iter();
        let definitions = parts.filter(|part| part.header.stream == self.system);
        let batches: Vec<_> = definitions.filter_map(|part| part.batch.as_ref()).collect();
        for batch in batches {
            let Ok(records) = batch.records() else {
                continue;
            };
            for record in records.iter().map_while(Result::ok) {
                let name = record.key.and_then(|key| std::str::from_utf8(key).ok());
                let Some(Ok(name)) = name.map(StreamName::parse) else {
                    continue;
                };
                if let Ok(said) = Said::read(&name, &record)
                    && let Some(definition) = said.definition()
                {
                    self.keep(definition.id(), definition.kept_in());
                }
            }
        }
    }

    /// Whether a region may hold a stream's payload.
    #[must_use]
    pub fn may_hold(&self, region: &RegionName, stream: StreamId) -> bool {
        let kept = self.kept.get(&stream);
        kept.is_none_or(|regions| regions.contains(region))
    }

    /// Whether it may be held here.
    #[must_use]
    pub fn is_held(&self, stream: StreamId) -> bool {
        self.may_hold(&self.own, stream)
    }

    /// What of a frame in this broker's log goes to a region.
    #[must_use]
    pub fn outgoing(&self, to: &RegionName, commit: &Commit) -> Outgoing {
        if self.kept.is_empty() {
            return Outgoing::Whole;
        }
        let mut parts = commit.parts.iter();
        let is_withheld = parts.any(|part| {
            let stream = part.header.stream;
            part.batch.is_none() && self.may_hold(to, stream) && !self.is_held(stream)
        });
        if is_withheld {
            return Outgoing::Withheld;
        }
        let mut parts = commit.parts.iter();
        if parts.all(|part| self.may_hold(to, part.header.stream)) {
            return Outgoing::Whole;
        }
        let mut stub = commit.clone();
        for part in &mut stub.parts {
            if !self.may_hold(to, part.header.stream) {
                part.batch = None;
            }
        }
        Outgoing::Stub(stub)
    }

    /// Takes from a frame what may not be held here. Says whether it may be taken over: it may not
    /// if it comes from where a part is withheld that may be held here.
    #[must_use]
    pub fn incoming(&self, from: &RegionName, frame: &mut Foreign) -> bool {
        if self.kept.is_empty() {
            return true;
        }
        let parts = frame.header().parts.iter().zip(frame.batches());
        let is_whole = parts.into_iter().all(|(part, batch)| {
            batch.is_some() || !self.is_held(part.stream) || self.may_hold(from, part.stream)
        });
        if is_whole {
            frame.strip(|stream| self.is_held(stream));
        }
        is_whole
    }

    /// Whether gaps may go from a broker in one region to another. What stands for dropped frames
    /// does not say which of them were stubs; so only their origin, or who holds all that the other
    /// one may, can tell that nothing is withheld.
    #[must_use]
    pub fn may_pass(&self, gaps: &[Gap], from: (BrokerId, &RegionName), to: &RegionName) -> bool {
        let foreign = |gap: &Gap| gap.origin.broker != from.0;
        !gaps.iter().any(foreign) || self.holds_all_of(from.1, to)
    }

    /// Whether one region may hold all that another may.
    fn holds_all_of(&self, region: &RegionName, other: &RegionName) -> bool {
        let mut kept = self.kept.values();
        region == other || kept.all(|regions| regions.contains(region) || !regions.contains(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, NewRecord};
    use crate::definition::put_value;
    use crate::gap::GapBuilder;
    use crate::id::{Epoch, Origin, PartitionId};
    use crate::sequencer::{Publish, Sequencer};
    use crate::stream::MergeMode;

    const ALL: StreamId = StreamId::new(1);
    const AB: StreamId = StreamId::new(2);
    const AC: StreamId = StreamId::new(3);

    fn region(name: &str) -> RegionName {
        RegionName::parse(name).unwrap()
    }

    fn residency(own: &str) -> Residency {
        let mut residency = Residency::new(region(own));
        residency.keep(ALL, &[]);
        residency.keep(AB, &["a", "b"].map(region));
        residency.keep(AC, &["a", "c"].map(region));
        residency
    }

    fn write(streams: &[StreamId]) -> Commit {
        let mut writer = Sequencer::new(Origin {
            broker: BrokerId::new(1),
            epoch: Epoch::new(1),
        });
        let publish = |&stream: &StreamId| {
            let mut batch = BatchBuilder::default();
            batch.push(&NewRecord::default()).unwrap();
            Publish {
                stream,
                partition: PartitionId::new(0),
                batch: batch.finish(None).unwrap(),
            }
        };
        let group: Vec<_> = streams.iter().map(publish).collect();
        let mut frame = writer.open();
        frame.add(&group, &mut Vec::new()).unwrap();
        frame.close(5).unwrap()
    }

    /// Which parts go from one region to another: all, none of it, or those.
    fn outgoing(own: &str, to: &str, commit: &Commit) -> String {
        let parts = |commit: &Commit| -> String {
            let parts = commit.parts.iter();
            parts
                .map(|part| part.batch.as_ref().map_or('-', |_| '+'))
                .collect()
        };
        match residency(own).outgoing(&region(to), commit) {
            Outgoing::Whole => parts(commit),
            Outgoing::Stub(stub) => parts(&stub),
            Outgoing::Withheld => "withheld".to_owned(),
        }
    }

    /// Which parts a region takes from another.
    fn incoming(own: &str, from: &str, commit: &Commit) -> String {
        let mut frame = Foreign::from(commit);
        match residency(own).incoming(&region(from), &mut frame) {
            false => "withheld".to_owned(),
            true => {
                let batches = frame.batches().iter();
                batches
                    .map(|batch| batch.as_ref().map_or('-', |_| '+'))
                    .collect()
            }
        }
    }

    #[test]
    fn each_region_gets_what_it_may_hold_or_nothing() {
        let whole = write(&[ALL, AB, AC]);
        assert_eq!(outgoing("a", "a", &whole), "+++");
        assert_eq!(outgoing("a", "b", &whole), "++-");
        assert_eq!(outgoing("a", "d", &whole), "+--");
        // As b holds it.
        let mut stub = whole;
        stub.parts[2].batch = None;
        assert_eq!(outgoing("b", "b", &stub), "++-");
        assert_eq!(outgoing("b", "d", &stub), "+--");
        assert_eq!(outgoing("b", "a", &stub), "withheld");
        assert_eq!(outgoing("b", "c", &stub), "withheld");
        // What retention has dropped is not withheld, where it could have been.
        assert_eq!(outgoing("a", "c", &stub), "+--");
    }

    #[test]
    fn what_is_withheld_is_not_taken_and_what_may_not_be_here_is_taken_off() {
        let whole = write(&[ALL, AB, AC]);
        assert_eq!(incoming("a", "d", &whole), "+++");
        assert_eq!(incoming("b", "a", &whole), "++-");
        assert_eq!(incoming("d", "a", &whole), "+--");
        let mut stub = whole;
        stub.parts[2].batch = None;
        assert_eq!(incoming("a", "b", &stub), "withheld");
        assert_eq!(incoming("c", "d", &stub), "withheld");
        assert_eq!(incoming("b", "d", &stub), "++-");
        assert_eq!(incoming("c", "a", &stub), "+--", "retention has dropped it");
    }

    #[test]
    fn gaps_come_from_their_origin_or_from_who_may_hold_as_much() {
        let mut commit = write(&[ALL]);
        commit.parts[0].batch = None;
        let mut gaps = GapBuilder::default();
        gaps.add(&commit);
        let gaps = gaps.take();
        let passes = |broker: u64, from: &str, to: &str| {
            let from = (BrokerId::new(broker), &region(from));
            residency("a").may_pass(&gaps, from, &region(to))
        };
        assert!(passes(1, "d", "a"));
        assert!(!passes(2, "d", "a") && !passes(2, "b", "c") && !passes(2, "b", "a"));
        assert!(passes(2, "a", "b") && passes(2, "b", "d") && passes(2, "b", "b"));
    }

    #[test]
    fn what_a_frame_defines_is_learnt() {
        let mut definition =
            StreamDefinition::new(StreamName::parse("s").unwrap(), MergeMode::Append);
        definition.regions = Some(vec![region("b")]);
        let mut batch = BatchBuilder::default();
        let record = NewRecord {
            key: Some(b"s"),
            value: Some(&put_value(&definition).into_bytes()),
            ..NewRecord::default()
        };
        batch.push(&record).unwrap();
        let mut commit = write(&[StreamDefinition::system().id()]);
        let mut residency = residency("a");
        assert!(residency.teaches(&commit) && !residency.teaches(&write(&[AB])));
        residency.learn(&commit);
        assert!(residency.is_held(definition.id()));
        commit.parts[0].batch = Some(batch.finish(None).unwrap());
        residency.learn(&commit);
        assert!(!residency.is_held(definition.id()));
        assert!(residency.may_hold(&region("b"), definition.id()));
    }
}
