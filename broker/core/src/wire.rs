//! Little cursors over bytes, used by everything here that has a binary form.
//!
//! Reading never panics and never allocates by a length it has not compared with the bytes
//! that are there.

use bytes::BufMut;

/// The bytes ended early, or a number was out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end early or hold a number out of range")]
pub struct Malformed;

/// A reader that walks forward over a slice.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Before the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether all were read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is still to be read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// So many bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    /// A byte.
    ///
    /// # Errors
    /// When none is left.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[b]| b)
    }

    /// Two bytes, little-endian.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// Unsigned LEB128, at most ten bytes.
    ///
    /// # Errors
    /// When it is cut short, or longer.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        // Most numbers of a record fit seven bits; the loop is for the others.
        if let Some((&first, rest)) = self.rest.split_first()
            && first < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(first));
        }
        self.long_varint()
    }

    /// Unsigned LEB128 that is as short as its value allows: there is one form of each number.
    #[inline]
    pub(crate) fn shortest_varint(&mut self) -> Result<u64, Malformed> {
        let before = self.rest.len();
        let value = self.varint()?;
        match before - self.rest.len() == varint_len(value) {
            true => Ok(value),
            false => Err(Malformed),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// Kafka's signed varint: LEB128 over the zigzag form.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    #[inline]
    pub fn zigzag(&mut self) -> Result<i64, Malformed> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// A zigzag length: `None` for -1, an error for anything below or above `max`.
    #[inline]
    pub(crate) fn length(&mut self, max: usize) -> Result<Option<usize>, Malformed> {
        match self.zigzag()? {
            -1 => Ok(None),
            n => match usize::try_from(n) {
                Ok(n) if n <= max => Ok(Some(n)),
                _ => Err(Malformed),
            },
        }
    }
}

/// Appends unsigned LEB128.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0]);
}

/// Appends LEB128 over the zigzag form.
pub fn put_zigzag(out: &mut impl BufMut, value: i64) {
    put_varint(out, zigzag(value));
}

/// A length as Kafka writes it: the zigzag form of a number that is never negative.
pub(crate) fn put_length(out: &mut impl BufMut, length: usize) {
    put_varint(out, 2 * length as u64);
}

/// Bytes that `put_length` takes for this length.
pub(crate) fn length_len(length: usize) -> usize {
    varint_len(2 * length as u64)
}

/// A count or length that a limit keeps far below 2^32.
pub(crate) fn put_u32(out: &mut impl BufMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("limits keep it below 2^32"));
}

pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Bytes that `put_varint` takes for this value.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

pub(crate) fn zigzag_len(value: i64) -> usize {
    varint_len(zigzag(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_reads_back(value in any::<i64>()) {
            let mut bytes = Vec::new();
            put_zigzag(&mut bytes, value);
            prop_assert_eq!(bytes.len(), zigzag_len(value));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.zigzag(), Ok(value));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..32)) {
            let mut reader = Reader::new(&bytes);
            while reader.varint().is_ok() {}
        }
    }
}
