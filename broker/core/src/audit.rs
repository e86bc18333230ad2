//! Finding the row in which two brokers differ though they hold the same frames.
//!
//! Each says what the rows of a span of keys come to, as of its vector. Who has the same vector and
//! other rows halves the span and says what the halves come to, and the other does the same, until it
//! is one row. Nothing is remembered between two messages: when a vector moves on meanwhile, nothing
//! more is said, and the next round begins anew.

use bytes::Bytes;

use crate::id::StreamId;

/// What the rows of a table from a key to another come to, as of a vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Audit {
    /// Which table.
    pub stream: StreamId,
    /// From this key on.
    pub from: Bytes,
    /// Up to this one, which is not in; `None` for all that follow.
    pub to: Option<Bytes>,
    /// A hash of the vector whose frames are in: two that are equal are of the same frames.
    pub vector: u64,
    /// The sum of the rows' hashes.
    pub sum: u128,
    /// How many rows there are.
    pub rows: u64,
}

impl Audit {
    /// Whether it is of the whole table.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.from.is_empty() && self.to.is_none()
    }
}

/// The rows of one table, as they are here.
pub trait Rows {
    /// Why they cannot be read.
    type Error;

    /// What those of a span come to.
    ///
    /// # Errors
    /// When they cannot be read.
    fn audit(&self, from: &Bytes, to: Option<&Bytes>) -> Result<Audit, Self::Error>;

    /// The key of one of a span, counted from 0; `None` beyond the last.
    ///
    /// # Errors
    /// When they cannot be read.
    fn key_at(
        &self,
        from: &Bytes,
        to: Option<&Bytes>,
        number: u64,
    ) -> Result<Option<Bytes>, Self::Error>;
}

/// What comparing has led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compared {
    /// One of the two has frames that the other has not.
    OtherFrames,
    /// The rows are the same.
    Equal,
    /// They are not; the other is to be told this, to find out where.
    Tell(Vec<Audit>),
    /// They differ in this row; `None` where the other has rows of the span and there is none here.
    /// With what the other is to be told, if it has several.
    Differs(Option<Bytes>, Option<Audit>),
}

/// Compares what the other says with what is here.
///
/// # Errors
/// When the rows cannot be read.
pub fn compare<R: Rows>(rows: &R, theirs: &Audit) -> Result<Compared, R::Error> {
    let (from, to) = (&theirs.from, theirs.to.as_ref());
    let own = rows.audit(from, to)?;
    if own.vector != theirs.vector {
        return Ok(Compared::OtherFrames);
    }
    if (own.sum, own.rows) == (theirs.sum, theirs.rows) {
        return Ok(Compared::Equal);
    }
    if own.rows < 2 {
        let key = rows.key_at(from, to, 0)?;
        // Who has more rows of the span halves it, or names the one that is missing here.
        let tell = (theirs.rows >= 2 || own.rows == 0).then_some(own);
        return Ok(Compared::Differs(key, tell));
    }
    let Some(middle) = rows.key_at(from, to, own.rows / 2)? else {
        // Rows have gone meanwhile.
        return Ok(Compared::OtherFrames);
    };
    Ok(Compared::Tell(vec![
        rows.audit(from, Some(&middle))?,
        rows.audit(&middle, to)?,
    ]))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    struct Table(BTreeMap<Bytes, u8>);

    impl Table {
        fn of(&self, from: &Bytes, to: Option<&Bytes>) -> impl Iterator<Item = (&Bytes, &u8)> {
            let rows = self.0.range(from.clone()..);
            rows.take_while(move |(key, _)| to.is_none_or(|to| *key < to))
        }
    }

    impl Rows for Table {
        type Error = Infallible;

        fn audit(&self, from: &Bytes, to: Option<&Bytes>) -> Result<Audit, Infallible> {
            let hash = |(key, value): (&Bytes, &u8)| {
                let hash = blake3::hash(&[key, &[*value][..]].concat());
                let [first, ..] = hash.as_bytes().as_chunks::<16>().0 else {
                    unreachable!("a hash has 32 bytes")
                };
                u128::from_le_bytes(*first)
            };
            let sum = |sum: u128, row| sum.wrapping_add(hash(row));
            Ok(Audit {
                stream: StreamId::new(1),
                from: from.clone(),
                to: to.cloned(),
                vector: 7,
                sum: self.of(from, to).fold(0, sum),
                rows: self.of(from, to).count() as u64,
            })
        }

        fn key_at(
            &self,
            from: &Bytes,
            to: Option<&Bytes>,
            number: u64,
        ) -> Result<Option<Bytes>, Infallible> {
            let number = usize::try_from(number).unwrap();
            Ok(self.of(from, to).nth(number).map(|(key, _)| key.clone()))
        }
    }

    /// Lets both talk until nothing is left to say. Gives the keys that were found, and how many
    /// messages it took.
    fn talk(tables: [&Table; 2]) -> (BTreeSet<Bytes>, usize) {
        let first = tables[0].audit(&Bytes::new(), None).unwrap();
        let (mut found, mut messages) = (BTreeSet::new(), 0);
        let mut said = VecDeque::from([(1, first)]);
        while let Some((to, audit)) = said.pop_front() {
            messages += 1;
            assert!(messages < 100_000, "they never end");
            match compare(tables[to], &audit).unwrap() {
                Compared::OtherFrames => panic!("they have the same frames"),
                Compared::Equal => {}
                Compared::Tell(audits) => said.extend(audits.into_iter().map(|a| (1 - to, a))),
                Compared::Differs(key, tell) => {
                    found.extend(key);
                    said.extend(tell.map(|audit| (1 - to, audit)));
                }
            }
        }
        (found, messages)
    }

    fn table(rows: &BTreeMap<u16, u8>) -> Table {
        let row = |(key, &value): (&u16, &u8)| (Bytes::copy_from_slice(&key.to_be_bytes()), value);
        Table(rows.iter().map(row).collect())
    }

    proptest! {
        #[test]
        fn a_row_that_differs_is_found(
            rows in prop::collection::btree_map(any::<u16>(), 0u8..4, 0..300),
            changes in prop::collection::btree_map(any::<u16>(), prop::option::of(0u8..4), 0..4),
        ) {
            let mut other = rows.clone();
            for (key, change) in &changes {
                // Some hit a row that is there.
                let key = match rows.keys().nth(usize::from(*key) % 400) {
                    Some(held) => held,
                    None => key,
                };
                match change {
                    Some(value) => other.insert(*key, *value),
                    None => other.remove(key),
                };
            }
            let differ: BTreeSet<Bytes> = rows
                .keys()
                .chain(other.keys())
                .filter(|key| rows.get(key) != other.get(key))
                .map(|key| Bytes::copy_from_slice(&key.to_be_bytes()))
                .collect();
            let (found, messages) = talk([&table(&rows), &table(&other)]);
            // A row beside one that is missing may be named in its place.
            prop_assert_eq!(found.is_empty(), differ.is_empty() || rows.is_empty() && other.is_empty());
            prop_assert!(messages <= 1 + differ.len() * 60, "{messages} for {}", differ.len());
            let exact = differ.iter().all(|key| {
                let key = u16::from_be_bytes([key[0], key[1]]);
                rows.contains_key(&key) && other.contains_key(&key)
            });
            if exact {
                prop_assert_eq!(found, differ, "rows with other values are all found");
            }
        }
    }
}
