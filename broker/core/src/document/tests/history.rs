//! Random histories: some regions write one row, frames travel in causal order and at random speed,
//! metadata is dropped at random times. Engine and reference go through the same.

use std::rc::Rc;

use super::asking::{Asked, Random, ask, object};
use super::reference::{Author, Mutant, Row};
use crate::clock::HybridTimestamp;
use crate::document::{
    Anchors, Change, Document, Edit, Patch, Stored, Value, Written, is_unsettled,
};
use crate::id::{BrokerId, Dot, Epoch, Origin, Sequence};
use crate::lww::Stamp;
use crate::vector::VersionVector;

/// What a record says, as it travels.
#[derive(Clone)]
enum Record {
    Put(Vec<u8>),
    Delete,
    Patch(Vec<u8>),
}

struct Frame {
    origin: Origin,
    sequence: Sequence,
    timestamp: HybridTimestamp,
    context: Rc<VersionVector>,
    records: Vec<Record>,
}

struct Replica {
    /// Its epoch changes now and then.
    origin: Origin,
    /// How many frames of each region are applied.
    taken: Vec<usize>,
    applied: VersionVector,
    clock: u64,
    skew: u64,
    /// What each region had applied, as its newest frame here says.
    known: Vec<VersionVector>,
    anchors: Anchors,
    stored: Option<Vec<u8>>,
    reference: Row,
    forgets: bool,
}

/// What a history came to.
#[derive(Default, Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) edits: usize,
    pub(super) refused: usize,
    /// Times at which two regions held the same frames.
    pub(super) compared: usize,
    /// Times at which the stored form was settled and shrank.
    pub(super) settled: usize,
}

pub(super) struct History {
    random: Random,
    mutant: Option<Mutant>,
    now: u64,
    replicas: Vec<Replica>,
    logs: Vec<Vec<Frame>>,
    tally: Tally,
}

/// Runs one history; tells what went wrong.
pub(super) fn run(seed: u64, mutant: Option<Mutant>) -> Result<Tally, String> {
    let mut history = History::new(seed, mutant);
    let steps = 20 + history.random.below(100);
    for _ in 0..steps {
        history.step()?;
    }
    history.finish()?;
    Ok(history.tally)
}

impl History {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut random = Random::new(seed);
        let regions = 3 + random.below(4);
        let replica = |n: usize, random: &mut Random| Replica {
            origin: Origin {
                broker: BrokerId::new(n as u64 + 1),
                epoch: Epoch::new(1),
            },
            taken: vec![0; regions],
            applied: VersionVector::EMPTY,
            clock: 0,
            skew: if random.percent(30) { 50 } else { 0 },
            known: vec![VersionVector::EMPTY; regions],
            anchors: Anchors::default(),
            stored: None,
            reference: Row::default(),
            forgets: n > 0,
        };
        let replicas = (0..regions).map(|n| replica(n, &mut random)).collect();
        Self {
            random,
            mutant,
            now: 0,
            replicas,
            logs: (0..regions).map(|_| Vec::new()).collect(),
            tally: Tally::default(),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += 1;
        let at = self.random.below(self.replicas.len());
        if self.random.percent(35) {
            self.write(at)?;
        } else {
            let from = self.random.below(self.replicas.len());
            self.deliver(at, from)?;
        }
        if self.random.percent(40) {
            self.settle(at)?;
        }
        self.compare(at)
    }

    fn write(&mut self, at: usize) -> Result<(), String> {
        let mut records = Vec::new();
        let renews = self.random.percent(5);
        let replica = &mut self.replicas[at];
        if renews {
            replica.origin.epoch = Epoch::new(replica.origin.epoch.get() + 1);
        }
        let origin = replica.origin;
        replica.clock = (replica.clock + 1).max(self.now + replica.skew);
        let sequence = replica.applied.get(replica.origin).next();
        let timestamp = HybridTimestamp::from_millis(1_000_000 + replica.clock);
        let context = Rc::new(replica.applied.clone());
        replica.anchors.cover(replica.origin, sequence, timestamp);
        for _ in 0..1 + self.random.below(3) {
            let index = records.len() as u32;
            let replica = &mut self.replicas[at];
            let dot = Dot {
                origin: replica.origin,
                sequence,
                index,
            };
            let written = Written {
                dot,
                timestamp: timestamp.of_record(index),
                context: &context,
            };
            let record = make(replica, &written, &mut self.random, &mut self.tally)?;
            if let Some(record) = record {
                apply(replica, &record, &written, self.mutant)?;
                records.push(record);
            }
        }
        self.note(at, at, origin, sequence);
        self.logs[at].push(Frame {
            origin,
            sequence,
            timestamp,
            context,
            records,
        });
        Ok(())
    }

    /// Takes over the next frame of another region, if it is there and what it follows is here.
    fn deliver(&mut self, at: usize, from: usize) -> Result<bool, String> {
        let replica = &mut self.replicas[at];
        let next = replica.taken[from];
        let Some(frame) = self.logs[from].get(next).filter(|_| from != at) else {
            return Ok(false);
        };
        let gated = self.mutant != Some(Mutant::NoCausalGate);
        if gated && !replica.applied.covers(&frame.context) {
            return Ok(false);
        }
        replica.clock = replica.clock.max(frame.timestamp.millis() - 1_000_000);
        let (origin, sequence) = (frame.origin, frame.sequence);
        replica.anchors.cover(origin, sequence, frame.timestamp);
        for (index, record) in frame.records.iter().enumerate() {
            let index = index as u32;
            let dot = Dot {
                origin,
                sequence,
                index,
            };
            let written = Written {
                dot,
                timestamp: frame.timestamp.of_record(index),
                context: &frame.context,
            };
            apply(replica, record, &written, self.mutant)?;
        }
        replica.known[from].merge(&frame.context);
        self.note(at, from, origin, sequence);
        Ok(true)
    }

    fn note(&mut self, at: usize, from: usize, origin: Origin, sequence: Sequence) {
        let replica = &mut self.replicas[at];
        replica.applied.advance(origin, sequence);
        replica.taken[from] += 1;
        replica.known[from].advance(origin, sequence);
        replica.known[at] = replica.applied.clone();
    }

    fn settle(&mut self, at: usize) -> Result<(), String> {
        let replica = &mut self.replicas[at];
        let mut stable = replica.applied.clone();
        for known in &replica.known {
            stable = stable.least(known);
        }
        if replica.forgets {
            let strips = self.mutant == Some(Mutant::StripsBeforeStable);
            let of_reference = if strips { &replica.applied } else { &stable };
            replica.reference.strip(of_reference, self.mutant);
        }
        let Some(stored) = &replica.stored else {
            return Ok(());
        };
        let mut document = open(stored, &replica.anchors)?;
        let before = document.value().map_err(|e| e.to_string())?;
        document.settle(&stable).map_err(|e| e.to_string())?;
        let mut settled = Vec::new();
        if document.store(&mut settled) == Stored::Nothing {
            return Err("a row is gone by settling".into());
        }
        let after = open(&settled, &replica.anchors)?.value();
        let after = after.map_err(|e| e.to_string())?;
        if before != after {
            return Err(format!(
                "settling {stable:?} changes {before:?} into {after:?}"
            ));
        }
        self.tally.settled += usize::from(settled.len() < stored.len());
        replica.stored = Some(settled);
        Ok(())
    }

    /// Whoever holds the same frames has the same rows; engine and reference have them always.
    fn compare(&mut self, at: usize) -> Result<(), String> {
        let replica = &self.replicas[at];
        let shown = show(replica)?;
        let expected = replica.reference.json();
        if shown != expected {
            return Err(format!("{at}: engine {shown:?}, reference {expected:?}"));
        }
        for (n, other) in self.replicas.iter().enumerate() {
            if n == at || other.applied != replica.applied {
                continue;
            }
            self.tally.compared += 1;
            let other = show(other)?;
            if shown != other {
                return Err(format!("{at} has {shown:?}, {n} has {other:?}"));
            }
        }
        Ok(())
    }

    /// Delivers everything, a few times with empty frames, which say what was applied.
    fn finish(&mut self) -> Result<(), String> {
        for round in 0..5 {
            while self.deliver_all()? {}
            for at in 0..self.replicas.len() {
                self.compare(at)?;
                let replica = &self.replicas[at];
                if replica.applied != self.replicas[0].applied {
                    return Err("a frame never came".into());
                }
            }
            for at in 0..self.replicas.len() {
                self.write_nothing(at);
                if round > 2 {
                    self.settle(at)?;
                }
            }
        }
        self.replicas.iter().try_for_each(is_settled)
    }

    fn deliver_all(&mut self) -> Result<bool, String> {
        let mut moved = false;
        for at in 0..self.replicas.len() {
            for from in 0..self.replicas.len() {
                while self.deliver(at, from)? {
                    moved = true;
                    if self.random.percent(20) {
                        self.settle(at)?;
                    }
                }
            }
        }
        Ok(moved)
    }

    fn write_nothing(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        replica.clock += 1;
        let sequence = replica.applied.get(replica.origin).next();
        let origin = replica.origin;
        let context = Rc::new(replica.applied.clone());
        self.logs[at].push(Frame {
            origin,
            sequence,
            timestamp: HybridTimestamp::from_millis(1_000_000 + self.replicas[at].clock),
            context,
            records: Vec::new(),
        });
        self.note(at, at, origin, sequence);
    }
}

fn open<'a>(stored: &'a [u8], anchors: &'a Anchors) -> Result<Document<'a>, String> {
    Document::open(stored, anchors).map_err(|error| error.to_string())
}

fn show(replica: &Replica) -> Result<Option<String>, String> {
    let Some(stored) = &replica.stored else {
        return Ok(None);
    };
    let value = open(stored, &replica.anchors)?.value();
    Ok(value
        .map_err(|error| error.to_string())?
        .map(|value| value.to_string()))
}

fn is_settled(replica: &Replica) -> Result<(), String> {
    let stripped = !replica.forgets || replica.reference.is_stripped();
    let settled = replica
        .stored
        .as_deref()
        .is_none_or(|row| !is_unsettled(row));
    match stripped && settled {
        true => Ok(()),
        false => Err(format!(
            "{}: metadata is left: {:?}",
            replica.origin, replica.stored
        )),
    }
}

fn apply(
    replica: &mut Replica,
    record: &Record,
    written: &Written<'_>,
    mutant: Option<Mutant>,
) -> Result<(), String> {
    let origin = written.dot.origin;
    let change = match record {
        Record::Put(value) => Change::Put(Value::decode(value).map_err(|e| e.to_string())?),
        Record::Delete => Change::Delete,
        Record::Patch(bytes) => {
            Change::Patch(Patch::decode(bytes, origin).map_err(|e| e.to_string())?)
        }
    };
    let stored = replica.stored.take();
    let mut document = match &stored {
        Some(stored) => open(stored, &replica.anchors)?,
        None => Document::new(&replica.anchors),
    };
    document
        .apply(&change, written)
        .map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    let left = document.store(&mut out);
    replica.stored = (left == Stored::Row).then_some(out);
    let author = Author {
        dot: written.dot,
        stamp: Stamp {
            timestamp: written.timestamp,
            origin,
        },
        context: Rc::new(written.context.clone()),
        mutant,
    };
    replica.reference.apply(&change, &author);
    Ok(())
}

/// Makes a record, or none where what is asked for is refused.
fn make(
    replica: &Replica,
    written: &Written<'_>,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<Option<Record>, String> {
    let Some(stored) = &replica.stored else {
        return Ok(Some(Record::Put(object(random).into_bytes())));
    };
    match random.below(100) {
        0..3 => return Ok(Some(Record::Put(object(random).into_bytes()))),
        3..5 => return Ok(Some(Record::Delete)),
        _ => {}
    }
    let mut wanted: Vec<Asked> = Vec::new();
    for _ in 0..1 + random.below(3) {
        let mut document = open(stored, &replica.anchors)?;
        let edits: Vec<Edit<'_>> = wanted.iter().map(Asked::edit).collect();
        if !edits.is_empty() {
            document
                .resolve(&edits, written)
                .map_err(|e| e.to_string())?;
        }
        let shown = document.value().map_err(|e| e.to_string())?;
        let next = ask(shown.ok_or("a stored row shows nothing")?.value(), random);
        tally.edits += 1;
        match document.resolve(&[next.edit()], written) {
            Ok(_) => wanted.push(next),
            Err(_) => tally.refused += 1,
        }
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    let edits: Vec<Edit<'_>> = wanted.iter().map(Asked::edit).collect();
    let mut document = open(stored, &replica.anchors)?;
    let patch = document
        .resolve(&edits, written)
        .map_err(|e| e.to_string())?;
    let bytes = patch.encode(written.dot.origin);
    let mut again = open(stored, &replica.anchors)?;
    let patch = Patch::decode(&bytes, written.dot.origin).map_err(|e| e.to_string())?;
    again
        .apply(&Change::Patch(patch), written)
        .map_err(|e| e.to_string())?;
    let (resolved, applied) = (document.value(), again.value());
    match resolved == applied {
        true => Ok(Some(Record::Patch(bytes))),
        false => Err(format!("resolved to {resolved:?}, applied to {applied:?}")),
    }
}
