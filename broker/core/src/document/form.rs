//! What the binary forms of this module share: heads, lengths, keys.
//!
//! A value is a head, perhaps a name or a mark, and a payload. A plain value, as it travels in an
//! operation, has neither name nor mark, and only the first eight kinds:
//!
//! ```text
//! head         bits 0-3: kind, bit 4: a name follows, bit 5: a mark follows
//! [name]       who a container is, where it is not the one around it
//! [mark]       which operation wrote it, until that is stable
//!
//! kind              payload
//!  0 null           -
//!  1 false          -
//!  2 true           -
//!  3 integer        zigzag varint, 64 bit
//!  4 number         any other number: length, text as written
//!  5 string         length, UTF-8
//!  6 object         length, then fields in order of their keys: key length, key, value
//!  7 array          length, then elements
//!  8 implicit       an object that a path brought into being; see below
//!  9 sequence       length, length of the elements, elements, then operations that are not folded in
//! 10 count          a number with increments that are not folded in; see below
//! 11 cell           length, then two or more values of which the one with the greatest stamp shows
//! 12 set            like an implicit object; its keys are values, and what is in its fields is null
//! ```
//!
//! An implicit object without a flag is there for good; with bit 5 there is one mark in front of
//! length and fields, with bit 4 a count of marks and the marks. A count with bit 5 is a mark, an
//! amount, and the amount folded in; without, a count of pairs of mark and amount, and the amount
//! folded in.

use crate::wire::{Malformed, Reader, put_varint, varint_len};

pub(super) const NULL: u8 = 0;
pub(super) const FALSE: u8 = 1;
pub(super) const TRUE: u8 = 2;
pub(super) const INTEGER: u8 = 3;
pub(super) const NUMBER: u8 = 4;
pub(super) const STRING: u8 = 5;
pub(super) const OBJECT: u8 = 6;
pub(super) const ARRAY: u8 = 7;
pub(super) const IMPLICIT: u8 = 8;
pub(super) const SEQUENCE: u8 = 9;
pub(super) const COUNT: u8 = 10;
pub(super) const CELL: u8 = 11;
pub(super) const SET: u8 = 12;

/// The bits of a head that say what kind of value it is.
pub(super) const KIND: u8 = 0x0f;
/// A name follows the head.
pub(super) const NAMED: u8 = 0x10;
/// A mark follows the head.
pub(super) const MARKED: u8 = 0x20;

/// A length and as many bytes.
pub(super) fn read_bytes<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let length = reader.shortest_varint()?;
    reader.take(usize::try_from(length).map_err(|_| Malformed)?)
}

/// A length and as many bytes of UTF-8.
pub(super) fn read_text<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    std::str::from_utf8(read_bytes(reader)?).map_err(|_| Malformed)
}

/// What of `from`, where the reader was before, has been read since.
pub(super) fn since<'a>(from: &'a [u8], reader: &Reader<'a>) -> &'a [u8] {
    &from[..from.len() - reader.remaining()]
}

/// Appends a length and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends what `write` appends, with its length in front. Most of what is written is short, so
/// moving what is not is cheaper than finding out its length first.
pub(super) fn put_framed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.push(0);
    write(out);
    close_frame(out, at);
}

/// Puts a length into the place of the one byte at `at`, for everything behind it.
pub(super) fn close_frame(out: &mut Vec<u8>, at: usize) {
    let length = out.len() - at - 1;
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out[at] = short;
        return;
    }
    let more = varint_len(length as u64) - 1;
    let end = out.len();
    out.resize(end + more, 0);
    out.copy_within(at + 1..end, at + 1 + more);
    let mut place = &mut out[at..=at + more];
    put_varint(&mut place, length as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back_at_every_width_of_its_length() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 70_000] {
            let mut out = vec![9];
            put_framed(&mut out, |out| out.resize(out.len() + length, 7));
            out.push(8);
            let mut reader = Reader::new(&out[1..]);
            assert_eq!(read_bytes(&mut reader), Ok(&vec![7; length][..]));
            assert_eq!(reader.rest(), [8]);
        }
    }
}
