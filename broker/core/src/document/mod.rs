//! Rows that are JSON documents, whose fields merge.
//!
//! Every change is an operation, and what a row is follows from the operations on it, in whatever
//! causal order they came. What each pair of concurrent operations ends in is in `docs/merge.md`.
//!
//! | module | holds |
//! |---|---|
//! | [`json`] | JSON text, read and written |
//! | `value` | JSON values in canonical binary form |
//! | `amount` | exact amounts: what numbers add up to |
//! | `form` | what the binary forms share: heads, lengths |
//! | `anchors` | short names for operations, within one broker |
//! | `change` | operations and their binary form |
//! | `resolve` | from what a user asks for to operations that say what they act on |
//! | `tree` | a stored row, opened as far as somebody looks |
//! | `fields` | the fields of an object, opened one by one |
//! | `apply` | what an operation does to it |
//! | `sequence` | the elements of an array under concurrent operations |
//! | `settle` | dropping what only concurrent operations need |
//! | `show` | what a reader sees |
//! | `conflicts` | what lost, and does not show |
//! | `store` | back to bytes |
//!
//! The stored form of a row is a byte, 1 or, with what stability would change, 0x81, and a cell whose
//! values are objects; see `form`. It is a broker's own: marks in it are named by its [`Anchors`].
//! A row that was deleted is stored as nothing: what may still come names an incarnation that is gone.

mod amount;
mod anchors;
mod apply;
mod change;
mod conflicts;
mod fields;
mod form;
pub mod json;
mod resolve;
mod sequence;
mod settle;
mod show;
mod store;
mod tree;
mod value;

#[cfg(test)]
mod tests;

pub use amount::Amount;
pub use anchors::{Anchor, Anchors};
pub use change::{Action, Change, Into, Operation, Patch, Place, Step};
pub use conflicts::Conflict;
pub use resolve::{Edit, Pointer, Refused, Wish};
pub use value::{Value, ValueBuf};

use anchors::Mark;
use apply::{Applying, Context, Way};
use settle::Settling;
use show::Showing;
use store::Writer;
use tree::{Body, Candidate, Cell, read_cell};

use crate::clock::HybridTimestamp;
use crate::id::{BrokerId, Dot, Epoch, Origin, Sequence};
use crate::vector::VersionVector;
use crate::wire::Malformed;

/// First byte of a stored row.
const FORMAT: u8 = 1;

/// In the first byte: stability would change something.
const UNSETTLED: u8 = 0x80;

/// The container that rows are in.
const NOWHERE: Dot = Dot {
    origin: Origin {
        broker: BrokerId::new(0),
        epoch: Epoch::new(0),
    },
    sequence: Sequence::NONE,
    index: 0,
};

/// Which record is applied, and what its origin had applied before.
#[derive(Clone, Copy, Debug)]
pub struct Written<'c> {
    /// Its name.
    pub dot: Dot,
    /// Its stamp: the frame's, and its index more.
    pub timestamp: HybridTimestamp,
    /// What its origin had applied when it wrote the frame, in full. Of the origin itself it is what
    /// came before.
    pub context: &'c VersionVector,
}

impl Written<'_> {
    fn mark(&self) -> Mark {
        Mark {
            dot: self.dot,
            timestamp: self.timestamp,
        }
    }
}

impl Context for Written<'_> {
    fn has_seen(&self, dot: &Dot) -> bool {
        // Whatever is here of the same origin came before.
        dot.origin == self.dot.origin || self.context.contains(dot.origin, dot.sequence)
    }
}

/// What to store of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// What was written.
    Row,
    /// Nothing: there is no row.
    Nothing,
}

/// A row, opened as far as somebody looks.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    anchors: &'a Anchors,
    /// All are objects, each named by the put that wrote it.
    incarnations: Cell<'a>,
    /// Whether bytes that were not opened may hold what stability would change.
    raw_is_unsettled: bool,
    /// At least as many as the document has in binary form.
    most_bytes: usize,
}

impl<'a> Document<'a> {
    /// A row that is not there.
    #[must_use]
    pub fn new(anchors: &'a Anchors) -> Self {
        Self {
            anchors,
            incarnations: Vec::new(),
            raw_is_unsettled: false,
            most_bytes: 0,
        }
    }

    /// Opens a stored row.
    ///
    /// # Errors
    /// When its beginning is not that of a row. What is wrong further inside is found by whoever
    /// looks there.
    pub fn open(stored: &'a [u8], anchors: &'a Anchors) -> Result<Self, Malformed> {
        let (&format, cell) = stored.split_first().ok_or(Malformed)?;
        let incarnations = read_cell(cell, NOWHERE, anchors)?;
        let is_object = |candidate: &Candidate<'_>| matches!(candidate.body, Body::Object(_));
        if format & !UNSETTLED != FORMAT || !incarnations.iter().all(is_object) {
            return Err(Malformed);
        }
        Ok(Self {
            anchors,
            incarnations,
            raw_is_unsettled: format & UNSETTLED != 0,
            most_bytes: stored.len(),
        })
    }

    /// Whether there is a row.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.incarnations.is_empty()
    }

    /// Applies what a record says. Everything that its origin had seen must have been applied.
    ///
    /// # Errors
    /// When what is stored is no row, or a put's value no object.
    pub fn apply(&mut self, change: &Change<'a>, written: &Written<'_>) -> Result<(), Malformed> {
        match change {
            Change::Put(value) if !value.is_object() => Err(Malformed),
            Change::Put(value) => {
                let candidate = Candidate::written(*value, written.mark())?;
                self.applying(written)
                    .remove_seen(&mut self.incarnations, NOWHERE, 0)?;
                self.incarnations.push(candidate);
                self.most_bytes += value.bytes().len();
                Ok(())
            }
            Change::Delete => {
                self.applying(written)
                    .remove_seen(&mut self.incarnations, NOWHERE, 0)
            }
            Change::Patch(patch) => {
                let mut operations = patch.operations.iter();
                operations
                    .try_for_each(|operation| self.apply_one(patch.incarnation, operation, written))
            }
        }
    }

    fn applying<'c>(&self, written: &'c Written<'_>) -> Applying<'c>
    where
        'a: 'c,
    {
        Applying {
            mark: written.mark(),
            context: written,
            anchors: self.anchors,
        }
    }

    fn apply_one(
        &mut self,
        incarnation: Dot,
        operation: &Operation<'a>,
        written: &Written<'_>,
    ) -> Result<(), Malformed> {
        let applying = self.applying(written);
        for candidate in &mut self.incarnations {
            if let Body::Object(object) = &mut candidate.body
                && object.identity == incarnation
            {
                let way = Way::of(operation);
                return applying.on_fields(&mut object.fields, incarnation, way);
            }
        }
        // It was deleted or replaced meanwhile.
        Ok(())
    }

    /// Drops what nobody needs any more: every member has applied what is in `stable`, and every
    /// operation to come follows all of it. What readers see stays the same.
    ///
    /// # Errors
    /// When what is stored is no row.
    pub fn settle(&mut self, stable: &VersionVector) -> Result<(), Malformed> {
        let settling = Settling {
            stable: &|dot| stable.contains(dot.origin, dot.sequence),
            anchors: self.anchors,
            raw_is_unsettled: self.raw_is_unsettled,
        };
        settling.cell(&mut self.incarnations, NOWHERE, 0)?;
        // Bytes that are still not opened were found to hold nothing to settle.
        self.raw_is_unsettled = false;
        Ok(())
    }

    /// Appends the stored form.
    pub fn store(&self, out: &mut Vec<u8>) -> Stored {
        if self.incarnations.is_empty() {
            return Stored::Nothing;
        }
        let at = out.len();
        out.push(FORMAT);
        let mut writer = Writer {
            out,
            anchors: self.anchors,
            unsettled: false,
        };
        writer.cell(&self.incarnations, NOWHERE);
        if writer.unsettled || self.raw_is_unsettled {
            out[at] |= UNSETTLED;
        }
        Stored::Row
    }

    /// The document that readers see; `None` where there is no row.
    ///
    /// # Errors
    /// When what is stored is no row.
    pub fn value(&self) -> Result<Option<ValueBuf>, Malformed> {
        if self.incarnations.is_empty() {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(256);
        let showing = Showing {
            anchors: self.anchors,
        };
        showing.cell(&self.incarnations, NOWHERE, &mut out, 0)?;
        Ok(Some(ValueBuf::of_checked(out)))
    }
}

/// Whether stability would change something in a stored row. Looks at its first byte only.
#[must_use]
pub fn is_unsettled(stored: &[u8]) -> bool {
    stored.first().is_some_and(|first| first & UNSETTLED != 0)
}
