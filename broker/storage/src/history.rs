//! Reads the log for tables that have to fold a stream again.

use anabranch_core::id::Position;

use crate::log::{Filter, LogReader};
use crate::tables::ReadHistory;

/// Bytes read at once.
const READ_BYTES: usize = 4 << 20;

/// What [`crate::tables::Applier::read_history_with`] takes.
#[must_use]
pub fn of(reader: LogReader) -> Box<ReadHistory> {
    Box::new(move |stream, at: Position| {
        let from = at.max(reader.start_position());
        let chunk = reader.read(from, &Filter::Stream(stream), READ_BYTES);
        let chunk = chunk.map_err(|error| error.to_string())?;
        let next = match chunk.commits.is_empty() {
            true => reader.next_position(),
            false => chunk.next,
        };
        Ok((chunk.commits, next))
    })
}
