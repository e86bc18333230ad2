//! How far somebody is behind, in time and bytes.
//!
//! Frames say how many are missing. To tell for how long, and how many bytes, what there was is noted
//! now and then, and crossed out once the other side has said that it holds it.

use std::collections::VecDeque;

use crate::vector::VersionVector;

/// Notes are so far apart at least. A lag is known to this precision.
const NOTE_EVERY_MS: u64 = 50;

/// Notes that are kept at most. Beyond it every second one is forgotten: a longer lag is known less
/// precisely.
const MOST_NOTES: usize = 64;

/// What there was at one time.
#[derive(Clone, Debug)]
struct Note {
    at_ms: u64,
    /// All bytes there had been before.
    bytes: u64,
    held: VersionVector,
}

/// How far one side is behind the other.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    open: VecDeque<Note>,
    /// All bytes there had been at the last note that was crossed out.
    reached: u64,
}

impl Lag {
    /// Notes what there is, if the last note is old enough. `bytes` is all that there has ever been.
    pub fn note(&mut self, now_ms: u64, bytes: u64, held: &VersionVector) {
        let is_early = |last: &Note| now_ms < last.at_ms.saturating_add(NOTE_EVERY_MS);
        if self
            .open
            .back()
            .is_some_and(|last| is_early(last) || last.held == *held)
        {
            return;
        }
        if self.open.len() == MOST_NOTES {
            let mut number = 0;
            // The oldest stays: it says how long the lag is.
            self.open.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.open.push_back(Note {
            at_ms: now_ms,
            bytes,
            held: held.clone(),
        });
    }

    /// The other side holds this.
    pub fn reach(&mut self, holds: &VersionVector) {
        while let Some(note) = self.open.front() {
            if !holds.covers(&note.held) {
                break;
            }
            self.reached = note.bytes;
            self.open.pop_front();
        }
    }

    /// For how long something has been missing, in milliseconds; 0 when nothing is.
    #[must_use]
    pub fn millis(&self, now_ms: u64) -> u64 {
        let oldest = self.open.front();
        oldest.map_or(0, |note| now_ms.saturating_sub(note.at_ms))
    }

    /// Bytes that may be missing, of `bytes` that there have been in all; 0 when nothing is.
    #[must_use]
    pub fn bytes(&self, bytes: u64) -> u64 {
        match self.open.is_empty() {
            true => 0,
            false => bytes.saturating_sub(self.reached),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BrokerId, Epoch, Origin, Sequence};

    fn held(sequence: u64) -> VersionVector {
        let origin = Origin {
            broker: BrokerId::new(1),
            epoch: Epoch::new(1),
        };
        VersionVector::from_iter([(origin, Sequence::new(sequence))])
    }

    #[test]
    fn a_lag_is_as_old_as_the_oldest_that_is_missing() {
        let mut lag = Lag::default();
        lag.note(1_000, 100, &held(1));
        lag.note(1_010, 150, &held(2));
        assert_eq!((lag.millis(1_030), lag.bytes(150)), (30, 150));
        lag.reach(&held(1));
        assert_eq!((lag.millis(1_030), lag.bytes(150)), (0, 0), "not noted yet");
        lag.note(1_100, 150, &held(2));
        lag.note(1_200, 250, &held(3));
        assert_eq!((lag.millis(1_300), lag.bytes(260)), (200, 160));
        lag.reach(&held(2));
        assert_eq!((lag.millis(1_300), lag.bytes(260)), (100, 110));
        lag.reach(&held(3));
        assert_eq!((lag.millis(1_300), lag.bytes(260)), (0, 0));
    }

    #[test]
    fn notes_are_bounded_and_the_oldest_stays() {
        let mut lag = Lag::default();
        for number in 1..10_000 {
            lag.note(number * 100, number * 10, &held(number));
            assert!(lag.open.len() <= MOST_NOTES);
        }
        assert_eq!(lag.millis(1_000_000), 999_900);
        lag.reach(&held(9_999));
        assert_eq!(lag.millis(1_000_000), 0);
    }
}
