//! Configuration: flag, then environment, then file, then default.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | every key once: its type, default, range and reason |
//! | [`value`] | the types that a key may have, read from text and TOML |
//! | [`load`] | the four layers put on top of each other |
//! | [`show`] | the effective configuration, and the reference table of all keys |

mod error;
mod keys;
mod load;
mod show;
mod value;

pub(crate) use error::ConfigError;
pub(crate) use keys::{Config, Limits, Links};
pub(crate) use load::{Flag, Loaded, Sources};
pub(crate) use show::{as_json_lines, as_table, as_toml};
pub(crate) use value::{ByteSize, LogFormat, bytes_in};
