//! What reaches the disk: the log's segments and indexes, recovery, and the tables.
//!
//! | module | holds |
//! |---|---|
//! | [`ballast`] | room that is kept for when there is none left |
//! | [`durable`] | the type of what has been synced: only this crate can make it |
//! | [`data_dir`] | the directory of one broker: its lock, its format, its identity |
//! | [`disk`] | files behind one small trait: the real ones, and in memory with faults |
//! | [`history`] | the log, read again for tables that have to fold a stream again |
//! | [`log`] | segments, group commit, recovery, reading, cleaning, verifying |
//! | [`tables`] | rows folded from the log |

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod alarm;
pub mod ballast;
pub mod data_dir;
pub mod disk;
pub mod durable;
pub mod history;
pub mod log;
pub mod tables;
