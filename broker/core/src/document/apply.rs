//! What an operation does to an opened row.

use super::amount::Amount;
use super::anchors::{Anchors, Mark};
use super::change::{Action, Into, Operation, Place, Step};
use super::fields::Fields;
use super::form::{CELL, COUNT, IMPLICIT, KIND, MARKED, SET};
use super::tree::{
    Array, Body, Candidate, Cell, Count, Implicit, Plain, Shape, Slot, TailOperation, Unseen,
    deeper,
};
use super::value::Value;
use crate::id::Dot;
use crate::wire::Malformed;

/// What the origin of an operation had applied when it wrote it.
pub(super) trait Context {
    /// Whether it had applied this. Asked only of what is applied here.
    fn has_seen(&self, dot: &Dot) -> bool;
}

/// An operation on its way through a row.
pub(super) struct Applying<'c> {
    pub(super) mark: Mark,
    pub(super) context: &'c dyn Context,
    pub(super) anchors: &'c Anchors,
}

/// The rest of an operation's way.
#[derive(Clone, Copy)]
pub(super) struct Way<'o, 'a> {
    path: &'o [Step<'a>],
    place: Place<'a>,
    action: &'o Action<'a>,
}

impl<'o, 'a> Way<'o, 'a> {
    pub(super) fn of(operation: &'o Operation<'a>) -> Self {
        Self {
            path: &operation.path,
            place: operation.place,
            action: &operation.action,
        }
    }

    /// The container that is next, and the way from there.
    pub(super) fn next(self) -> Option<(Step<'a>, Self)> {
        let (step, path) = self.path.split_first()?;
        Some((*step, Self { path, ..self }))
    }

    pub(super) fn first_place(self) -> Place<'a> {
        self.path.first().map_or(self.place, |step| step.place)
    }

    /// What is done at the first place, if the way ends there.
    pub(super) fn last_action(self) -> Option<&'o Action<'a>> {
        self.path.is_empty().then_some(self.action)
    }

    /// Whether it ends here and leaves nothing of what is stored as these bytes: they hold no mark of
    /// their own, so it was seen.
    fn replaces(self, stored: &[u8]) -> bool {
        let ends = self.path.is_empty() && matches!(self.action, Action::Set(_) | Action::Unset);
        let head = stored.first().copied().unwrap_or_default();
        ends && match head & KIND {
            COUNT | CELL => false,
            IMPLICIT | SET => head & !KIND == 0,
            _ => head & MARKED == 0,
        }
    }

    fn to_operation(self) -> Operation<'a> {
        Operation {
            path: self.path.to_vec(),
            place: self.place,
            action: *self.action,
        }
    }
}

impl Applying<'_> {
    /// Goes on in the fields of an object, which lies in, or is, a container of this identity.
    pub(super) fn on_fields<'a>(
        &self,
        fields: &mut Fields<'a>,
        around: Dot,
        way: Way<'_, 'a>,
    ) -> Result<(), Malformed> {
        let Place::Key(key) = way.first_place() else {
            return Ok(());
        };
        let part = fields.part(key.as_bytes())?;
        let slot = fields.slot(part);
        // What a set replaces need not be opened.
        if matches!(slot, Slot::Raw(stored) if way.replaces(stored)) {
            *slot = Slot::Open(Vec::new());
        }
        let cell = slot.open(around, self.anchors)?;
        self.on_cell(cell, around, way)?;
        if cell.is_empty() {
            fields.remove(part);
        }
        Ok(())
    }

    /// Goes on in the cell at the way's first place.
    pub(super) fn on_cell<'a>(
        &self,
        cell: &mut Cell<'a>,
        around: Dot,
        way: Way<'_, 'a>,
    ) -> Result<(), Malformed> {
        let Some((step, way)) = way.next() else {
            return self.act(cell, around, way.action);
        };
        match step.into {
            Into::Implicit => {
                let implicit = self.bring_into_being(cell, Shape::Object);
                self.on_fields(&mut implicit.fields, around, way)
            }
            Into::Object(identity) => {
                let identity = identity.unwrap_or(around);
                // Without it, it was replaced or removed: so are changes inside.
                let found = cell
                    .iter_mut()
                    .find_map(|candidate| match &mut candidate.body {
                        Body::Object(object) if object.identity == identity => Some(object),
                        _ => None,
                    });
                found.map_or(Ok(()), |object| {
                    self.on_fields(&mut object.fields, identity, way)
                })
            }
            Into::Array(identity) => {
                let identity = identity.unwrap_or(around);
                let found = cell
                    .iter_mut()
                    .find_map(|candidate| match &mut candidate.body {
                        Body::Array(array) if array.identity == identity => Some(array),
                        _ => None,
                    });
                if let Some(array) = found {
                    self.on_array(array, way);
                }
                Ok(())
            }
        }
    }

    /// The implicit object or the set of a cell; the operation is a reason for it to be there.
    fn bring_into_being<'c, 'a>(
        &self,
        cell: &'c mut Cell<'a>,
        shape: Shape,
    ) -> &'c mut Implicit<'a> {
        let is_implicit = |candidate: &Candidate<'_>| match &candidate.body {
            Body::Implicit(implicit) => implicit.shape == shape,
            _ => false,
        };
        let at = cell.iter().position(is_implicit).unwrap_or_else(|| {
            let implicit = Implicit {
                shape,
                presence: Vec::new(),
                fields: Fields::NONE,
            };
            cell.push(Candidate {
                mark: None,
                body: Body::Implicit(implicit),
            });
            cell.len() - 1
        });
        let Body::Implicit(implicit) = &mut cell[at].body else {
            unreachable!("it was found by its kind");
        };
        implicit
            .presence
            .retain(|mark| !self.context.has_seen(&mark.dot));
        implicit.presence.push(self.mark);
        implicit
    }

    fn on_array<'a>(&self, array: &mut Array<'a>, way: Way<'_, 'a>) {
        let mut unseen = Unseen::default();
        for held in &array.tail {
            let Dot {
                origin, sequence, ..
            } = held.mark.dot;
            if self.context.has_seen(&held.mark.dot) || unseen.has(&held.mark.dot) {
                continue;
            }
            match unseen.0.iter_mut().find(|(held, _)| *held == origin) {
                Some((_, from)) => *from = sequence.min(*from),
                None => unseen.0.push((origin, sequence)),
            }
        }
        array.tail.push(TailOperation {
            mark: self.mark,
            unseen,
            operation: way.to_operation(),
        });
    }

    fn act<'a>(
        &self,
        cell: &mut Cell<'a>,
        around: Dot,
        action: &Action<'a>,
    ) -> Result<(), Malformed> {
        match *action {
            Action::Set(value) => {
                self.remove_seen(cell, around, 0)?;
                cell.push(Candidate::written(value, self.mark)?);
            }
            Action::Unset => self.remove_seen(cell, around, 0)?,
            Action::Add(element) => {
                let mark = Some(self.mark);
                let body = Body::Plain(Plain::NULL);
                let added = Candidate { mark, body };
                self.on_set(cell, element, around, Some(added))?;
            }
            Action::Remove(element) => self.on_set(cell, element, around, None)?,
            Action::Inc(amount) => self.add(cell, amount),
            Action::Reset => {
                cell.retain_mut(|candidate| self.remains_of_number(candidate));
                self.add(cell, Amount::ZERO);
            }
            // These are for arrays, which keep them in their tails.
            Action::Insert(_) | Action::Delete => {}
        }
        Ok(())
    }

    /// Replaces what was seen of an element in the set of a cell.
    fn on_set<'a>(
        &self,
        cell: &mut Cell<'a>,
        element: Value<'a>,
        around: Dot,
        by: Option<Candidate<'a>>,
    ) -> Result<(), Malformed> {
        let fields = &mut self.bring_into_being(cell, Shape::Set).fields;
        let part = fields.part(element.bytes())?;
        let held = fields.slot(part).open(around, self.anchors)?;
        self.remove_seen(held, around, 0)?;
        held.extend(by);
        if held.is_empty() {
            fields.remove(part);
        }
        Ok(())
    }

    /// Adds to the number of a cell.
    fn add(&self, cell: &mut Cell<'_>, amount: Amount) {
        let is_count = |candidate: &Candidate<'_>| matches!(candidate.body, Body::Count(_));
        let at = cell.iter().position(is_count).unwrap_or_else(|| {
            // A number that everybody has seen is what is below the increments.
            let settled = cell.iter().position(|candidate| match &candidate.body {
                Body::Plain(plain) => candidate.mark.is_none() && plain.amount().is_some(),
                _ => false,
            });
            let at = settled.unwrap_or_else(|| {
                cell.push(Candidate {
                    mark: None,
                    body: Body::Count(Count::default()),
                });
                cell.len() - 1
            });
            if let Body::Plain(plain) = &cell[at].body {
                let settled = plain.amount().unwrap_or_default();
                let entries = Vec::new();
                cell[at].body = Body::Count(Count { settled, entries });
            }
            at
        });
        let Body::Count(count) = &mut cell[at].body else {
            unreachable!("it was found by its kind");
        };
        let Dot {
            origin, sequence, ..
        } = self.mark.dot;
        let same_frame = |mark: &Mark| mark.dot.origin == origin && mark.dot.sequence == sequence;
        match count.entries.iter_mut().find(|(mark, _)| same_frame(mark)) {
            Some((mark, sum)) => (*mark, *sum) = (self.mark, *sum + amount),
            None => count.entries.push((self.mark, amount)),
        }
    }

    /// What a reset leaves: everything but numbers that its origin had seen.
    fn remains_of_number(&self, candidate: &mut Candidate<'_>) -> bool {
        match &mut candidate.body {
            Body::Count(count) => self.remains_of_count(count),
            Body::Plain(plain) => !self.has_seen(candidate.mark) || plain.amount().is_none(),
            Body::Object(_) | Body::Implicit(_) | Body::Array(_) => true,
        }
    }

    fn remains_of_count(&self, count: &mut Count) -> bool {
        count.settled = Amount::ZERO;
        count
            .entries
            .retain(|(mark, _)| !self.context.has_seen(&mark.dot));
        !count.entries.is_empty()
    }

    fn has_seen(&self, mark: Option<Mark>) -> bool {
        mark.is_none_or(|mark| self.context.has_seen(&mark.dot))
    }

    /// Removes what the origin had seen.
    pub(super) fn remove_seen(
        &self,
        cell: &mut Cell<'_>,
        around: Dot,
        depth: usize,
    ) -> Result<(), Malformed> {
        let mut failed = None;
        cell.retain_mut(|candidate| match &mut candidate.body {
            Body::Count(count) => self.remains_of_count(count),
            Body::Implicit(implicit) => match self.remains_of_implicit(implicit, around, depth) {
                Ok(remains) => remains,
                Err(malformed) => {
                    failed = Some(malformed);
                    true
                }
            },
            Body::Plain(_) | Body::Object(_) | Body::Array(_) => !self.has_seen(candidate.mark),
        });
        failed.map_or(Ok(()), Err)
    }

    /// An implicit object stays where something was put into it concurrently, with just that.
    fn remains_of_implicit(
        &self,
        implicit: &mut Implicit<'_>,
        around: Dot,
        depth: usize,
    ) -> Result<bool, Malformed> {
        let depth = deeper(depth)?;
        implicit
            .presence
            .retain(|mark| !self.context.has_seen(&mark.dot));
        if implicit.presence.is_empty() {
            return Ok(false);
        }
        let mut left = Vec::new();
        for mut field in implicit.fields.take()? {
            let cell = field.slot.open(around, self.anchors)?;
            self.remove_seen(cell, around, depth)?;
            if !cell.is_empty() {
                left.push(field);
            }
        }
        implicit.fields.put_back(left);
        Ok(true)
    }
}
