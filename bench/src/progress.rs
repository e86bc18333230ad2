//! A bar on standard error where a person watches, nothing otherwise.

use std::io::{IsTerminal, stderr};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Counts records.
pub(crate) fn bar(what: impl Into<String>, records: Option<usize>) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = records.map(|records| records as u64);
    let template = match length {
        Some(_) => "{msg:32} {wide_bar} {human_pos} of {human_len} {rate:>12}/s",
        None => "{msg:32} {spinner} {human_pos} {rate:>12}/s",
    };
    let style = ProgressStyle::with_template(template);
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(5))
        .with_style(
            style
                .expect("the template is one of the two above")
                .with_key("rate", rate),
        )
        .with_message(what.into())
}

/// Whole records per second.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive and far below 64 bits"
)]
fn rate(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    let rate = HumanCount(state.per_sec() as u64);
    // What is drawn can always be written.
    let _ = write!(out, "{rate}");
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
