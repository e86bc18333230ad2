//! Whether what is on disk holds.

use super::Ended;
use super::arguments::VerifyArguments;
use super::failure::Failure;

/// Checks a data folder.
pub(super) fn run(arguments: &VerifyArguments) -> Ended {
    Err(Failure::usage(format!("{arguments:?}")))
}
