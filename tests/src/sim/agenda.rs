//! Virtual time: what is to happen next.

use std::collections::BTreeMap;

/// Microseconds since the simulation began.
pub(super) type Time = u64;

pub(super) const MS: Time = 1000;
pub(super) const SECOND: Time = 1000 * MS;
pub(super) const HOUR: Time = 3600 * SECOND;

/// Events, by the time at which they happen. Of those at the same time, the one that was planned
/// first comes first.
#[derive(Debug)]
pub(super) struct Agenda<E> {
    now: Time,
    planned: u64,
    events: BTreeMap<(Time, u64), E>,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self {
            now: 0,
            planned: 0,
            events: BTreeMap::new(),
        }
    }
}

impl<E> Agenda<E> {
    pub(super) fn now(&self) -> Time {
        self.now
    }

    /// Plans an event. What is over already happens next.
    pub(super) fn at(&mut self, time: Time, event: E) {
        self.planned += 1;
        let time = time.max(self.now);
        self.events.insert((time, self.planned), event);
    }

    pub(super) fn after(&mut self, delay: Time, event: E) {
        self.at(self.now + delay, event);
    }

    /// Goes on to the next event.
    pub(super) fn next(&mut self) -> Option<E> {
        let ((time, _), event) = self.events.pop_first()?;
        self.now = time;
        Some(event)
    }
}
