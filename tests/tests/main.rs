//! All tests of Anabranch as a whole, in one binary.
//!
//! | module | tests |
//! |---|---|
//! | `architecture` | that the code is built as `docs/ARCHITECTURE.md` says, and the documents are true |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod architecture;
