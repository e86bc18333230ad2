//! What need not stay in the page cache: what was written in a hurry.
//!
//! A log that is written at hundreds of megabytes a second fills all memory within a minute with
//! pages that hardly anybody reads: subscribers that keep up are served from memory of the
//! broker's own, and the others are further behind than the page cache could reach. Every one of
//! these pages is new to the process. Taking a new page costs the kernel up to ten times as much
//! as the copy into it, most of all in a virtual machine, where the host has to find the page
//! first; and once there are no free ones, what tables and others hold is thrown out. So the
//! oldest pages of such a log are given back, and the next ones are the same again.
//!
//! A log that is written slowly is left to the kernel.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::disk::Disk;

/// What is given back at once. Begins and ends where the largest pages do (2 MiB): only whole ones
/// can be given back.
const PIECE_BYTES: u64 = 4 << 20;

/// Pieces that stay in any case, 256 MiB. Enough for a subscriber that falls behind for a moment
/// and for a start after a crash, which reads the segment that was being written.
const KEPT_PIECES: usize = 64;

/// Writing as much as is kept within this many milliseconds is a hurry: 26 MB/s.
const HURRY_MS: u64 = 10_000;

/// The newest pieces of the log.
#[derive(Debug)]
pub(super) struct Hurried {
    pieces: VecDeque<Piece>,
    /// The segment being written, and where in it the next piece begins.
    path: PathBuf,
    from: u64,
    /// When something was written last.
    now_ms: u64,
}

#[derive(Debug, PartialEq)]
struct Piece {
    path: PathBuf,
    from: u64,
    written_at_ms: u64,
}

impl Hurried {
    /// Begins with a segment that is written up to `end`.
    pub(super) fn new(path: &Path, end: u64) -> Self {
        Self {
            pieces: VecDeque::new(),
            path: path.to_owned(),
            from: end - end % PIECE_BYTES,
            now_ms: 0,
        }
    }

    /// Goes on in a new segment.
    pub(super) fn roll(&mut self, path: &Path) {
        self.push();
        path.clone_into(&mut self.path);
        self.from = 0;
    }

    /// The segment is durable up to `end`. Gives back what is due.
    pub(super) fn advance(&mut self, disk: &dyn Disk, end: u64, now_ms: u64) {
        self.now_ms = now_ms;
        while self.from + PIECE_BYTES <= end {
            self.push();
        }
        while let Some(piece) = self.due() {
            disk.uncache(&piece.path, piece.from, PIECE_BYTES);
        }
    }

    /// The next piece that has gone by in a hurry.
    fn due(&mut self) -> Option<Piece> {
        while self.pieces.len() > KEPT_PIECES {
            let piece = self.pieces.pop_front()?;
            if self.now_ms.saturating_sub(piece.written_at_ms) < HURRY_MS {
                return Some(piece);
            }
        }
        None
    }

    fn push(&mut self) {
        self.pieces.push_back(Piece {
            path: self.path.clone(),
            from: self.from,
            written_at_ms: self.now_ms,
        });
        self.from += PIECE_BYTES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `pieces` pieces, one every `pause_ms`, into segments of 10 pieces, and returns those
    /// that were given back.
    fn given_back(pieces: u64, pause_ms: u64) -> Vec<(PathBuf, u64)> {
        let mut hurried = Hurried::new(Path::new("0"), 64);
        let mut due = Vec::new();
        for n in 1..=pieces {
            hurried.now_ms = n * pause_ms;
            hurried.push();
            due.extend(std::iter::from_fn(|| hurried.due()).map(|p| (p.path, p.from)));
            if n % 10 == 0 {
                hurried.path = PathBuf::from((n / 10).to_string());
                hurried.from = 0;
            }
        }
        due
    }

    #[test]
    fn what_was_written_in_a_hurry_is_given_back_in_its_order() {
        let kept = KEPT_PIECES as u64;
        assert_eq!(given_back(kept, 1), []);
        let due = given_back(kept + 12, 1);
        let expected = |n: u64| (PathBuf::from((n / 10).to_string()), n % 10 * PIECE_BYTES);
        assert_eq!(due, (0..12).map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_written_slowly_is_left_alone() {
        let kept = KEPT_PIECES as u64;
        assert_eq!(given_back(3 * kept, HURRY_MS.div_ceil(kept)), []);
    }

    #[test]
    fn only_whole_pieces_of_a_segment_and_its_end_are_counted() {
        let disk = crate::disk::MemoryDisk::new(1);
        let mut hurried = Hurried::new(Path::new("a"), PIECE_BYTES + 100);
        hurried.advance(&disk, 2 * PIECE_BYTES - 1, 5);
        assert_eq!(hurried.pieces, []);
        hurried.advance(&disk, 3 * PIECE_BYTES + 7, 6);
        hurried.roll(Path::new("b"));
        hurried.advance(&disk, PIECE_BYTES, 7);
        let piece = |path: &str, from, written_at_ms| Piece {
            path: PathBuf::from(path),
            from: from * PIECE_BYTES,
            written_at_ms,
        };
        let expected = [
            piece("a", 1, 6),
            piece("a", 2, 6),
            piece("a", 3, 6),
            piece("b", 0, 7),
        ];
        assert_eq!(hurried.pieces, expected);
    }
}
