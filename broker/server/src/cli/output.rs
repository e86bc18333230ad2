//! Tables and colour on a terminal, plain lines in a pipe, JSON where asked.
//!
//! Results go to standard output; hints and progress go to standard error.

use std::io::{self, IsTerminal, Write};

use anabranch_protocol::record::json::as_json;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfy_table::{Cell, ContentArrangement, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    terminal: bool,
}

impl Output {
    /// Standard output.
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
        }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// One line.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// What a command has done, for scripts: fields between tabs. A person is told otherwise.
    pub(crate) fn done(self, fields: &[&str]) -> io::Result<()> {
        if self.json || self.terminal {
            return Ok(());
        }
        self.line(&fields.join("\t"))
    }

    /// Rows under a head: JSON objects, an aligned table, or fields between tabs.
    pub(crate) fn table(
        self,
        head: &[&str],
        rows: &[Vec<String>],
        json: impl Iterator<Item = serde_json::Value>,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            for object in json {
                writeln!(out, "{object}")?;
            }
        } else if self.terminal {
            writeln!(out, "{}", aligned(head, rows))?;
        } else {
            for row in rows {
                writeln!(out, "{}", row.join("\t"))?;
            }
        }
        Ok(())
    }

    /// Writes raw bytes, and a line end where a person reads.
    pub(crate) fn bytes(self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        if self.terminal {
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}

/// Tables are not folded into less.
const LEAST_COLUMNS: u16 = 20;

fn aligned(head: &[&str], rows: &[Vec<String>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Some terminals say that they have no columns at all.
    if table
        .width()
        .is_some_and(|columns| columns >= LEAST_COLUMNS)
    {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    let colour = colour(&io::stdout());
    table.set_header(head.iter().map(|name| {
        let cell = Cell::new(name);
        if colour {
            cell.add_attribute(comfy_table::Attribute::Bold)
        } else {
            cell
        }
    }));
    for row in rows {
        table.add_row(row);
    }
    table
}

/// Whether to colour what goes there.
fn colour(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !set("NO_COLOR") && !dumb
}

/// Whether what goes to standard error may be coloured.
pub(super) fn coloured_errors() -> bool {
    colour(&io::stderr())
}

/// Says what went wrong, on standard error.
pub(super) fn error(message: &str) {
    let stderr = io::stderr();
    let (red, plain) = if colour(&stderr) {
        ("\x1b[31m", "\x1b[0m")
    } else {
        ("", "")
    };
    // Where standard error is closed, nobody can be told.
    let _ = writeln!(stderr.lock(), "{red}error:{plain} {message}");
}

/// Tells a person what may help; a script does not need it.
pub(crate) fn hint(message: &str) {
    let stderr = io::stderr();
    if stderr.is_terminal() {
        let _ = writeln!(stderr.lock(), "{message}");
    }
}

/// Says what a script should find in its log, too, though it is no failure.
pub(super) fn notice(message: &str) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Bytes as one line of text: as they are, or as base64.
pub(crate) fn text(bytes: &[u8]) -> String {
    if let Some(json) = as_json(bytes) {
        return json.into_owned();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

/// A progress bar on standard error, where a person watches; without a known length, a counter.
pub(crate) fn progress(length: Option<u64>, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(10));
    let template = match length {
        Some(_) => "{msg:18} {wide_bar} {human_pos} of {human_len} {rate}/s",
        None => "{msg:18} {spinner} {human_pos} {rate}/s",
    };
    let style = ProgressStyle::with_template(template);
    let style = style.expect("the template is one of the two above");
    bar.with_style(style.with_key("rate", rate))
        .with_message(what)
}

/// Whole things per second.
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
