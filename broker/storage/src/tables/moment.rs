//! All rows of a span at one moment: a merge of the active image, the frozen ones and the store.

use std::ops::Range;
use std::sync::Arc;

use anabranch_core::id::{Position, StreamId};
use anabranch_core::lww::Row;
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::error::TablesError;
use super::image::Image;
use super::key::{KeySpan, RowKey, STREAM_BYTES};
use super::shared::{Frozen, Shared, State};
use super::store::{Caching, Rows};

/// An active image up to this size is searched in place, which holds up the applier for about
/// half a millisecond. A larger one is frozen: it has to be sorted for its flush anyhow, and
/// nobody waits while it is read.
const SMALL_ROWS: usize = 32 * 1024;
const SMALL_BYTES: usize = 8 << 20;

/// How much a reader will take at most. No more is copied of the active image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl Wanted {
    pub(super) const ALL: Self = Self {
        rows: usize::MAX,
        bytes: usize::MAX,
    };
}

/// Rows of a span in the order of their keys. Later sources are older.
pub(super) struct Moment<'a> {
    shared: &'a Shared,
    applied: Position,
    sources: Vec<Source<'a>>,
    /// Which source holds the row that [`Moment::advance`] came to.
    current: usize,
}

impl<'a> Moment<'a> {
    /// Takes hold of the present. Copies little and waits for no flush, unless the active image
    /// is large and too many frozen ones are on their way.
    pub(super) fn take(
        shared: &'a Shared,
        span: &KeySpan,
        wanted: Wanted,
        caching: Caching,
    ) -> Result<Self, TablesError> {
        let state = searchable(shared)?;
        let mut sources = Vec::with_capacity(state.frozen.len() + 2);
        sources.push(Source {
            rows: Held::Copied(Copied::of(&state.active, span, wanted)),
            dropped: state.active.dropped().to_vec(),
        });
        let frozen: Vec<_> = state.frozen.iter().cloned().collect();
        let rows = Held::Stored(shared.store.rows(span, caching));
        let applied = state.mark.applied;
        drop(state);
        for image in frozen {
            sources.push(Source {
                dropped: image.image.dropped().to_vec(),
                rows: Held::Frozen(FrozenRows::of(image, span)),
            });
        }
        sources.push(Source {
            rows,
            dropped: Vec::new(),
        });
        for source in &mut sources {
            source.rows.check()?;
        }
        Ok(Self {
            shared,
            applied,
            sources,
            current: usize::MAX,
        })
    }

    /// The moment's position: everything below it is in.
    pub(super) fn applied(&self) -> Position {
        self.applied
    }

    /// Goes to the next row that is there; `false` after the last.
    pub(super) fn advance(&mut self) -> Result<bool, TablesError> {
        if self.current != usize::MAX {
            self.skip(self.current)?;
        }
        while let Some(first) = self.first() {
            self.current = first;
            if self.is_row(first) {
                return Ok(true);
            }
            self.skip(first)?;
        }
        self.current = usize::MAX;
        Ok(false)
    }

    /// The row that [`Moment::advance`] came to: its name and its stored form.
    pub(super) fn row(&self) -> Result<(RowKey<'_>, &[u8]), TablesError> {
        let rows = &self.sources[self.current].rows;
        let key = rows.key().and_then(RowKey::split);
        match (key, rows.stored()) {
            (Some(key), Some(stored)) => Ok((key, stored)),
            _ => Err(self.shared.store.damage("a row has no stream")),
        }
    }

    /// The source of the smallest key; of equal ones the newest.
    fn first(&self) -> Option<usize> {
        let keys = self.sources.iter().enumerate();
        let keys = keys.filter_map(|(n, source)| Some((source.rows.key()?, n)));
        keys.min().map(|(_, n)| n)
    }

    fn is_row(&self, n: usize) -> bool {
        let source = &self.sources[n];
        let newer = &self.sources[..n];
        let is_dropped = |stream| newer.iter().any(|s| s.dropped.contains(&stream));
        let stream = source.rows.key().and_then(RowKey::split).map(|k| k.stream);
        source.rows.stored().is_some() && !stream.is_some_and(is_dropped)
    }

    /// Goes past the key that this source is at, also in the older ones.
    fn skip(&mut self, n: usize) -> Result<(), TablesError> {
        let (newer, older) = self.sources.split_at_mut(n + 1);
        let rows = &mut newer[n].rows;
        for source in older {
            if source.rows.key().is_some() && source.rows.key() == rows.key() {
                source.rows.advance()?;
            }
        }
        rows.advance()
    }
}

/// The state with an active image that is small enough to be searched.
fn searchable(shared: &Shared) -> Result<RwLockReadGuard<'_, State>, TablesError> {
    let state = shared.state.read();
    if state.active.len() <= SMALL_ROWS && state.active.bytes() <= SMALL_BYTES {
        return Ok(state);
    }
    drop(state);
    Ok(RwLockWriteGuard::downgrade(shared.freeze()?))
}

struct Source<'a> {
    rows: Held<'a>,
    /// Streams of which nothing older counts.
    dropped: Vec<StreamId>,
}

enum Held<'a> {
    Copied(Copied),
    Frozen(FrozenRows),
    Stored(Rows<'a>),
}

impl Held<'_> {
    fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(rows) => rows.key(),
            Self::Frozen(rows) => rows.key(),
            Self::Stored(rows) => rows.key(),
        }
    }

    fn stored(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(rows) => rows.stored(),
            Self::Frozen(rows) => rows.stored(),
            Self::Stored(rows) => rows.stored(),
        }
    }

    fn advance(&mut self) -> Result<(), TablesError> {
        match self {
            Self::Copied(rows) => rows.next += 1,
            Self::Frozen(rows) => rows.next += 1,
            Self::Stored(rows) => rows.advance()?,
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), TablesError> {
        match self {
            Self::Stored(rows) => rows.begin(),
            _ => Ok(()),
        }
    }
}

/// Rows of the active image, copied in order.
#[derive(Default)]
struct Copied {
    bytes: Vec<u8>,
    rows: Vec<(Range<usize>, Option<Range<usize>>)>,
    next: usize,
}

impl Copied {
    fn of(image: &Image, span: &KeySpan, wanted: Wanted) -> Self {
        let mut copied = Self::default();
        let mut found: Vec<_> = image
            .walk()
            .map(|(_, entry)| entry)
            .filter(|entry| span.contains(entry.key))
            .collect();
        found.sort_unstable_by_key(|entry| entry.key);
        let (mut rows, mut bytes) = (0, 0);
        for entry in found {
            let key = copied.copy(entry.key);
            let stored = entry.stored.map(|stored| copied.copy(stored));
            copied.rows.push((key, stored));
            let value = entry.stored.and_then(|row| Row::decode(row).ok()?.value);
            if let Some(value) = value {
                rows += 1;
                bytes += entry.key.len() - STREAM_BYTES + value.len();
            }
            // Whoever takes what is wanted ends at this row or before, and sees that there is
            // more: the first row is taken however long it is.
            if rows > wanted.rows || (bytes > wanted.bytes && rows > 1) {
                break;
            }
        }
        copied
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        from..self.bytes.len()
    }

    fn key(&self) -> Option<&[u8]> {
        let (key, _) = self.rows.get(self.next)?;
        Some(&self.bytes[key.clone()])
    }

    fn stored(&self) -> Option<&[u8]> {
        let (_, stored) = self.rows.get(self.next)?;
        stored.clone().map(|stored| &self.bytes[stored])
    }
}

/// Rows of a frozen image.
struct FrozenRows {
    frozen: Arc<Frozen>,
    next: usize,
    end: usize,
}

impl FrozenRows {
    fn of(frozen: Arc<Frozen>, span: &KeySpan) -> Self {
        let order = frozen.order();
        let before = |key: &[u8]| order.partition_point(|&at| frozen.image.entry(at).key < key);
        let (next, end) = (before(&span.from), before(&span.to));
        Self { frozen, next, end }
    }

    fn entry(&self) -> Option<super::arena::Entry<'_>> {
        let at = self.frozen.order().get(self.next..self.end)?.first()?;
        Some(self.frozen.image.entry(*at))
    }

    fn key(&self) -> Option<&[u8]> {
        self.entry().map(|entry| entry.key)
    }

    fn stored(&self) -> Option<&[u8]> {
        self.entry().and_then(|entry| entry.stored)
    }
}
