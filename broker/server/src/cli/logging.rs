//! What the broker tells of itself, on standard error.

use tracing_subscriber::EnvFilter;

use crate::config::{Loaded, LogFormat};

/// Starts logging. `quiet` raises the default level to warnings, for where a person reads the
/// terminal for other things.
pub(crate) fn start(loaded: &Loaded, quiet: bool) {
    let logging = &loaded.config.logging;
    let directives = match quiet && loaded.is_default("logging.level") {
        true => "warn",
        false => logging.level.as_str(),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start in one process keeps the first.
    let _ = match logging.format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber
            .with_ansi(super::output::coloured_errors())
            .try_init(),
    };
}
