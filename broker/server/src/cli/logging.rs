//! What the broker tells of itself, on standard error.

use tracing_subscriber::EnvFilter;

use crate::config::{Loaded, LogFormat};

/// Starts logging for where a person reads the terminal for other things: only warnings, unless
/// the configuration says something.
pub(crate) fn start_quietly(loaded: &Loaded) {
    match loaded.is_default("logging.level") {
        true => start_at(loaded, "warn"),
        false => start(loaded),
    }
}

/// Starts logging.
pub(super) fn start(loaded: &Loaded) {
    start_at(loaded, loaded.config.logging.level.as_str());
}

fn start_at(loaded: &Loaded, directives: &str) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(std::io::stderr)
        // It would be said on standard error, and end the thread if that cannot be written either.
        .log_internal_errors(false)
        .with_target(false);
    // A second start in one process keeps the first.
    let _ = match loaded.config.logging.format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber
            .with_ansi(super::output::coloured_errors())
            .try_init(),
    };
}
