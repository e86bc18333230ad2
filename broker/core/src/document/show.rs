//! What a reader sees of a row.

use super::amount::Amount;
use super::anchors::Anchors;
use super::fields::{Field, Fields, Part, read_fields};
use super::form::{ARRAY, NULL, OBJECT, put_bytes, put_framed};
use super::tree::{Array, Body, Candidate, Free, Shape, Slot, are_fields_free, deeper, is_free};
use super::value::Value;
use crate::id::Dot;
use crate::wire::Malformed;

/// What shows of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    Nothing,
    /// A number with increments on it.
    Number(Amount),
    /// One of its candidates.
    One(usize),
}

/// What shows of a cell: the candidate with the greatest stamp. If that is a number or an
/// increment, it is the number with the greatest stamp with all increments on it.
pub(super) fn shown(cell: &[Candidate<'_>]) -> Shown {
    if let [Candidate { body, .. }] = cell
        && !matches!(body, Body::Count(_))
    {
        return Shown::One(0);
    }
    let stamped = cell.iter().enumerate();
    let Some((winner, _)) = stamped.max_by_key(|(_, candidate)| candidate.stamp()) else {
        return Shown::Nothing;
    };
    let count = cell.iter().find_map(|candidate| match &candidate.body {
        Body::Count(count) => Some(count.sum()),
        _ => None,
    });
    match count {
        Some(sum) if counts(&cell[winner]).is_some() => {
            let number = latest_number(cell).and_then(|at| counts(&cell[at]));
            Shown::Number(sum + number.unwrap_or_default())
        }
        _ => Shown::One(winner),
    }
}

/// The amount of a number, nothing of increments, and `None` of what is neither.
pub(super) fn counts(candidate: &Candidate<'_>) -> Option<Amount> {
    match &candidate.body {
        Body::Count(_) => Some(Amount::ZERO),
        Body::Plain(plain) => plain.amount(),
        _ => None,
    }
}

/// The place of the number that was written last.
pub(super) fn latest_number(cell: &[Candidate<'_>]) -> Option<usize> {
    let is_number = |candidate: &Candidate<'_>| match &candidate.body {
        Body::Plain(plain) => plain.amount().is_some(),
        _ => false,
    };
    let numbers = cell.iter().enumerate().filter(|(_, one)| is_number(one));
    let latest = numbers.max_by_key(|(_, candidate)| candidate.stamp());
    latest.map(|(at, _)| at)
}

/// Writes plain values of what is stored.
pub(super) struct Showing<'s> {
    pub(super) anchors: &'s Anchors,
}

impl Showing<'_> {
    pub(super) fn cell(
        &self,
        cell: &[Candidate<'_>],
        around: Dot,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        let depth = deeper(depth)?;
        let at = match shown(cell) {
            // No cell is kept that holds nothing.
            Shown::Nothing => {
                out.push(NULL);
                return Ok(());
            }
            Shown::Number(amount) => {
                let (kind, payload) = amount.to_payload();
                out.push(kind);
                out.extend_from_slice(&payload);
                return Ok(());
            }
            Shown::One(at) => at,
        };
        match &cell[at].body {
            Body::Plain(plain) => {
                out.push(plain.kind);
                out.extend_from_slice(&plain.payload);
                Ok(())
            }
            Body::Object(object) => self.fields(&object.fields, object.identity, out, depth),
            Body::Implicit(implicit) => match implicit.shape {
                Shape::Object => self.fields(&implicit.fields, around, out, depth),
                Shape::Set => show_set(&implicit.fields, out),
            },
            Body::Array(array) => self.array(array, out, depth),
            Body::Count(_) => Err(Malformed),
        }
    }

    fn slot(
        &self,
        slot: &Slot<'_>,
        around: Dot,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        match slot {
            Slot::Raw(bytes) if is_free(bytes, Free::OfMetadata, depth)? => {
                out.extend_from_slice(bytes);
                Ok(())
            }
            slot => self.cell(&slot.view(around, self.anchors)?, around, out, depth),
        }
    }

    fn fields(
        &self,
        fields: &Fields<'_>,
        around: Dot,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        out.push(OBJECT);
        let mut result = Ok(());
        put_framed(out, |out| {
            result = match fields {
                Fields::Raw(bytes) => self.raw_fields(bytes, around, out, depth),
                Fields::Parts(parts) => parts.iter().try_for_each(|part| match part {
                    Part::Raw(bytes) => self.raw_fields(bytes, around, out, depth),
                    Part::Field(field) => self.field(field, around, out, depth),
                }),
            };
        });
        result
    }

    fn raw_fields(
        &self,
        bytes: &[u8],
        around: Dot,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        if are_fields_free(bytes, Free::OfMetadata, depth)? {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        let fields = read_fields(bytes)?;
        let mut fields = fields.iter();
        fields.try_for_each(|field| self.field(field, around, out, depth))
    }

    fn field(
        &self,
        field: &Field<'_>,
        around: Dot,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Malformed> {
        put_bytes(out, field.key);
        self.slot(&field.slot, around, out, depth)
    }

    fn array(&self, array: &Array<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Malformed> {
        out.push(ARRAY);
        let elements = array.elements(self.anchors)?;
        let mut result = Ok(());
        put_framed(out, |out| {
            let mut slots = elements.iter();
            result = slots.try_for_each(|slot| self.slot(slot, array.identity, out, depth));
        });
        result
    }
}

/// The elements of a set, in the order of their JSON: whoever reads them looks for one.
fn show_set(elements: &Fields<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut shown = Vec::new();
    for element in elements.keys()? {
        shown.push((Value::decode(element)?.to_string(), element));
    }
    shown.sort();
    out.push(ARRAY);
    put_framed(out, |out| {
        for (_, element) in shown {
            out.extend_from_slice(element);
        }
    });
    Ok(())
}
