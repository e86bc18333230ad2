//! Binary forms read back, have one form for each value, and garbage never panics.

use proptest::prelude::*;

use super::asking::{Random, asked, literal};
use super::page::Region;
use crate::clock::HybridTimestamp;
use crate::document::{
    Action, Amount, Anchors, Change, Document, Into, Operation, Patch, Place, Step, Value,
    ValueBuf, Written, json,
};
use crate::id::{BrokerId, Dot, Epoch, Origin, Sequence};
use crate::limits::MAX_DOCUMENT_DEPTH;
use crate::vector::VersionVector;

const KEYS: [&str; 4] = ["", "a", "key", "ключ"];

fn origin(broker: u64) -> Origin {
    Origin {
        broker: BrokerId::new(broker),
        epoch: Epoch::new(3),
    }
}

fn dot(random: &mut Random) -> Dot {
    Dot {
        origin: origin(random.next() % 3),
        sequence: Sequence::new(random.next() >> random.below(64)),
        index: (random.next() >> 40) as u32,
    }
}

fn operation<'a>(random: &mut Random, values: &'a [ValueBuf]) -> Operation<'a> {
    let mut path = Vec::new();
    let mut in_array = false;
    let place = |random: &mut Random, in_array| match in_array {
        true => Place::Index(random.next() % 20_000),
        false => Place::Key(KEYS[random.below(KEYS.len())]),
    };
    for _ in 0..random.below(5) {
        let name = random.percent(50).then(|| dot(random));
        let into = match random.below(3) {
            0 => Into::Array(name),
            1 if !in_array => Into::Implicit,
            _ => Into::Object(name),
        };
        path.push(Step {
            place: place(random, in_array),
            into,
        });
        in_array = matches!(into, Into::Array(_));
    }
    let value = values[random.below(values.len())].value();
    let action = match random.below(7) {
        5 => Action::Add(value),
        6 => Action::Remove(value),
        0 => Action::Set(value),
        1 => Action::Inc(Amount::parse(["1", "-70000", "0.25"][random.below(3)]).unwrap()),
        2 => Action::Reset,
        3 if in_array => Action::Insert(value),
        _ if in_array => Action::Delete,
        _ => Action::Unset,
    };
    let place = place(random, in_array);
    Operation {
        path,
        place,
        action,
    }
}

fn values(random: &mut Random) -> Vec<ValueBuf> {
    (0..4).map(|_| literal(random, 0)).collect()
}

fn patch<'a>(random: &mut Random, values: &'a [ValueBuf]) -> Patch<'a> {
    Patch {
        incarnation: dot(random),
        operations: (0..=random.below(4))
            .map(|_| operation(random, values))
            .collect(),
    }
}

/// Changes some bytes, cuts some off, or puts some in.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}

/// A row that has been through something, with marks, increments and tails.
fn row(random: &mut Random) -> Region {
    let mut region = Region::default();
    region.write(
        1,
        1000,
        r#"put {"a":[1,[2],{"b":1}],"b":{"a":{"c":1.5}},"n":5}"#,
    );
    let choices = [
        "append /a 7",
        "insert /a/0 {\"x\":[]}",
        "delete /a/0",
        "set /b/a/c \"x\"",
        "inc /n 1",
        "set /new/way/here 1",
        "inc /new/count 2",
        "set /a/0 9",
        "reset /n",
        "append /a [1]",
        "set /b {\"y\":[]}",
        "add /new/set \"m\"",
        "add /s {\"m\":1}",
        "set /c [3,4]",
    ];
    let mut others = Vec::new();
    for broker in 2..5 {
        let mut other = region.clone();
        for n in 0..random.below(5) as u64 {
            let text = choices[random.below(choices.len())];
            let needs = ["/a/0", "/b/a"]
                .into_iter()
                .find(|path| text.contains(path));
            let missing = match needs {
                Some("/a/0") => other.shown().contains("\"a\":[]"),
                Some(_) => !other.shown().contains("\"b\":{\"a\""),
                None => false,
            };
            if missing && !text.starts_with("insert") {
                continue;
            }
            others.extend(other.write(broker, 2000 + 100 * n, text));
        }
    }
    others.iter().for_each(|sent| region.take(sent));
    region
}

/// Does to a stored row whatever can be done.
fn exercise(stored: &[u8], anchors: &Anchors) {
    let Ok(document) = Document::open(stored, anchors) else {
        return;
    };
    if let Ok(Some(value)) = document.value() {
        let _ = value.to_string();
    }
    let _ = document.conflicts();
    let context = VersionVector::from_iter([(origin(7), Sequence::new(9))]);
    let written = Written {
        dot: Dot {
            origin: origin(8),
            sequence: Sequence::new(5),
            index: 0,
        },
        timestamp: HybridTimestamp::from_millis(5000),
        context: &context,
    };
    let edits = [
        asked("set", "/new/a", ValueBuf::null()),
        asked("insert", "/a/0", ValueBuf::text("x")),
        asked("inc", "/n", ValueBuf::amount(Amount::from(1))),
        asked("unset", "/b", ValueBuf::null()),
        asked("delete", "/a/0", ValueBuf::null()),
        asked("append", "/a/0", ValueBuf::null()),
        asked("add", "/s", ValueBuf::text("m")),
        asked("remove", "/s", json::parse("{\"m\":1}").unwrap()),
    ];
    for edit in &edits {
        let mut document = document.clone();
        let _ = document.resolve(&[edit.edit()], &written);
        let mut out = Vec::new();
        document.store(&mut out);
    }
    let mut document = document;
    let _ = document.apply(&Change::Delete, &written);
    for broker in 1..5 {
        let Ok(mut document) = Document::open(stored, anchors) else {
            continue;
        };
        let origin = Origin {
            broker: BrokerId::new(broker),
            epoch: Epoch::new(1),
        };
        let stable = VersionVector::from_iter([(origin, Sequence::new(3))]);
        let _ = document.settle(&stable);
        let mut out = Vec::new();
        document.store(&mut out);
        let _ = document.value();
    }
}

proptest! {
    #[test]
    fn a_patch_reads_back(seed in any::<u64>()) {
        let random = &mut Random::new(seed);
        let values = values(random);
        let patch = patch(random, &values);
        let bytes = patch.encode(origin(0));
        prop_assert_eq!(Patch::decode(&bytes, origin(0)), Ok(patch));
        for cut in 0..bytes.len() {
            prop_assert!(Patch::decode(&bytes[..cut], origin(0)).is_err());
        }
    }

    #[test]
    fn bytes_that_read_as_a_patch_are_its_only_form(seed in any::<u64>()) {
        let random = &mut Random::new(seed);
        let values = values(random);
        let mut bytes = patch(random, &values).encode(origin(0));
        mutate(&mut bytes, random);
        if let Ok(patch) = Patch::decode(&bytes, origin(0)) {
            prop_assert_eq!(patch.encode(origin(0)), bytes);
        }
    }

    #[test]
    fn bytes_that_read_as_a_value_are_its_only_form(seed in any::<u64>()) {
        let random = &mut Random::new(seed);
        let mut bytes = literal(random, 0).into_bytes();
        mutate(&mut bytes, random);
        if let Ok(value) = Value::decode(&bytes) {
            let again = json::parse(&value.to_string()).unwrap();
            prop_assert_eq!(again.into_bytes(), bytes);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Patch::decode(&bytes, origin(0));
        let _ = Value::decode(&bytes);
        let mut row = vec![1, 6];
        row.extend(&bytes);
        exercise(&row, &Anchors::default());
        row[1] = 11;
        exercise(&row, &Anchors::default());
    }

    #[test]
    fn damaged_rows_never_panic(seed in any::<u64>()) {
        let random = &mut Random::new(seed);
        let region = row(random);
        let Some(mut stored) = region.stored.clone() else { return Ok(()) };
        exercise(&stored, &region.anchors);
        mutate(&mut stored, random);
        exercise(&stored, &region.anchors);
    }

    /// A row that is opened at some places and written back is the same bytes.
    #[test]
    fn a_row_that_is_only_read_is_written_back_as_it_was(seed in any::<u64>()) {
        let region = row(&mut Random::new(seed));
        let Some(stored) = &region.stored else { return Ok(()) };
        let mut document = Document::open(stored, &region.anchors).unwrap();
        document.settle(&VersionVector::EMPTY).unwrap();
        let mut again = Vec::new();
        document.store(&mut again);
        prop_assert_eq!(stored, &again);
    }
}

#[test]
fn nesting_is_bounded_in_operations_and_in_rows() {
    let levels = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let deepest = json::parse(&levels(MAX_DOCUMENT_DEPTH)).unwrap();
    let patch = |value| Patch {
        incarnation: Dot {
            origin: origin(0),
            sequence: Sequence::new(1),
            index: 0,
        },
        operations: vec![Operation {
            path: Vec::new(),
            place: Place::Key("a"),
            action: Action::Set(value),
        }],
    };
    let bytes = patch(deepest.value()).encode(origin(0));
    assert!(Patch::decode(&bytes, origin(0)).is_err());
    let fits = json::parse(&levels(MAX_DOCUMENT_DEPTH - 1)).unwrap();
    let bytes = patch(fits.value()).encode(origin(0));
    assert!(Patch::decode(&bytes, origin(0)).is_ok());
    // Objects in objects, far deeper than any document, each the only field of the one around it.
    let mut row: Vec<u8> = vec![6, 0];
    for _ in 0..2000 {
        let mut outer = vec![8];
        crate::document::form::put_framed(&mut outer, |out| {
            out.extend([1, b'a']);
            out.extend(&row);
        });
        row = outer;
    }
    let mut stored = vec![0x81, 6];
    crate::document::form::put_framed(&mut stored, |out| {
        out.extend([1, b'b']);
        out.extend(&row);
    });
    let anchors = Anchors::default();
    assert!(Document::open(&stored, &anchors).unwrap().value().is_err());
    exercise(&stored, &anchors);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows and records of earlier versions have to be read: whoever changes these bytes has to keep both.
#[test]
fn binary_forms_are_what_they_were() {
    let mut region = Region::default();
    region.write(1, 1000, r#"put {"a":[1,"x"],"b":{"c":1.5},"n":5}"#);
    let mut other = region.clone();
    let mut sent = other.write(2, 2000, "append /a null; set /b/c true");
    sent.extend(region.write(
        1,
        3000,
        "inc /n 1; set /b/c -1; set /x/y {}; add /s 7; insert /a/0 {}",
    ));
    let patches: Vec<String> = sent.iter().map(|sent| hex(&sent.bytes)).collect();
    assert_eq!(patches.join("\n"), PATCHES.trim());
    sent[..2].iter().for_each(|sent| region.take(sent));
    assert_eq!(hex(region.stored.as_ref().unwrap()), UNSTABLE);
    region.settle();
    assert_eq!(hex(region.stored.as_ref().unwrap()), STABLE);
    assert_eq!(
        region.shown(),
        r#"{"a":[{},1,"x",null],"b":{"c":-1},"n":6,"s":[7],"x":{"y":{}}}"#
    );
}

/// The patches, one a line: an append and a set of region 2; five changes of region 1.
const PATCHES: &str = "
0101000000000000000101000114010301610200
010100000000000000010100010001000162016302
000100010200016e04
00010001000100016201630301
00010001000102017801790600
0001000106000173030e
000100011401030161000600
";
/// The row with all of them.
const UNSTABLE: &str = "812601000000620161091c050302050178010500d43e00140000060002000000010105140002000162061001630b0c23010200c83e012202010004016e2a010100c43e041401732c010400d03e0902030e20010400d03e017828010300cc3e09017926010300cc3e00";
/// The row once all is stable.
const STABLE: &str = "01160100002e0161070b16010500000302050178000162060401630301016e030c01730c0402030e000178080701791601030000";
