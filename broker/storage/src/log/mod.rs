//! The log: one per broker, all streams in it.
