//! What lies between brokers: paths that are slow, cut in one direction or both, and noisy, and
//! links over them that keep their order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::agenda::{MS, Time};

/// One direction between two brokers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) cut: bool,
    /// Raised with every cut.
    pub(super) cuts: u64,
    pub(super) latency: Time,
    pub(super) jitter: Time,
    /// Of so many messages one is damaged; 0 for none.
    pub(super) damage: u64,
}

impl Default for Path {
    fn default() -> Self {
        Self {
            cut: false,
            cuts: 0,
            latency: MS,
            jitter: 0,
            damage: 0,
        }
    }
}

/// What a link carries.
#[derive(Clone, Debug)]
pub(super) enum Carried {
    Message(Bytes),
    /// The other side has closed.
    End,
}

/// A connection. End 0 dialled.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ends: [usize; 2],
    /// What is on its way from each end, in order.
    pub(super) pipes: [VecDeque<Carried>; 2],
    /// When the last of it arrives.
    pub(super) last: [Time; 2],
    /// How much of it is late, since the path was cut when it would have come.
    pub(super) stalled: [usize; 2],
    /// Ends that have not closed.
    pub(super) open: [bool; 2],
}

impl Link {
    pub(super) fn new(from: usize, to: usize) -> Self {
        Self {
            ends: [from, to],
            pipes: [VecDeque::new(), VecDeque::new()],
            last: [0; 2],
            stalled: [0; 2],
            open: [true; 2],
        }
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Network {
    brokers: usize,
    paths: Vec<Path>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) made: u64,
}

impl Network {
    pub(super) fn new(brokers: usize) -> Self {
        Self {
            brokers,
            paths: vec![Path::default(); brokers * brokers],
            links: BTreeMap::new(),
            made: 0,
        }
    }

    pub(super) fn path(&self, from: usize, to: usize) -> Path {
        self.paths[from * self.brokers + to]
    }

    pub(super) fn path_mut(&mut self, from: usize, to: usize) -> &mut Path {
        &mut self.paths[from * self.brokers + to]
    }

    pub(super) fn is_open(&self, one: usize, other: usize) -> bool {
        !self.path(one, other).cut && !self.path(other, one).cut
    }

    /// The links, and which of their ends sends over a path.
    pub(super) fn over(&self, from: usize, to: usize) -> Vec<(u64, usize)> {
        let mut over = Vec::new();
        for (&number, link) in &self.links {
            for end in 0..2 {
                if link.ends[end] == from && link.ends[1 - end] == to {
                    over.push((number, end));
                }
            }
        }
        over
    }

    /// Forgets links of which nothing will come any more.
    pub(super) fn forget_ended(&mut self) {
        self.links.retain(|_, link| {
            let is_over = link.open == [false; 2] && link.pipes.iter().all(VecDeque::is_empty);
            !is_over
        });
    }

    pub(super) fn between(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let brokers = self.brokers;
        (0..brokers).flat_map(move |from| {
            (0..brokers)
                .filter(move |&to| to != from)
                .map(move |to| (from, to))
        })
    }
}
