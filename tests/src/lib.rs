//! The tests of Anabranch as a whole: its architecture, its binary from end to end, real data.
//!
//! One integration binary, `tests/main.rs`, holds them all, so that it is linked once. What is
//! tested of a single crate lies in that crate.

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
