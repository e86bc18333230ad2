//! The merge engine against a reference that keeps everything, and against itself.
//!
//! | module | checks |
//! |---|---|
//! | `reference` | (what documents are, said a second time: simple, slow, with mistakes on demand) |
//! | `asking` | (what might be asked of a document, at random) |
//! | `history` | (random histories of several regions, both run through) |
//! | `histories` | histories end the same everywhere, and every mistake is noticed |
//! | `rows` | what rows cost, and what edits are refused |
//! | `forms` | binary forms read back, and garbage never panics |
//! | `page` | the table of `docs/merge.md` |

mod asking;
mod forms;
mod histories;
mod history;
mod page;
mod reference;
mod rows;
