//! What notices a thread that panics: those that wait for it would wait for ever.

/// Held by a thread for as long as it runs. Dropped by a panic, it does what it holds.
pub(crate) struct Alarm<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for Alarm<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}
