//! The elements of an array, found from those that everybody has seen and the operations since.
//!
//! Fugue (Weidner and Kleppmann, "The Art of the Fugue", 2023): elements are the nodes of a tree,
//! in the order in which a walk meets left children, node, right children. A new element becomes
//! the right child of the one before it, or, where that has a right child already, the left child
//! of the one after it. Runs that were inserted concurrently in one place so do not interleave.
//! Siblings stand in the order of their stamps.
//!
//! Folded elements are a chain of right children. They are walked over in runs, and only those that
//! an operation concerns become nodes of their own: a thousand operations on ten thousand elements
//! cost a thousand walks over some thousand items.

use super::anchors::Anchors;
use super::apply::{Applying, Context, Way};
use super::change::{Action, Place};
use super::tree::{Array, Candidate, Slot, TailOperation};
use crate::id::Dot;
use crate::wire::Malformed;

impl Context for TailOperation<'_> {
    /// What stands behind it in the tail was not there yet, and is never asked for.
    fn has_seen(&self, dot: &Dot) -> bool {
        !self.unseen.has(dot)
    }
}

/// A place in the list of nodes.
type Node = usize;

/// The start, which no operation can delete.
const START: Node = 0;

/// What an item of the walk is.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// Folded elements that no operation concerns.
    Run {
        from: usize,
        to: usize,
    },
    Node(Node),
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Start,
    Base(usize),
    /// Inserted by this operation of the tail.
    Tail(usize),
}

#[derive(Debug)]
struct Element {
    source: Source,
    /// Operations of the tail that delete it.
    deletes: Vec<usize>,
    /// Operations of the tail on what it holds.
    edits: Vec<usize>,
    /// Inserted children, by stamp. The chain of folded elements is not listed.
    left: Vec<Node>,
    right: Vec<Node>,
}

/// An array while it is walked over.
struct Walk<'t, 'a> {
    tail: &'t [TailOperation<'a>],
    base: usize,
    nodes: Vec<Element>,
    /// All elements, in order, deleted ones included.
    items: Vec<Item>,
}

/// The place of a visible element: an item, and how far in its run.
#[derive(Clone, Copy)]
struct Found {
    item: usize,
    within: usize,
}

impl<'t, 'a> Walk<'t, 'a> {
    fn new(base: usize, tail: &'t [TailOperation<'a>]) -> Self {
        let mut items = vec![Item::Node(START)];
        if base > 0 {
            items.push(Item::Run { from: 0, to: base });
        }
        let mut walk = Self {
            tail,
            base,
            nodes: Vec::new(),
            items,
        };
        walk.add(Source::Start);
        for at in 0..tail.len() {
            walk.take(at);
        }
        walk
    }

    fn add(&mut self, source: Source) -> Node {
        self.nodes.push(Element {
            source,
            deletes: Vec::new(),
            edits: Vec::new(),
            left: Vec::new(),
            right: Vec::new(),
        });
        self.nodes.len() - 1
    }

    fn take(&mut self, at: usize) {
        let way = Way::of(&self.tail[at].operation);
        let Place::Index(index) = way.first_place() else {
            return;
        };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match way.last_action() {
            Some(Action::Insert(_)) => self.insert(at, index),
            action => {
                let Some(found) = self.find(at, index) else {
                    return;
                };
                let node = self.node_at(found);
                match action {
                    Some(Action::Delete) => self.nodes[node].deletes.push(at),
                    _ => self.nodes[node].edits.push(at),
                }
            }
        }
    }

    /// Whether the origin of an operation had seen this element, deleted or not.
    fn has_seen(&self, by: usize, node: Node) -> bool {
        match self.nodes[node].source {
            Source::Start | Source::Base(_) => true,
            Source::Tail(at) => self.tail[by].has_seen(&self.tail[at].mark.dot),
        }
    }

    fn has_seen_deleted(&self, by: usize, node: Node) -> bool {
        let mut deletes = self.nodes[node].deletes.iter();
        deletes.any(|&at| self.tail[by].has_seen(&self.tail[at].mark.dot))
    }

    /// The element that had this index for an operation's origin.
    fn find(&self, by: usize, index: usize) -> Option<Found> {
        let mut left = index;
        for (item, held) in self.items.iter().enumerate().skip(1) {
            let length = match *held {
                Item::Run { from, to } => to - from,
                Item::Node(node) => {
                    usize::from(self.has_seen(by, node) && !self.has_seen_deleted(by, node))
                }
            };
            if left < length {
                return Some(Found { item, within: left });
            }
            left -= length;
        }
        None
    }

    /// The last element that was there for an operation's origin; the start if there was none.
    fn find_last(&self, by: usize) -> Found {
        let visible = |item: &Item| match *item {
            Item::Run { .. } => true,
            Item::Node(START) => true,
            Item::Node(node) => self.has_seen(by, node) && !self.has_seen_deleted(by, node),
        };
        let item = self.items.iter().rposition(visible).unwrap_or_default();
        let within = match self.items[item] {
            Item::Run { from, to } => to - from - 1,
            Item::Node(_) => 0,
        };
        Found { item, within }
    }

    /// Makes a node of an element, if it is none yet.
    fn node_at(&mut self, found: Found) -> Node {
        let (from, to) = match self.items[found.item] {
            Item::Node(node) => return node,
            Item::Run { from, to } => (from, to),
        };
        let at = from + found.within;
        let node = self.add(Source::Base(at));
        let before = (from < at).then_some(Item::Run { from, to: at });
        let after = (at + 1 < to).then_some(Item::Run { from: at + 1, to });
        let parts = before.into_iter().chain([Item::Node(node)]).chain(after);
        self.items.splice(found.item..=found.item, parts);
        node
    }

    fn insert(&mut self, at: usize, index: usize) {
        let before = match index.checked_sub(1) {
            None => Found { item: 0, within: 0 },
            Some(index) => self.find(at, index).unwrap_or_else(|| self.find_last(at)),
        };
        let left = self.node_at(before);
        let new = self.add(Source::Tail(at));
        let left_item = self.item_of(left, before.item);
        if !self.has_right_child(at, left) {
            let place = match self.add_sibling(left, new, |node| &mut node.right) {
                (Some(sibling), _) => self.item_of(self.last_of(sibling), left_item) + 1,
                (None, _) => left_item + 1,
            };
            self.items.insert(place, Item::Node(new));
            return;
        }
        // There is one: what is to the right of it was seen.
        let next = self.next_seen(at, left_item);
        let next = self.node_at(next);
        let place = match self.add_sibling(next, new, |node| &mut node.left) {
            (_, Some(sibling)) => self.item_of(self.first_of(sibling), left_item),
            (_, None) => self.item_of(next, left_item),
        };
        self.items.insert(place, Item::Node(new));
    }

    fn has_right_child(&self, by: usize, node: Node) -> bool {
        let chained = match self.nodes[node].source {
            Source::Start => self.base > 0,
            Source::Base(at) => at + 1 < self.base,
            Source::Tail(_) => false,
        };
        let mut right = self.nodes[node].right.iter();
        chained || right.any(|&child| self.has_seen(by, child))
    }

    /// The first element behind an item that an operation's origin had seen, deleted or not.
    fn next_seen(&self, by: usize, item: usize) -> Found {
        let seen = |item: &Item| match *item {
            Item::Run { .. } => true,
            Item::Node(node) => self.has_seen(by, node),
        };
        let more = self.items[item + 1..].iter().position(seen);
        let item = item + 1 + more.expect("a right child that was seen stands behind its parent");
        Found { item, within: 0 }
    }

    /// Adds a node to siblings; gives the ones before and after it.
    fn add_sibling(
        &mut self,
        parent: Node,
        new: Node,
        siblings: impl Fn(&mut Element) -> &mut Vec<Node>,
    ) -> (Option<Node>, Option<Node>) {
        let mut held = std::mem::take(siblings(&mut self.nodes[parent]));
        let stamp = |node: Node| match self.nodes[node].source {
            Source::Tail(at) => Some(self.tail[at].mark.stamp()),
            Source::Start | Source::Base(_) => None,
        };
        let place = held.partition_point(|&node| stamp(node) < stamp(new));
        let around = (
            place.checked_sub(1).map(|before| held[before]),
            held.get(place).copied(),
        );
        held.insert(place, new);
        *siblings(&mut self.nodes[parent]) = held;
        around
    }

    fn first_of(&self, mut node: Node) -> Node {
        while let Some(&first) = self.nodes[node].left.first() {
            node = first;
        }
        node
    }

    fn last_of(&self, mut node: Node) -> Node {
        while let Some(&last) = self.nodes[node].right.last() {
            node = last;
        }
        node
    }

    /// Where a node stands; not before an item.
    fn item_of(&self, node: Node, from: usize) -> usize {
        let is_it = |item: &Item| matches!(*item, Item::Node(held) if held == node);
        let more = self.items[from..].iter().position(is_it);
        from + more.expect("every node is an item, and none moves to the front")
    }
}

impl<'a> Array<'a> {
    /// The elements as all operations leave them.
    pub(super) fn elements(&self, anchors: &Anchors) -> Result<Vec<Slot<'a>>, Malformed> {
        self.elements_after(&self.tail, anchors)
    }

    /// The elements as some of the operations leave them.
    pub(super) fn elements_after(
        &self,
        tail: &[TailOperation<'a>],
        anchors: &Anchors,
    ) -> Result<Vec<Slot<'a>>, Malformed> {
        let base = self.base.to_slots()?;
        if tail.is_empty() {
            return Ok(base);
        }
        let walk = Walk::new(base.len(), tail);
        let mut elements = Vec::with_capacity(base.len() + tail.len());
        for &item in &walk.items {
            match item {
                Item::Run { from, to } => elements.extend_from_slice(&base[from..to]),
                Item::Node(node) => {
                    let node = &walk.nodes[node];
                    if node.deletes.is_empty() {
                        elements.extend(self.element(node, &base, tail, anchors)?);
                    }
                }
            }
        }
        Ok(elements)
    }

    fn element(
        &self,
        node: &Element,
        base: &[Slot<'a>],
        tail: &[TailOperation<'a>],
        anchors: &Anchors,
    ) -> Result<Option<Slot<'a>>, Malformed> {
        let mut slot = match node.source {
            Source::Start => return Ok(None),
            Source::Base(at) => base[at].clone(),
            Source::Tail(at) => match tail[at].operation.action {
                Action::Insert(value) => {
                    Slot::Open(vec![Candidate::written(value, tail[at].mark)?])
                }
                _ => return Ok(None),
            },
        };
        for edit in node.edits.iter().map(|&at| &tail[at]) {
            let applying = Applying {
                mark: edit.mark,
                context: edit,
                anchors,
            };
            let cell = slot.open(self.identity, anchors)?;
            applying.on_cell(cell, self.identity, Way::of(&edit.operation))?;
        }
        Ok(Some(slot))
    }
}
