//! Histories end the same everywhere, and every mistake is noticed.
//!
//! `ANABRANCH_MERGE_HISTORIES=100000` runs so many histories, `ANABRANCH_MERGE_SEED=7` the one with
//! this seed.

use super::history::{Tally, run};
use super::reference::MUTANTS;

/// Histories in the ordinary run.
const HISTORIES: u64 = 2000;

/// Histories within which each mistake has to be noticed.
const MUTANT_HISTORIES: u64 = 3000;

#[expect(
    clippy::disallowed_methods,
    reason = "how long a test runs is for whoever runs it to say"
)]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn histories_end_the_same_everywhere_and_as_the_reference_says() {
    let seeds = match number("ANABRANCH_MERGE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ANABRANCH_MERGE_HISTORIES").unwrap_or(HISTORIES),
    };
    let mut all = Tally::default();
    for seed in seeds.clone() {
        let tally = run(seed, None).unwrap_or_else(|wrong| {
            panic!("seed {seed} fails, again with ANABRANCH_MERGE_SEED={seed}: {wrong}")
        });
        all.edits += tally.edits;
        all.refused += tally.refused;
        all.compared += tally.compared;
        all.settled += tally.settled;
    }
    println!("{} histories: {all:?}", seeds.end - seeds.start);
    if seeds.end - seeds.start > 1 {
        assert!(all.compared > all.edits / 10, "{all:?}");
        assert!(all.refused < all.edits / 5, "{all:?}");
        assert!(all.settled as u64 > 2 * seeds.end, "{all:?}");
    }
}

#[test]
fn every_mistake_is_noticed() {
    for mutant in MUTANTS {
        let mut seeds = 0..MUTANT_HISTORIES;
        let noticed = seeds.find(|&seed| run(seed, Some(mutant)).is_err());
        assert!(noticed.is_some(), "{mutant:?} was not noticed");
        println!("{mutant:?}: seed {noticed:?}");
    }
}
