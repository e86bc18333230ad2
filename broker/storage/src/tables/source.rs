//! What one place holds of a span, in the order of the keys.

use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use anabranch_core::id::StreamId;
use anabranch_core::lww::Row;

use super::arena::{At, Entry};
use super::error::TablesError;
use super::image::Image;
use super::key::{KeySpan, STREAM_BYTES};
use super::shared::Frozen;
use super::store::Rows;

/// How much a reader will take at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

/// A place that holds rows.
pub(super) struct Source<'a> {
    pub(super) rows: Held<'a>,
    /// Streams of which nothing older counts.
    pub(super) dropped: Vec<StreamId>,
}

/// Its rows; at first at the first of them.
pub(super) enum Held<'a> {
    Copied(Copied),
    Frozen(FrozenRows),
    Stored(Rows<'a>),
}

impl Held<'_> {
    /// The stored key; `None` after the last row.
    pub(super) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(rows) => rows.key(),
            Self::Frozen(rows) => rows.entry().map(|entry| entry.key),
            Self::Stored(rows) => rows.key(),
        }
    }

    /// The stored row; `None` also when it was removed.
    pub(super) fn stored(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(rows) => rows.stored(),
            Self::Frozen(rows) => rows.entry().and_then(|entry| entry.stored),
            Self::Stored(rows) => rows.stored(),
        }
    }

    pub(super) fn advance(&mut self) -> Result<(), TablesError> {
        match self {
            Self::Copied(rows) => rows.next += 1,
            Self::Frozen(rows) => rows.advance(),
            Self::Stored(rows) => rows.advance()?,
        }
        Ok(())
    }
}

/// An entry that orders by its key; no two of an image have the same.
struct Candidate<'a> {
    at: At,
    entry: Entry<'a>,
}

impl Candidate<'_> {
    /// The length of its value; `None` when it has none.
    fn value_length(&self) -> Option<usize> {
        let value = Row::decode(self.entry.stored?).ok()?.value?;
        Some(value.len())
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.entry.key == other.entry.key
    }
}

impl Eq for Candidate<'_> {}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.entry.key.cmp(other.entry.key)
    }
}

/// The first entries of a span in order, up to one more row with a value than is wanted; and
/// whether these are all. One pass over the image, however large; it need not be sorted.
fn select<'a>(image: &'a Image, span: &KeySpan, wanted: Wanted) -> (Vec<Candidate<'a>>, bool) {
    let mut first = BinaryHeap::new();
    let (mut values, mut is_all) = (0, true);
    for (at, entry) in image.walk() {
        if !span.contains(entry.key) {
            continue;
        }
        let candidate = Candidate { at, entry };
        if !is_all && first.peek().is_some_and(|last| *last < candidate) {
            continue;
        }
        values += usize::from(candidate.value_length().is_some());
        first.push(candidate);
        while values > wanted.rows.saturating_add(1) {
            let last = first.pop();
            values -= usize::from(last.is_some_and(|last| last.value_length().is_some()));
            is_all = false;
        }
    }
    (first.into_sorted_vec(), is_all)
}

/// Rows copied from the active image. As it is the newest, its values are among those that the
/// reader takes: what is left out lies beyond.
#[derive(Default)]
pub(super) struct Copied {
    bytes: Vec<u8>,
    rows: Vec<(Range<usize>, Option<Range<usize>>)>,
    next: usize,
}

impl Copied {
    pub(super) fn of(image: &Image, span: &KeySpan, wanted: Wanted) -> Self {
        let mut copied = Self::default();
        let (mut rows, mut bytes) = (0, 0);
        for candidate in select(image, span, wanted).0 {
            let entry = candidate.entry;
            let key = copied.copy(entry.key);
            let stored = entry.stored.map(|stored| copied.copy(stored));
            copied.rows.push((key, stored));
            if let Some(length) = candidate.value_length() {
                rows += 1;
                bytes += entry.key.len() - STREAM_BYTES + length;
            }
            // The reader ends at this row and sees that there is more; but it takes the first row
            // however long it is.
            if rows > 1 && bytes > wanted.bytes {
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
pub(super) struct FrozenRows {
    frozen: Arc<Frozen>,
    /// Where the span ends.
    to: Vec<u8>,
    /// The first entries of the span, when the image was not sorted yet and few are wanted. Newer
    /// rows may hide them; then the image has to be sorted for those that follow.
    selected: Option<Selected>,
    next: usize,
    end: usize,
}

struct Selected {
    entries: Vec<At>,
    is_all: bool,
}

impl FrozenRows {
    pub(super) fn of(frozen: Arc<Frozen>, span: &KeySpan, wanted: Wanted) -> Self {
        let mut rows = Self {
            frozen,
            to: span.to.clone(),
            selected: None,
            next: 0,
            end: 0,
        };
        if rows.frozen.is_sorted() || wanted == Wanted::ALL {
            rows.go_on(|key| key < span.from.as_slice());
            return rows;
        }
        let (first, is_all) = select(&rows.frozen.image, span, wanted);
        let entries: Vec<_> = first.into_iter().map(|candidate| candidate.at).collect();
        rows.end = entries.len();
        rows.selected = Some(Selected { entries, is_all });
        rows
    }

    /// Goes on behind the keys that are `before`, in the sorted image.
    fn go_on(&mut self, before: impl Fn(&[u8]) -> bool) {
        let order = self.frozen.order();
        let place = |is_before: &dyn Fn(&[u8]) -> bool| {
            order.partition_point(|&at| is_before(self.frozen.image.entry(at).key))
        };
        let (next, end) = (place(&before), place(&|key| key < self.to.as_slice()));
        (self.next, self.end) = (next, end);
        self.selected = None;
    }

    fn advance(&mut self) {
        let last = self.at();
        self.next += 1;
        let is_cut = self.selected.as_ref().is_some_and(|some| !some.is_all);
        if let Some(last) = last
            && is_cut
            && self.next == self.end
        {
            let frozen = Arc::clone(&self.frozen);
            self.go_on(|key| key <= frozen.image.entry(last).key);
        }
    }

    fn at(&self) -> Option<At> {
        let order = match &self.selected {
            Some(selected) => &selected.entries,
            None => self.frozen.order(),
        };
        order.get(self.next..self.end)?.first().copied()
    }

    fn entry(&self) -> Option<Entry<'_>> {
        Some(self.frozen.image.entry(self.at()?))
    }
}
