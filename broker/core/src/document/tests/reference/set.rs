//! Sets: elements, each with the operations that added it and were not taken back.

use std::collections::BTreeMap;

use super::{Author, Cell, Entry, Mutant, Node};
use crate::id::Dot;
use crate::lww::Stamp;
use crate::vector::VersionVector;

#[derive(Clone, Default)]
pub(super) struct Set {
    /// Why it is there.
    reasons: Vec<(Dot, Stamp)>,
    /// By their JSON. A dot is gone once it is stable.
    elements: BTreeMap<String, Vec<Option<Dot>>>,
}

impl Set {
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.reasons.iter().map(|(_, stamp)| *stamp).max()
    }

    pub(super) fn json(&self) -> String {
        let elements: Vec<_> = self.elements.keys().map(String::as_str).collect();
        format!("[{}]", elements.join(","))
    }

    /// Removes what was seen; tells whether anything is left.
    pub(super) fn remove_seen(&mut self, author: &Author) -> bool {
        self.reasons.retain(|(dot, _)| !author.saw(Some(*dot)));
        for dots in self.elements.values_mut() {
            dots.retain(|dot| !author.saw(*dot));
        }
        self.elements.retain(|_, dots| !dots.is_empty());
        !self.reasons.is_empty()
    }

    pub(super) fn is_stable(&self, stable: &VersionVector) -> bool {
        let has = |dot: &Dot| stable.contains(dot.origin, dot.sequence);
        self.reasons.iter().all(|(dot, _)| has(dot))
    }

    pub(super) fn strip(&mut self, stable: &VersionVector, all: bool) {
        if all {
            self.reasons.clear();
        }
        for dot in self.elements.values_mut().flatten() {
            *dot = dot.filter(|dot| !stable.contains(dot.origin, dot.sequence));
        }
    }

    pub(super) fn is_stripped(&self) -> bool {
        let mut dots = self.elements.values().flatten();
        self.reasons.is_empty() && dots.all(Option::is_none)
    }
}

/// Adds an element to the set of a cell, or removes it.
pub(super) fn on_set_element(cell: &mut Cell, element: &str, adds: bool, author: &Author) {
    let is_set = |entry: &Entry| matches!(entry.node, Node::Set(_));
    if author.has(Mutant::SetsReplaceEachOther) {
        cell.retain(|entry| match &entry.node {
            Node::Set(set) => set.reasons.iter().all(|(dot, _)| author.saw(Some(*dot))),
            _ => true,
        });
    }
    if !cell.iter().any(is_set) {
        cell.push(Entry {
            dot: None,
            stamp: None,
            node: Node::Set(Set::default()),
        });
    }
    for entry in cell {
        let Node::Set(set) = &mut entry.node else {
            continue;
        };
        set.reasons.retain(|(dot, _)| !author.saw(Some(*dot)));
        set.reasons.push((author.dot, author.stamp));
        let dots = set.elements.entry(element.to_owned()).or_default();
        dots.retain(|dot| !author.saw(*dot));
        if adds {
            dots.push(Some(author.dot));
        }
        if dots.is_empty() || (!adds && author.has(Mutant::RemoveBeatsAdd)) {
            set.elements.remove(element);
        }
    }
}
