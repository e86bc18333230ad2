//! What rows cost, what edits are refused, and arrays under load.

use super::asking::{Asked, asked};
use super::page::Region;
use crate::clock::HybridTimestamp;
use crate::document::{
    Amount, Anchors, Change, Document, Patch, Pointer, Refused, Stored, ValueBuf, Written,
    is_unsettled, json,
};
use crate::id::{BrokerId, Dot, Epoch, Origin, Sequence};
use crate::limits::{MAX_ARRAY_ELEMENTS, MAX_DOCUMENT_BYTES};
use crate::vector::VersionVector;

fn origin(broker: u64) -> Origin {
    Origin {
        broker: BrokerId::new(0x1234_5678_9abc_def0 + broker),
        epoch: Epoch::new(1),
    }
}

fn value_bytes(region: &Region) -> usize {
    json::parse(&region.shown()).unwrap().into_bytes().len()
}

fn stored_bytes(region: &Region) -> usize {
    region.stored.as_ref().unwrap().len()
}

#[test]
fn a_row_that_is_alone_and_stable_costs_its_incarnation() {
    let mut region = Region::default();
    region.write(1, 1000, r#"put {"a":1,"b":{"c":[1,2,{"d":3}]},"n":7}"#);
    region.settle();
    assert!(!is_unsettled(region.stored.as_ref().unwrap()));
    let metadata = stored_bytes(&region) - value_bytes(&region);
    assert!(metadata <= 11, "{metadata}");
    let changes = [
        "set /a 2",
        "inc /n 1",
        "set /x/y/z 1",
        "append /b/c 4",
        "insert /b/c/0 {\"e\":1}",
        "inc /b/c/3/d 1",
        "delete /b/c/1",
        "reset /n",
        "unset /a",
    ];
    for change in changes {
        region.write(1, 2000, change);
        region.settle();
        let now = stored_bytes(&region) - value_bytes(&region);
        // The element that was inserted is an object, so it has a name for good.
        let named = region.shown().contains("\"e\"");
        assert!(
            now <= metadata + if named { 4 } else { 0 },
            "{change}: {now}"
        );
        assert!(!is_unsettled(region.stored.as_ref().unwrap()), "{change}");
    }
    assert_eq!(
        region.shown(),
        r#"{"b":{"c":[{"e":1},2,{"d":4},4]},"n":0,"x":{"y":{"z":1}}}"#
    );
}

/// Three brokers a day after their start; each has written a frame of a thousand records every 20 ms.
struct Busy {
    anchors: Anchors,
    frame: u64,
}

/// What happens to a row.
enum Step {
    Put(ValueBuf),
    Edit(Asked),
    /// All before is stable.
    Settle,
}

impl Busy {
    fn new() -> Self {
        let mut anchors = Anchors::default();
        let frame = 24 * 3600 * 50;
        for frame in (1..=frame).step_by(50) {
            for broker in 0..3 {
                anchors.cover(origin(broker), Sequence::new(frame), Self::at(frame));
            }
        }
        Self { anchors, frame }
    }

    fn at(frame: u64) -> HybridTimestamp {
        HybridTimestamp::from_millis(1_800_000_000_000 + 20 * frame)
    }

    fn seen(&self) -> VersionVector {
        let each = (0..3).map(|broker| (origin(broker), Sequence::new(self.frame)));
        each.collect()
    }

    /// The last record of the next frame changes a row.
    fn write(&mut self, stored: Option<&[u8]>, step: &Step) -> Vec<u8> {
        let context = self.seen();
        self.frame += 1;
        let (broker, sequence) = (origin(self.frame % 3), Sequence::new(self.frame));
        let first = Self::at(self.frame);
        self.anchors.cover(broker, sequence, first);
        let written = Written {
            dot: Dot {
                origin: broker,
                sequence,
                index: 999,
            },
            timestamp: first.of_record(999),
            context: &context,
        };
        let mut document = match stored {
            Some(stored) => Document::open(stored, &self.anchors).unwrap(),
            None => Document::new(&self.anchors),
        };
        match step {
            Step::Put(value) => {
                let change = Change::Put(value.value());
                document.apply(&change, &written).unwrap();
            }
            Step::Edit(wanted) => {
                document.resolve(&[wanted.edit()], &written).unwrap();
            }
            Step::Settle => document.settle(&context).unwrap(),
        }
        let mut out = Vec::new();
        assert_eq!(document.store(&mut out), Stored::Row);
        out
    }
}

#[test]
fn an_unstable_path_costs_ten_bytes_and_a_stable_row_eleven() {
    let mut busy = Busy::new();
    let fields: Vec<String> = (0..20).map(|n| format!("\"f{n:02}\":{n}")).collect();
    let value = json::parse(&format!("{{{}}}", fields.join(","))).unwrap();
    let row = busy.write(None, &Step::Put(value.clone()));
    let stable = busy.write(Some(&row), &Step::Settle);
    let metadata = stable.len() - value.value().bytes().len();
    assert!(metadata <= 11, "{metadata} bytes for a stable row");
    for wish in ["set", "inc"] {
        let mut row = stable.clone();
        for field in 0..20 {
            let amount = ValueBuf::amount(Amount::from(9));
            let wanted = asked(wish, &format!("/f{field:02}"), amount);
            row = busy.write(Some(&row), &Step::Edit(wanted));
        }
        // The length of the row itself takes a byte more.
        let touched = row.len() - stable.len();
        assert!(touched <= 20 * 10 + 1, "{touched} bytes for twenty paths");
    }
}

/// Operation, path and value; and why it is refused in a row with an object `a` that has a field `b`,
/// an array `l` with two elements, a string `s`, and a float `f`.
const REFUSED: &str = r#"
unset /x 1: there is nothing at /x
reset /a/x 1: there is nothing at /a/x
append /x 1: there is nothing at /x
set /s/x 1: at /s is no object and no array, so there is nothing in it
append /s 1: at /s is no object and no array, so there is nothing in it
append /a 1: at /a is no array
inc /s 1: at /s is no integer or decimal number that can be added to
inc /f 1: at /f is no integer or decimal number that can be added to
inc /l/1 1: at /l/1 is no integer or decimal number that can be added to
set /l/2 1: "2" is no place in the array at /l, which has 2 elements
insert /l/3 1: "3" is no place in the array at /l, which has 2 elements
set /l/01 1: "01" is no place in the array at /l, which has 2 elements
set /l/- 1: "-" is no place in the array at /l, which has 2 elements
delete /l/a 1: "a" is no place in the array at /l, which has 2 elements
unset /l/0 1: unset is not for the elements of an array; use delete
delete /a/b 1: delete is not for the fields of an object; use unset
insert /a/b 1: insert is not for the fields of an object; use set
add /l 1: at /l is no set; a set is made by adding to what is not there
add /s 1: at /s is no set; a set is made by adding to what is not there
remove /x 1: there is nothing at /x
inc /a/b 99999999999999999999: 99999999999999999999 has too many digits to be added
"#;

#[test]
fn edits_that_make_no_sense_are_refused_with_a_reason() {
    let mut region = Region::default();
    region.write(1, 1000, r#"put {"a":{"b":1},"l":[1,"x"],"s":"x","f":1e3}"#);
    let stored = region.stored.clone().unwrap();
    for line in REFUSED.trim().lines() {
        let (asked_for, reason) = line.split_once(": ").unwrap();
        let words: Vec<&str> = asked_for.split(' ').collect();
        let [wish, pointer, value] = words[..] else {
            panic!("{line}");
        };
        let mut document = Document::open(&stored, &region.anchors).unwrap();
        let wanted = asked(wish, pointer, json::parse(value).unwrap());
        let refused = document
            .resolve(&[wanted.edit()], &some_record())
            .unwrap_err();
        assert_eq!(refused.to_string(), reason, "{line}");
    }
    let whole = asked("set", "", ValueBuf::null());
    let mut document = Document::open(&stored, &region.anchors).unwrap();
    let refused = document.resolve(&[whole.edit()], &some_record());
    assert_eq!(refused, Err(Refused::Whole));
    let deep = "/x".repeat(64);
    let wanted = asked("set", &deep, ValueBuf::null());
    let mut document = Document::open(&stored, &region.anchors).unwrap();
    let refused = document.resolve(&[wanted.edit()], &some_record());
    assert_eq!(refused, Err(Refused::TooDeep));
    assert!(matches!(Pointer::parse("a"), Err(Refused::Pointer(_))));
    assert!(matches!(Pointer::parse("/a~2"), Err(Refused::Pointer(_))));
}

fn some_record() -> Written<'static> {
    const NOTHING: &VersionVector = &VersionVector::EMPTY;
    Written {
        dot: Dot {
            origin: origin(1),
            sequence: Sequence::new(9),
            index: 0,
        },
        timestamp: HybridTimestamp::from_millis(9),
        context: NOTHING,
    }
}

#[test]
fn a_pointer_names_any_key() {
    let mut region = Region::default();
    region.write(1, 1000, r#"put {"a/b":{"~":1},"":{"":2}}"#);
    region.write(1, 1000, "set /a~1b/~0 3; inc // 5; set /~01 4");
    assert_eq!(region.shown(), r#"{"":{"":7},"a/b":{"~":3},"~1":4}"#);
    assert_eq!(Pointer::parse("/a~1b/~0").unwrap().to_string(), "/a~1b/~0");
}

#[test]
fn documents_and_arrays_do_not_grow_beyond_their_limits() {
    let elements = vec!["1"; MAX_ARRAY_ELEMENTS - 1].join(",");
    let text = "x".repeat(MAX_DOCUMENT_BYTES / 3);
    let mut region = Region::default();
    region.write(
        1,
        1000,
        &format!(r#"put {{"l":[{elements}],"a":"{text}"}}"#),
    );
    region.write(1, 1000, "append /l 1");
    region.write(1, 1000, &format!("set /b \"{text}\"; unset /b"));
    let stored = region.stored.clone().unwrap();
    let refused = |wanted: &[Asked]| {
        let edits: Vec<_> = wanted.iter().map(Asked::edit).collect();
        let mut document = Document::open(&stored, &region.anchors).unwrap();
        document.resolve(&edits, &some_record()).map(drop)
    };
    let text = ValueBuf::text(&text);
    let set = |pointer| asked("set", pointer, text.clone());
    assert_eq!(
        refused(&[asked("append", "/l", text.clone())]),
        Err(Refused::TooLong("/l".into()))
    );
    assert_eq!(refused(&[set("/b"), set("/c")]), Err(Refused::TooLarge));
    assert_eq!(refused(&[set("/b"), set("/b"), set("/b")]), Ok(()));
    assert_eq!(refused(&[]), Err(Refused::Operations(0)));
}

/// Three regions insert a third each, in runs, into an array of nine thousand elements.
#[test]
fn a_thousand_concurrent_insertions_all_stay_in_their_runs() {
    let elements = vec!["0"; 9000].join(",");
    let mut start = Region::default();
    start.write(9, 1000, &format!("put {{\"l\":[{elements}]}}"));
    let mut sent = Vec::new();
    for broker in 1..=3_u64 {
        let mut region = start.clone();
        for run in 0..3 {
            for n in 0..110 {
                let change = format!("insert /l/{} {}", 3000 * run + n, broker * 1000 + n);
                sent.extend(region.write(broker, 2000, &change));
            }
        }
    }
    let mut first = start.clone();
    sent.iter().for_each(|sent| first.take(sent));
    let mut second = start;
    // Each origin's own stay in order; the origins come the other way round.
    let others: Vec<_> = sent.chunks(330).rev().flatten().collect();
    others.into_iter().for_each(|sent| second.take(sent));
    assert_eq!(first.shown(), second.shown());
    let shown = json::parse(&first.shown()).unwrap();
    let list = shown.value().fields().next().unwrap().1;
    let numbers: Vec<i64> = list
        .elements()
        .map(|n| n.as_number().unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers.len(), 9000 + 3 * 330);
    let runs: Vec<&[i64]> = numbers
        .split(|n| *n == 0)
        .filter(|run| !run.is_empty())
        .collect();
    let in_order = |run: &[i64]| run.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert_eq!(runs.iter().map(|run| run.len()).sum::<usize>(), 990);
    for run in runs {
        assert_eq!(in_order(run), run.len() / 110 - 1, "{run:?}");
    }
    first.settle();
    assert_eq!(first.shown(), second.shown());
    assert!(!is_unsettled(first.stored.as_ref().unwrap()));
}

#[test]
fn a_patch_of_a_row_that_is_gone_changes_nothing() {
    let mut region = Region::default();
    region.write(1, 1000, "put {}");
    let mut other = region.clone();
    let patch = other.write(2, 2000, "set /a 1");
    region.write(1, 2000, "delete");
    region.take(&patch[0]);
    assert_eq!(region.shown(), "no row");
    assert_eq!(Patch::decode(&[], origin(0)), Err(crate::wire::Malformed));
}

/// What lost when two regions write at once, the second one later: path, value, region.
fn lost(before: &str, one: &str, other: &str) -> Vec<String> {
    let mut first = Region::default();
    first.write(9, 1000, before);
    let mut second = first.clone();
    let ours = first.write(1, 2000, one);
    for sent in second.write(2, 3000, other) {
        first.take(&sent);
    }
    ours.iter().for_each(|sent| second.take(sent));
    let list = |region: &Region| -> Vec<String> {
        let stored = region.stored.as_ref().unwrap();
        let document = Document::open(stored, &region.anchors).unwrap();
        let conflicts = document.conflicts().unwrap();
        let listed = conflicts.iter().map(|lost| {
            let region = lost.dot.origin.broker.get();
            format!("{} {} {region}", lost.pointer, lost.value)
        });
        listed.collect()
    };
    let found = list(&first);
    assert_eq!(found, list(&second));
    first.settle();
    assert_eq!(list(&first), Vec::<String>::new());
    found
}

#[test]
fn what_lost_is_listed_until_all_is_stable() {
    let put = r#"put {"a":1,"b":{"c":1},"l":[1,2],"n":5}"#;
    let nothing = Vec::<String>::new();
    assert_eq!(lost(put, "set /a 2", "set /b/c 3"), nothing);
    assert_eq!(lost(put, "set /a 2", "set /a 3"), ["/a 2 1"]);
    assert_eq!(
        lost(put, "set /b/c {\"x\":1}", "set /b/c 3"),
        ["/b/c {\"x\":1} 1"]
    );
    assert_eq!(lost(put, "set /x/y 1", "set /x 2"), ["/x {\"y\":1} 1"]);
    assert_eq!(lost(put, "put {\"k\":1}", "put {}"), [" {\"k\":1} 1"]);
    assert_eq!(lost(put, "set /l/1 8", "set /l/1 9"), ["/l/1 8 1"]);
    assert_eq!(lost(put, "inc /n 1", "inc /n 2"), nothing);
    assert_eq!(lost(put, "set /n 7", "inc /n 2"), nothing);
    assert_eq!(lost(put, "set /n 7; inc /n 1", "set /n 9"), ["/n 7 1"]);
    assert_eq!(lost(put, "set /n 7; inc /n 1", "set /n \"x\""), ["/n 8 1"]);
    assert_eq!(
        lost(put, "set /n \"x\"", "set /n 7; inc /n 1"),
        ["/n \"x\" 1"]
    );
}
