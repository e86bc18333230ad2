//! Subscriptions: where they start, what they select, how they go on.
//!
//! | module | holds |
//! |---|---|
//! | `numbers` | records that are numbered, so that none is missed or doubled unnoticed |
//! | `places` | from the start, the end, a time, a cursor, the table |
//! | `selections` | by partition, key and prefix |
//! | `resuming` | at a cursor, over connections and restarts |
//! | `crowds` | slow ones, idle ones, many |
//! | `trimming` | what happens to places that are gone |
//! | `events` | over HTTP: pages, waiting, server-sent events |

mod crowds;
mod events;
mod numbers;
mod places;
mod resuming;
mod selections;
mod trimming;
