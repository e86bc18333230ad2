//! How a row is named in the tables: the stream's id, big-endian, then the record's key.

use anabranch_core::id::StreamId;
use anabranch_core::limits::MAX_KEY_BYTES;

/// Bytes of the stream's id in front of a key.
pub(super) const STREAM_BYTES: usize = 8;

/// The name of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RowKey<'a> {
    pub(super) stream: StreamId,
    pub(super) key: &'a [u8],
}

impl<'a> RowKey<'a> {
    pub(super) fn new(stream: StreamId, key: &'a [u8]) -> Self {
        Self { stream, key }
    }

    /// Reads the stored form; `None` when it is too short to be one.
    #[inline]
    pub(super) fn split(full: &'a [u8]) -> Option<Self> {
        let (stream, key) = full.split_first_chunk::<STREAM_BYTES>()?;
        Some(Self::new(StreamId::new(u64::from_be_bytes(*stream)), key))
    }

    /// The stored form.
    pub(super) fn to_vec(self) -> Vec<u8> {
        let mut full = Vec::with_capacity(self.len());
        full.extend_from_slice(&self.stream.get().to_be_bytes());
        full.extend_from_slice(self.key);
        full
    }

    /// Length of the stored form.
    pub(super) fn len(self) -> usize {
        STREAM_BYTES + self.key.len()
    }

    /// Stream and first eight bytes of the key as numbers that order as the bytes do.
    pub(super) fn leading(self) -> (u64, u64) {
        let mut first = [0; 8];
        let n = self.key.len().min(8);
        first[..n].copy_from_slice(&self.key[..n]);
        (self.stream.get(), u64::from_be_bytes(first))
    }
}

/// The stored keys from one (included) to another (excluded).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KeySpan {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
}

impl KeySpan {
    /// Every row there can be.
    pub(super) fn all() -> Self {
        Self {
            from: vec![0; STREAM_BYTES],
            to: beyond_all(),
        }
    }

    /// All rows of a stream.
    pub(super) fn of_stream(stream: StreamId) -> Self {
        Self::of(stream, &[], None)
    }

    /// The rows of a stream whose keys begin with `prefix` and are greater than `after`.
    pub(super) fn of(stream: StreamId, prefix: &[u8], after: Option<&[u8]>) -> Self {
        let mut from = RowKey::new(stream, prefix).to_vec();
        let to = after_prefix(&from);
        if let Some(after) = after {
            let mut next = RowKey::new(stream, after).to_vec();
            next.push(0);
            from = from.max(next);
        }
        Self { from, to }
    }

    pub(super) fn contains(&self, full: &[u8]) -> bool {
        self.from.as_slice() <= full && full < self.to.as_slice()
    }
}

/// The smallest key that is greater than all that begin with `prefix`.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|&byte| byte < 0xff) {
        Some(last) => {
            let mut next = prefix[..=last].to_vec();
            next[last] += 1;
            next
        }
        None => beyond_all(),
    }
}

/// Greater than every stored key: one byte longer than the longest, and nothing is greater.
fn beyond_all() -> Vec<u8> {
    vec![0xff; STREAM_BYTES + MAX_KEY_BYTES + 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(span: &KeySpan, stream: u64, key: &[u8]) -> bool {
        span.contains(&RowKey::new(StreamId::new(stream), key).to_vec())
    }

    #[test]
    fn a_span_holds_its_stream_and_no_other() {
        for stream in [0, 7, 0xff, u64::MAX - 1, u64::MAX] {
            let span = KeySpan::of_stream(StreamId::new(stream));
            for key in [&[][..], &[0], &[0xff; MAX_KEY_BYTES]] {
                assert!(contains(&span, stream, key));
                assert!(!contains(&span, stream.wrapping_add(1), key));
                assert!(!contains(&span, stream.wrapping_sub(1), key));
                assert!(contains(&KeySpan::all(), stream, key));
            }
        }
    }

    #[test]
    fn prefix_and_after_cut_where_they_say() {
        let stream = StreamId::new(u64::MAX);
        let span = KeySpan::of(stream, b"a\xff", Some(b"a\xffb"));
        for (key, within) in [
            (&b"a\xff"[..], false),
            (b"a\xffb", false),
            (b"a\xffb\0", true),
            (b"a\xff\xff", true),
            (b"b", false),
        ] {
            assert_eq!(contains(&span, u64::MAX, key), within, "{key:?}");
        }
        let none = KeySpan::of(stream, b"a", Some(b"b"));
        assert!(!contains(&none, u64::MAX, b"a") && !contains(&none, u64::MAX, b"c"));
        let all = KeySpan::of(stream, &[0xff], None);
        assert!(contains(&all, u64::MAX, &[0xff, 0xff]));
    }
}
