//! Retention and compaction against a naive model.
