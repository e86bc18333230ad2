//! How fast documents merge, on one core, and what their rows cost:
//! `cargo run --release -p anabranch-core --example document -- [ROWS] [OPERATIONS]`.
//!
//! An operation is everything that a fold does: the record's bytes are decoded, the stored row is
//! opened, changed and written back. "alone": all is stable at once, as in a broker without peers.
//! "regions": three origins take turns and nothing becomes stable for as long as it takes to touch
//! every row once. "resolve" is what the origin does before that: from a path to an operation.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "what measures has a clock; the core is given none"
)]

use std::time::Instant;

use anabranch_core::clock::HybridTimestamp;
use anabranch_core::document::{
    Amount, Anchors, Change, Document, Edit, Patch, Pointer, ValueBuf, Wish, Written, json,
};
use anabranch_core::id::{BrokerId, Dot, Epoch, Origin, Sequence};
use anabranch_core::vector::VersionVector;

const PER_FRAME: u32 = 1000;

struct Table {
    rows: Vec<Vec<u8>>,
    anchors: Anchors,
    context: VersionVector,
    sequence: u64,
    index: u32,
    regions: u64,
    spare: Vec<u8>,
}

impl Table {
    fn new(rows: usize, regions: u64) -> Self {
        Self {
            rows: vec![Vec::new(); rows],
            anchors: Anchors::default(),
            context: VersionVector::EMPTY,
            sequence: 1,
            index: 0,
            regions,
            spare: Vec::new(),
        }
    }

    /// The next record's name and stamp. A new frame follows all before it.
    fn next(&mut self) -> (Dot, HybridTimestamp) {
        if self.index == PER_FRAME {
            let origin = self.origin();
            self.context.advance(origin, Sequence::new(self.sequence));
            self.index = 0;
            self.sequence += 1;
        }
        let origin = self.origin();
        let first = HybridTimestamp::from_millis(1_800_000_000_000 + 2 * self.sequence);
        if self.index == 0 {
            let sequence = Sequence::new(self.sequence);
            self.anchors.cover(origin, sequence, first);
        }
        let dot = Dot {
            origin,
            sequence: Sequence::new(self.sequence),
            index: self.index,
        };
        self.index += 1;
        (dot, first.of_record(dot.index))
    }

    fn origin(&self) -> Origin {
        Origin {
            broker: BrokerId::new(0x1234_5678_9abc_def0 + self.sequence % self.regions),
            epoch: Epoch::new(1),
        }
    }

    fn put(&mut self, value: &ValueBuf) {
        for at in 0..self.rows.len() {
            let (dot, timestamp) = self.next();
            let written = Written {
                dot,
                timestamp,
                context: &self.context,
            };
            let mut document = Document::new(&self.anchors);
            let change = Change::Put(value.value());
            document.apply(&change, &written).expect("an object");
            let mut stable = self.context.clone();
            stable.advance(dot.origin, dot.sequence);
            document.settle(&stable).expect("a row");
            document.store(&mut self.rows[at]);
        }
    }

    /// Makes a record and folds it; gives the nanoseconds of making and folding.
    fn fold(&mut self, at: usize, edit: Edit<'_>, stable: Option<&VersionVector>) -> (u64, u64) {
        let (dot, timestamp) = self.next();
        let written = Written {
            dot,
            timestamp,
            context: &self.context,
        };
        let started = Instant::now();
        let mut document = Document::open(&self.rows[at], &self.anchors).expect("a row");
        let patch = document.resolve(&[edit], &written).expect("it can be done");
        let bytes = patch.encode(dot.origin);
        drop(patch);
        let resolved = started.elapsed();
        let started = Instant::now();
        let patch = Patch::decode(&bytes, dot.origin).expect("a patch");
        let mut document = Document::open(&self.rows[at], &self.anchors).expect("a row");
        let change = Change::Patch(patch);
        document.apply(&change, &written).expect("a row");
        if let Some(stable) = stable {
            document.settle(stable).expect("a row");
        }
        self.spare.clear();
        document.store(&mut self.spare);
        let spent = started.elapsed();
        std::mem::swap(&mut self.rows[at], &mut self.spare);
        let nanos =
            |spent: std::time::Duration| u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        (nanos(resolved), nanos(spent))
    }

    fn bytes(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    fn settle(&mut self) {
        let mut stable = self.context.clone();
        for region in 0..self.regions {
            let broker = BrokerId::new(0x1234_5678_9abc_def0 + region);
            let epoch = Epoch::new(1);
            stable.advance(Origin { broker, epoch }, Sequence::new(self.sequence));
        }
        for row in &mut self.rows {
            let mut document = Document::open(row, &self.anchors).expect("a row");
            document.settle(&stable).expect("a row");
            let mut out = Vec::new();
            document.store(&mut out);
            *row = out;
        }
    }
}

/// A document of about 500 bytes with twenty fields.
fn document() -> ValueBuf {
    let field = |n: usize| match n % 4 {
        0 => format!("\"count{n}\":{}", n * 1000),
        1 => format!("\"name{n}\":\"a text of some length {n}\""),
        2 => format!("\"flag{n}\":true"),
        _ => {
            format!("\"place{n}\":{{\"city\":\"Tbilisi\",\"zip\":\"0105\",\"tags\":[\"a\",\"b\"]}}")
        }
    };
    let fields: Vec<String> = (0..20).map(field).collect();
    json::parse(&format!("{{{}}}", fields.join(","))).expect("JSON")
}

fn report(what: &str, operations: usize, nanos: (u64, u64)) {
    let rate = |nanos: u64| 1e9 * operations as f64 / nanos as f64;
    println!(
        "{what:28} {:>9.0} op/s   resolve {:>9.0} op/s",
        rate(nanos.1),
        rate(nanos.0)
    );
}

fn measure(what: &str, rows: usize, operations: usize, regions: u64, edit: Edit<'_>) {
    let value = document();
    let mut table = Table::new(rows, regions);
    table.put(&value);
    let stable_bytes = table.bytes();
    let mut all = VersionVector::EMPTY;
    for region in 0..regions {
        let broker = BrokerId::new(0x1234_5678_9abc_def0 + region);
        all.advance(
            Origin {
                broker,
                epoch: Epoch::new(1),
            },
            Sequence::new(u64::MAX - 1),
        );
    }
    let alone = (regions == 1).then_some(&all);
    let (mut nanos, mut at) = ((0, 0), 0);
    for n in 0..operations {
        at = (at + 7919) % rows;
        let (resolve, fold) = table.fold(at, edit, alone);
        nanos = (nanos.0 + resolve, nanos.1 + fold);
        if regions > 1 && n % rows == rows - 1 && n + 1 < operations {
            table.settle();
        }
    }
    report(what, operations, nanos);
    if regions > 1 {
        let touched = table.bytes();
        table.settle();
        let per_path = (touched - table.bytes()) as f64 / rows as f64;
        let metadata = stable_bytes as f64 / rows as f64 - value.value().bytes().len() as f64;
        println!(
            "{:28} {metadata:.1} bytes a stable row, {per_path:.1} more for a touched path",
            ""
        );
    }
}

/// A record on its way: its name, its stamp and its bytes.
type Sent = (Dot, HybridTimestamp, Vec<u8>);

/// Insertions by one region that sees only its own.
fn insertions(table: &mut Table, region: u64, sent: &mut Vec<Sent>) {
    let mut row = table.rows[0].clone();
    let broker = BrokerId::new(0x1234_5678_9abc_def0 + region);
    let epoch = Epoch::new(1);
    let origin = Origin { broker, epoch };
    for n in 0..333_u32 {
        let sequence = Sequence::new(2 + u64::from(n));
        let timestamp = HybridTimestamp::from_millis(1_800_000_001_000 + u64::from(n));
        table.anchors.cover(origin, sequence, timestamp);
        let dot = Dot {
            origin,
            sequence,
            index: 0,
        };
        let written = Written {
            dot,
            timestamp,
            context: &table.context,
        };
        let pointer = format!("/list/{}", (n * 7919) % 9_000);
        let pointer = Pointer::parse(&pointer).expect("a pointer");
        let element = ValueBuf::text(&format!("{region}:{n}"));
        let edit = Edit {
            pointer: &pointer,
            wish: Wish::Insert(element.value()),
        };
        let mut document = Document::open(&row, &table.anchors).expect("a row");
        let patch = document.resolve(&[edit], &written).expect("it can be done");
        sent.push((dot, timestamp, patch.encode(origin)));
        let mut out = Vec::new();
        document.store(&mut out);
        row = out;
    }
}

/// An array of nine thousand elements takes a thousand insertions of three origins.
fn arrays() {
    let numbers: Vec<String> = (0..9_000).map(|n| n.to_string()).collect();
    let text = format!("{{\"list\":[{}]}}", numbers.join(","));
    let mut table = Table::new(1, 3);
    table.put(&json::parse(&text).expect("JSON"));
    let mut sent = Vec::new();
    for region in 0..3 {
        insertions(&mut table, region, &mut sent);
    }
    let row = &table.rows[0];
    let started = Instant::now();
    let mut document = Document::open(row, &table.anchors).expect("a row");
    for (dot, timestamp, bytes) in &sent {
        let written = Written {
            dot: *dot,
            timestamp: *timestamp,
            context: &table.context,
        };
        let patch = Patch::decode(bytes, dot.origin).expect("a patch");
        let change = Change::Patch(patch);
        document.apply(&change, &written).expect("a row");
    }
    let applied = started.elapsed();
    let mut out = Vec::new();
    document.store(&mut out);
    let shown = document.value().expect("a row").expect("a row");
    let spent = started.elapsed();
    let list = shown.value().fields().next();
    let elements = list.map_or(0, |(_, list)| list.elements().count());
    println!(
        "{} concurrent insertions into 9,000 elements: {applied:.1?} to apply, {spent:.1?} with the {elements} elements read; {} bytes more",
        sent.len(),
        out.len() - row.len()
    );
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default| {
        args.next()
            .map_or(default, |n| n.parse().expect("a number"))
    };
    let (rows, operations) = (number(100_000), number(2_000_000));
    let value = document();
    println!(
        "documents of {} bytes, {rows} rows",
        value.value().bytes().len()
    );
    let text = ValueBuf::text("another text of this length");
    let set = Pointer::parse("/name9").expect("a pointer");
    let deep = Pointer::parse("/place11/city").expect("a pointer");
    let count = Pointer::parse("/count12").expect("a pointer");
    let edit = |pointer, wish| Edit { pointer, wish };
    let one = Wish::Inc(Amount::from(1));
    for (regions, kind) in [(1, "alone"), (3, "regions")] {
        let run =
            |what: &str, edit| measure(&format!("{what}, {kind}"), rows, operations, regions, edit);
        run("set of a field", edit(&set, Wish::Set(text.value())));
        run(
            "set of a field inside",
            edit(&deep, Wish::Set(text.value())),
        );
        run("inc", edit(&count, one));
    }
    arrays();
}
