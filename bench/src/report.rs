//! Figures, goals, and how they are printed.

use std::io::{IsTerminal, Write, stdout};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::Setting;
use crate::cpu::Spent;
use crate::latency::Percentiles;

/// What one measurement found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// What to type for it.
    pub(crate) command: String,
    /// What was measured, in words.
    pub(crate) work: String,
    pub(crate) goals: Vec<Goal>,
    /// What the machine itself did in the same run.
    pub(crate) limits: Vec<Figure>,
    /// What latencies there are, each with its name.
    pub(crate) latencies: Vec<(&'static str, Percentiles)>,
    pub(crate) figures: Vec<Figure>,
    /// Whether the run was too small for its figures to mean anything.
    pub(crate) quick: bool,
}

/// A named value.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
}

/// A figure with a bound.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) name: String,
    pub(crate) reached: f64,
    pub(crate) bound: Bound,
    pub(crate) unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "/s")]
    PerSecond,
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    #[serde(rename = "µs")]
    Microseconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "MB")]
    Megabytes,
    #[serde(rename = "kB")]
    Kilobytes,
    #[serde(rename = "%")]
    Percent,
    #[serde(rename = "cores")]
    Cores,
    #[serde(rename = "")]
    Pieces,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::MegabytesPerSecond => format!("{} MB/s", grouped(value)),
            Self::Microseconds => format!("{value:.3} µs"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Megabytes => format!("{value:.1} MB"),
            Self::Kilobytes => format!("{value:.1} kB"),
            Self::Percent => format!("{value:.0} %"),
            Self::Cores => format!("{value:.2} cores"),
            Self::Pieces => grouped(value),
        }
    }
}

/// A whole number with commas.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: Unit) -> Self {
        let name = name.into();
        Self { name, value, unit }
    }
}

impl Goal {
    pub(crate) fn at_least(name: impl Into<String>, bound: f64, reached: f64, unit: Unit) -> Self {
        Self {
            name: name.into(),
            reached,
            bound: Bound::AtLeast(bound),
            unit,
        }
    }

    pub(crate) fn at_most(name: impl Into<String>, bound: f64, reached: f64, unit: Unit) -> Self {
        Self {
            bound: Bound::AtMost(bound),
            ..Self::at_least(name, 0.0, reached, unit)
        }
    }

    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.reached >= bound,
            Bound::AtMost(bound) => self.reached <= bound,
        }
    }

    fn target(&self) -> String {
        let (sign, bound) = match self.bound {
            Bound::AtLeast(bound) => ('≥', bound),
            Bound::AtMost(bound) => ('≤', bound),
        };
        format!("{} {sign} {}", self.name, self.unit.show(bound))
    }
}

impl Report {
    /// CPU time of both sides for each of so many pieces of work.
    pub(crate) fn add_cpu(&mut self, spent: &Spent, pieces: usize, piece: &str) {
        let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / pieces.max(1) as f64;
        let mut add = |who, time| {
            let name = format!("{who} CPU per {piece}");
            self.figures
                .push(Figure::new(name, each(time), Unit::Microseconds));
        };
        if let Some(broker) = spent.broker {
            add("broker", broker);
        }
        add("generator", spent.generator);
        if let Some(others) = spent.others {
            self.add("busy with something else", others, Unit::Cores);
        }
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: Unit) {
        self.figures.push(Figure::new(name, value, unit));
    }

    fn verdict(&self, goal: &Goal) -> &'static str {
        match (self.quick, goal.is_met()) {
            (true, _) => "not judged",
            (false, true) => "met",
            (false, false) => "MISSED",
        }
    }

    fn figure_lines(&self) -> Vec<String> {
        let latencies = self
            .latencies
            .iter()
            .map(|(name, p)| format!("{name}: {p}"));
        let figures = self.figures.iter().map(shown);
        figures.chain(latencies).collect()
    }

    fn limit_lines(&self) -> Vec<String> {
        self.limits.iter().map(shown).collect()
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n  {}\n", self.work, self.command);
        for line in self.figure_lines() {
            text.push_str(&format!("  {line}\n"));
        }
        for line in self.limit_lines() {
            text.push_str(&format!("  machine: {line}\n"));
        }
        for goal in &self.goals {
            let (target, reached) = (goal.target(), goal.unit.show(goal.reached));
            text.push_str(&format!(
                "  goal: {target}: {reached}, {}\n",
                self.verdict(goal)
            ));
        }
        text
    }

    /// Work, target, reached, beside it, limit.
    fn cells(&self, between: &str) -> [String; 5] {
        let targets: Vec<_> = self.goals.iter().map(Goal::target).collect();
        let reached = self.goals.iter().map(|goal| {
            let shown = goal.unit.show(goal.reached);
            format!("{shown}, {}", self.verdict(goal))
        });
        [
            format!("{}{between}{}", self.work, self.command),
            targets.join(between),
            reached.collect::<Vec<_>>().join(between),
            self.figure_lines().join(between),
            self.limit_lines().join(between),
        ]
    }
}

const HEAD: [&str; 5] = [
    "work and command",
    "to reach",
    "reached",
    "beside it",
    "the machine itself, same run",
];

fn shown(figure: &Figure) -> String {
    format!("{}: {}", figure.name, figure.unit.show(figure.value))
}

/// Prints reports as the setting asks: one at a time, or all in a table.
pub(crate) struct Printer<'a> {
    setting: &'a Setting,
    /// Reports for a table that is printed at the end.
    kept: Vec<Report>,
    table: bool,
}

impl<'a> Printer<'a> {
    /// Prints each report as it comes.
    pub(crate) fn each(setting: &'a Setting) -> Self {
        Self {
            setting,
            kept: Vec::new(),
            table: setting.markdown,
        }
    }

    /// Prints a table at the end, and JSON as it comes.
    pub(crate) fn table(setting: &'a Setting) -> Self {
        Self {
            table: !setting.json,
            ..Self::each(setting)
        }
    }

    pub(crate) fn print(&mut self, report: Report) -> Result<()> {
        let mut out = stdout().lock();
        if self.setting.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else if self.table {
            self.kept.push(report);
        } else {
            writeln!(out, "{}", report.text())?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<()> {
        if !self.table || self.kept.is_empty() {
            return Ok(());
        }
        let mut out = stdout().lock();
        if self.setting.markdown {
            write!(out, "{}", markdown(&self.kept))?;
        } else {
            writeln!(out, "{}", plain(&self.kept))?;
        }
        Ok(())
    }
}

fn markdown(reports: &[Report]) -> String {
    let mut text = format!("| {} |\n|---|---|---|---|---|\n", HEAD.join(" | "));
    for report in reports {
        text.push_str(&format!("| {} |\n", report.cells("<br>").join(" | ")));
    }
    text
}

fn plain(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if !stdout().is_terminal() {
        table.set_width(180);
    }
    table.set_header(HEAD);
    for report in reports {
        table.add_row(report.cells("\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            command: "anabranch bench publish".to_owned(),
            work: "durable publish".to_owned(),
            goals: vec![
                Goal::at_least("records", 500_000.0, 1_234_567.0, Unit::PerSecond),
                Goal::at_most("p99", 5.0, 6.0, Unit::Milliseconds),
            ],
            limits: vec![Figure::new("appends", 1035.4, Unit::MegabytesPerSecond)],
            latencies: Vec::new(),
            figures: Vec::new(),
            quick: false,
        }
    }

    #[test]
    fn goals_are_judged() {
        let text = report().text();
        assert!(
            text.contains("records ≥ 500,000/s: 1,234,567/s, met"),
            "{text}"
        );
        assert!(text.contains("p99 ≤ 5.00 ms: 6.00 ms, MISSED"), "{text}");
        assert!(text.contains("machine: appends: 1,035 MB/s"), "{text}");
    }

    #[test]
    fn quick_runs_are_not_judged() {
        let report = Report {
            quick: true,
            ..report()
        };
        assert!(!report.text().contains("met"));
    }

    #[test]
    fn markdown_has_a_row_for_each_report() {
        let text = markdown(&[report(), report()]);
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().all(|line| line.matches('|').count() == 6));
    }

    #[test]
    fn cpu_is_per_piece_and_apart() {
        let mut report = report();
        let spent = Spent {
            seconds: 1.0,
            broker: Some(std::time::Duration::from_secs(2)),
            generator: std::time::Duration::from_secs(1),
            others: Some(0.25),
        };
        report.add_cpu(&spent, 1_000_000, "record");
        assert!(report.text().contains("broker CPU per record: 2.000 µs"));
        assert!(report.text().contains("generator CPU per record: 1.000 µs"));
        assert!(
            report
                .text()
                .contains("busy with something else: 0.25 cores")
        );
    }
}
