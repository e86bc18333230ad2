//! From what a user asks for to operations that say what they act on.
//!
//! A user names a path. What is there is known to the origin alone, at the moment at which it gives
//! the operation its place in the log: which incarnation of the row, which object, which array, and
//! which element an index means.

use std::fmt;

use super::amount::Amount;
use super::change::{Action, Into, Operation, Patch, Place, Step};
use super::fields::Fields;
use super::show::{Shown, shown};
use super::tree::{Array, Body, Candidate, Shape};
use super::value::Value;
use super::{Document, Written};
use crate::id::Dot;
use crate::limits::{
    MAX_ARRAY_ELEMENTS, MAX_DOCUMENT_BYTES, MAX_DOCUMENT_DEPTH, MAX_PATCH_OPERATIONS,
};
use crate::wire::Malformed;

/// A path by RFC 6901: `/address/city`, `/tags/0`; `~1` is a slash and `~0` a tilde.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    /// When it does not begin with a slash, or a tilde is not followed by 0 or 1.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let bad = || Refused::Pointer(text.chars().take(80).collect());
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let tokens = text.strip_prefix('/').ok_or_else(bad)?.split('/');
        let token = |token: &str| {
            let mut tildes = token.match_indices('~');
            let known = tildes.all(|(at, _)| token[at + 1..].starts_with(['0', '1']));
            known.then(|| token.replace("~1", "/").replace("~0", "~"))
        };
        let tokens = tokens.map(|text| token(text).ok_or_else(bad));
        tokens.collect::<Result<_, _>>().map(Self)
    }
}

impl Pointer {
    /// A pointer of these keys and indexes.
    pub(super) fn of(tokens: Vec<String>) -> Self {
        Self(tokens)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tokens = self.0.iter();
        tokens.try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

/// What a user asks for at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish<'a> {
    /// Write a value; objects on the way are made.
    Set(Value<'a>),
    /// Remove a field.
    Unset,
    /// Add to a number; one that is not there is made.
    Inc(Amount),
    /// Set a number back to nothing, without losing what is added concurrently.
    Reset,
    /// Put an element before the one at this index, or at the end; `-` is the end.
    Insert(Value<'a>),
    /// Put an element at the end of the array at this path.
    Append(Value<'a>),
    /// Remove the element at this index.
    Delete,
    /// Add an element to a set; one that is not there is made.
    Add(Value<'a>),
    /// Remove an element of a set.
    Remove(Value<'a>),
}

/// A change of one place in a document, as a user asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Edit<'a> {
    /// Where.
    pub pointer: &'a Pointer,
    /// What.
    pub wish: Wish<'a>,
}

/// Why an edit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a JSON Pointer.
    #[error("{0:?} is not a JSON Pointer; write it like /address/city, with ~1 for / and ~0 for ~")]
    Pointer(String),
    /// The whole document.
    #[error("the path is empty; to replace the whole document, put it")]
    Whole,
    /// No operations, or too many.
    #[error("a patch has 1 to {MAX_PATCH_OPERATIONS} operations, this one {0}")]
    Operations(usize),
    /// There is no row.
    #[error("there is no row to patch; put it first")]
    NoRow,
    /// There is nothing.
    #[error("there is nothing at {0}")]
    Nothing(String),
    /// What is there has no parts.
    #[error("at {0} is no object and no array, so there is nothing in it")]
    NoContainer(String),
    /// What is there is something else.
    #[error("at {at} is no {expected}")]
    OtherKind {
        /// The path.
        at: String,
        /// What the operation is for.
        expected: &'static str,
    },
    /// Not a place in the array.
    #[error("{index:?} is no place in the array at {at}, which has {length} elements")]
    Index {
        /// The path of the array.
        at: String,
        /// What was given.
        index: String,
        /// How many elements there are.
        length: usize,
    },
    /// What is not for elements, or only for them.
    #[error("{wish} is not for {place}; use {instead}")]
    Misplaced {
        /// The operation.
        wish: &'static str,
        /// Where it was to be.
        place: &'static str,
        /// What is meant.
        instead: &'static str,
    },
    /// A number with too many digits.
    #[error("{0} has too many digits to be added")]
    Amount(String),
    /// Nested too deep.
    #[error("the document would be nested deeper than {MAX_DOCUMENT_DEPTH} levels")]
    TooDeep,
    /// Too many elements.
    #[error("the array or set at {0} would have more than {MAX_ARRAY_ELEMENTS} elements")]
    TooLong(String),
    /// Too large.
    #[error("the document would be larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// What is stored is no row.
    #[error("what is stored does not read")]
    Malformed(#[from] Malformed),
}

impl<'a> Document<'a> {
    /// Finds the operations that edits mean here, and applies them one after the other.
    ///
    /// # Errors
    /// With the edit that cannot be. The document is of no use then: some may be applied.
    pub fn resolve(
        &mut self,
        edits: &[Edit<'a>],
        written: &Written<'_>,
    ) -> Result<Patch<'a>, Refused> {
        if !(1..=MAX_PATCH_OPERATIONS).contains(&edits.len()) {
            return Err(Refused::Operations(edits.len()));
        }
        let incarnation = match self.shown_incarnation() {
            Some((incarnation, _)) => incarnation,
            None => return Err(Refused::NoRow),
        };
        let mut operations = Vec::with_capacity(edits.len());
        for edit in edits {
            let operation = self.resolve_one(edit)?;
            self.apply_one(incarnation, &operation, written)?;
            operations.push(operation);
            self.check_size(edit)?;
        }
        Ok(Patch {
            incarnation,
            operations,
        })
    }

    /// Counts what an edit adds at most, and looks how large the document is only where it might be
    /// too large by that.
    fn check_size(&mut self, edit: &Edit<'_>) -> Result<(), Refused> {
        let (Wish::Set(value) | Wish::Insert(value) | Wish::Append(value) | Wish::Add(value)) =
            edit.wish
        else {
            return Ok(());
        };
        let path = edit.pointer.0.iter();
        // A key has a head and a length or two, all below 16 bytes.
        let path: usize = path.map(|token| token.len() + 16).sum();
        self.most_bytes += value.bytes().len() + path;
        if self.most_bytes <= MAX_DOCUMENT_BYTES {
            return Ok(());
        }
        let value = self.value()?.map_or(0, |value| value.value().bytes().len());
        self.most_bytes = value;
        match value <= MAX_DOCUMENT_BYTES {
            true => Ok(()),
            false => Err(Refused::TooLarge),
        }
    }

    fn shown_incarnation(&self) -> Option<(Dot, &Fields<'a>)> {
        let Shown::One(at) = shown(&self.incarnations) else {
            return None;
        };
        match &self.incarnations[at].body {
            Body::Object(object) => Some((object.identity, &object.fields)),
            _ => None,
        }
    }

    fn resolve_one(&self, edit: &Edit<'a>) -> Result<Operation<'a>, Refused> {
        let tokens = &edit.pointer.0;
        let (incarnation, fields) = self.shown_incarnation().ok_or(Refused::NoRow)?;
        let deeper = match edit.wish {
            Wish::Set(value) | Wish::Insert(value) => value.depth(),
            Wish::Append(value) | Wish::Add(value) => 1 + value.depth(),
            Wish::Inc(_) => 1,
            Wish::Unset | Wish::Reset | Wish::Delete | Wish::Remove(_) => 0,
        };
        if tokens.is_empty() {
            return Err(Refused::Whole);
        }
        if tokens.len() + deeper > MAX_DOCUMENT_DEPTH {
            return Err(Refused::TooDeep);
        }
        let mut finding = Finding {
            document: self,
            edit,
            path: Vec::new(),
        };
        finding.in_fields(Some(fields), incarnation, 0)
    }
}

/// An edit on its way to the place that it means.
struct Finding<'f, 'a> {
    document: &'f Document<'a>,
    edit: &'f Edit<'a>,
    path: Vec<Step<'a>>,
}

impl<'a> Finding<'_, 'a> {
    /// The path up to a token.
    fn at(&self, tokens: usize) -> String {
        Pointer(self.edit.pointer.0[..tokens].to_vec()).to_string()
    }

    fn done(&mut self, place: Place<'a>, action: Action<'a>) -> Operation<'a> {
        Operation {
            path: std::mem::take(&mut self.path),
            place,
            action,
        }
    }

    /// In an object, which may not be there yet.
    fn in_fields(
        &mut self,
        fields: Option<&Fields<'a>>,
        around: Dot,
        depth: usize,
    ) -> Result<Operation<'a>, Refused> {
        let tokens = &self.edit.pointer.0;
        let key = tokens[depth].as_str();
        let place = Place::Key(key);
        let slot = fields
            .map(|fields| fields.find(key.as_bytes()))
            .transpose()?
            .flatten();
        let cell = slot
            .as_ref()
            .map(|slot| slot.view(around, self.document.anchors));
        let cell = cell.transpose()?.unwrap_or_default();
        let is_append = matches!(self.edit.wish, Wish::Append(_));
        if depth + 1 == tokens.len() && !is_append {
            let action = self.at_key(&cell)?;
            return Ok(self.done(place, action));
        }
        if cell.is_empty() {
            if !matches!(self.edit.wish, Wish::Set(_) | Wish::Inc(_) | Wish::Add(_)) {
                return Err(Refused::Nothing(self.at(depth + 1)));
            }
            let into = Into::Implicit;
            self.path.push(Step { place, into });
            return self.in_fields(None, around, depth + 1);
        }
        self.in_cell(&cell, place, around, depth + 1)
    }

    /// Goes on in what shows of a cell.
    fn in_cell(
        &mut self,
        cell: &[Candidate<'a>],
        place: Place<'a>,
        around: Dot,
        depth: usize,
    ) -> Result<Operation<'a>, Refused> {
        let body = match shown(cell) {
            Shown::One(at) => &cell[at].body,
            _ => return Err(Refused::NoContainer(self.at(depth))),
        };
        let name = |identity: Dot| (identity != around).then_some(identity);
        let into = match body {
            Body::Object(object) => Into::Object(name(object.identity)),
            Body::Implicit(implicit) if implicit.shape == Shape::Object => Into::Implicit,
            Body::Array(array) => Into::Array(name(array.identity)),
            Body::Plain(_) | Body::Count(_) | Body::Implicit(_) => {
                return Err(Refused::NoContainer(self.at(depth)));
            }
        };
        self.path.push(Step { place, into });
        let ends_here = depth == self.edit.pointer.0.len();
        match body {
            Body::Array(array) => self.in_array(array, depth),
            _ if ends_here => Err(Refused::OtherKind {
                at: self.at(depth),
                expected: "array",
            }),
            Body::Object(object) => self.in_fields(Some(&object.fields), object.identity, depth),
            Body::Implicit(implicit) => self.in_fields(Some(&implicit.fields), around, depth),
            Body::Plain(_) | Body::Count(_) => Err(Refused::NoContainer(self.at(depth))),
        }
    }

    fn at_key(&self, cell: &[Candidate<'a>]) -> Result<Action<'a>, Refused> {
        let only_in_arrays = |wish, instead| Refused::Misplaced {
            wish,
            place: "the fields of an object",
            instead,
        };
        match self.edit.wish {
            Wish::Set(value) => Ok(Action::Set(value)),
            Wish::Unset if cell.is_empty() => Err(self.nothing()),
            Wish::Unset => Ok(Action::Unset),
            Wish::Inc(amount) => self.inc(cell, amount),
            Wish::Reset => self.reset(cell),
            Wish::Add(_) | Wish::Remove(_) => self.set_element(cell),
            Wish::Insert(_) | Wish::Append(_) => Err(only_in_arrays("insert", "set")),
            Wish::Delete => Err(only_in_arrays("delete", "unset")),
        }
    }

    fn nothing(&self) -> Refused {
        Refused::Nothing(self.edit.pointer.to_string())
    }

    fn inc(&self, cell: &[Candidate<'a>], amount: Amount) -> Result<Action<'a>, Refused> {
        if !amount.is_step() {
            return Err(Refused::Amount(amount.to_text()));
        }
        match cell.is_empty() || is_number(cell) {
            true => Ok(Action::Inc(amount)),
            false => Err(self.no_number()),
        }
    }

    fn reset(&self, cell: &[Candidate<'a>]) -> Result<Action<'a>, Refused> {
        match is_number(cell) {
            true => Ok(Action::Reset),
            false if cell.is_empty() => Err(self.nothing()),
            false => Err(self.no_number()),
        }
    }

    /// In what is not there, or shows as a set.
    fn set_element(&self, cell: &[Candidate<'a>]) -> Result<Action<'a>, Refused> {
        let set = match shown(cell) {
            Shown::One(at) => match &cell[at].body {
                Body::Implicit(implicit) if implicit.shape == Shape::Set => Some(&implicit.fields),
                _ => None,
            },
            _ => None,
        };
        match (self.edit.wish, set) {
            (Wish::Add(element), _) if cell.is_empty() => Ok(Action::Add(element)),
            (Wish::Add(_), Some(set)) if set.keys()?.len() >= MAX_ARRAY_ELEMENTS => {
                Err(Refused::TooLong(self.edit.pointer.to_string()))
            }
            (Wish::Add(element), Some(_)) => Ok(Action::Add(element)),
            (Wish::Remove(element), Some(set)) => match set.find(element.bytes())? {
                Some(_) => Ok(Action::Remove(element)),
                None => Err(self.nothing()),
            },
            _ if cell.is_empty() => Err(self.nothing()),
            _ => Err(Refused::OtherKind {
                at: self.edit.pointer.to_string(),
                expected: "set; a set is made by adding to what is not there",
            }),
        }
    }

    fn no_number(&self) -> Refused {
        Refused::OtherKind {
            at: self.edit.pointer.to_string(),
            expected: "integer or decimal number that can be added to",
        }
    }

    /// In an array; `depth` tokens lead to it.
    fn in_array(&mut self, array: &Array<'a>, depth: usize) -> Result<Operation<'a>, Refused> {
        let tokens = &self.edit.pointer.0;
        let anchors = self.document.anchors;
        if array.tail.is_empty() && depth == tokens.len() {
            // An append needs no elements, only how many there are.
            return self.insert_at(array.base.len()?, array.base.len()?, depth);
        }
        let elements = array.elements(anchors)?;
        let length = elements.len();
        let Some(token) = tokens.get(depth) else {
            return self.insert_at(length, length, depth);
        };
        let last = depth + 1 == tokens.len();
        if last && matches!(self.edit.wish, Wish::Insert(_)) {
            let index = if token == "-" {
                Some(length)
            } else {
                index(token)
            };
            let index = index.filter(|index| *index <= length);
            let index = index.ok_or_else(|| self.bad_index(token, depth, length))?;
            return self.insert_at(index, length, depth);
        }
        let index = index(token).filter(|index| *index < length);
        let index = index.ok_or_else(|| self.bad_index(token, depth, length))?;
        let cell = elements[index].view(array.identity, anchors)?;
        let place = Place::Index(index as u64);
        if !last || matches!(self.edit.wish, Wish::Append(_)) {
            return self.in_cell(&cell, place, array.identity, depth + 1);
        }
        let action = self.at_index(&cell)?;
        Ok(self.done(place, action))
    }

    fn at_index(&self, cell: &[Candidate<'a>]) -> Result<Action<'a>, Refused> {
        match self.edit.wish {
            Wish::Set(value) => Ok(Action::Set(value)),
            Wish::Inc(amount) => self.inc(cell, amount),
            Wish::Reset => self.reset(cell),
            Wish::Add(_) | Wish::Remove(_) => self.set_element(cell),
            Wish::Delete => Ok(Action::Delete),
            Wish::Insert(value) | Wish::Append(value) => Ok(Action::Insert(value)),
            Wish::Unset => Err(Refused::Misplaced {
                wish: "unset",
                place: "the elements of an array",
                instead: "delete",
            }),
        }
    }

    fn insert_at(
        &mut self,
        index: usize,
        length: usize,
        depth: usize,
    ) -> Result<Operation<'a>, Refused> {
        let (Wish::Insert(value) | Wish::Append(value)) = self.edit.wish else {
            return Err(Refused::Whole);
        };
        if length >= MAX_ARRAY_ELEMENTS {
            return Err(Refused::TooLong(self.at(depth)));
        }
        Ok(self.done(Place::Index(index as u64), Action::Insert(value)))
    }

    fn bad_index(&self, token: &str, depth: usize, length: usize) -> Refused {
        Refused::Index {
            at: self.at(depth),
            index: token.chars().take(80).collect(),
            length,
        }
    }
}

fn is_number(cell: &[Candidate<'_>]) -> bool {
    match shown(cell) {
        Shown::Number(_) => true,
        Shown::Nothing => false,
        Shown::One(at) => match &cell[at].body {
            Body::Plain(plain) => plain.amount().is_some(),
            _ => false,
        },
    }
}

/// An index as RFC 6901 writes it: without leading zeros.
fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || !token.starts_with(['0', '+']);
    token.parse().ok().filter(|_| canonical)
}
