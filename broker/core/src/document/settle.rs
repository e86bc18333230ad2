//! Dropping what only concurrent operations need, once there can be none.
//!
//! What is stable has been applied by every member, so whatever is still to come has seen it. Stamps
//! go, losers go, increments are added up, operations on arrays are folded into the elements. The
//! identity of an object or an array stays, since operations to come name it.

use super::amount::Amount;
use super::anchors::{Anchors, Mark};
use super::fields::Fields;
use super::show::{Shown, shown};
use super::tree::{
    Array, Body, Candidate, Cell, Count, Elements, Free, Plain, Slot, TailOperation, deeper,
    is_free,
};
use crate::id::Dot;
use crate::wire::Malformed;

pub(super) struct Settling<'s> {
    /// Whether every operation to come has seen this one.
    pub(super) stable: &'s dyn Fn(&Dot) -> bool,
    pub(super) anchors: &'s Anchors,
    /// Whether bytes that were not opened may hold something to settle.
    pub(super) raw_is_unsettled: bool,
}

impl Settling<'_> {
    fn is_stable(&self, mark: &Mark) -> bool {
        (self.stable)(&mark.dot)
    }

    pub(super) fn cell(
        &self,
        cell: &mut Cell<'_>,
        around: Dot,
        depth: usize,
    ) -> Result<(), Malformed> {
        let depth = deeper(depth)?;
        // Losers may win yet while one of them is unstable: what comes may have seen some, not all.
        if cell.iter().all(|candidate| self.is_settled(candidate)) {
            keep_shown(cell);
        } else if let [Candidate { body, .. }] = &mut cell[..]
            && let Body::Count(count) = body
        {
            self.count(count);
        }
        for candidate in cell {
            match &mut candidate.body {
                Body::Plain(_) | Body::Count(_) => {}
                Body::Object(object) => self.fields(&mut object.fields, object.identity, depth)?,
                Body::Implicit(implicit) => self.fields(&mut implicit.fields, around, depth)?,
                Body::Array(array) => self.array(array, depth)?,
            }
        }
        Ok(())
    }

    fn is_settled(&self, candidate: &Candidate<'_>) -> bool {
        match &candidate.body {
            Body::Count(count) => count.entries.iter().all(|(mark, _)| self.is_stable(mark)),
            Body::Implicit(implicit) => implicit.presence.iter().all(|mark| self.is_stable(mark)),
            _ => candidate.mark.iter().all(|mark| self.is_stable(mark)),
        }
    }

    /// Adds up what is stable. Only where nothing else is in the cell: the stamps are needed to say
    /// what shows.
    fn count(&self, count: &mut Count) {
        let mut settled = count.settled;
        count.entries.retain(|(mark, amount)| {
            let stable = self.is_stable(mark);
            settled = settled + if stable { *amount } else { Amount::ZERO };
            !stable
        });
        count.settled = settled;
    }

    fn fields(&self, fields: &mut Fields<'_>, around: Dot, depth: usize) -> Result<(), Malformed> {
        if !self.raw_is_unsettled {
            let mut opened = fields.opened();
            return opened.try_for_each(|slot| self.slot(slot, around, depth));
        }
        let mut opened = fields.open_unless(Free::OfMarks, depth)?;
        opened.try_for_each(|slot| self.slot(slot, around, depth))
    }

    fn slot(&self, slot: &mut Slot<'_>, around: Dot, depth: usize) -> Result<(), Malformed> {
        if let Slot::Raw(bytes) = slot
            && (!self.raw_is_unsettled || is_free(bytes, Free::OfMarks, depth)?)
        {
            return Ok(());
        }
        self.cell(slot.open(around, self.anchors)?, around, depth)
    }

    fn array(&self, array: &mut Array<'_>, depth: usize) -> Result<(), Malformed> {
        if array.tail.is_empty() {
            return Ok(());
        }
        let (folded, rest) = array.tail.split_at(self.foldable(&array.tail));
        if folded.is_empty() {
            return Ok(());
        }
        let mut elements = array.elements_after(folded, self.anchors)?;
        // All that was folded is stable, whatever it did in the elements.
        let all = Settling {
            stable: &|_| true,
            anchors: self.anchors,
            // Elements that were folded before are settled.
            raw_is_unsettled: false,
        };
        for slot in &mut elements {
            all.slot(slot, array.identity, depth)?;
        }
        array.tail = rest.to_vec();
        array.base = Elements::Open(elements);
        Ok(())
    }

    /// How many operations at the front of a tail are stable and seen by all others. An index of
    /// the others means the elements as these leave them. What stands behind an operation it has
    /// not seen, so there is nothing to fold behind one that stays.
    fn foldable(&self, tail: &[TailOperation<'_>]) -> usize {
        let unstable = tail.iter().position(|held| !self.is_stable(&held.mark));
        let mut folds = unstable.unwrap_or(tail.len());
        // What stays may not have seen something at the front, which then stays as well.
        let mut looked_at = tail.len();
        while looked_at > folds {
            let from = folds;
            for held in &tail[from..looked_at] {
                let unseen = |other: &TailOperation<'_>| held.unseen.has(&other.mark.dot);
                folds = tail[..folds].iter().position(unseen).unwrap_or(folds);
            }
            looked_at = from;
        }
        folds
    }
}

/// Leaves what shows, seen by everybody.
fn keep_shown(cell: &mut Cell<'_>) {
    match shown(cell) {
        Shown::Nothing => {}
        Shown::Number(amount) => {
            let (kind, payload) = amount.to_payload();
            let payload = payload.into();
            cell.clear();
            cell.push(Candidate {
                mark: None,
                body: Body::Plain(Plain { kind, payload }),
            });
        }
        Shown::One(at) => {
            cell.swap(0, at);
            cell.truncate(1);
            cell[0].mark = None;
            if let Body::Implicit(implicit) = &mut cell[0].body {
                implicit.presence.clear();
            }
        }
    }
}
