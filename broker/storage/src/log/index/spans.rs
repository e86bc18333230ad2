//! Which positions the entries of a segment hold: one each, but for gaps, which hold many.

use anabranch_core::id::Position;

/// A gap among the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Which entry it is.
    pub(crate) entry: u32,
    /// How many frames it stands for.
    pub(crate) frames: u64,
    /// How many positions there are before it.
    before: u64,
}

/// The gaps of a segment, in order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Spans {
    gaps: Vec<Span>,
}

impl Spans {
    /// Notes that this entry, which is behind all others, is a gap.
    pub(crate) fn push(&mut self, entry: u32, frames: u64) {
        let before = self.before(entry);
        self.gaps.push(Span {
            entry,
            frames,
            before,
        });
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Span> {
        self.gaps.iter()
    }

    /// How many positions there are before an entry.
    pub(crate) fn before(&self, entry: u32) -> u64 {
        let at = self.gaps.partition_point(|gap| gap.entry < entry);
        match at.checked_sub(1).map(|at| self.gaps[at]) {
            None => entry.into(),
            Some(gap) => gap.before + gap.frames + u64::from(entry - gap.entry - 1),
        }
    }

    /// The entry that holds a position, which is counted from the segment's first.
    pub(crate) fn entry_of(&self, position: u64) -> u64 {
        let at = self.gaps.partition_point(|gap| gap.before <= position);
        match at.checked_sub(1).map(|at| self.gaps[at]) {
            None => position,
            Some(gap) => {
                let behind = (position - gap.before).saturating_sub(gap.frames - 1);
                u64::from(gap.entry) + behind
            }
        }
    }

    /// How many frames an entry stands for.
    pub(crate) fn frames_of(&self, entry: u32) -> u64 {
        let at = self.gaps.binary_search_by_key(&entry, |gap| gap.entry);
        at.map_or(1, |at| self.gaps[at].frames)
    }

    /// Whether an entry is a gap.
    pub(crate) fn is_gap(&self, entry: u32) -> bool {
        let at = self.gaps.binary_search_by_key(&entry, |gap| gap.entry);
        at.is_ok()
    }

    /// The position that comes after so many entries.
    pub(crate) fn next(&self, first: Position, entries: u32) -> Position {
        Position::new(first.get() + self.before(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_and_entries_lead_to_each_other(
            sizes in prop::collection::vec(prop::option::of(1u64..5), 0..40),
        ) {
            let mut spans = Spans::default();
            let mut held = Vec::new();
            for (entry, frames) in sizes.iter().enumerate() {
                let entry = entry as u32;
                prop_assert_eq!(spans.before(entry), held.len() as u64);
                if let Some(frames) = frames {
                    spans.push(entry, *frames);
                }
                prop_assert_eq!(spans.is_gap(entry), frames.is_some());
                prop_assert_eq!(spans.frames_of(entry), frames.unwrap_or(1));
                held.extend(std::iter::repeat_n(entry, frames.unwrap_or(1) as usize));
            }
            for (position, entry) in held.iter().enumerate() {
                prop_assert_eq!(spans.entry_of(position as u64), u64::from(*entry));
            }
            prop_assert_eq!(spans.entry_of(held.len() as u64), sizes.len() as u64);
        }
    }
}
