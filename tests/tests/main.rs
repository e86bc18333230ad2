//! All tests of Anabranch as a whole, in one binary.
//!
//! | module | tests |
//! |---|---|
//! | `bad_input` | that each mistake gets a clear error, and disturbs nobody else |
//! | `crash` | that a broker that is killed at any moment loses nothing that it acknowledged |
//! | `subscriptions` | where they start, what they select, how they go on |
//! | `tables` | what reads see, and what becomes of rows |
//! | `architecture` | that the code is built as `docs/ARCHITECTURE.md` says, and the documents are true |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod architecture;
mod bad_input;
mod crash;
mod subscriptions;
mod tables;
