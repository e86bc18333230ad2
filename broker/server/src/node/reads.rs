//! Row reads. They never enter the write loop: they wait, if at all, for the tables to catch up.

use std::sync::Arc;
use std::time::Duration;

use anabranch_core::id::{Dot, Position};
use anabranch_core::stream::{MergeMode, StreamDefinition};
use anabranch_core::vector::{Token, VersionVector};
use anabranch_protocol::error::Code;
use anabranch_storage::log::{Chunk, Filter};
use anabranch_storage::tables::{KeyRange, Page};
use bytes::Bytes;

use super::selection::unreadable_batch;
use super::{Error, Running, error};

/// Longest that a read waits when it does not say how long.
pub(crate) const DEFAULT_BUDGET: Duration = Duration::from_secs(5);

/// What a read must include.
#[derive(Clone, Debug, Default)]
pub(crate) enum ReadAt {
    /// Everything that this broker acknowledged before the read began.
    #[default]
    Latest,
    /// That, and what the token stands for; give up after the budget.
    After { token: Token, budget: Duration },
}

/// What was read, and a token that stands for it.
#[derive(Clone, Debug)]
pub(crate) struct Read<T> {
    pub(crate) value: T,
    pub(crate) token: Token,
}

impl Running {
    /// Waits until the tables hold everything that was durable when the read began. The token
    /// stands for that, so it never says more than the read sees.
    async fn caught_up(&self, at: &ReadAt) -> Result<Token, Error> {
        let budget = match at {
            ReadAt::Latest => DEFAULT_BUDGET,
            ReadAt::After { budget, .. } => *budget,
        };
        let work = async {
            if let ReadAt::After { token, .. } = at {
                self.wait_durable(&token.seen).await?;
            }
            let seen = self.tail.seen();
            let target = self.reader.next_position();
            if self.tables.applied() < target {
                self.wait_applied(target).await;
            }
            self.check_phase()?;
            Ok(Token { seen })
        };
        match tokio::time::timeout(budget, work).await {
            Ok(result) => result,
            Err(_) => Err(self.not_reached(at, budget)),
        }
    }

    fn not_reached(&self, at: &ReadAt, budget: Duration) -> Error {
        let missing = match at {
            ReadAt::Latest => VersionVector::default(),
            ReadAt::After { token, .. } => self.tail.seen().missing_from(&token.seen),
        };
        let missing: Vec<String> = missing
            .iter()
            .take(10)
            .map(|(origin, sequence)| format!("{origin}:{sequence}"))
            .collect();
        Error::new(
            Code::TokenNotReached,
            format!(
                "after {} ms the tables do not hold what was asked for (missing: {}); retry, or wait longer: Prefer: wait=SECONDS",
                budget.as_millis(),
                if missing.is_empty() {
                    "the latest frames of this broker".to_owned()
                } else {
                    missing.join(", ")
                }
            ),
        )
    }

    /// One row. In an `append` stream the key is a record's dot.
    pub(crate) async fn row(
        self: &Arc<Self>,
        stream: &str,
        key: &[u8],
        at: &ReadAt,
    ) -> Result<Read<Option<Bytes>>, Error> {
        let definition = self.held_stream(stream)?;
        let token = self.caught_up(at).await?;
        let value = match definition.merge {
            MergeMode::Lww => self.get(&definition, key)?,
            MergeMode::Append => self.record(&definition, key).await?,
        };
        Ok(Read { value, token })
    }

    /// A page of rows, at one moment.
    pub(crate) async fn rows(
        self: &Arc<Self>,
        stream: &str,
        range: KeyRange,
        at: &ReadAt,
    ) -> Result<Read<Page>, Error> {
        let definition = self.held_stream(stream)?;
        let token = self.caught_up(at).await?;
        let running = Arc::clone(self);
        let read = move || match definition.merge {
            MergeMode::Lww => running.scan(&definition, &range),
            MergeMode::Append => running.scan_records(&definition, &range),
        };
        let page = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| error::internal("reading rows panicked"))??;
        Ok(Read { value: page, token })
    }

    fn get(&self, definition: &StreamDefinition, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let value = self.tables.get(definition.id(), key);
        value.map_err(|error| error::tables(&error))
    }

    fn scan(&self, definition: &StreamDefinition, range: &KeyRange) -> Result<Page, Error> {
        let page = self.tables.scan(definition.id(), range);
        page.map_err(|error| error::tables(&error))
    }

    /// Reads the log, as [`anabranch_storage::log::LogReader::read`] does.
    pub(super) fn read_log(
        &self,
        from: Position,
        filter: &Filter,
        max_bytes: usize,
    ) -> Result<Chunk, Error> {
        let chunk = self.reader.read(from, filter, max_bytes);
        chunk.map_err(|error| error::unreadable(&error))
    }

    pub(super) fn vector_before(&self, position: Position) -> Result<VersionVector, Error> {
        let vector = self.reader.vector_before(position);
        vector.map_err(|error| error::unreadable(&error))
    }

    fn locate(&self, dot: Dot) -> Result<Option<Position>, Error> {
        let position = self.reader.locate(dot.origin, dot.sequence);
        position.map_err(|error| error::unreadable(&error))
    }

    /// The rows of these keys that there are, at one moment, in the order of the keys.
    pub(crate) async fn rows_by_key(
        self: &Arc<Self>,
        stream: &str,
        keys: Vec<Bytes>,
        at: &ReadAt,
    ) -> Result<Read<Page>, Error> {
        let definition = self.held_stream(stream)?;
        let token = self.caught_up(at).await?;
        let running = Arc::clone(self);
        let read = move || running.look_up(&definition, keys);
        let page = tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| error::internal("reading rows panicked"))??;
        Ok(Read { value: page, token })
    }

    fn look_up(&self, definition: &StreamDefinition, keys: Vec<Bytes>) -> Result<Page, Error> {
        let (values, applied) = match definition.merge {
            MergeMode::Lww => {
                let id = definition.id();
                let places: Vec<_> = keys.iter().map(|key| (id, key.clone())).collect();
                self.tables
                    .get_many(&places)
                    .map_err(|error| error::tables(&error))?
            }
            MergeMode::Append => {
                // What was appended never changes, so any moment does.
                let dot = |key: &Bytes| std::str::from_utf8(key).ok()?.parse().ok();
                let value = |key| dot(key).map_or(Ok(None), |dot| self.record_at(definition, dot));
                let values: Result<_, Error> = keys.iter().map(value).collect();
                (values?, self.tables.applied())
            }
        };
        let rows = keys.into_iter().zip(values);
        Ok(Page {
            rows: rows
                .filter_map(|(key, value)| Some((key, value?)))
                .collect(),
            more: false,
            applied,
        })
    }

    async fn record(
        self: &Arc<Self>,
        definition: &Arc<StreamDefinition>,
        key: &[u8],
    ) -> Result<Option<Bytes>, Error> {
        let Some(dot) = std::str::from_utf8(key)
            .ok()
            .and_then(|text| text.parse().ok())
        else {
            return Ok(None);
        };
        let (running, definition) = (Arc::clone(self), Arc::clone(definition));
        tokio::task::spawn_blocking(move || running.record_at(&definition, dot))
            .await
            .map_err(|_| error::internal("reading a record panicked"))?
    }

    fn record_at(&self, definition: &StreamDefinition, dot: Dot) -> Result<Option<Bytes>, Error> {
        let Some(position) = self.locate(dot)? else {
            return Ok(None);
        };
        let filter = Filter::Stream(definition.id());
        let chunk = self.read_log(position, &filter, 1)?;
        let Some(commit) = chunk.commits.first().filter(|c| c.position == position) else {
            return Ok(None);
        };
        let mut found = None;
        each_record(commit, definition, &mut |index, value| {
            if index == dot.index {
                found = Some(Bytes::copy_from_slice(value));
            }
        })?;
        Ok(found)
    }

    /// Records of an `append` stream as rows, in the order of this broker's log.
    fn scan_records(&self, definition: &StreamDefinition, range: &KeyRange) -> Result<Page, Error> {
        let reader = &self.reader;
        let after = self.after_dot(range)?;
        let first = reader.trimmed(definition.id()).max(reader.start_position());
        let mut position = after.map_or(first, |(position, _)| position.max(first));
        let end = reader.next_position();
        let mut page = Page {
            rows: Vec::new(),
            more: false,
            applied: self.tables.applied(),
        };
        let mut bytes = 0;
        while position < end && !page.more {
            let chunk =
                self.read_log(position, &Filter::Stream(definition.id()), range.max_bytes)?;
            for commit in &chunk.commits {
                let skip = after
                    .filter(|&(p, _)| p == commit.position)
                    .map(|(_, index)| index);
                each_record(commit, definition, &mut |index, value| {
                    let key = commit.header.dot(index).to_string();
                    if skip.is_some_and(|skip| index <= skip)
                        || !key.as_bytes().starts_with(&range.prefix)
                    {
                        return;
                    }
                    if page.rows.len() >= range.limit || bytes >= range.max_bytes {
                        page.more = true;
                        return;
                    }
                    bytes += key.len() + value.len();
                    page.rows.push((key.into(), Bytes::copy_from_slice(value)));
                })?;
                if page.more {
                    break;
                }
            }
            position = chunk.next;
        }
        Ok(page)
    }

    fn after_dot(&self, range: &KeyRange) -> Result<Option<(Position, u32)>, Error> {
        let Some(after) = &range.after else {
            return Ok(None);
        };
        let dot = std::str::from_utf8(after)
            .ok()
            .and_then(|text| text.parse::<Dot>().ok());
        let Some(dot) = dot else {
            return Err(Error::new(
                Code::BadParameter,
                "after: the rows of an append stream are named by record ids, BROKER.EPOCH:SEQUENCE:INDEX",
            ));
        };
        let position = self.locate(dot)?;
        Ok(position.map(|position| (position, dot.index)))
    }
}

fn each_record(
    commit: &anabranch_core::frame::Commit,
    definition: &StreamDefinition,
    each: &mut dyn FnMut(u32, &[u8]),
) -> Result<(), Error> {
    for part in &commit.parts {
        let Some(batch) = part
            .batch
            .as_ref()
            .filter(|_| part.header.stream == definition.id())
        else {
            continue;
        };
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => {
                unreadable_batch(commit, &error);
                continue;
            }
        };
        for record in records.iter() {
            let record = record?;
            each(
                part.first_index + record.offset_delta,
                record.value.unwrap_or_default(),
            );
        }
    }
    Ok(())
}
