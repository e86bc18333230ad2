//! Whole brokers under the simulator, seed after seed; and mistakes on purpose, each of which it has
//! to notice.
//!
//! `ANABRANCH_SIM_SEED=7` runs one seed, `ANABRANCH_SIM_SEEDS=100000` so many of them, and
//! `ANABRANCH_SIM_LOG=1` says what happens.

use anabranch_tests::sim::{self, Mutant, Outcome};

/// Seeds in the ordinary run.
const SEEDS: u64 = 1500;

/// Seeds within which each mistake has to be noticed.
const MUTANT_SEEDS: u64 = 1500;

/// Seeds that have found something once, beyond those of the ordinary run.
const TELLING: [u64; 2] = [2487, 2815];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

fn run(seed: u64) -> Outcome {
    let run = std::panic::catch_unwind(|| sim::run(seed, None));
    let again = format!(
        "seed {seed} fails; again: ANABRANCH_SIM_SEED={seed} ANABRANCH_SIM_LOG=1 cargo all-tests --test main -- simulator::seeds"
    );
    match run {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(violation)) => panic!("{violation}\n{again}"),
        Err(panic) => {
            eprintln!("{again}");
            std::panic::resume_unwind(panic)
        }
    }
}

fn run_all(seeds: impl Iterator<Item = u64>) -> Vec<Outcome> {
    seeds.map(run).collect()
}

#[test]
fn seeds_end_with_equal_brokers_whatever_goes_wrong() {
    if let Some(seed) = number("ANABRANCH_SIM_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let seeds = number("ANABRANCH_SIM_SEEDS").unwrap_or(SEEDS);
    let half = std::thread::spawn(move || run_all((0..seeds).step_by(2)));
    let mut outcomes = run_all((1..seeds).step_by(2).chain(TELLING));
    outcomes.extend(half.join().expect("what it has to say is said"));
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{seeds} seeds: {} events in {} virtual hours, {} frames, {} writes acknowledged, {} frames taken over, \
         {} starts, {} links, {} damaged messages, {} reads with a token; {} clusters founded, {} brokers joined, \
         {} parked, {} of them back on their old disk and refused {} times with {} frames that nobody else had; \
         lost 0, doubled 0, unequal 0",
        sum(|o| o.events),
        sum(|o| o.lasted) / 3_600_000_000,
        sum(|o| o.frames),
        sum(|o| o.acked),
        sum(|o| o.taken),
        sum(|o| o.restarts),
        sum(|o| o.links),
        sum(|o| o.damaged),
        sum(|o| o.reads),
        sum(|o| o.founded),
        sum(|o| o.joined - o.apart),
        sum(|o| o.parked),
        sum(|o| o.returned),
        sum(|o| o.refused),
        sum(|o| o.left_behind),
    );
}

#[test]
fn the_same_seed_twice_is_the_same_run() {
    for seed in 0..40 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1).trace, run(2).trace);
}

/// By a violation that says so; a mistake may show in other ways as well.
fn assert_noticed(mutant: Mutant, by: &str) {
    let violation = |seed| sim::run(seed, Some(mutant)).err().map(|v| v.to_string());
    let mut violations = (0..MUTANT_SEEDS).filter_map(violation);
    let noticed = violations.find(|violation| violation.contains(by));
    assert!(noticed.is_some(), "{mutant:?} goes unnoticed");
}

#[test]
fn frames_that_do_not_wait_for_what_they_follow_are_noticed() {
    assert_noticed(Mutant::NoCausalGate, "before what it follows");
}

#[test]
fn a_report_that_counts_before_its_frames_is_noticed() {
    assert_noticed(Mutant::EarlyReport, "after the watermark");
}

#[test]
fn a_frame_that_is_folded_twice_is_noticed() {
    assert_noticed(Mutant::DoubleApply, "folded twice");
}

#[test]
fn tombstones_that_go_by_time_are_noticed() {
    assert_noticed(Mutant::PruneByTime, "and the log says");
}

#[test]
fn an_acknowledgement_before_the_sync_is_noticed() {
    assert_noticed(Mutant::AckBeforeSync, "is lost");
}

#[test]
fn a_sequence_that_is_used_again_after_a_restore_is_noticed() {
    assert_noticed(Mutant::ReuseSequence, "and this log has lost it");
}

/// A broker has reported more than its own frames.
#[test]
fn a_restored_broker_that_fetches_only_its_own_frames_is_noticed() {
    assert_noticed(Mutant::FetchOwnTailOnly, "called stable");
}
