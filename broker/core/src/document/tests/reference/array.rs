//! Arrays: a tree is built of all operations, in the order of their stamps.

use super::{Author, Cell, Mutant, Tail, TailAction, on_cell};
use crate::id::Dot;
use crate::lww::Stamp;

/// A node of the tree; siblings are sorted where they are walked over.
struct Element {
    cell: Cell,
    inserted: Option<Author>,
    deletes: Vec<Dot>,
    changed: bool,
    left: Vec<(Option<Stamp>, usize)>,
    right: Vec<(Option<Stamp>, usize)>,
}

fn element(cell: Cell, inserted: Option<Author>) -> Element {
    Element {
        cell,
        inserted,
        deletes: Vec::new(),
        changed: false,
        left: Vec::new(),
        right: Vec::new(),
    }
}

fn walk(nodes: &[Element], at: usize, order: &mut Vec<usize>) {
    let sorted = |children: &[(Option<Stamp>, usize)]| {
        let mut children = children.to_vec();
        children.sort();
        children
    };
    for (_, child) in sorted(&nodes[at].left) {
        walk(nodes, child, order);
    }
    order.push(at);
    for (_, child) in sorted(&nodes[at].right) {
        walk(nodes, child, order);
    }
}

pub(super) fn replay(base: &[Cell], tail: &[Tail], identity: Option<Dot>) -> Vec<Cell> {
    let mut nodes = vec![element(Vec::new(), None)];
    for cell in base {
        let last = nodes.len() - 1;
        nodes.push(element(cell.clone(), None));
        nodes[last].right.push((None, last + 1));
    }
    let mut sorted: Vec<&Tail> = tail.iter().collect();
    sorted.sort_by_key(|held| held.author.stamp);
    for held in &sorted {
        replay_one(&mut nodes, held, identity);
    }
    let back = sorted
        .iter()
        .any(|held| held.author.has(Mutant::ChangedElementsComeBack));
    let mut order = Vec::new();
    walk(&nodes, 0, &mut order);
    let is_there =
        |&at: &usize| at > 0 && (nodes[at].deletes.is_empty() || (back && nodes[at].changed));
    order
        .into_iter()
        .filter(is_there)
        .map(|at| nodes[at].cell.clone())
        .collect()
}

fn replay_one(nodes: &mut Vec<Element>, held: &Tail, identity: Option<Dot>) {
    let author = &held.author;
    let now = author.has(Mutant::IndexMeansNow);
    let saw = |node: &Element| {
        now || node
            .inserted
            .as_ref()
            .is_none_or(|inserted| author.saw(Some(inserted.dot)))
    };
    let mut order = Vec::new();
    walk(nodes, 0, &mut order);
    order.retain(|&at| saw(&nodes[at]));
    let is_visible = |&&at: &&usize| {
        at > 0
            && !nodes[at]
                .deletes
                .iter()
                .any(|dot| now || author.saw(Some(*dot)))
    };
    let visible: Vec<usize> = order.iter().filter(is_visible).copied().collect();
    match &held.action {
        TailAction::Delete => {
            if let Some(&at) = visible.get(held.index) {
                nodes[at].deletes.push(author.dot);
            }
        }
        TailAction::Edit(way) => {
            if let Some(&at) = visible.get(held.index) {
                nodes[at].changed = true;
                on_cell(&mut nodes[at].cell, identity, &way.steps, &way.act, author);
            }
        }
        TailAction::Insert(cell) => {
            let left = match held.index.min(visible.len()) {
                0 => 0,
                index => visible[index - 1],
            };
            let new = nodes.len();
            let stamp = Some(author.stamp);
            if nodes[left]
                .right
                .iter()
                .any(|&(_, child)| saw(&nodes[child]))
            {
                let at = order
                    .iter()
                    .position(|&at| at == left)
                    .expect("it was seen");
                nodes[order[at + 1]].left.push((stamp, new));
            } else {
                nodes[left].right.push((stamp, new));
            }
            nodes.push(element(cell.clone(), Some(author.clone())));
        }
    }
}
