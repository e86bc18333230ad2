//! What lost against something that was written concurrently, for as long as that is not stable.

use super::anchors::{Anchors, Mark};
use super::fields::{Field, Fields, Part, read_fields};
use super::resolve::Pointer;
use super::show::{Showing, Shown, counts, latest_number, shown};
use super::tree::{Body, Candidate, Free, Shape, Slot, are_fields_free, deeper, is_free};
use super::value::ValueBuf;
use super::{Document, NOWHERE};
use crate::clock::HybridTimestamp;
use crate::id::Dot;
use crate::wire::Malformed;

/// A value that does not show, since one that was written concurrently has a greater stamp.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Where it would be; the empty pointer for a whole document.
    pub pointer: Pointer,
    /// What it is. Of a number it is the sum with the increments that lost with it.
    pub value: ValueBuf,
    /// The record that wrote it, or wrote to it last.
    pub dot: Dot,
    /// That record's stamp.
    pub timestamp: HybridTimestamp,
}

impl Document<'_> {
    /// What lost, in the order of the document; none once all is stable. What is inside of something
    /// that lost is listed with it.
    ///
    /// # Errors
    /// When what is stored is no row.
    pub fn conflicts(&self) -> Result<Vec<Conflict>, Malformed> {
        let mut listing = Listing {
            anchors: self.anchors,
            tokens: Vec::new(),
            found: Vec::new(),
        };
        listing.cell(&self.incarnations, NOWHERE)?;
        Ok(listing.found)
    }
}

struct Listing<'l> {
    anchors: &'l Anchors,
    tokens: Vec<String>,
    found: Vec<Conflict>,
}

impl Listing<'_> {
    fn cell(&mut self, cell: &[Candidate<'_>], around: Dot) -> Result<(), Malformed> {
        deeper(self.tokens.len())?;
        let shown = shown(cell);
        if cell.len() > 1 {
            self.losers(cell, shown, around)?;
        }
        let Shown::One(at) = shown else {
            return Ok(());
        };
        match &cell[at].body {
            Body::Plain(_) | Body::Count(_) => Ok(()),
            // An element is there or it is not.
            Body::Implicit(implicit) if implicit.shape == Shape::Set => Ok(()),
            Body::Object(object) => self.fields(&object.fields, object.identity),
            Body::Implicit(implicit) => self.fields(&implicit.fields, around),
            Body::Array(array) if array.tail.is_empty() => Ok(()),
            Body::Array(array) => {
                let elements = array.elements(self.anchors)?;
                let mut elements = elements.iter().enumerate();
                elements.try_for_each(|(at, slot)| {
                    self.slot(at.to_string().as_bytes(), slot, array.identity)
                })
            }
        }
    }

    fn losers(
        &mut self,
        cell: &[Candidate<'_>],
        shown: Shown,
        around: Dot,
    ) -> Result<(), Malformed> {
        let has_count = cell.iter().any(|one| matches!(one.body, Body::Count(_)));
        // The number that increments are on, which wins or loses with them.
        let below = latest_number(cell).filter(|_| has_count);
        for (at, candidate) in cell.iter().enumerate() {
            let wins = match shown {
                Shown::Nothing => true,
                Shown::Number(_) => counts(candidate).is_some() && is_summed(at, candidate, below),
                Shown::One(winner) => winner == at || below == Some(at),
            };
            if wins {
                continue;
            }
            let with = match candidate.body {
                Body::Count(_) => below.map(|at| cell[at].clone()),
                _ => None,
            };
            let lost: Vec<_> = with.into_iter().chain([candidate.clone()]).collect();
            self.add(&lost, around)?;
        }
        Ok(())
    }

    fn add(&mut self, lost: &[Candidate<'_>], around: Dot) -> Result<(), Malformed> {
        let marks = lost.iter().filter_map(Candidate::last_mark);
        // Without a mark everybody has seen it lose.
        let Some(Mark { dot, timestamp }) = marks.max_by_key(Mark::stamp) else {
            return Ok(());
        };
        let mut value = Vec::new();
        let showing = Showing {
            anchors: self.anchors,
        };
        showing.cell(lost, around, &mut value, self.tokens.len())?;
        self.found.push(Conflict {
            pointer: Pointer::of(self.tokens.clone()),
            value: ValueBuf::of_checked(value),
            dot,
            timestamp,
        });
        Ok(())
    }

    fn fields(&mut self, fields: &Fields<'_>, around: Dot) -> Result<(), Malformed> {
        match fields {
            Fields::Raw(bytes) => self.raw_fields(bytes, around),
            Fields::Parts(parts) => parts.iter().try_for_each(|part| match part {
                Part::Raw(bytes) => self.raw_fields(bytes, around),
                Part::Field(field) => self.slot(field.key, &field.slot, around),
            }),
        }
    }

    fn raw_fields(&mut self, bytes: &[u8], around: Dot) -> Result<(), Malformed> {
        if are_fields_free(bytes, Free::OfMarks, self.tokens.len())? {
            return Ok(());
        }
        let fields = read_fields(bytes)?;
        let mut fields = fields.iter();
        fields.try_for_each(|Field { key, slot }| self.slot(key, slot, around))
    }

    fn slot(&mut self, token: &[u8], slot: &Slot<'_>, around: Dot) -> Result<(), Malformed> {
        if let Slot::Raw(bytes) = slot
            && is_free(bytes, Free::OfMarks, self.tokens.len())?
        {
            return Ok(());
        }
        self.tokens
            .push(String::from_utf8_lossy(token).into_owned());
        self.cell(&slot.view(around, self.anchors)?, around)?;
        self.tokens.pop();
        Ok(())
    }
}

/// Whether a candidate that counts is part of the sum that shows.
fn is_summed(at: usize, candidate: &Candidate<'_>, below: Option<usize>) -> bool {
    matches!(candidate.body, Body::Count(_)) || below == Some(at)
}
