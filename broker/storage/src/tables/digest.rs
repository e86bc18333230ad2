//! What some rows of a stream come to, as a number that other brokers can compare.

use anabranch_core::id::{Position, StreamId};
use twox::xxh3::xxh3_128;

use super::Tables;
use super::error::TablesError;
use super::key::{KeySpan, RowKey};
use super::moment::Moment;
use super::source::Wanted;
use super::store::Caching;

/// The rows of a span at one moment. Brokers that have applied the same frames have the same sum,
/// however long each keeps stamps and tombstones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// The sum of the hashes of all rows, in any order: XXH3 with 128 bits over the length of the
    /// key (u32, little-endian), the key, the value.
    pub sum: u128,
    /// How many rows there are.
    pub rows: u64,
    /// They are those of this position.
    pub applied: Position,
}

impl Tables {
    /// The digest of the rows from a key (included) to another one (excluded), or to the end. Reads
    /// them all; holds what an image of a few MiB holds.
    ///
    /// Where two brokers differ, halving the span finds a row that does.
    ///
    /// # Errors
    /// When the store fails.
    pub fn digest(
        &self,
        stream: StreamId,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> Result<Digest, TablesError> {
        let span = span(stream, from, to);
        let mut moment = Moment::take(&self.shared, &span, Wanted::ALL, Caching::Bypass)?;
        let (mut sum, mut rows) = (0_u128, 0);
        let mut hashed = Vec::new();
        while moment.advance()? {
            let (key, stored) = moment.row()?;
            if let Some(value) = self.shared.row(stored)?.value {
                hashed.clear();
                let length = u32::try_from(key.key.len()).unwrap_or(u32::MAX);
                hashed.extend_from_slice(&length.to_le_bytes());
                hashed.extend_from_slice(key.key);
                hashed.extend_from_slice(value);
                sum = sum.wrapping_add(xxh3_128(&hashed));
                rows += 1;
            }
        }
        Ok(Digest {
            sum,
            rows,
            applied: moment.applied(),
        })
    }

    /// The key of a row of such a span, counted from 0; `None` beyond the last.
    ///
    /// # Errors
    /// When the store fails.
    pub fn key_at(
        &self,
        stream: StreamId,
        (from, to): (&[u8], Option<&[u8]>),
        number: u64,
    ) -> Result<Option<Vec<u8>>, TablesError> {
        let span = span(stream, from, to);
        let mut moment = Moment::take(&self.shared, &span, Wanted::ALL, Caching::Bypass)?;
        let mut passed = 0;
        while moment.advance()? {
            let (key, stored) = moment.row()?;
            if self.shared.row(stored)?.value.is_none() {
                continue;
            }
            if passed == number {
                return Ok(Some(key.key.to_vec()));
            }
            passed += 1;
        }
        Ok(None)
    }
}

fn span(stream: StreamId, from: &[u8], to: Option<&[u8]>) -> KeySpan {
    let mut span = KeySpan::of_stream(stream);
    span.from = RowKey::new(stream, from).to_vec();
    if let Some(to) = to {
        span.to = RowKey::new(stream, to).to_vec().max(span.from.clone());
    }
    span
}
