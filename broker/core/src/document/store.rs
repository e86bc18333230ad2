//! Writes an opened row back into its stored form.

use super::anchors::{Anchors, Mark, Names};
use super::fields::{Fields, Part};
use super::form::{
    ARRAY, CELL, COUNT, IMPLICIT, MARKED, NAMED, OBJECT, SEQUENCE, SET, put_bytes, put_framed,
};
use super::tree::{Array, Body, Candidate, Count, Elements, Implicit, Shape, Slot, TailOperation};
use crate::id::Dot;
use crate::wire::put_varint;

/// Writes, and notices whether there is something that stability would change.
pub(super) struct Writer<'w> {
    pub(super) out: &'w mut Vec<u8>,
    pub(super) anchors: &'w Anchors,
    /// Whether marks or operations were written.
    pub(super) unsettled: bool,
}

impl Writer<'_> {
    /// Appends with a length in front.
    fn framed(&mut self, write: impl FnOnce(&mut Writer<'_>)) {
        let (anchors, mut unsettled) = (self.anchors, self.unsettled);
        put_framed(self.out, |out| {
            let mut inner = Writer {
                out,
                anchors,
                unsettled,
            };
            write(&mut inner);
            unsettled = inner.unsettled;
        });
        self.unsettled = unsettled;
    }

    fn mark(&mut self, mark: &Mark) {
        self.unsettled = true;
        self.anchors.put_mark(self.out, mark);
    }

    fn slot(&mut self, slot: &Slot<'_>, around: Dot) {
        match slot {
            Slot::Raw(bytes) => self.out.extend_from_slice(bytes),
            Slot::Open(cell) => self.cell(cell, around),
        }
    }

    /// Appends a cell that lies in a container of this identity.
    pub(super) fn cell(&mut self, cell: &[Candidate<'_>], around: Dot) {
        if let [candidate] = cell {
            return self.candidate(candidate, around);
        }
        self.unsettled = true;
        self.out.push(CELL);
        self.framed(|inner| {
            for candidate in cell {
                inner.candidate(candidate, around);
            }
        });
    }

    fn candidate(&mut self, candidate: &Candidate<'_>, around: Dot) {
        let mark = candidate.mark.as_ref();
        match &candidate.body {
            Body::Plain(plain) => {
                self.head(plain.kind, mark, None);
                self.out.extend_from_slice(&plain.payload);
            }
            Body::Count(count) => self.count(count),
            Body::Implicit(implicit) => self.implicit(implicit, around),
            Body::Object(object) => {
                let name = (object.identity != around).then_some(object.identity);
                self.head(OBJECT, mark, name);
                self.fields(&object.fields, object.identity);
            }
            Body::Array(array) => self.array(array, mark, around),
        }
    }

    fn head(&mut self, kind: u8, mark: Option<&Mark>, name: Option<Dot>) {
        match (mark, name) {
            (Some(mark), _) => {
                self.out.push(kind | MARKED);
                self.mark(mark);
            }
            (None, Some(name)) => {
                self.out.push(kind | NAMED);
                self.anchors.put_name(self.out, name);
            }
            (None, None) => self.out.push(kind),
        }
    }

    /// The head of what has any number of marks.
    fn many(&mut self, kind: u8, marks: usize) {
        match marks {
            0 => self.out.push(kind),
            1 => self.out.push(kind | MARKED),
            more => {
                self.out.push(kind | NAMED);
                put_varint(self.out, more as u64);
            }
        }
    }

    fn count(&mut self, count: &Count) {
        self.many(COUNT, count.entries.len());
        for (mark, amount) in &count.entries {
            self.mark(mark);
            amount.encode(self.out);
        }
        count.settled.encode(self.out);
    }

    fn implicit(&mut self, implicit: &Implicit<'_>, around: Dot) {
        let kind = match implicit.shape {
            Shape::Object => IMPLICIT,
            Shape::Set => SET,
        };
        self.many(kind, implicit.presence.len());
        for mark in &implicit.presence {
            self.mark(mark);
        }
        self.fields(&implicit.fields, around);
    }

    fn fields(&mut self, fields: &Fields<'_>, around: Dot) {
        match fields {
            Fields::Raw(bytes) => put_bytes(self.out, bytes),
            Fields::Parts(parts) => self.framed(|inner| {
                for part in parts {
                    match part {
                        Part::Raw(bytes) => inner.out.extend_from_slice(bytes),
                        Part::Field(field) => {
                            put_bytes(inner.out, field.key);
                            inner.slot(&field.slot, around);
                        }
                    }
                }
            }),
        }
    }

    fn array(&mut self, array: &Array<'_>, mark: Option<&Mark>, around: Dot) {
        let name = (array.identity != around).then_some(array.identity);
        if array.tail.is_empty() {
            self.head(ARRAY, mark, name);
            return self.elements(&array.base, array.identity);
        }
        self.unsettled = true;
        self.head(SEQUENCE, mark, name);
        self.framed(|inner| {
            inner.elements(&array.base, array.identity);
            for operation in &array.tail {
                inner.tail(operation);
            }
        });
    }

    fn elements(&mut self, elements: &Elements<'_>, around: Dot) {
        match elements {
            Elements::Raw(bytes) => put_bytes(self.out, bytes),
            Elements::Open(slots) => self.framed(|inner| {
                for slot in slots {
                    inner.slot(slot, around);
                }
            }),
        }
    }

    fn tail(&mut self, tail: &TailOperation<'_>) {
        self.mark(&tail.mark);
        put_varint(self.out, tail.unseen.0.len() as u64);
        for &(origin, from) in &tail.unseen.0 {
            self.anchors.put_frame(self.out, origin, from);
        }
        tail.operation.encode(self.out, self.anchors);
    }
}
