//! The tests of Anabranch as a whole: its architecture, its binary from end to end, real data.
//!
//! One integration binary, `tests/main.rs`, holds them all, so that it is linked once. What is
//! tested of a single crate lies in that crate. Here is what end-to-end tests stand on:
//!
//! | module | holds |
//! |---|---|
//! | [`home`] | a folder of its own for each test |
//! | [`broker`] | the program as a process: started, asked to stop, killed |
//! | [`http`] | requests and what is answered |
//! | [`wire`] | WebSocket connections, message by message |
//! | [`follow`] | what a subscription was given, in order |
//! | [`dev`] | several regions that one process starts |
//! | [`demo`] | the demo as a process, and what must be there after it |
//! | [`proxy`] | a link between brokers that can be slow, cut and noisy |
//! | [`regions`] | brokers of several regions, linked through proxies |
//! | [`stranger`] | somebody on the port of links who may say anything |
//! | [`condition`] | waiting for something to come true |
//! | [`sim`] | whole brokers under a simulation, with virtual time |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod broker;
pub mod condition;
pub mod demo;
pub mod dev;
pub mod follow;
pub mod home;
pub mod http;
pub mod proxy;
pub mod regions;
pub mod sim;
pub mod stranger;
pub mod wire;

use std::path::{Path, PathBuf};

/// The root of the repository.
///
/// # Panics
/// Never: this crate lies one level below it.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("the tests lie below the root of the repository")
        .to_owned()
}
