//! What is on the disk, as a type.

use std::ops::Deref;

/// A value that is durable here. Only the log can make one, after the sync that covers it, so
/// whoever holds one may acknowledge, deliver and apply it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// Says that `value` is durable. Called where a sync returned or a synced range was read.
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// The value without its promise.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Durable<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
