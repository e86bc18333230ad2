//! The table of `docs/merge.md`: every line is what happens.

use super::asking::{Asked, asked};
use crate::clock::HybridTimestamp;
use crate::document::{
    Anchors, Change, Document, Edit, Patch, Stored, Value, ValueBuf, Written, json,
};
use crate::id::{BrokerId, Dot, Epoch, Origin};
use crate::vector::VersionVector;

const PAGE: &str = include_str!("../../../../../docs/merge.md");

/// A region with its row.
#[derive(Clone, Default)]
pub(super) struct Region {
    pub(super) anchors: Anchors,
    pub(super) stored: Option<Vec<u8>>,
    applied: VersionVector,
}

/// A record on its way to other regions.
pub(super) struct Sent {
    dot: Dot,
    timestamp: HybridTimestamp,
    context: VersionVector,
    /// A put, with its value; a delete; a patch, with its bytes.
    kind: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Region {
    /// Writes what is asked for, one frame for each operation.
    pub(super) fn write(&mut self, broker: u64, millis: u64, operations: &str) -> Vec<Sent> {
        let each = operations
            .split(';')
            .map(str::trim)
            .filter(|text| !text.is_empty());
        let frame = |text: &str| self.write_one(broker, millis, text);
        each.map(frame).collect()
    }

    fn write_one(&mut self, broker: u64, millis: u64, text: &str) -> Sent {
        let origin = Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        };
        let sequence = self.applied.get(origin).next();
        let millis = millis + sequence.get();
        let mut sent = Sent {
            dot: Dot {
                origin,
                sequence,
                index: 0,
            },
            timestamp: HybridTimestamp::from_millis(millis),
            context: self.applied.clone(),
            kind: "put",
            bytes: Vec::new(),
        };
        let mut words = text.splitn(3, ' ');
        let (operation, place, value) = (words.next().unwrap(), words.next(), words.next());
        match (operation, place) {
            ("put", Some(_)) => {
                let value = text.strip_prefix("put ").unwrap();
                sent.bytes = json::parse(value).unwrap().into_bytes();
            }
            ("delete", None) => sent.kind = "delete",
            (operation, Some(pointer)) => {
                let value = value.map_or_else(ValueBuf::null, |value| json::parse(value).unwrap());
                let operations = [
                    "set", "unset", "inc", "reset", "insert", "append", "delete", "add", "remove",
                ];
                let wish = operations.into_iter().find(|name| *name == operation);
                let wanted = asked(wish.expect("an operation"), pointer, value);
                sent.kind = "patch";
                sent.bytes = self.resolve(&wanted, &sent);
            }
            _ => panic!("{text:?} is no operation"),
        }
        self.take(&sent);
        sent
    }

    fn resolve(&self, wanted: &Asked, sent: &Sent) -> Vec<u8> {
        let stored = self.stored.as_ref().expect("a row to patch");
        let mut document = Document::open(stored, &self.anchors).unwrap();
        let edits: [Edit<'_>; 1] = [wanted.edit()];
        let patch = document.resolve(&edits, &written(sent)).unwrap();
        patch.encode(sent.dot.origin)
    }

    pub(super) fn take(&mut self, sent: &Sent) {
        self.anchors
            .cover(sent.dot.origin, sent.dot.sequence, sent.timestamp);
        let stored = self.stored.take();
        let mut document = match &stored {
            Some(stored) => Document::open(stored, &self.anchors).unwrap(),
            None => Document::new(&self.anchors),
        };
        let change = match sent.kind {
            "put" => Change::Put(Value::decode(&sent.bytes).unwrap()),
            "delete" => Change::Delete,
            _ => Change::Patch(Patch::decode(&sent.bytes, sent.dot.origin).unwrap()),
        };
        document.apply(&change, &written(sent)).unwrap();
        let mut out = Vec::new();
        let left = document.store(&mut out);
        self.stored = (left == Stored::Row).then_some(out);
        self.applied.advance(sent.dot.origin, sent.dot.sequence);
    }

    /// Takes everything here for stable.
    pub(super) fn settle(&mut self) {
        let Some(stored) = &self.stored else { return };
        let mut document = Document::open(stored, &self.anchors).unwrap();
        document.settle(&self.applied).unwrap();
        let mut out = Vec::new();
        document.store(&mut out);
        self.stored = Some(out);
    }

    pub(super) fn shown(&self) -> String {
        let Some(stored) = &self.stored else {
            return "no row".to_owned();
        };
        let document = Document::open(stored, &self.anchors).unwrap();
        document
            .value()
            .unwrap()
            .expect("a row shows something")
            .to_string()
    }
}

fn written(sent: &Sent) -> Written<'_> {
    Written {
        dot: sent.dot,
        timestamp: sent.timestamp,
        context: &sent.context,
    }
}

/// What two regions come to, in both orders of arrival, before and after all is stable.
fn results(before: &str, one: &str, other: &str, settled_before: bool) -> Vec<String> {
    let mut start = Region::default();
    start.write(9, 1000, before);
    if settled_before {
        start.settle();
    }
    let (mut first, mut second) = (start.clone(), start);
    let ours = first.write(1, 2000, one);
    let theirs = second.write(2, 3000, other);
    theirs.iter().for_each(|sent| first.take(sent));
    ours.iter().for_each(|sent| second.take(sent));
    let mut results = vec![first.shown(), second.shown()];
    for mut region in [first, second] {
        region.settle();
        results.push(region.shown());
    }
    results
}

#[test]
fn every_line_of_the_page_is_what_happens() {
    let (mut checked, mut faults) = (0, Vec::new());
    let heading = "## What concurrent operations end in";
    let table = PAGE.split(heading).nth(1).expect("the heading is there");
    let table = table.split("\n## ").next().unwrap_or_default();
    for line in table.lines().filter(|line| line.starts_with('|')).skip(2) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [before, one, other, expected, _] = cells[..] else {
            panic!("{line}");
        };
        let code = |cell: &str| cell.trim_matches('`').to_owned();
        for settled_before in [false, true] {
            for result in results(&code(before), &code(one), &code(other), settled_before) {
                if result != code(expected) {
                    faults.push(format!("{line} but it ends in {result}"));
                }
            }
        }
        checked += 1;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(checked > 50, "only {checked} lines were found");
}
