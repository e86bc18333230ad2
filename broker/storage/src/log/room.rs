//! Room for what is to be written, reserved before it is.

use std::io;

use anabranch_core::frame::{FIXED_HEADER_BYTES, PART_HEADER_BYTES};
use anabranch_core::gap::Gap;

use super::entry::{ALIGNMENT, ENTRY_HEADER_BYTES, STORED_PART_BYTES};
use super::gap;
use crate::disk::DiskFile;

/// The most that a gap without context and parts takes, which has four varints.
const MOST_GAP_BYTES: usize = gap::HEADER_BYTES + 12 + 4 * 10 + 8 + 32 + ALIGNMENT;

/// Reserves this much for a file. False when there is no room; then the file is as it was.
pub(crate) fn reserve(file: &dyn DiskFile, length: u64) -> io::Result<bool> {
    let held = file.length()?;
    match file.preallocate(length) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            // Some file systems keep what they found before they noticed.
            file.truncate(held)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The most that a frame of this broker, with so many parts and bytes of batches, takes in the
/// log, without its context, which the sequencer knows (`Sequencer::context_bytes`).
#[must_use]
pub fn most_entry_bytes(parts: usize, batches: usize) -> usize {
    ENTRY_HEADER_BYTES
        + FIXED_HEADER_BYTES
        + parts * (STORED_PART_BYTES + PART_HEADER_BYTES)
        + batches
        + ALIGNMENT
}

/// The most that gaps of a peer take in the log.
#[must_use]
pub fn most_gap_bytes(gaps: &[Gap]) -> usize {
    let most = |gap: &Gap| MOST_GAP_BYTES + gap.context.encoded_bytes();
    gaps.iter().map(most).sum()
}
