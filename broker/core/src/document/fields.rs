//! The fields of an object, or the elements of a set, of which only those that somebody looked at are
//! opened.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::form::read_bytes;
use super::tree::{Free, Slot, are_fields_free, skip};
use crate::wire::{Malformed, Reader};

/// Fields in the order of their keys.
#[derive(Clone, Debug)]
pub(super) enum Fields<'a> {
    Raw(&'a [u8]),
    Parts(Vec<Part<'a>>),
}

#[derive(Clone, Debug)]
pub(super) enum Part<'a> {
    /// Some fields, as they are stored.
    Raw(&'a [u8]),
    Field(Field<'a>),
}

#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    /// UTF-8 in an object; in a set the binary form of the element.
    pub(super) key: &'a [u8],
    pub(super) slot: Slot<'a>,
}

/// Where a key is in stored fields.
enum Place {
    /// The field, and its value in it.
    Found {
        from: usize,
        value: usize,
        to: usize,
    },
    /// Where it would be.
    Missing(usize),
}

impl<'a> Fields<'a> {
    pub(super) const NONE: Self = Self::Raw(&[]);

    fn parts(&mut self) -> &mut Vec<Part<'a>> {
        if let Fields::Raw(bytes) = *self {
            let mut parts = Vec::with_capacity(3);
            if !bytes.is_empty() {
                parts.push(Part::Raw(bytes));
            }
            *self = Fields::Parts(parts);
        }
        match self {
            Fields::Parts(parts) => parts,
            Fields::Raw(_) => unreachable!("it was parted"),
        }
    }

    /// Makes a part of its own of a field, with an empty cell if there is none.
    pub(super) fn part(&mut self, key: &'a [u8]) -> Result<usize, Malformed> {
        let parts = self.parts();
        let mut at = 0;
        while let Some(part) = parts.get(at) {
            match part {
                Part::Field(field) => match key.cmp(field.key) {
                    Ordering::Equal => return Ok(at),
                    Ordering::Less => break,
                    Ordering::Greater => {}
                },
                Part::Raw(bytes) => match find(bytes, key)? {
                    Place::Missing(place) if place == bytes.len() => {}
                    place => return Ok(cut(parts, at, bytes, key, &place)),
                },
            }
            at += 1;
        }
        parts.insert(at, Part::Field(empty(key)));
        Ok(at)
    }

    /// The slot of a part that was made.
    pub(super) fn slot(&mut self, part: usize) -> &mut Slot<'a> {
        match &mut self.parts()[part] {
            Part::Field(field) => &mut field.slot,
            Part::Raw(_) => unreachable!("only fields are asked for"),
        }
    }

    pub(super) fn remove(&mut self, part: usize) {
        self.parts().remove(part);
    }

    /// What is in a field.
    pub(super) fn find(&self, key: &[u8]) -> Result<Option<Cow<'_, Slot<'a>>>, Malformed> {
        let found = |bytes: &'a [u8]| {
            let place = find(bytes, key)?;
            Ok(match place {
                Place::Found { value, to, .. } => Some(Cow::Owned(Slot::Raw(&bytes[value..to]))),
                Place::Missing(_) => None,
            })
        };
        let parts = match self {
            Fields::Raw(bytes) => return found(bytes),
            Fields::Parts(parts) => parts,
        };
        for part in parts {
            match part {
                Part::Field(field) if field.key == key => {
                    return Ok(Some(Cow::Borrowed(&field.slot)));
                }
                Part::Field(_) => {}
                Part::Raw(bytes) => match found(bytes)? {
                    None => {}
                    found => return Ok(found),
                },
            }
        }
        Ok(None)
    }

    /// Opens those of the stored fields that are not free of something; gives all that are open.
    pub(super) fn open_unless(
        &mut self,
        free: Free,
        depth: usize,
    ) -> Result<impl Iterator<Item = &mut Slot<'a>>, Malformed> {
        let mut opened = Vec::new();
        for part in std::mem::take(self.parts()) {
            match part {
                Part::Raw(bytes) if !are_fields_free(bytes, free, depth)? => {
                    opened.extend(read_fields(bytes)?.into_iter().map(Part::Field));
                }
                part => opened.push(part),
            }
        }
        *self = Fields::Parts(opened);
        Ok(self.opened())
    }

    /// The slots of all fields that are open.
    pub(super) fn opened(&mut self) -> impl Iterator<Item = &mut Slot<'a>> {
        let parts = match self {
            Fields::Parts(parts) => parts.as_mut_slice(),
            Fields::Raw(_) => &mut [],
        };
        parts.iter_mut().filter_map(|part| match part {
            Part::Field(field) => Some(&mut field.slot),
            Part::Raw(_) => None,
        })
    }

    /// All keys, in order.
    pub(super) fn keys(&self) -> Result<Vec<&'a [u8]>, Malformed> {
        let stored = |bytes: &'a [u8]| -> Result<Vec<&'a [u8]>, Malformed> {
            Ok(read_fields(bytes)?.iter().map(|field| field.key).collect())
        };
        let parts = match self {
            Fields::Raw(bytes) => return stored(bytes),
            Fields::Parts(parts) => parts,
        };
        let mut keys = Vec::new();
        for part in parts {
            match part {
                Part::Raw(bytes) => keys.append(&mut stored(bytes)?),
                Part::Field(field) => keys.push(field.key),
            }
        }
        Ok(keys)
    }

    /// Takes out all fields.
    pub(super) fn take(&mut self) -> Result<Vec<Field<'a>>, Malformed> {
        let mut fields = Vec::new();
        for part in std::mem::take(self.parts()) {
            match part {
                Part::Raw(bytes) => fields.append(&mut read_fields(bytes)?),
                Part::Field(field) => fields.push(field),
            }
        }
        Ok(fields)
    }

    pub(super) fn put_back(&mut self, fields: Vec<Field<'a>>) {
        *self = Fields::Parts(fields.into_iter().map(Part::Field).collect());
    }
}

fn empty(key: &[u8]) -> Field<'_> {
    let slot = Slot::Open(Vec::new());
    Field { key, slot }
}

/// Cuts the stored fields of a part in two, with a field between them; gives its part.
fn cut<'a>(
    parts: &mut Vec<Part<'a>>,
    at: usize,
    bytes: &'a [u8],
    key: &'a [u8],
    place: &Place,
) -> usize {
    let (from, to, field) = match *place {
        Place::Found { from, value, to } => {
            let slot = Slot::Raw(&bytes[value..to]);
            (from, to, Field { key, slot })
        }
        Place::Missing(place) => (place, place, empty(key)),
    };
    let (before, after) = (&bytes[..from], &bytes[to..]);
    parts[at] = Part::Field(field);
    if !after.is_empty() {
        parts.insert(at + 1, Part::Raw(after));
    }
    if before.is_empty() {
        return at;
    }
    parts.insert(at, Part::Raw(before));
    at + 1
}

fn find(bytes: &[u8], key: &[u8]) -> Result<Place, Malformed> {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        let from = bytes.len() - reader.remaining();
        let order = read_bytes(&mut reader)?.cmp(key);
        let value = bytes.len() - reader.remaining();
        if order == Ordering::Greater {
            return Ok(Place::Missing(from));
        }
        skip(&mut reader)?;
        if order == Ordering::Equal {
            let to = bytes.len() - reader.remaining();
            return Ok(Place::Found { from, value, to });
        }
    }
    Ok(Place::Missing(bytes.len()))
}

pub(super) fn read_fields(bytes: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut fields: Vec<Field<'_>> = Vec::new();
    while !reader.is_empty() {
        let key = read_bytes(&mut reader)?;
        if fields.last().is_some_and(|last| last.key >= key) {
            return Err(Malformed);
        }
        let slot = Slot::Raw(skip(&mut reader)?);
        fields.push(Field { key, slot });
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn fields_stay_in_order_whatever_is_opened(
            held in prop::collection::btree_set("[a-e]{0,2}", 0..8),
            opened in prop::collection::vec("[a-e]{0,2}", 0..8),
        ) {
            let text: Vec<String> = held.iter().map(|key| format!("\"{key}\":1")).collect();
            let value = parse(&format!("{{{}}}", text.join(","))).unwrap();
            let mut payload = Reader::new(value.value().payload());
            let mut fields = Fields::Raw(read_bytes(&mut payload).unwrap());
            for key in &opened {
                let is_there = fields.find(key.as_bytes()).unwrap().is_some();
                prop_assert_eq!(is_there, held.contains(key) || {
                    let before = opened.iter().take_while(|other| !std::ptr::eq(*other, key));
                    before.collect::<Vec<_>>().contains(&key)
                });
                let part = fields.part(key.as_bytes()).unwrap();
                let is_open = matches!(fields.slot(part), Slot::Open(cell) if cell.is_empty());
                prop_assert_eq!(is_open, !held.contains(key));
            }
            let all: Vec<String> = fields.take().unwrap().iter().map(|f| String::from_utf8(f.key.to_vec()).unwrap()).collect();
            let expected: BTreeSet<String> = held.into_iter().chain(opened).collect();
            prop_assert_eq!(all, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
