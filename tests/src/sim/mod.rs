//! Whole brokers under a simulation: one thread, virtual time, and everything that may go wrong,
//! all of it decided by a seed.
//!
//! A simulated broker is the real log over a disk in memory that fails, the real sequencer, holding
//! and mesh. What goes over links is encoded and decoded as it is between processes. Only what the
//! program does with threads and sockets is done here with events; and rows are kept in a map, by
//! the rules of the tables.
//!
//! After every step checkers compare with what is so: see `verdict`.
//!
//! | module | holds |
//! |---|---|
//! | `agenda` | virtual time |
//! | `plan` | what a run is like, and what goes wrong |
//! | `world` | all brokers, and what happens to them |
//! | `founders` | a cluster that was founded before |
//! | `load` | what clients do |
//! | `wires` | links between the brokers, made, used and ended |
//! | `comings` | machines that join, are parked, and come back |
//! | `faults` | what goes wrong, done |
//! | `network` | paths that are slow, cut and noisy |
//! | `broker` | a broker: the glue around log and core |
//! | `entrance` | how a broker becomes a member, and makes others members |
//! | `link` | an end of a link |
//! | `table` | rows, beside rows of which nothing is ever dropped |
//! | `client` | clients that carry a token from broker to broker |
//! | `truth` | every frame there is, and what its writer knew |
//! | `check` | what must be so after a step, and at the end |
//! | `mutant` | mistakes on purpose |
//! | `verdict` | what a run may end with |

mod agenda;
mod broker;
mod check;
mod client;
mod comings;
mod entrance;
mod faults;
mod founders;
mod link;
mod load;
mod mutant;
mod network;
mod plan;
mod table;
mod truth;
mod verdict;
mod wires;
mod world;

pub use founders::founded_by;
pub use mutant::Mutant;
pub use verdict::{Outcome, Violation};

/// Runs the simulation of a seed.
///
/// # Errors
/// What was found that must never be.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Outcome, Violation> {
    world::World::new(seed, mutant).run()
}
