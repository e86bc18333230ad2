//! A broker that is killed at any moment loses nothing that it acknowledged.
//!
//! | module | holds |
//! |---|---|
//! | `plan` | how many rounds, from which seed, and how to repeat them |
//! | `mark` | what records say, so that each is known by sight |
//! | `writer` | a connection that publishes, pipelined, and remembers what was acknowledged |
//! | `transactions` | the same for writes to several streams |
//! | `demo` | the demo, killed again and again |
//! | `auditor` | a subscriber that goes on after every crash and checks what it is given |
//! | `world` | all of them together, round after round |

mod auditor;
mod demo;
mod mark;
mod plan;
mod transactions;
mod world;
mod writer;

use plan::Plan;
use world::World;

/// One broker directory, a hundred crashes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_lose_and_double_nothing_that_was_acknowledged() {
    let plan = Plan::read(100);
    let mut world = World::new(&plan);
    for round in 0..plan.rounds {
        plan.note(round);
        world.round(round).await;
    }
    world.finish().await;
}
