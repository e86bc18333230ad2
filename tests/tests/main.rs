//! All tests of Anabranch as a whole, in one binary.
//!
//! | module | tests |
//! |---|---|
//! | `acknowledging` | that a publish is acknowledged once the regions that it asks for hold it |
//! | `auditing` | that brokers that hold the same frames are found to have the same rows, or not |
//! | `bad_input` | that each mistake gets a clear error, and disturbs nobody else |
//! | `benches` | that the measurements of several regions work |
//! | `commands` | the commands as a script sees them |
//! | `crash` | that a broker that is killed at any moment loses nothing that it acknowledged |
//! | `dev_regions` | several regions on one machine, started by one command |
//! | `client` | the Rust client against the broker, over its restarts |
//! | `flights_over_regions` | that a year of flights, split over three regions with bad links, is whole in each |
//! | `hopping` | that subscribers and readers go from region to region and miss nothing |
//! | `guides` | that the guides do what they say |
//! | `membership` | that brokers join, are parked and removed, and nothing comes back that was deleted |
//! | `openapi` | that the description of the HTTP interface is true |
//! | `ordering` | that the order of all records is the same in every region |
//! | `python` | a client in another language, from the protocol's description |
//! | `real_data` | that the demo's data is what the source files say |
//! | `regions` | that brokers of several regions all take writes and end with the same |
//! | `residency` | that payloads of streams that name regions are nowhere else |
//! | `simulator` | that nothing is lost, doubled or unequal, whatever goes wrong, in virtual time |
//! | `stopping` | that a broker that is asked to stop leaves nothing in doubt |
//! | `subscriptions` | where they start, what they select, how they go on |
//! | `tables` | what reads see, and what becomes of rows |
//! | `verifying` | that `verify` finds no fault where there is none, and changes nothing |
//! | `architecture` | that the code is built as `docs/ARCHITECTURE.md` says, and the documents are true |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod acknowledging;
mod architecture;
mod auditing;
mod bad_input;
mod benches;
mod client;
mod commands;
mod crash;
mod dev_regions;
mod flights_over_regions;
mod guides;
mod hopping;
mod membership;
mod openapi;
mod ordering;
mod python;
mod real_data;
mod regions;
mod residency;
mod simulator;
mod stopping;
mod subscriptions;
mod tables;
mod verifying;
