//! Whether what is on disk holds: every checksum, chain and index of the log, and that rows equal
//! the fold of the log.
//!
//! | module | holds |
//! |---|---|
//! | [`replica`] | a copy of a data folder that may be written to, made of links where possible |
//! | [`fold`] | the rows that the log makes, beside those that are there |
//!
//! No file of the folder is changed but the lock's. The replica lies in it, and is deleted at the end.

mod fold;
mod replica;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use anabranch_storage::data_dir::{DataDir, DataDirError};
use anabranch_storage::disk::RealDisk;
use anabranch_storage::log::{self, Event, Finding, Verified};
use serde_json::{Value, json};

use super::Ended;
use super::arguments::VerifyArguments;
use super::output::{Output, progress};
use fold::Compared;
use replica::Replica;

/// Checks a data folder; the exit code is 0 only where everything holds.
pub(super) fn run(arguments: &VerifyArguments) -> Ended {
    let path = &arguments.data_dir;
    let dir = DataDir::open_existing(path).map_err(with_code)?;
    let mut report = Report {
        output: Output::new(arguments.json),
        findings: 0,
    };
    let verified = verify_log(&dir, &mut report)?;
    // A damaged log folds to nothing that could be compared.
    let compared = match report.findings {
        0 => verify_rows(&dir, &mut report)?,
        _ => None,
    };
    report.end(&verified, compared.as_ref())?;
    Ok(match report.findings {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn with_code(error: DataDirError) -> anyhow::Error {
    let code = match error {
        DataDirError::InUse { .. } => "AB7001 ",
        DataDirError::NewerFormat { .. } => "AB7002 ",
        _ => "",
    };
    let told = format!("{code}{error}");
    anyhow::Error::new(error).context(told)
}

fn verify_log(dir: &DataDir, report: &mut Report) -> anyhow::Result<Verified> {
    let bar = progress(Some(0), "log");
    let mut failed = None;
    let mut each = |event| match event {
        Event::Progress(progress) => {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
        Event::Finding(finding) => {
            if let Err(error) = report.log_finding(&finding) {
                failed.get_or_insert(error);
            }
        }
    };
    let verified = log::verify(&RealDisk, dir.path(), dir.identity(), &mut each)?;
    bar.finish_and_clear();
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(verified),
    }
}

fn verify_rows(dir: &DataDir, report: &mut Report) -> anyhow::Result<Option<Compared>> {
    if !dir.tables().exists() {
        return Ok(None);
    }
    let replica = Replica::of(dir)?;
    let compared = fold::compare(&replica, &mut |what| report.row_finding(what))?;
    Ok(Some(compared))
}

/// Findings as they are made, and what they come to.
struct Report {
    output: Output,
    findings: u64,
}

impl Report {
    fn log_finding(&mut self, finding: &Finding) -> std::io::Result<()> {
        let object = json!({
            "finding": finding.what,
            "path": finding.path.display().to_string(),
            "offset": finding.offset,
            "position": finding.position.get(),
        });
        self.finding(&finding.to_string(), &object)
    }

    fn row_finding(&mut self, what: &str) -> std::io::Result<()> {
        self.finding(what, &json!({"finding": what}))
    }

    fn finding(&mut self, text: &str, object: &Value) -> std::io::Result<()> {
        self.findings += 1;
        match self.output.is_json() {
            true => self.output.line(&object.to_string()),
            false => self.output.line(text),
        }
    }

    fn end(&self, log: &Verified, rows: Option<&Compared>) -> std::io::Result<()> {
        if self.output.is_json() {
            let object = json!({
                "ok": self.findings == 0,
                "findings": self.findings,
                "segments": log.segments,
                "entries": log.entries,
                "records": log.records,
                "bytes": log.bytes,
                "next_position": log.next.get(),
                "rows": rows.map(|rows| rows.rows),
                "rows_at_position": rows.map(|rows| rows.position.get()),
            });
            return self.output.line(&object.to_string());
        }
        let Verified {
            segments,
            entries,
            records,
            ..
        } = log;
        let log = format!("{segments} segments, {entries} frames, {records} records");
        let rows = match rows {
            Some(rows) => format!("{} rows equal the fold of the log", rows.rows),
            None => "rows were not compared".to_owned(),
        };
        match self.findings {
            0 => self
                .output
                .line(&format!("everything holds: {log}; {rows}")),
            1 => self.output.line(&format!("1 finding in {log}")),
            n => self.output.line(&format!("{n} findings in {log}")),
        }
    }
}
