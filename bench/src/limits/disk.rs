//! The disk that the broker's data is on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::latency::{Latencies, Percentiles, nanoseconds};

const MEBIBYTE: usize = 1024 * 1024;

/// Long enough for the disk's own buffers not to matter, short enough to be measured twice.
const APPENDING: Duration = Duration::from_secs(2);

const SYNCS: usize = 2_000;

/// Bytes a second of 1 MiB appends, each with its `fdatasync`.
pub(crate) fn appends(dir: &Path, quick: bool) -> Result<f64> {
    let file = scratch_file(dir)?;
    let chunk = noise();
    let duration = if quick { APPENDING / 20 } else { APPENDING };
    let (mut end, started) = (0u64, Instant::now());
    while started.elapsed() < duration {
        file.write_all_at(&chunk, end)?;
        file.sync_data()?;
        end += chunk.len() as u64;
    }
    Ok(end as f64 / started.elapsed().as_secs_f64())
}

/// Latency of 4 KiB written with `fdatasync` into space that was written before.
pub(crate) fn small_syncs(dir: &Path, quick: bool) -> Result<Percentiles> {
    let file = scratch_file(dir)?;
    let chunk = noise();
    for mebibyte in 0..8 {
        file.write_all_at(&chunk, mebibyte * chunk.len() as u64)?;
    }
    file.sync_all()?;
    let mut latencies = Latencies::default();
    for sync in 0..if quick { SYNCS / 20 } else { SYNCS } {
        let started = Instant::now();
        let at = (sync % 2048) * 4096;
        file.write_all_at(&chunk[..4096], at as u64)?;
        file.sync_data()?;
        latencies.record(nanoseconds(started.elapsed()));
    }
    latencies.percentiles().context("nothing was synced")
}

fn scratch_file(dir: &Path) -> Result<File> {
    tempfile::tempfile_in(dir).with_context(|| format!("cannot write in {}", dir.display()))
}

/// Something that no layer below compresses.
fn noise() -> Vec<u8> {
    let mut noise = vec![0; MEBIBYTE];
    fastrand::Rng::with_seed(7).fill(&mut noise);
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        assert!(appends(dir.path(), true).unwrap() > 0.0);
        assert!(small_syncs(dir.path(), true).unwrap().p50 > 0.0);
    }
}
