//! Waiting for something to come true.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long anything may take before a test gives up on it. Far beyond what is normal, since
/// tests share the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks again and again until `look` gives something.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// Waits for a future that must not take long.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
