//! Tables against a naive fold of the same commits.

mod crash;
mod definitions;
mod differential;
pub(super) mod history;
mod model;
mod reading;
mod regions;

use std::path::Path;

use super::*;

/// Images so small that a few hundred writes freeze several, and most scans one more.
fn small() -> TablesOptions {
    TablesOptions {
        image_bytes: 16 << 10,
        image_rows: 150,
        search_rows: 20,
        ..TablesOptions::default()
    }
}

fn open(dir: &Path) -> (Tables, Applier) {
    Tables::open(dir, small()).unwrap()
}
