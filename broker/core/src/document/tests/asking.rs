//! What might be asked of a document, at random.

use crate::document::form::ARRAY;
use crate::document::{Amount, Edit, Pointer, Value, ValueBuf, Wish, json};

/// A small generator of random numbers: the same seed gives the same history.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// An edit that owns what it is made of.
pub(super) struct Asked {
    pointer: Pointer,
    wish: &'static str,
    value: ValueBuf,
}

impl Asked {
    pub(super) fn edit(&self) -> Edit<'_> {
        let value = self.value.value();
        let wish = match self.wish {
            "set" => Wish::Set(value),
            "unset" => Wish::Unset,
            "inc" => Wish::Inc(value.as_amount().unwrap_or(Amount::ZERO)),
            "reset" => Wish::Reset,
            "insert" => Wish::Insert(value),
            "append" => Wish::Append(value),
            "delete" => Wish::Delete,
            "add" => Wish::Add(value),
            "remove" => Wish::Remove(value),
            other => panic!("no operation {other:?}"),
        };
        Edit {
            pointer: &self.pointer,
            wish,
        }
    }
}

pub(super) fn asked(wish: &'static str, pointer: &str, value: ValueBuf) -> Asked {
    Asked {
        pointer: Pointer::parse(pointer).expect("a pointer"),
        wish,
        value,
    }
}

/// Something that might be done to a document like this.
pub(super) fn ask(shown: Value<'_>, random: &mut Random) -> Asked {
    // Arrays are where most can go wrong, and only under concurrency.
    let arrays = |(key, value): &(&str, Value<'_>)| *key != "s" && value.bytes()[0] == ARRAY;
    if let Some((key, array)) = shown.fields().find(arrays).filter(|_| random.percent(30)) {
        let index = random.below(array.elements().count() + 1);
        let element = array.elements().nth(index);
        return ask_array(&format!("/{key}"), index, element, random);
    }
    let mut pointer = String::new();
    let mut inside = shown;
    loop {
        if inside.bytes()[0] == ARRAY {
            let length = inside.elements().count();
            let index = random.below(length + 1);
            let element = inside.elements().nth(index);
            let holds = element.is_some_and(|element| !is_scalar(element));
            if let Some(element) = element.filter(|_| holds && random.percent(60)) {
                pointer.push_str(&format!("/{index}"));
                inside = element;
                continue;
            }
            return ask_array(&pointer, index, element, random);
        }
        let key = ["a", "b", "c", "s"][random.below(4)];
        let field = inside.fields().find(|(held, _)| *held == key);
        let field = field.map(|(_, value)| value);
        pointer.push_str(&format!("/{key}"));
        // Literals have no such field, so what is there is a set most of the time.
        if key == "s" {
            return ask_set(&pointer, field, random);
        }
        match field {
            Some(value) if !is_scalar(value) && random.percent(75) => inside = value,
            None if random.percent(40) => {
                for _ in 0..1 + random.below(2) {
                    pointer.push_str(["/a", "/b", "/c"][random.below(3)]);
                }
                let wish = if random.percent(30) { "inc" } else { "set" };
                return asked(wish, &pointer, value_for(wish, random));
            }
            field => return ask_field(&pointer, field, random),
        }
    }
}

fn ask_field(pointer: &str, field: Option<Value<'_>>, random: &mut Random) -> Asked {
    let counts = field.is_none_or(|value| value.as_amount().is_some());
    let wish = match random.below(100) {
        0..50 if counts => "inc",
        50..65 if counts => "reset",
        0..80 => "set",
        _ => "unset",
    };
    asked(wish, pointer, value_for(wish, random))
}

fn ask_set(pointer: &str, field: Option<Value<'_>>, random: &mut Random) -> Asked {
    let elements = ["1", "\"x\"", "{\"k\":1}", "[2]"];
    let element = json::parse(elements[random.below(elements.len())]).expect("JSON");
    let held = field.map(|set| set.elements().any(|held| held == element.value()));
    let wish = match (held, random.below(100)) {
        (_, 0..4) => "unset",
        (_, 4..8) => "set",
        (Some(true), 8..70) => "remove",
        _ => "add",
    };
    asked(wish, pointer, element)
}

fn ask_array(
    pointer: &str,
    index: usize,
    element: Option<Value<'_>>,
    random: &mut Random,
) -> Asked {
    let counts = element.is_some_and(|value| value.as_amount().is_some());
    let wish = match random.below(100) {
        0..25 => "delete",
        25..35 => "set",
        35..45 if counts => "inc",
        45..50 if counts => "reset",
        50..60 => "append",
        _ => "insert",
    };
    let value = value_for(wish, random);
    match wish {
        "append" => asked(wish, pointer, value),
        _ => asked(wish, &format!("{pointer}/{index}"), value),
    }
}

fn value_for(wish: &str, random: &mut Random) -> ValueBuf {
    match wish {
        "inc" => {
            let amounts = ["1", "2", "-3", "0.5", "7"];
            json::parse(amounts[random.below(amounts.len())]).expect("a number")
        }
        _ => literal(random, 0),
    }
}

fn is_scalar(value: Value<'_>) -> bool {
    let text = value.to_string();
    !text.starts_with(['{', '['])
}

pub(super) fn object(random: &mut Random) -> ValueBuf {
    let mut text = String::new();
    write_object(random, 0, &mut text);
    json::parse(&text).expect("JSON")
}

pub(super) fn literal(random: &mut Random, depth: usize) -> ValueBuf {
    let mut text = String::new();
    write_literal(random, depth, &mut text);
    json::parse(&text).expect("JSON")
}

fn write_literal(random: &mut Random, depth: usize, text: &mut String) {
    match random.below(100) {
        0..25 => text.push_str(&random.below(100).to_string()),
        25..30 => text.push_str(["1.50", "2e3", "-0", "0.25"][random.below(4)]),
        30..40 => text.push_str(&format!("\"s{}\"", random.below(100))),
        40..45 => text.push_str(["null", "true", "false"][random.below(3)]),
        45..65 if depth < 3 => write_object(random, depth, text),
        65..95 if depth < 3 => {
            text.push('[');
            for n in 0..random.below(4) {
                text.push_str(if n > 0 { "," } else { "" });
                write_literal(random, depth + 1, text);
            }
            text.push(']');
        }
        _ => text.push_str(&random.below(10).to_string()),
    }
}

fn write_object(random: &mut Random, depth: usize, text: &mut String) {
    text.push('{');
    let mut first = true;
    for key in ["a", "b", "c"] {
        if random.percent(50) {
            text.push_str(if first { "" } else { "," });
            first = false;
            text.push_str(&format!("\"{key}\":"));
            write_literal(random, depth + 1, text);
        }
    }
    text.push('}');
}
