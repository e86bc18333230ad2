//! How long to wait before trying again.

use std::time::Duration;

/// Waits that double up to a limit, each drawn at random from the upper half of its range, so
/// that clients that lost the same broker do not come back in step.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next wait; `random` is from 0 to 1.
    pub(crate) fn wait(&mut self, random: f64) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(LONGEST);
        longest.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// It worked: the next wait is short again.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_start_over() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.wait(1.0), FIRST);
        assert_eq!(backoff.wait(0.0), FIRST);
        let last = (0..20).map(|_| backoff.wait(1.0)).last();
        assert_eq!(last, Some(LONGEST));
        backoff.reset();
        assert_eq!(backoff.wait(1.0), FIRST);
    }
}
