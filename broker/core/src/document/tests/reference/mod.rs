//! What documents are, said a second time: nothing is encoded, nothing is fast, every cell is a list
//! of what was written there and is not replaced.
//!
//! An increment is an entry of its own beside the number, an array is replayed from its operations in
//! the order of their stamps. Mistakes can be switched on: a test that does not notice them proves
//! nothing.

mod array;
mod forget;
mod set;

use std::collections::BTreeMap;
use std::rc::Rc;

use array::replay;
use forget::{is_stripped, strip_cell};
use set::{Set, on_set_element};

use crate::document::{Action, Change, Into, Operation, Place, Value};
use crate::id::Dot;
use crate::lww::Stamp;
use crate::vector::VersionVector;

/// A mistake on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutant {
    /// A reset takes away what is there, not what its origin saw.
    ResetTakesAll,
    /// Operations on arrays are folded though others have not seen them.
    FoldIgnoresConcurrency,
    /// Frames are applied before what they follow.
    NoCausalGate,
    /// Losers go before all of them are stable.
    LosersGoEarly,
    /// What is applied here is taken for stable.
    StripsBeforeStable,
    /// Objects and arrays lose their identity once they are stable.
    IdentityGoes,
    /// An object that a path brought into being is replaced by a concurrent one.
    PathsReplaceEachOther,
    /// Of two increments the last one wins.
    LastIncrementWins,
    /// An element that is deleted comes back when it is changed concurrently.
    ChangedElementsComeBack,
    /// Elements stand where their index says now, not where it said when they were inserted.
    IndexMeansNow,
    /// An unset removes what was set concurrently.
    UnsetBeatsSet,
    /// Removing an object removes what was put into it concurrently.
    RemovalTakesUnseen,
    /// Removing an element of a set removes what was added concurrently.
    RemoveBeatsAdd,
    /// Of two sets that come into being concurrently one is left.
    SetsReplaceEachOther,
}

pub(super) const MUTANTS: [Mutant; 14] = [
    Mutant::ResetTakesAll,
    Mutant::FoldIgnoresConcurrency,
    Mutant::NoCausalGate,
    Mutant::LosersGoEarly,
    Mutant::StripsBeforeStable,
    Mutant::IdentityGoes,
    Mutant::PathsReplaceEachOther,
    Mutant::LastIncrementWins,
    Mutant::ChangedElementsComeBack,
    Mutant::IndexMeansNow,
    Mutant::UnsetBeatsSet,
    Mutant::RemovalTakesUnseen,
    Mutant::RemoveBeatsAdd,
    Mutant::SetsReplaceEachOther,
];

/// Who did something, when, and what it had seen.
#[derive(Clone)]
pub(super) struct Author {
    pub(super) dot: Dot,
    pub(super) stamp: Stamp,
    pub(super) context: Rc<VersionVector>,
    pub(super) mutant: Option<Mutant>,
}

impl Author {
    fn saw(&self, dot: Option<Dot>) -> bool {
        let Some(dot) = dot else { return true };
        let own = dot.origin == self.dot.origin
            && (dot.sequence, dot.index) <= (self.dot.sequence, self.dot.index);
        own || self.context.contains(dot.origin, dot.sequence)
    }

    fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

type Cell = Vec<Entry>;
type Fields = BTreeMap<String, Cell>;

/// Something that was written at a place and is not replaced. The dot is gone once nobody asks for
/// it, the stamp too.
#[derive(Clone)]
struct Entry {
    dot: Option<Dot>,
    stamp: Option<Stamp>,
    node: Node,
}

#[derive(Clone)]
enum Node {
    /// A string, another number, true, false or null, as JSON.
    Plain(String),
    /// A number that counts, as it was written, and in millionths of millionths.
    Number(String, i128),
    Increment(i128),
    Object {
        identity: Option<Dot>,
        fields: Fields,
    },
    /// With the operations that are reasons for it to be there.
    Implicit {
        reasons: Vec<(Dot, Stamp)>,
        fields: Fields,
    },
    Set(Set),
    Array {
        identity: Option<Dot>,
        base: Vec<Cell>,
        tail: Vec<Tail>,
    },
}

#[derive(Clone)]
struct Tail {
    author: Author,
    index: usize,
    action: TailAction,
}

#[derive(Clone)]
enum TailAction {
    Insert(Cell),
    Delete,
    Edit(Way),
}

/// The rest of an operation's path: into what, and where in it; then what.
#[derive(Clone)]
struct Way {
    steps: Vec<(Into, Where)>,
    act: Act,
}

#[derive(Clone)]
enum Where {
    Key(String),
    Index(usize),
}

#[derive(Clone)]
enum Act {
    Write(Node),
    Unset,
    Inc(i128),
    Reset,
    Insert(Node),
    Delete,
    Add(String),
    Remove(String),
}

impl Entry {
    fn stamp(&self) -> Option<Stamp> {
        match &self.node {
            Node::Implicit { reasons, .. } => reasons.iter().map(|(_, stamp)| *stamp).max(),
            Node::Set(set) => set.stamp(),
            _ => self.stamp,
        }
    }

    fn is_number(&self) -> bool {
        matches!(self.node, Node::Number(..) | Node::Increment(_))
    }
}

/// A row, as a list of its incarnations.
#[derive(Clone, Default)]
pub(super) struct Row {
    incarnations: Cell,
}

impl Row {
    pub(super) fn apply(&mut self, change: &Change<'_>, author: &Author) {
        match change {
            Change::Put(value) => {
                remove_seen(&mut self.incarnations, author);
                self.incarnations
                    .push(written(node(*value, author.dot), author));
            }
            Change::Delete => remove_seen(&mut self.incarnations, author),
            Change::Patch(patch) => {
                for operation in &patch.operations {
                    let mut way = way_of(operation);
                    let first = Into::Object(Some(patch.incarnation));
                    way.steps[0].0 = first;
                    on_cell(&mut self.incarnations, None, &way.steps, &way.act, author);
                }
            }
        }
    }

    /// Forgets what nobody asks for any more.
    pub(super) fn strip(&mut self, stable: &VersionVector, mutant: Option<Mutant>) {
        strip_cell(&mut self.incarnations, stable, mutant);
    }

    /// The document as JSON; `None` where there is no row.
    pub(super) fn json(&self) -> Option<String> {
        show(&self.incarnations)
    }

    /// Whether only identities are left beside the values.
    pub(super) fn is_stripped(&self) -> bool {
        is_stripped(&self.incarnations)
    }
}

fn written(node: Node, author: &Author) -> Entry {
    Entry {
        dot: Some(author.dot),
        stamp: Some(author.stamp),
        node,
    }
}

/// What a literal stands for; all containers in it have the same identity.
fn node(value: Value<'_>, dot: Dot) -> Node {
    let identity = Some(dot);
    let seen = |value| {
        let node = node(value, dot);
        vec![Entry {
            dot: None,
            stamp: None,
            node,
        }]
    };
    let text = value.to_string();
    match text.as_bytes()[0] {
        b'{' => {
            let fields = value
                .fields()
                .map(|(key, value)| (key.to_owned(), seen(value)));
            let fields = fields.collect();
            Node::Object { identity, fields }
        }
        b'[' => {
            let base = value.elements().map(seen).collect();
            let tail = Vec::new();
            Node::Array {
                identity,
                base,
                tail,
            }
        }
        b'-' | b'0'..=b'9' => match units(&text) {
            Some(units) => Node::Number(text, units),
            None => Node::Plain(text),
        },
        _ => Node::Plain(text),
    }
}

const UNIT: i128 = 1_000_000_000_000;

fn units(text: &str) -> Option<i128> {
    if text.contains(['e', 'E']) {
        return None;
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction: i128 = format!("{fraction:0<12}").parse().ok()?;
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let whole: i128 = whole.parse().ok()?;
    Some(whole * UNIT + sign * fraction)
}

fn show_units(units: i128) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let (whole, fraction) = (units.abs() / UNIT, units.abs() % UNIT);
    let text = format!("{sign}{whole}.{fraction:012}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn way_of(operation: &Operation<'_>) -> Way {
    let mut steps = Vec::new();
    let mut into = Into::Implicit;
    for step in &operation.path {
        steps.push((into, place(step.place)));
        into = step.into;
    }
    steps.push((into, place(operation.place)));
    // Literals get their identity when their author is known.
    let nowhere = crate::document::NOWHERE;
    let act = match operation.action {
        Action::Set(value) => Act::Write(node(value, nowhere)),
        Action::Unset => Act::Unset,
        Action::Inc(amount) => Act::Inc(units(&amount.to_text()).expect("amounts count")),
        Action::Reset => Act::Reset,
        Action::Insert(value) => Act::Insert(node(value, nowhere)),
        Action::Delete => Act::Delete,
        Action::Add(element) => Act::Add(element.to_string()),
        Action::Remove(element) => Act::Remove(element.to_string()),
    };
    Way { steps, act }
}

fn place(place: Place<'_>) -> Where {
    match place {
        Place::Key(key) => Where::Key(key.to_owned()),
        Place::Index(index) => Where::Index(usize::try_from(index).expect("small")),
    }
}

/// A literal with the identity of its author throughout.
fn identified(node: &Node, dot: Dot) -> Node {
    let cell = |cell: &Cell| -> Cell {
        let entries = cell.iter().map(|entry| Entry {
            node: identified(&entry.node, dot),
            ..entry.clone()
        });
        entries.collect()
    };
    match node {
        Node::Object { fields, .. } => Node::Object {
            identity: Some(dot),
            fields: fields
                .iter()
                .map(|(key, held)| (key.clone(), cell(held)))
                .collect(),
        },
        Node::Array { base, .. } => Node::Array {
            identity: Some(dot),
            base: base.iter().map(cell).collect(),
            tail: Vec::new(),
        },
        node => node.clone(),
    }
}

/// Goes into a container of a cell, and on; or acts on the cell. `around` is the identity of the
/// container that the cell is in.
fn on_cell(
    cell: &mut Cell,
    around: Option<Dot>,
    steps: &[(Into, Where)],
    act: &Act,
    author: &Author,
) {
    let Some(((into, place), rest)) = steps.split_first() else {
        return act_on(cell, act, author);
    };
    match into {
        Into::Implicit => {
            let fields = implicit(cell, author);
            on_field(fields, around, place, rest, act, author);
        }
        Into::Object(name) => {
            let named = name.or(around);
            for entry in cell {
                if let Node::Object { identity, fields } = &mut entry.node
                    && *identity == named
                {
                    on_field(fields, named, place, rest, act, author);
                }
            }
        }
        Into::Array(name) => {
            let named = name.or(around);
            for entry in cell {
                if let Node::Array { identity, tail, .. } = &mut entry.node
                    && *identity == named
                {
                    tail.push(tail_of(place, rest, act, author));
                }
            }
        }
    }
}

fn on_field(
    fields: &mut Fields,
    around: Option<Dot>,
    place: &Where,
    rest: &[(Into, Where)],
    act: &Act,
    author: &Author,
) {
    let Where::Key(key) = place else { return };
    let cell = fields.entry(key.clone()).or_default();
    on_cell(cell, around, rest, act, author);
    if cell.is_empty() {
        fields.remove(key);
    }
}

fn implicit<'c>(cell: &'c mut Cell, author: &Author) -> &'c mut Fields {
    if author.has(Mutant::PathsReplaceEachOther) {
        let unseen = |entry: &Entry| match &entry.node {
            Node::Implicit { reasons, .. } => {
                !reasons.iter().any(|(dot, _)| !author.saw(Some(*dot)))
            }
            _ => true,
        };
        cell.retain(unseen);
    }
    if !cell
        .iter()
        .any(|entry| matches!(entry.node, Node::Implicit { .. }))
    {
        let node = Node::Implicit {
            reasons: Vec::new(),
            fields: Fields::new(),
        };
        cell.push(Entry {
            dot: None,
            stamp: None,
            node,
        });
    }
    let found = cell.iter_mut().find_map(|entry| match &mut entry.node {
        Node::Implicit { reasons, fields } => Some((reasons, fields)),
        _ => None,
    });
    let (reasons, fields) = found.expect("it was added");
    reasons.retain(|(dot, _)| !author.saw(Some(*dot)));
    reasons.push((author.dot, author.stamp));
    fields
}

fn tail_of(place: &Where, rest: &[(Into, Where)], act: &Act, author: &Author) -> Tail {
    let Where::Index(index) = *place else {
        panic!("a key in an array")
    };
    let action = match (rest, act) {
        ([], Act::Insert(node)) => {
            TailAction::Insert(vec![written(identified(node, author.dot), author)])
        }
        ([], Act::Delete) => TailAction::Delete,
        _ => TailAction::Edit(Way {
            steps: rest.to_vec(),
            act: act.clone(),
        }),
    };
    Tail {
        author: author.clone(),
        index,
        action,
    }
}

fn act_on(cell: &mut Cell, act: &Act, author: &Author) {
    match act {
        Act::Write(node) => {
            remove_seen(cell, author);
            cell.push(written(identified(node, author.dot), author));
        }
        Act::Unset if author.has(Mutant::UnsetBeatsSet) => cell.clear(),
        Act::Unset => remove_seen(cell, author),
        Act::Inc(_) | Act::Reset => {
            if matches!(act, Act::Reset) {
                let all = author.has(Mutant::ResetTakesAll);
                cell.retain(|entry| !entry.is_number() || !(all || author.saw(entry.dot)));
            }
            if author.has(Mutant::LastIncrementWins) {
                cell.retain(|entry| !matches!(entry.node, Node::Increment(_)));
            }
            let amount = if let Act::Inc(amount) = act {
                *amount
            } else {
                0
            };
            cell.push(written(Node::Increment(amount), author));
        }
        Act::Add(element) => on_set_element(cell, element, true, author),
        Act::Remove(element) => on_set_element(cell, element, false, author),
        Act::Insert(_) | Act::Delete => panic!("an operation of arrays"),
    }
}

fn remove_seen(cell: &mut Cell, author: &Author) {
    cell.retain_mut(|entry| match &mut entry.node {
        Node::Set(set) => set.remove_seen(author),
        Node::Implicit { reasons, fields } => {
            if author.has(Mutant::RemovalTakesUnseen) {
                return false;
            }
            reasons.retain(|(dot, _)| !author.saw(Some(*dot)));
            for cell in fields.values_mut() {
                remove_seen(cell, author);
            }
            fields.retain(|_, cell| !cell.is_empty());
            !reasons.is_empty()
        }
        _ => !author.saw(entry.dot),
    });
}

fn winner(cell: &Cell) -> Option<&Entry> {
    cell.iter().max_by_key(|entry| entry.stamp())
}

fn show(cell: &Cell) -> Option<String> {
    let winner = winner(cell)?;
    let increments: Vec<i128> = cell
        .iter()
        .filter_map(|entry| match entry.node {
            Node::Increment(amount) => Some(amount),
            _ => None,
        })
        .collect();
    if winner.is_number() && !increments.is_empty() {
        return Some(show_units(
            number_below(cell) + increments.iter().sum::<i128>(),
        ));
    }
    Some(match &winner.node {
        Node::Plain(text) | Node::Number(text, _) => text.clone(),
        Node::Increment(_) => unreachable!("it is among the increments"),
        Node::Object { fields, .. } | Node::Implicit { fields, .. } => {
            let fields = fields
                .iter()
                .filter_map(|(key, cell)| Some(format!("\"{key}\":{}", show(cell)?)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Node::Set(set) => set.json(),
        Node::Array {
            identity,
            base,
            tail,
        } => {
            let elements = replay(base, tail, *identity);
            let shown: Vec<_> = elements.iter().filter_map(show).collect();
            format!("[{}]", shown.join(","))
        }
    })
}

fn number_below(cell: &Cell) -> i128 {
    let numbers = cell.iter().filter_map(|entry| match &entry.node {
        Node::Number(_, units) => Some((entry.stamp(), *units)),
        _ => None,
    });
    numbers
        .max_by_key(|(stamp, _)| *stamp)
        .map_or(0, |(_, units)| units)
}
