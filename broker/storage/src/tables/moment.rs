//! All rows of a span at one moment: a merge of the active image, the frozen ones and the store.

use anabranch_core::id::Position;
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::error::TablesError;
use super::key::{KeySpan, RowKey};
use super::shared::{Shared, State};
use super::source::{Copied, FrozenRows, Held, Source, Wanted};
use super::store::Caching;

/// Bytes of rows up to which an active image is searched in place, besides their number.
const SEARCH_BYTES: usize = 8 << 20;

/// Rows of a span in the order of their keys. Later sources are older.
pub(super) struct Moment<'a> {
    shared: &'a Shared,
    applied: Position,
    sources: Vec<Source<'a>>,
    /// Which source holds the row that [`Moment::advance`] came to.
    current: usize,
}

impl<'a> Moment<'a> {
    /// Takes hold of the present. Copies no more than is wanted.
    pub(super) fn take(
        shared: &'a Shared,
        span: &KeySpan,
        wanted: Wanted,
        caching: Caching,
    ) -> Result<Self, TablesError> {
        let state = searchable(shared, wanted)?;
        let mut sources = vec![Source {
            rows: Held::Copied(Copied::of(&state.active, span, wanted)),
            dropped: state.active.dropped().to_vec(),
        }];
        let frozen: Vec<_> = state.frozen.iter().cloned().collect();
        let mut stored = shared.store.rows(span, caching);
        let applied = state.mark.applied;
        drop(state);
        sources.extend(frozen.into_iter().map(|frozen| Source {
            dropped: frozen.image.dropped().to_vec(),
            rows: Held::Frozen(FrozenRows::of(frozen, span, wanted)),
        }));
        stored.begin()?;
        sources.push(Source {
            rows: Held::Stored(stored),
            dropped: Vec::new(),
        });
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

/// The state with an active image that is small, or that has to be searched all the same. A large
/// one is frozen if there is room for one more: it has to be sorted for its flush anyhow, and
/// nobody waits while it is read.
fn searchable(shared: &Shared, wanted: Wanted) -> Result<RwLockReadGuard<'_, State>, TablesError> {
    loop {
        let state = shared.state.read();
        let most = shared.options.search_rows;
        if state.active.len() <= most && state.active.bytes() <= SEARCH_BYTES {
            return Ok(state);
        }
        drop(state);
        if let Some(state) = shared.freeze_to_read()? {
            return Ok(RwLockWriteGuard::downgrade(state));
        }
        // A page is found in some 20 ms; a flush may take a second.
        if wanted != Wanted::ALL {
            return Ok(shared.state.read());
        }
        shared.wait_to_read()?;
    }
}
