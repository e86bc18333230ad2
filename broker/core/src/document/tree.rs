//! A stored row, opened as far as somebody looks.
//!
//! What nobody looks at stays the bytes that it was, and is written back as such. So an operation
//! costs what the fields beside its path cost to pass over.

use std::borrow::Cow;

use super::amount::Amount;
use super::anchors::{Anchors, Mark, Names, skip_mark, skip_name};
use super::change::{Operation, Root};
use super::fields::Fields;
use super::form::{
    ARRAY, CELL, COUNT, IMPLICIT, KIND, MARKED, NAMED, OBJECT, SEQUENCE, SET, read_bytes, since,
};
use super::value::{Value, skip_payload};
use crate::id::{Dot, Origin, Sequence};
use crate::limits::MAX_DOCUMENT_DEPTH;
use crate::lww::Stamp;
use crate::wire::{Malformed, Reader};

/// What is at one place: one value, or several that were written concurrently.
pub(super) type Cell<'a> = Vec<Candidate<'a>>;

/// A cell that may not have been opened yet.
#[derive(Clone, Debug)]
pub(super) enum Slot<'a> {
    Raw(&'a [u8]),
    Open(Cell<'a>),
}

/// One of the values at a place.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    /// Who wrote it. `None` where every operation that can come here has seen it. Never of a count
    /// or an implicit object: their parts have marks of their own.
    pub(super) mark: Option<Mark>,
    pub(super) body: Body<'a>,
}

#[derive(Clone, Debug)]
pub(super) enum Body<'a> {
    Plain(Plain<'a>),
    Count(Count),
    Object(Object<'a>),
    Implicit(Implicit<'a>),
    Array(Array<'a>),
}

/// A string, number, boolean or null.
#[derive(Clone, Debug)]
pub(super) struct Plain<'a> {
    pub(super) kind: u8,
    pub(super) payload: Cow<'a, [u8]>,
}

/// Increments, and what is known of the number below them.
#[derive(Clone, Debug, Default)]
pub(super) struct Count {
    /// What every operation that can come here has seen.
    pub(super) settled: Amount,
    /// The rest: one entry for each frame, since a frame is seen as a whole or not at all.
    pub(super) entries: Vec<(Mark, Amount)>,
}

/// An object that was written as a literal.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    /// The dot of the operation that wrote it.
    pub(super) identity: Dot,
    pub(super) fields: Fields<'a>,
}

/// What a path or an added element brought into being.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Object,
    /// The keys of its fields are its elements.
    Set,
}

/// An object that a path brought into being, or a set.
#[derive(Clone, Debug)]
pub(super) struct Implicit<'a> {
    pub(super) shape: Shape,
    /// Why it is there: the operations that went through it and are not replaced. None are listed
    /// once every operation that can come here has seen it.
    pub(super) presence: Vec<Mark>,
    pub(super) fields: Fields<'a>,
}

/// An array: elements, and operations that are not folded into them.
#[derive(Clone, Debug)]
pub(super) struct Array<'a> {
    pub(super) identity: Dot,
    pub(super) base: Elements<'a>,
    pub(super) tail: Vec<TailOperation<'a>>,
}

/// Elements that every operation that can come here has seen. None of them holds a mark.
#[derive(Clone, Debug)]
pub(super) enum Elements<'a> {
    Raw(&'a [u8]),
    Open(Vec<Slot<'a>>),
}

/// An operation on an array, or on what is in one of its elements.
#[derive(Clone, Debug)]
pub(super) struct TailOperation<'a> {
    pub(super) mark: Mark,
    pub(super) unseen: Unseen,
    /// Its path begins in this array.
    pub(super) operation: Operation<'a>,
}

/// Of operations before one in the tail, those that its origin had not seen when it wrote it: of
/// these origins, all from this frame on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Unseen(pub(super) Vec<(Origin, Sequence)>);

impl Unseen {
    pub(super) fn has(&self, dot: &Dot) -> bool {
        let mut from = self.0.iter();
        from.any(|&(origin, from)| origin == dot.origin && dot.sequence >= from)
    }
}

impl<'a> Slot<'a> {
    /// The cell, opened. `around` is the identity of the container that it is in.
    pub(super) fn open(
        &mut self,
        around: Dot,
        anchors: &Anchors,
    ) -> Result<&mut Cell<'a>, Malformed> {
        if let Slot::Raw(bytes) = self {
            *self = Slot::Open(read_cell(bytes, around, anchors)?);
        }
        match self {
            Slot::Open(cell) => Ok(cell),
            Slot::Raw(_) => Err(Malformed),
        }
    }

    /// The cell as it would be opened.
    pub(super) fn view(
        &self,
        around: Dot,
        anchors: &Anchors,
    ) -> Result<Cow<'_, [Candidate<'a>]>, Malformed> {
        match self {
            Slot::Raw(bytes) => read_cell(bytes, around, anchors).map(Cow::Owned),
            Slot::Open(cell) => Ok(Cow::Borrowed(cell)),
        }
    }
}

impl<'a> Candidate<'a> {
    /// A value that an operation writes.
    pub(super) fn written(value: Value<'a>, mark: Mark) -> Result<Self, Malformed> {
        let mut payload = Reader::new(value.payload());
        let body = match value.kind() {
            OBJECT => Body::Object(Object {
                identity: mark.dot,
                fields: Fields::Raw(read_bytes(&mut payload)?),
            }),
            ARRAY => Body::Array(Array {
                identity: mark.dot,
                base: Elements::Raw(read_bytes(&mut payload)?),
                tail: Vec::new(),
            }),
            kind => Body::Plain(Plain {
                kind,
                payload: Cow::Borrowed(value.payload()),
            }),
        };
        let mark = Some(mark);
        Ok(Self { mark, body })
    }

    /// Of what it consists of, the mark with the greatest stamp.
    pub(super) fn last_mark(&self) -> Option<Mark> {
        match &self.body {
            Body::Count(count) => {
                let marks = count.entries.iter().map(|&(mark, _)| mark);
                marks.max_by_key(Mark::stamp)
            }
            Body::Implicit(implicit) => implicit.presence.iter().copied().max_by_key(Mark::stamp),
            _ => self.mark,
        }
    }

    /// The greatest stamp of what it consists of; `None` is before every stamp.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.last_mark().map(|mark| mark.stamp())
    }
}

impl Plain<'_> {
    pub(super) const NULL: Self = Self {
        kind: super::form::NULL,
        payload: Cow::Borrowed(&[]),
    };

    /// The amount, if it counts.
    pub(super) fn amount(&self) -> Option<Amount> {
        Amount::of_payload(self.kind, &self.payload)
    }
}

impl Count {
    pub(super) fn sum(&self) -> Amount {
        let entries = self.entries.iter().map(|&(_, amount)| amount);
        entries.fold(self.settled, |sum, amount| sum + amount)
    }
}

impl<'a> Elements<'a> {
    pub(super) fn to_slots(&self) -> Result<Vec<Slot<'a>>, Malformed> {
        match self {
            Elements::Open(slots) => Ok(slots.clone()),
            Elements::Raw(bytes) => {
                let mut reader = Reader::new(bytes);
                let mut slots = Vec::new();
                while !reader.is_empty() {
                    slots.push(Slot::Raw(skip(&mut reader)?));
                }
                Ok(slots)
            }
        }
    }

    pub(super) fn len(&self) -> Result<usize, Malformed> {
        match self {
            Elements::Open(slots) => Ok(slots.len()),
            Elements::Raw(bytes) => {
                let mut reader = Reader::new(bytes);
                let mut len = 0;
                while !reader.is_empty() {
                    skip(&mut reader)?;
                    len += 1;
                }
                Ok(len)
            }
        }
    }
}

/// Passes over one value with all that belongs to it.
pub(super) fn skip<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let from = reader.rest();
    let head = reader.u8()?;
    match head & KIND {
        COUNT => skip_count(head, reader)?,
        IMPLICIT | SET => {
            for _ in 0..marks_of(head, reader)? {
                skip_mark(reader)?;
            }
            read_bytes(reader)?;
        }
        SEQUENCE | CELL => {
            skip_flags(head, reader)?;
            read_bytes(reader)?;
        }
        kind => {
            skip_flags(head, reader)?;
            skip_payload(kind, reader)?;
        }
    }
    Ok(since(from, reader))
}

fn skip_flags(head: u8, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match head & !KIND {
        0 => Ok(()),
        NAMED => skip_name(reader),
        MARKED => skip_mark(reader),
        _ => Err(Malformed),
    }
}

/// How many marks follow the head of a count or an implicit object.
fn marks_of(head: u8, reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    match head & !KIND {
        0 => Ok(0),
        MARKED => Ok(1),
        NAMED => reader.shortest_varint(),
        _ => Err(Malformed),
    }
}

fn skip_count(head: u8, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    for _ in 0..marks_of(head, reader)? {
        skip_mark(reader)?;
        Amount::read(reader)?;
    }
    Amount::read(reader).map(drop)
}

/// Reads a cell that fills `bytes` exactly.
pub(super) fn read_cell<'a>(
    bytes: &'a [u8],
    around: Dot,
    anchors: &Anchors,
) -> Result<Cell<'a>, Malformed> {
    let mut reader = Reader::new(bytes);
    let Some((&CELL, _)) = bytes.split_first() else {
        let candidate = read_candidate(&mut reader, around, anchors)?;
        return match reader.is_empty() {
            true => Ok(vec![candidate]),
            false => Err(Malformed),
        };
    };
    reader.u8()?;
    let mut inside = Reader::new(read_bytes(&mut reader)?);
    let mut cell = Vec::with_capacity(2);
    while !inside.is_empty() {
        cell.push(read_candidate(&mut inside, around, anchors)?);
    }
    match reader.is_empty() && cell.len() > 1 {
        true => Ok(cell),
        false => Err(Malformed),
    }
}

fn read_candidate<'a>(
    reader: &mut Reader<'a>,
    around: Dot,
    anchors: &Anchors,
) -> Result<Candidate<'a>, Malformed> {
    let head = reader.u8()?;
    let kind = head & KIND;
    match kind {
        COUNT => return read_count(head, reader, anchors),
        IMPLICIT | SET => return read_implicit(head, reader, anchors),
        _ => {}
    }
    let (mut mark, mut identity) = (None, around);
    match head & !KIND {
        0 => {}
        NAMED => identity = anchors.read_name(reader)?,
        MARKED => {
            let read = anchors.read_mark(reader)?;
            (mark, identity) = (Some(read), read.dot);
        }
        _ => return Err(Malformed),
    }
    let body = match kind {
        OBJECT => Body::Object(Object {
            identity,
            fields: Fields::Raw(read_bytes(reader)?),
        }),
        ARRAY => Body::Array(Array {
            identity,
            base: Elements::Raw(read_bytes(reader)?),
            tail: Vec::new(),
        }),
        SEQUENCE => Body::Array(read_sequence(reader, identity, anchors)?),
        kind => {
            let from = reader.rest();
            skip_payload(kind, reader)?;
            Body::Plain(Plain {
                kind,
                payload: Cow::Borrowed(since(from, reader)),
            })
        }
    };
    Ok(Candidate { mark, body })
}

fn read_count<'a>(
    head: u8,
    reader: &mut Reader<'a>,
    anchors: &Anchors,
) -> Result<Candidate<'a>, Malformed> {
    let mut entries = Vec::new();
    for _ in 0..marks_of(head, reader)? {
        entries.push((anchors.read_mark(reader)?, Amount::read(reader)?));
    }
    let settled = Amount::read(reader)?;
    let body = Body::Count(Count { settled, entries });
    Ok(Candidate { mark: None, body })
}

fn read_implicit<'a>(
    head: u8,
    reader: &mut Reader<'a>,
    anchors: &Anchors,
) -> Result<Candidate<'a>, Malformed> {
    let mut presence = Vec::new();
    for _ in 0..marks_of(head, reader)? {
        presence.push(anchors.read_mark(reader)?);
    }
    let fields = Fields::Raw(read_bytes(reader)?);
    let shape = match head & KIND {
        SET => Shape::Set,
        _ => Shape::Object,
    };
    let body = Body::Implicit(Implicit {
        shape,
        presence,
        fields,
    });
    Ok(Candidate { mark: None, body })
}

fn read_sequence<'a>(
    reader: &mut Reader<'a>,
    identity: Dot,
    anchors: &Anchors,
) -> Result<Array<'a>, Malformed> {
    let mut inside = Reader::new(read_bytes(reader)?);
    let base = Elements::Raw(read_bytes(&mut inside)?);
    let mut tail = Vec::new();
    while !inside.is_empty() {
        let mark = anchors.read_mark(&mut inside)?;
        let mut unseen = Unseen::default();
        for _ in 0..inside.shortest_varint()? {
            let (origin, from, _) = anchors.read_frame(&mut inside)?;
            unseen.0.push((origin, from));
        }
        let operation = Operation::read(&mut inside, anchors, Root::Array)?;
        tail.push(TailOperation {
            mark,
            unseen,
            operation,
        });
    }
    Ok(Array {
        identity,
        base,
        tail,
    })
}

/// What to look for in stored bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Free {
    /// Of what stability would change: marks, increments, operations.
    OfMarks,
    /// Of all that a plain value does not have.
    OfMetadata,
}

/// Whether stored fields are free of something, at any depth.
pub(super) fn are_fields_free(bytes: &[u8], free: Free, depth: usize) -> Result<bool, Malformed> {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        read_bytes(&mut reader)?;
        if !is_free(skip(&mut reader)?, free, depth)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a stored value is free of something, at any depth.
pub(super) fn is_free(bytes: &[u8], free: Free, depth: usize) -> Result<bool, Malformed> {
    let depth = deeper(depth)?;
    let mut reader = Reader::new(bytes);
    let head = reader.u8()?;
    let allowed = match free {
        Free::OfMarks => head & KIND != COUNT && head & MARKED == 0,
        Free::OfMetadata => head < IMPLICIT,
    };
    match head & KIND {
        _ if !allowed => Ok(false),
        CELL | SEQUENCE => Ok(false),
        IMPLICIT | SET if head & !KIND != 0 => Ok(false),
        OBJECT | IMPLICIT | SET => {
            if head & NAMED != 0 {
                skip_name(&mut reader)?;
            }
            are_fields_free(read_bytes(&mut reader)?, free, depth)
        }
        // Elements never hold marks: operations on them are in the tail.
        ARRAY if free == Free::OfMetadata => {
            let mut elements = Reader::new(read_bytes(&mut reader)?);
            while !elements.is_empty() {
                if !is_free(skip(&mut elements)?, free, depth)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// One level further down; an error beyond what any document has, so that recursion ends.
pub(super) fn deeper(depth: usize) -> Result<usize, Malformed> {
    match depth <= MAX_DOCUMENT_DEPTH {
        true => Ok(depth + 1),
        false => Err(Malformed),
    }
}
