//! Numbers in and out of the log's own blocks.
//!
//! Reading never panics and never believes a count before the bytes for it are there.

use bytes::Buf;

use anabranch_core::vector::VersionVector;

/// The bytes ended early, or a number was out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A reader that walks forward over a slice.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.rest.try_get_u16_le().map_err(|_| Malformed)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.rest.try_get_u32_le().map_err(|_| Malformed)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.rest.try_get_u64_le().map_err(|_| Malformed)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.rest.try_get_u8().map_err(|_| Malformed)?;
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

    pub(crate) fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    /// A count of things that take at least a byte each, so that it cannot ask for more memory
    /// than there are bytes.
    pub(crate) fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        if count <= self.rest.len() {
            Ok(count)
        } else {
            Err(Malformed)
        }
    }

    /// The difference of two numbers, as [`put_delta`] wrote it.
    pub(crate) fn delta(&mut self, from: u64) -> Result<u64, Malformed> {
        let raw = self.varint()?;
        let delta = (raw >> 1).cast_signed() ^ -((raw & 1).cast_signed());
        Ok(from.wrapping_add(delta.cast_unsigned()))
    }

    pub(crate) fn vector(&mut self) -> Result<VersionVector, Malformed> {
        let length = self.count()?;
        VersionVector::decode(self.take(length)?).map_err(|_| Malformed)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Writes `to` as its difference to `from`, which is short when they are close.
pub(crate) fn put_delta(out: &mut Vec<u8>, from: u64, to: u64) {
    let delta = to.wrapping_sub(from).cast_signed();
    put_varint(out, ((delta << 1) ^ (delta >> 63)).cast_unsigned());
}

pub(crate) fn put_vector(out: &mut Vec<u8>, vector: &VersionVector) {
    let mut bytes = Vec::new();
    vector.encode(&mut bytes);
    put_varint(out, length(bytes.len()));
    out.extend_from_slice(&bytes);
}

/// A length in memory as a number for the disk.
pub(crate) fn length(n: usize) -> u64 {
    u64::try_from(n).expect("no memory is larger than 64 bits can say")
}

/// A length within an entry, which is bounded far below 32 bits.
pub(crate) fn short_length(n: usize) -> u32 {
    u32::try_from(n).expect("an entry is at most a few tens of MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn differences_read_back(from in any::<u64>(), to in any::<u64>()) {
            let mut out = Vec::new();
            put_delta(&mut out, from, to);
            put_varint(&mut out, to);
            let mut fields = Fields::new(&out);
            prop_assert_eq!(fields.delta(from), Ok(to));
            prop_assert_eq!(fields.varint(), Ok(to));
            prop_assert!(fields.is_empty());
        }
    }
}
