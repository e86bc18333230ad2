//! Hybrid logical time: wall-clock milliseconds with a counter for what happens within one.
//!
//! Kulkarni et al., "Logical Physical Clocks" (2014). Decides who wrote last, never causality.

use std::fmt;

/// 48 bits of milliseconds since 1970, 16 bits of logical counter.
///
/// Record `i` of a frame has the frame's stamp + `i`, so a stamp costs nothing per record; the
/// counter overflows into the milliseconds, which is harmless: order is all that counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HybridTimestamp(u64);

impl HybridTimestamp {
    /// Before every stamp that a clock hands out.
    pub const ZERO: Self = Self(0);

    /// The first stamp of a millisecond.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis << 16)
    }

    /// Wraps the 64-bit form.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64-bit form.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The stamp of record `index` of a frame that has this stamp.
    #[must_use]
    pub const fn of_record(self, index: u32) -> Self {
        // A stamp at the end of time is refused as one that is ahead, wherever it comes from.
        Self(self.0.saturating_add(index as u64))
    }
}

impl fmt::Debug for HybridTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms+{}", self.millis(), self.0 & 0xffff)
    }
}

/// Hands out stamps that only grow, whatever the wall clock does.
#[derive(Clone, Debug, Default)]
pub struct HybridClock {
    /// The greatest stamp handed out or observed.
    last: HybridTimestamp,
}

impl HybridClock {
    /// A clock that has seen everything up to `last`.
    #[must_use]
    pub fn starting_after(last: HybridTimestamp) -> Self {
        Self { last }
    }

    /// Takes a run of `count` stamps and returns the first. `now_ms` is the wall clock.
    pub fn take(&mut self, now_ms: u64, count: u32) -> HybridTimestamp {
        let first = HybridTimestamp::from_millis(now_ms).max(HybridTimestamp(self.last.0 + 1));
        self.last = HybridTimestamp(first.0 + u64::from(count.max(1)) - 1);
        first
    }

    /// Notes a stamp seen elsewhere, so that what is written next is stamped later.
    pub fn observe(&mut self, seen: HybridTimestamp) {
        self.last = self.last.max(seen);
    }

    /// The greatest stamp handed out or observed.
    #[must_use]
    pub fn last(&self) -> HybridTimestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_when_the_wall_clock_jumps_back() {
        let mut clock = HybridClock::default();
        let before = clock.take(10_000, 3);
        let after = clock.take(5_000, 1);
        assert!(after > before.of_record(2));
        assert_eq!(clock.take(20_000, 1), HybridTimestamp::from_millis(20_000));
    }

    #[test]
    fn runs_never_overlap_even_beyond_the_logical_bits() {
        let mut clock = HybridClock::default();
        let first = clock.take(1, 200_000);
        let second = clock.take(1, 1);
        assert_eq!(second, first.of_record(200_000));
    }
}
