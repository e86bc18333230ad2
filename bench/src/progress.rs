//! A bar on standard error where a person watches, nothing otherwise.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Counts records.
pub(crate) fn bar(what: impl Into<String>, records: Option<usize>) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = records.map(|records| records as u64);
    let template = match length {
        Some(_) => "{msg:32} {wide_bar} {human_pos} of {human_len} {per_sec:>16}",
        None => "{msg:32} {spinner} {human_pos} {per_sec:>16}",
    };
    let style = ProgressStyle::with_template(template);
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(5))
        .with_style(style.expect("the template is one of the two above"))
        .with_message(what.into())
}

/// Says what is being done, where a person watches.
pub(crate) fn step(what: impl Into<String>) -> ProgressBar {
    let spinner = match stderr().is_terminal() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    spinner.set_message(what.into());
    spinner.tick();
    spinner
}
