//! What a record does to a document: the operations, and their binary form.
//!
//! An operation names what it acts on: the row's incarnation, and the identity of every object and
//! array on its path. Only its origin knows these, so they are found when it is sequenced
//! ([`super::Document::resolve`]). An index is that which the origin saw.
//!
//! ```text
//! patch       incarnation (name), count of operations, operations
//! operation   head: bits 0-3 action, bit 4: at an index
//!             count of steps, steps, place, what the action writes
//! step        head: bits 0-3 into, bit 4: at an index; place, [name]
//! place       key: length, UTF-8; or index: varint
//! name        0, sequence, index                  of the record's own origin
//!             1, broker u64, epoch, sequence, index
//! ```

use super::amount::Amount;
use super::anchors::{Names, put_origin, read_origin};
use super::form::{put_bytes, read_text};
use super::value::Value;
use crate::id::{Dot, Origin, Sequence};
use crate::limits::{MAX_ARRAY_ELEMENTS, MAX_DOCUMENT_DEPTH, MAX_PATCH_OPERATIONS};
use crate::wire::{Malformed, Reader, put_varint};

/// What a record does to the document of its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change<'a> {
    /// Writes the whole document: a new incarnation. The value is an object.
    Put(Value<'a>),
    /// Removes the incarnations that its origin had seen.
    Delete,
    /// Changes parts of one incarnation.
    Patch(Patch<'a>),
}

/// Operations on one incarnation of a row, one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch<'a> {
    /// The put that brought the incarnation.
    pub incarnation: Dot,
    /// At least one.
    pub operations: Vec<Operation<'a>>,
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation<'a> {
    /// The containers on the way, from the top.
    pub path: Vec<Step<'a>>,
    /// Where in the last of them.
    pub place: Place<'a>,
    /// What is done there.
    pub action: Action<'a>,
}

/// From one container into one of its.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step<'a> {
    /// Where it is.
    pub place: Place<'a>,
    /// What it is.
    pub into: Into,
}

/// A place in a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place<'a> {
    /// A field of an object.
    Key(&'a str),
    /// An element of an array, by how many the origin saw before it.
    Index(u64),
}

/// A container. Its identity is the dot that wrote it, where that is not the identity of the
/// container around it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// An object that was written as a literal.
    Object(Option<Dot>),
    /// An object that is there because something is in it; its identity is its path.
    Implicit,
    /// An array.
    Array(Option<Dot>),
}

/// What is done at a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action<'a> {
    /// Writes a value.
    Set(Value<'a>),
    /// Removes a field.
    Unset,
    /// Adds to a number; what is not there counts as nothing.
    Inc(Amount),
    /// Takes away from a number what the origin saw of it.
    Reset,
    /// Puts an element in front of the place; behind the last one where that is the end.
    Insert(Value<'a>),
    /// Removes an element.
    Delete,
    /// Adds an element to a set; one that is not there is made.
    Add(Value<'a>),
    /// Removes an element of a set.
    Remove(Value<'a>),
}

const AT_INDEX: u8 = 0x10;

impl<'a> Patch<'a> {
    /// The binary form, for a record of this origin.
    #[must_use]
    pub fn encode(&self, own: Origin) -> Vec<u8> {
        let names = Own(own);
        let mut out = Vec::with_capacity(64);
        names.put_name(&mut out, self.incarnation);
        put_varint(&mut out, self.operations.len() as u64);
        for operation in &self.operations {
            operation.encode(&mut out, &names);
        }
        out
    }

    /// Reads the binary form, which must fill `bytes` exactly.
    ///
    /// # Errors
    /// When the bytes are not the canonical form of a patch, or pass a limit.
    pub fn decode(bytes: &'a [u8], own: Origin) -> Result<Self, Malformed> {
        let names = Own(own);
        let mut reader = Reader::new(bytes);
        let incarnation = names.read_name(&mut reader)?;
        let count = reader.shortest_varint()?;
        if !(1..=MAX_PATCH_OPERATIONS as u64).contains(&count) {
            return Err(Malformed);
        }
        let operations = (0..count)
            .map(|_| Operation::read(&mut reader, &names, Root::Object))
            .collect::<Result<_, _>>()?;
        match reader.is_empty() {
            true => Ok(Self {
                incarnation,
                operations,
            }),
            false => Err(Malformed),
        }
    }
}

/// What a path begins in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Root {
    Object,
    Array,
}

impl<'a> Operation<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>, names: &impl Names) {
        out.push(self.action.code() | self.place.flag());
        put_varint(out, self.path.len() as u64);
        for step in &self.path {
            step.encode(out, names);
        }
        self.place.encode(out);
        match self.action {
            Action::Set(value)
            | Action::Insert(value)
            | Action::Add(value)
            | Action::Remove(value) => out.extend_from_slice(value.bytes()),
            Action::Inc(amount) => amount.encode(out),
            Action::Unset | Action::Reset | Action::Delete => {}
        }
    }

    pub(super) fn read(
        reader: &mut Reader<'a>,
        names: &impl Names,
        root: Root,
    ) -> Result<Self, Malformed> {
        let head = reader.u8()?;
        let count = reader.shortest_varint()?;
        if count >= MAX_DOCUMENT_DEPTH as u64 {
            return Err(Malformed);
        }
        let mut path = Vec::new();
        let mut inside = root;
        for _ in 0..count {
            let step = Step::read(reader, names, inside)?;
            inside = match step.into {
                Into::Object(_) | Into::Implicit => Root::Object,
                Into::Array(_) => Root::Array,
            };
            path.push(step);
        }
        let place = Place::read(reader, head, inside)?;
        let action = Action::read(reader, head & !AT_INDEX, inside, path.len() + 1)?;
        Ok(Self {
            path,
            place,
            action,
        })
    }
}

impl<'a> Step<'a> {
    fn encode(&self, out: &mut Vec<u8>, names: &impl Names) {
        let (code, name) = match self.into {
            Into::Object(None) => (0, None),
            Into::Object(name) => (1, name),
            Into::Implicit => (2, None),
            Into::Array(None) => (3, None),
            Into::Array(name) => (4, name),
        };
        out.push(code | self.place.flag());
        self.place.encode(out);
        if let Some(name) = name {
            names.put_name(out, name);
        }
    }

    fn read(reader: &mut Reader<'a>, names: &impl Names, inside: Root) -> Result<Self, Malformed> {
        let head = reader.u8()?;
        let place = Place::read(reader, head, inside)?;
        let into = match head & !AT_INDEX {
            0 => Into::Object(None),
            1 => Into::Object(Some(names.read_name(reader)?)),
            // An element is there or it is not: a path brings none into being.
            2 if inside == Root::Object => Into::Implicit,
            3 => Into::Array(None),
            4 => Into::Array(Some(names.read_name(reader)?)),
            _ => return Err(Malformed),
        };
        Ok(Self { place, into })
    }
}

impl<'a> Place<'a> {
    fn flag(self) -> u8 {
        match self {
            Place::Key(_) => 0,
            Place::Index(_) => AT_INDEX,
        }
    }

    fn encode(self, out: &mut Vec<u8>) {
        match self {
            Place::Key(key) => put_bytes(out, key.as_bytes()),
            Place::Index(index) => put_varint(out, index),
        }
    }

    fn read(reader: &mut Reader<'a>, head: u8, inside: Root) -> Result<Self, Malformed> {
        match (head & AT_INDEX, inside) {
            (0, Root::Object) => Ok(Place::Key(read_text(reader)?)),
            (AT_INDEX, Root::Array) => match reader.shortest_varint()? {
                // An array may grow beyond its limit where regions add to it at once.
                index if index <= 1000 * MAX_ARRAY_ELEMENTS as u64 => Ok(Place::Index(index)),
                _ => Err(Malformed),
            },
            _ => Err(Malformed),
        }
    }
}

impl<'a> Action<'a> {
    fn code(self) -> u8 {
        match self {
            Action::Set(_) => 0,
            Action::Unset => 1,
            Action::Inc(_) => 2,
            Action::Reset => 3,
            Action::Insert(_) => 4,
            Action::Delete => 5,
            Action::Add(_) => 6,
            Action::Remove(_) => 7,
        }
    }

    fn read(
        reader: &mut Reader<'a>,
        code: u8,
        inside: Root,
        depth: usize,
    ) -> Result<Self, Malformed> {
        match (code, inside) {
            (0, _) => Ok(Action::Set(Value::read(reader, depth)?)),
            (1, Root::Object) => Ok(Action::Unset),
            (2, _) => match Amount::read(reader)? {
                amount if amount.is_step() => Ok(Action::Inc(amount)),
                _ => Err(Malformed),
            },
            (3, _) => Ok(Action::Reset),
            (4, Root::Array) => Ok(Action::Insert(Value::read(reader, depth)?)),
            (5, Root::Array) => Ok(Action::Delete),
            (6, _) => Ok(Action::Add(Value::read(reader, depth + 1)?)),
            (7, _) => Ok(Action::Remove(Value::read(reader, depth + 1)?)),
            _ => Err(Malformed),
        }
    }
}

/// Names in a record: most are of the record's own origin.
struct Own(Origin);

impl Names for Own {
    fn put_name(&self, out: &mut Vec<u8>, dot: Dot) {
        if dot.origin == self.0 {
            out.push(0);
        } else {
            out.push(1);
            put_origin(out, dot.origin);
        }
        put_varint(out, dot.sequence.get());
        put_varint(out, u64::from(dot.index));
    }

    fn read_name(&self, reader: &mut Reader<'_>) -> Result<Dot, Malformed> {
        let origin = match reader.u8()? {
            0 => self.0,
            1 => Some(read_origin(reader)?)
                .filter(|origin| *origin != self.0)
                .ok_or(Malformed)?,
            _ => return Err(Malformed),
        };
        let sequence = Sequence::new(reader.shortest_varint()?);
        let index = u32::try_from(reader.shortest_varint()?).map_err(|_| Malformed)?;
        Ok(Dot {
            origin,
            sequence,
            index,
        })
    }
}
