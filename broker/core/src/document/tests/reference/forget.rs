//! Forgetting what nobody asks for any more.

use super::array::replay;
use super::{Cell, Entry, Mutant, Node, Tail, show, units, winner};
use crate::id::Dot;
use crate::vector::VersionVector;

pub(super) fn strip_cell(cell: &mut Cell, stable: &VersionVector, mutant: Option<Mutant>) {
    let has = |dot: &Dot| stable.contains(dot.origin, dot.sequence);
    let all = cell.iter().all(|entry| match &entry.node {
        Node::Implicit { reasons, .. } => reasons.iter().all(|(dot, _)| has(dot)),
        Node::Set(set) => set.is_stable(stable),
        _ => entry.dot.as_ref().is_none_or(has),
    });
    let counts = cell
        .iter()
        .any(|entry| matches!(entry.node, Node::Increment(_)));
    let early = mutant == Some(Mutant::LosersGoEarly) && cell.len() > 1;
    if early || (all && (cell.len() > 1 || counts)) {
        keep_winner(cell);
    }
    for entry in cell {
        if all {
            (entry.dot, entry.stamp) = (None, None);
        }
        match &mut entry.node {
            Node::Object { identity, fields } => {
                if all && mutant == Some(Mutant::IdentityGoes) {
                    *identity = None;
                }
                fields
                    .values_mut()
                    .for_each(|cell| strip_cell(cell, stable, mutant));
            }
            Node::Set(set) => set.strip(stable, all),
            Node::Implicit { reasons, fields } => {
                if all {
                    reasons.clear();
                }
                fields
                    .values_mut()
                    .for_each(|cell| strip_cell(cell, stable, mutant));
            }
            Node::Array {
                identity,
                base,
                tail,
            } => {
                fold(base, tail, *identity, stable, mutant);
                if all && mutant == Some(Mutant::IdentityGoes) {
                    *identity = None;
                }
            }
            Node::Plain(_) | Node::Number(..) | Node::Increment(_) => {}
        }
    }
}

fn keep_winner(cell: &mut Cell) {
    let best = winner(cell).expect("there are several").clone();
    let has_increments = cell
        .iter()
        .any(|entry| matches!(entry.node, Node::Increment(_)));
    let node = match best.is_number() && has_increments {
        true => {
            let text = show(cell).expect("there are several");
            let units = units(&text).expect("sums count");
            Node::Number(text, units)
        }
        false => best.node.clone(),
    };
    *cell = vec![Entry { node, ..best }];
}

fn fold(
    base: &mut Vec<Cell>,
    tail: &mut Vec<Tail>,
    identity: Option<Dot>,
    stable: &VersionVector,
    mutant: Option<Mutant>,
) {
    let is_stable = |held: &Tail| stable.contains(held.author.dot.origin, held.author.dot.sequence);
    let mut folds: Vec<bool> = tail.iter().map(is_stable).collect();
    let mut changed = mutant != Some(Mutant::FoldIgnoresConcurrency);
    while changed {
        changed = false;
        for at in 0..tail.len() {
            let stays = !folds[at];
            for other in 0..tail.len() {
                if stays && folds[other] && !tail[at].author.saw(Some(tail[other].author.dot)) {
                    folds[other] = false;
                    changed = true;
                }
            }
        }
    }
    let mut folds = folds.into_iter();
    let (folded, rest) = std::mem::take(tail)
        .into_iter()
        .partition(|_| folds.next() == Some(true));
    *tail = rest;
    let folded: Vec<Tail> = folded;
    if !folded.is_empty() {
        *base = replay(base, &folded, identity);
        base.iter_mut()
            .for_each(|cell| strip_cell(cell, stable, mutant));
    }
}

pub(super) fn is_stripped(cell: &Cell) -> bool {
    cell.len() <= 1
        && cell.iter().all(|entry| {
            entry.dot.is_none()
                && match &entry.node {
                    Node::Plain(_) | Node::Number(..) => true,
                    Node::Increment(_) => false,
                    Node::Object { fields, .. } => fields.values().all(is_stripped),
                    Node::Set(set) => set.is_stripped(),
                    Node::Implicit { reasons, fields } => {
                        reasons.is_empty() && fields.values().all(is_stripped)
                    }
                    Node::Array { base, tail, .. } => {
                        tail.is_empty() && base.iter().all(is_stripped)
                    }
                }
        })
}
