//! `MessagePack`, as much of it as the messages need, read in place.
//!
//! Written by hand because it is the hot path: a message is a flat map of known names, so a
//! generic deserializer's dispatch would cost more than the reading. Nothing here recurses.

/// What is wrong at one place of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The message ends, or a length reaches beyond its end.
    Ends,
    /// Something else than this stands here.
    Expected(&'static str),
}

type Result<T> = std::result::Result<T, Fault>;

const NIL: u8 = 0xc0;
const FALSE: u8 = 0xc2;
const TRUE: u8 = 0xc3;

/// A reader that walks forward over a message.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Fault::Ends)?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn marker(&mut self) -> Result<u8> {
        let (&first, rest) = self.rest.split_first().ok_or(Fault::Ends)?;
        self.rest = rest;
        Ok(first)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Fault::Ends)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn be8(&mut self) -> Result<usize> {
        self.array::<1>().map(|[byte]| usize::from(byte))
    }

    #[inline]
    fn be16(&mut self) -> Result<usize> {
        self.array()
            .map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    #[inline]
    fn be32(&mut self) -> Result<usize> {
        self.array().map(|bytes| u32::from_be_bytes(bytes) as usize)
    }

    /// Passes over a nil; `false` when something else stands here.
    #[inline]
    pub(crate) fn nil(&mut self) -> bool {
        let is_nil = self.rest.first() == Some(&NIL);
        if is_nil {
            self.rest = &self.rest[1..];
        }
        is_nil
    }

    pub(crate) fn bool(&mut self) -> Result<bool> {
        match self.marker()? {
            FALSE => Ok(false),
            TRUE => Ok(true),
            _ => Err(Fault::Expected("true or false")),
        }
    }

    #[inline]
    pub(crate) fn uint(&mut self) -> Result<u64> {
        let expected = Fault::Expected("a whole number from 0");
        match self.marker()? {
            small @ 0..=0x7f => Ok(u64::from(small)),
            0xcc => self.array().map(|b| u64::from(u8::from_be_bytes(b))),
            0xcd => self.array().map(|b| u64::from(u16::from_be_bytes(b))),
            0xce => self.array().map(|b| u64::from(u32::from_be_bytes(b))),
            0xcf => self.array().map(u64::from_be_bytes),
            marker @ 0xd0..=0xd3 => u64::try_from(self.signed(marker)?).map_err(|_| expected),
            _ => Err(expected),
        }
    }

    pub(crate) fn int(&mut self) -> Result<i64> {
        match self.rest.first() {
            Some(&negative @ 0xe0..=0xff) => {
                self.rest = &self.rest[1..];
                Ok(i64::from(negative.cast_signed()))
            }
            Some(&marker @ 0xd0..=0xd3) => {
                self.rest = &self.rest[1..];
                self.signed(marker)
            }
            _ => match self.uint() {
                Ok(number) => i64::try_from(number).map_err(|_| Fault::Expected("below 2^63")),
                Err(Fault::Ends) => Err(Fault::Ends),
                Err(Fault::Expected(_)) => Err(Fault::Expected("a whole number")),
            },
        }
    }

    fn signed(&mut self, marker: u8) -> Result<i64> {
        match marker {
            0xd0 => self.array().map(|b| i64::from(i8::from_be_bytes(b))),
            0xd1 => self.array().map(|b| i64::from(i16::from_be_bytes(b))),
            0xd2 => self.array().map(|b| i64::from(i32::from_be_bytes(b))),
            _ => self.array().map(i64::from_be_bytes),
        }
    }

    #[inline]
    fn str_bytes(&mut self, marker: u8) -> Result<Option<&'a [u8]>> {
        let length = match marker {
            0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9 => self.be8()?,
            0xda => self.be16()?,
            0xdb => self.be32()?,
            _ => return Ok(None),
        };
        self.take(length).map(Some)
    }

    #[inline]
    pub(crate) fn str(&mut self) -> Result<&'a str> {
        let marker = self.marker()?;
        let bytes = self.str_bytes(marker)?.ok_or(Fault::Expected("a string"))?;
        std::str::from_utf8(bytes).map_err(|_| Fault::Expected("UTF-8"))
    }

    /// A name in a map: compared with known names, so UTF-8 is only looked at for errors.
    #[inline]
    pub(crate) fn name(&mut self) -> Result<&'a [u8]> {
        let marker = self.marker()?;
        self.str_bytes(marker)?
            .ok_or(Fault::Expected("a map with strings as names"))
    }

    /// Binary; a string stands for its UTF-8 bytes.
    #[inline]
    pub(crate) fn bin(&mut self) -> Result<&'a [u8]> {
        let marker = self.marker()?;
        let length = match marker {
            0xc4 => self.be8()?,
            0xc5 => self.be16()?,
            0xc6 => self.be32()?,
            _ => {
                let text = self.str_bytes(marker)?;
                return text.ok_or(Fault::Expected("binary or a string"));
            }
        };
        self.take(length)
    }

    #[inline]
    pub(crate) fn array_len(&mut self) -> Result<usize> {
        let length = match self.marker()? {
            small @ 0x90..=0x9f => usize::from(small & 0x0f),
            0xdc => self.be16()?,
            0xdd => self.be32()?,
            _ => return Err(Fault::Expected("an array")),
        };
        self.believable(length)
    }

    #[inline]
    pub(crate) fn map_len(&mut self) -> Result<usize> {
        let length = match self.marker()? {
            small @ 0x80..=0x8f => usize::from(small & 0x0f),
            0xde => self.be16()?,
            0xdf => self.be32()?,
            _ => return Err(Fault::Expected("a map")),
        };
        self.believable(length)
    }

    /// Every item takes a byte at least.
    fn believable(&self, items: usize) -> Result<usize> {
        match items <= self.rest.len() {
            true => Ok(items),
            false => Err(Fault::Ends),
        }
    }

    /// Passes over one value, however deep it nests.
    pub(crate) fn skip(&mut self) -> Result<()> {
        let mut pending = 1usize;
        while pending > 0 {
            pending = pending - 1 + self.skip_one()?;
            // Each value takes a byte at least, so a lying count is noticed at once.
            self.believable(pending)?;
        }
        Ok(())
    }

    /// Passes over one marker and its bytes; returns how many values follow inside.
    fn skip_one(&mut self) -> Result<usize> {
        let marker = self.marker()?;
        let (bytes, inside) = match marker {
            0x80..=0x8f => (0, 2 * usize::from(marker & 0x0f)),
            0x90..=0x9f => (0, usize::from(marker & 0x0f)),
            0xa0..=0xbf => (usize::from(marker & 0x1f), 0),
            0xc4 | 0xd9 => (self.be8()?, 0),
            0xc5 | 0xda => (self.be16()?, 0),
            0xc6 | 0xdb => (self.be32()?, 0),
            0xc7 => (self.be8()? + 1, 0),
            0xc8 => (self.be16()? + 1, 0),
            0xc9 => (self.be32()? + 1, 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 | 0xd4 => (2, 0),
            0xd5 => (3, 0),
            0xca | 0xce | 0xd2 => (4, 0),
            0xd6 => (5, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            0xd7 => (9, 0),
            0xd8 => (17, 0),
            0xdc => (0, self.be16()?),
            0xdd => (0, self.be32()?),
            0xde => (0, 2 * self.be16()?),
            0xdf => (0, 2 * self.be32()?),
            0xc1 => return Err(Fault::Expected("a value")),
            _ => (0, 0),
        };
        self.take(bytes)?;
        Ok(inside)
    }
}

pub(crate) fn put_nil(out: &mut Vec<u8>) {
    out.push(NIL);
}

pub(crate) fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { FALSE });
}

#[inline]
pub(crate) fn put_uint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => out.push(value.to_be_bytes()[7]),
        0x80..=0xff => out.extend_from_slice(&[0xcc, value.to_be_bytes()[7]]),
        0x100..=0xffff => put_tail(out, 0xcd, value, 2),
        0x1_0000..=0xffff_ffff => put_tail(out, 0xce, value, 4),
        _ => put_tail(out, 0xcf, value, 8),
    }
}

pub(crate) fn put_int(out: &mut Vec<u8>, value: i64) {
    match u64::try_from(value) {
        Ok(value) => put_uint(out, value),
        Err(_) if value >= -32 => out.push(value.to_be_bytes()[7]),
        Err(_) => put_tail(out, 0xd3, value.cast_unsigned(), 8),
    }
}

/// A marker and the last `width` bytes of a number.
#[inline]
fn put_tail(out: &mut Vec<u8>, marker: u8, value: u64, width: usize) {
    out.push(marker);
    out.extend_from_slice(&value.to_be_bytes()[8 - width..]);
}

pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    match text.len() as u64 {
        length @ 0..=31 => out.push(0xa0 | length.to_be_bytes()[7]),
        length @ 32..=0xff => put_tail(out, 0xd9, length, 1),
        length @ 0x100..=0xffff => put_tail(out, 0xda, length, 2),
        length => put_tail(out, 0xdb, fits_u32(length), 4),
    }
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    put_bin_head(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// The head of a binary whose bytes the caller writes.
pub(crate) fn put_bin_head(out: &mut Vec<u8>, length: usize) {
    match length as u64 {
        length @ 0..=0xff => put_tail(out, 0xc4, length, 1),
        length @ 0x100..=0xffff => put_tail(out, 0xc5, length, 2),
        length => put_tail(out, 0xc6, fits_u32(length), 4),
    }
}

pub(crate) fn put_array(out: &mut Vec<u8>, items: usize) {
    match items as u64 {
        items @ 0..=15 => out.push(0x90 | items.to_be_bytes()[7]),
        items @ 16..=0xffff => put_tail(out, 0xdc, items, 2),
        items => put_tail(out, 0xdd, fits_u32(items), 4),
    }
}

pub(crate) fn put_map(out: &mut Vec<u8>, entries: usize) {
    match entries as u64 {
        entries @ 0..=15 => out.push(0x80 | entries.to_be_bytes()[7]),
        entries @ 16..=0xffff => put_tail(out, 0xde, entries, 2),
        entries => put_tail(out, 0xdf, fits_u32(entries), 4),
    }
}

/// Begins an array whose length is not known yet; returns the place for [`close_array`].
pub(crate) fn open_array(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0xdd, 0, 0, 0, 0]);
    out.len() - 4
}

/// Writes the length of an array that [`open_array`] began.
pub(crate) fn close_array(out: &mut [u8], at: usize, items: usize) {
    let items = fits_u32(items as u64).to_be_bytes();
    out[at..at + 4].copy_from_slice(&items[4..]);
}

fn fits_u32(length: u64) -> u64 {
    assert!(
        length <= u64::from(u32::MAX),
        "limits keep messages below 4 GiB"
    );
    length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_value() -> impl Strategy<Value = rmpv::Value> {
        let leaf = prop_oneof![
            Just(rmpv::Value::Nil),
            any::<bool>().prop_map(rmpv::Value::from),
            any::<i64>().prop_map(rmpv::Value::from),
            any::<u64>().prop_map(rmpv::Value::from),
            any::<f64>().prop_map(rmpv::Value::from),
            any::<f32>().prop_map(rmpv::Value::from),
            any::<String>().prop_map(rmpv::Value::from),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(rmpv::Value::from),
            (any::<i8>(), prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(kind, bytes)| rmpv::Value::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(4, 32, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(rmpv::Value::from),
                prop::collection::vec((inner.clone(), inner), 0..20).prop_map(rmpv::Value::Map),
            ]
        })
    }

    fn bytes_of(value: &rmpv::Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn skipping_ends_where_the_value_ends(value in any_value(), after in any::<u8>()) {
            let mut bytes = bytes_of(&value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.skip(), Ok(()));
            prop_assert_eq!(reader.remaining(), 0);
            bytes.pop();
            prop_assert_eq!(Reader::new(&bytes).skip(), Err(Fault::Ends));
            bytes.push(after);
        }

        #[test]
        fn numbers_are_read_as_others_write_them(number in any::<i64>()) {
            let bytes = bytes_of(&number.into());
            prop_assert_eq!(Reader::new(&bytes).int(), Ok(number));
            let mut ours = Vec::new();
            put_int(&mut ours, number);
            let read = rmpv::decode::read_value(&mut &ours[..]).unwrap();
            prop_assert_eq!(read.as_i64(), Some(number));
        }

        #[test]
        fn texts_and_binaries_are_read_as_others_write_them(text in "\\PC{0,400}", bytes in prop::collection::vec(any::<u8>(), 0..70_000)) {
            let theirs = bytes_of(&text.as_str().into());
            prop_assert_eq!(Reader::new(&theirs).str(), Ok(text.as_str()));
            let mut ours = Vec::new();
            put_str(&mut ours, &text);
            prop_assert_eq!(theirs, ours);
            let theirs = bytes_of(&bytes.clone().into());
            prop_assert_eq!(Reader::new(&theirs).bin(), Ok(&bytes[..]));
            let mut ours = Vec::new();
            put_bin(&mut ours, &bytes);
            prop_assert_eq!(theirs, ours);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Reader::new(&bytes).skip();
            let _ = Reader::new(&bytes).int();
            let _ = Reader::new(&bytes).bin();
            let _ = Reader::new(&bytes).map_len();
        }
    }

    #[test]
    fn a_deep_nest_is_skipped_without_recursion() {
        let mut bytes = vec![0x91; 1_000_000];
        bytes.push(NIL);
        assert_eq!(Reader::new(&bytes).skip(), Ok(()));
    }
}
