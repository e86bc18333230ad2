//! What both sides of a link know of the frames that went over it.

use std::collections::HashMap;

use anabranch_core::frame::{Chain, FrameHeader, PartHeader};
use anabranch_core::id::{PartitionId, Sequence, StreamId};

use super::super::vectors::{Dense, Numbers, most_origins};

/// Places that a link numbers at most.
pub(super) const MOST_PLACES: usize = 4096;

/// A frame of more parts says each time where they belong.
const MOST_SAME_PARTS: usize = 64;

/// What both sides of a link remember of the frames that went over it.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) numbers: Numbers,
    pub(super) places: Vec<(StreamId, PartitionId)>,
    pub(super) place_numbers: HashMap<(StreamId, PartitionId), u16>,
    /// By an origin's number.
    pub(super) last: Vec<Option<Last>>,
    /// How many of these are there.
    pub(super) remembered: usize,
    pub(super) millis: u64,
}

/// The last frame of an origin.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) sequence: Sequence,
    pub(super) chain: Chain,
    /// What it followed, as far as that was said over this link, itself included.
    pub(super) applied: Dense,
    /// The numbers of its parts' places; `None` when not all have one, or they are many.
    pub(super) places: Option<Vec<u16>>,
}

impl Model {
    pub(super) fn last(&self, number: usize) -> Option<&Last> {
        self.last.get(number)?.as_ref()
    }

    pub(super) fn most_origins(&self) -> usize {
        most_origins(self.remembered)
    }

    pub(super) fn place(&mut self, place: (StreamId, PartitionId)) -> Option<u16> {
        if let Some(number) = self.place_numbers.get(&place) {
            return Some(*number);
        }
        let number = self.places.len();
        if number == MOST_PLACES {
            return None;
        }
        let number = u16::try_from(number).ok()?;
        self.places.push(place);
        self.place_numbers.insert(place, number);
        Some(number)
    }

    /// A frame went over the link.
    pub(super) fn note(&mut self, header: &FrameHeader) {
        self.millis = header.timestamp.millis();
        let most = self.most_origins();
        let number = self.numbers.give(header.origin, most);
        let context: Vec<_> = (header.context.iter())
            .filter_map(|(origin, sequence)| {
                Some((self.numbers.give(origin, most)?, sequence.get()))
            })
            .collect();
        let places = header.parts.iter().map(|part| self.place(place_of(part)));
        let places: Option<Vec<_>> = places.collect();
        let places = places.filter(|places| places.len() <= MOST_SAME_PARTS);
        let Some(number) = number else { return };
        if self.last.len() <= number {
            self.last.resize_with(number + 1, || None);
        }
        if self.last[number].is_none() {
            if self.numbers.len() > most_origins(self.remembered + 1) {
                return;
            }
            self.remembered += 1;
        }
        let before = self.last[number].take();
        let mut applied = before.map(|last| last.applied).unwrap_or_default();
        applied.resize(self.numbers.len(), 0);
        for (origin, sequence) in context {
            applied[origin] = applied[origin].max(sequence);
        }
        applied[number] = header.sequence.get();
        self.last[number] = Some(Last {
            sequence: header.sequence,
            chain: header.chain,
            applied,
            places,
        });
    }
}

pub(super) fn place_of(part: &PartHeader) -> (StreamId, PartitionId) {
    (part.stream, part.partition)
}
