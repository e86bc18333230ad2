//! How many rounds, from which seed, and how to repeat them.

/// What is to be done. A failure prints how to do it again.
pub(crate) struct Plan {
    /// Decides everything but the scheduling of threads.
    pub(crate) seed: u64,
    /// How often the broker dies.
    pub(crate) rounds: u32,
    at: std::cell::Cell<u32>,
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

impl Plan {
    /// From `ANABRANCH_TEST_SEED` and `ANABRANCH_TEST_ROUNDS`, or a new seed and this many rounds.
    pub(crate) fn read(rounds: u32) -> Self {
        let rounds = number("ANABRANCH_TEST_ROUNDS").map_or(rounds, |n| u32::try_from(n).unwrap());
        Self {
            seed: number("ANABRANCH_TEST_SEED").unwrap_or_else(|| fastrand::u64(..)),
            rounds,
            at: std::cell::Cell::new(0),
        }
    }

    /// A round begins.
    pub(crate) fn note(&self, round: u32) {
        self.at.set(round);
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "failed in round {} of seed {}; again: ANABRANCH_TEST_SEED={} ANABRANCH_TEST_ROUNDS={} \
                 cargo all-tests --test main -- crash",
                self.at.get(),
                self.seed,
                self.seed,
                self.rounds
            );
        }
    }
}
