//! The rows that the log makes, beside those that are there.
//!
//! Both are compared as of the log's end, so what is there first gets what a start would fold into
//! it. Before that it may hold what the log no longer makes, and rightly: rows of a stream that was
//! deleted since, and rows whose records were replaced and then dropped.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use anabranch_core::id::{Position, StreamId};
use anabranch_core::lww::Row;
use anabranch_core::stream::StreamDefinition;
use anabranch_storage::data_dir::DataDir;
use anabranch_storage::disk::RealDisk;
use anabranch_storage::history;
use anabranch_storage::log::{Filter, Log, LogOptions, LogReader};
use anabranch_storage::tables::{Applier, StreamMap, Tables, TablesError, TablesOptions};
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::output::{progress, text};
use super::replica::Replica;

/// Room for the segment that opening a log prepares. Nothing is written to it, and the disk may be
/// full.
const NEVER_WRITTEN_BYTES: u64 = 1 << 20;

/// Bytes read from the log at once.
const READ_BYTES: usize = 8 << 20;

/// Rows handed over at once, and how many such runs may wait.
const RUN: usize = 4096;
const RUNS_AHEAD: usize = 4;

/// Differences that are told one by one.
const TOLD: u64 = 20;

/// What was compared.
pub(super) struct Compared {
    /// Rows of all streams.
    pub(super) rows: u64,
    /// As of which position: the log's end, unless the tables cannot be used.
    pub(super) position: Position,
}

/// A row: its stream, its key, its value. How long stamps and tombstones are kept depends on when
/// other brokers were heard of, so they are not compared.
type Shown = (StreamId, Vec<u8>, Vec<u8>);

/// Tells every row that is not what the log makes of it.
pub(super) fn compare(
    replica: &Replica,
    found: &mut dyn FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Compared> {
    let dir = DataDir::open_existing(replica.path())?;
    let options = LogOptions {
        segment_bytes: NEVER_WRITTEN_BYTES,
        ..LogOptions::default()
    };
    let opened = Log::open(Arc::new(RealDisk), &dir, options, &mut |_| ())
        .context("the log was verified, but cannot be opened")?;
    let reader = &opened.reader;
    // Frames of several brokers may lie in any order of their stamps.
    let options = TablesOptions {
        with_others: true,
        ..TablesOptions::default()
    };
    let (held, applier) = match Tables::open(&replica.tables(), options) {
        Ok(held) => held,
        Err(error @ TablesError::Damaged { .. }) => {
            found(&error.to_string())?;
            return Ok(Compared::nothing(Position::default()));
        }
        Err(error) => return Err(error.into()),
    };
    let (applied, end) = (held.applied(), reader.next_position());
    if applied > end {
        found(&format!(
            "the tables have applied the log up to position {applied}, but it ends at {end}"
        ))?;
        return Ok(Compared::nothing(applied));
    }
    fold(reader, &held, applier)?;
    let (folded, applier) = Tables::open(&replica.folded(), options)?;
    fold(reader, &folded, applier)?;
    let names = Names(folded.streams());
    let rows = compare_all(&held, &folded, &mut |what| found(&names.describe(&what)))?;
    Ok(Compared {
        rows,
        position: end,
    })
}

impl Compared {
    fn nothing(position: Position) -> Self {
        Self { rows: 0, position }
    }
}

/// Folds what tables lack of the log.
fn fold(reader: &LogReader, tables: &Tables, mut applier: Applier) -> anyhow::Result<()> {
    applier.read_history_with(history::of(reader.clone()));
    let end = reader.next_position();
    let mut at = tables.applied().max(reader.start_position());
    let bar = progress(Some(end.get().saturating_sub(at.get())), "rows");
    while at < end {
        let chunk = reader.read(at, &Filter::All, READ_BYTES)?;
        bar.inc(chunk.next.get() - at.get());
        applier.apply(&chunk.commits)?;
        at = chunk.next;
    }
    bar.finish_and_clear();
    Ok(())
}

/// A row that differs.
struct Difference {
    stream: StreamId,
    key: Vec<u8>,
    what: &'static str,
}

/// Goes through both in step; returns how many rows the tables hold.
fn compare_all(
    held: &Tables,
    folded: &Tables,
    found: &mut dyn FnMut(Difference) -> io::Result<()>,
) -> anyhow::Result<u64> {
    let (mut held, mut folded) = (Walk::through(held)?, Walk::through(folded)?);
    let (mut rows, mut differences) = (0_u64, 0_u64);
    while let Some(order) = order(held.peek(), folded.peek()) {
        let (left, right) = match order {
            Ordering::Less => (held.next(), None),
            Ordering::Greater => (None, folded.next()),
            Ordering::Equal => (held.next(), folded.next()),
        };
        let is_row = |row: &Shown| row.0 != StreamDefinition::entries();
        rows += u64::from(left.as_ref().is_some_and(is_row));
        if let Some(difference) = difference(left, right) {
            differences += 1;
            if differences <= TOLD {
                found(difference)?;
            }
        }
    }
    held.end()?;
    folded.end()?;
    Ok(rows)
}

fn order(left: Option<&Shown>, right: Option<&Shown>) -> Option<Ordering> {
    match (left, right) {
        (None, None) => None,
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (Some(left), Some(right)) => Some((left.0, &left.1).cmp(&(right.0, &right.1))),
    }
}

fn difference(left: Option<Shown>, right: Option<Shown>) -> Option<Difference> {
    let (what, (stream, key, _)) = match (left, right) {
        (Some(left), Some(right)) if left == right => return None,
        (Some(left), Some(_)) => ("differs from the fold of the log", left),
        (Some(left), None) => ("is there, but the log does not make it", left),
        (None, Some(right)) => ("is missing, though the log makes it", right),
        (None, None) => return None,
    };
    Some(Difference { stream, key, what })
}

/// All rows of some tables in order, read on a thread of its own.
struct Walk {
    runs: Receiver<Vec<Shown>>,
    run: std::iter::Peekable<std::vec::IntoIter<Shown>>,
    thread: std::thread::JoinHandle<Result<Position, TablesError>>,
}

impl Walk {
    fn through(tables: &Tables) -> io::Result<Self> {
        let (sender, runs) = bounded(RUNS_AHEAD);
        let tables = tables.clone();
        let thread = std::thread::Builder::new()
            .name("verify-rows".to_owned())
            .spawn(move || send_all(&tables, &sender))?;
        Ok(Self {
            runs,
            run: Vec::new().into_iter().peekable(),
            thread,
        })
    }

    fn peek(&mut self) -> Option<&Shown> {
        if self.run.peek().is_none() {
            self.run = self.runs.recv().ok()?.into_iter().peekable();
        }
        self.run.peek()
    }

    fn next(&mut self) -> Option<Shown> {
        self.run.next()
    }

    /// Whether reading went well to the end.
    fn end(self) -> anyhow::Result<()> {
        match self.thread.join() {
            Ok(read) => Ok(read.map(drop)?),
            Err(_) => Err(anyhow::anyhow!("reading rows panicked")),
        }
    }
}

fn send_all(tables: &Tables, runs: &Sender<Vec<Shown>>) -> Result<Position, TablesError> {
    let mut run = Vec::with_capacity(RUN);
    let read = tables.each_row(&mut |stream, key, stored| {
        let value = match Row::decode(stored) {
            Ok(Row { value: None, .. }) => return,
            Ok(Row {
                value: Some(value), ..
            }) => value,
            // Different from whatever it should be.
            Err(_) => stored,
        };
        run.push((stream, key.to_vec(), value.to_vec()));
        if run.len() == RUN {
            // Nobody receives any more after an error of the other side, which is told.
            let _ = runs.send(std::mem::replace(&mut run, Vec::with_capacity(RUN)));
        }
    });
    if !run.is_empty() {
        let _ = runs.send(run);
    }
    read
}

/// The names of streams, for messages.
struct Names(Arc<StreamMap>);

impl Names {
    fn describe(&self, difference: &Difference) -> String {
        let stream = match self.0.get(difference.stream) {
            Some(definition) => definition.name.to_string(),
            None => difference.stream.to_string(),
        };
        let key = text(&difference.key);
        format!("stream {stream} row {key}: {}", difference.what)
    }
}
