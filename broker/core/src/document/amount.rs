//! Exact amounts: what numbers add up to.
//!
//! Integers and fixed decimals. Sums of floats depend on their order, so a number with an exponent
//! does not count.

use std::ops::Add;

use super::form::{INTEGER, NUMBER, put_bytes};
use crate::limits::MAX_AMOUNT_SCALE;
use crate::wire::{Malformed, Reader, put_zigzag};

/// Bits of a mantissa. Sums beyond wrap around, everywhere alike.
const BITS: u32 = 120;

/// Digits of the largest number that counts. Whatever a sum may come to has to count again, since
/// it becomes a plain number once it is stable.
const MAX_DIGITS: usize = 36;

/// A decimal number: `mantissa` / 10^`scale`, with the least scale that shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amount {
    mantissa: i128,
    scale: u8,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self {
        mantissa: 0,
        scale: 0,
    };

    fn new(mantissa: i128, scale: u8) -> Self {
        // Wrapping before and after the zeros are cut would differ.
        let mut amount = Self { mantissa, scale };
        while amount.scale > 0 && amount.mantissa % 10 == 0 {
            amount.mantissa /= 10;
            amount.scale -= 1;
        }
        amount
    }

    /// Reads a JSON number that counts: no exponent, at most [`MAX_AMOUNT_SCALE`] digits behind the
    /// point, and without the point between -2^119 and 2^119.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let scale = u8::try_from(fraction.len()).ok()?;
        if whole.is_empty() || whole.len() + fraction.len() > MAX_DIGITS || scale > MAX_AMOUNT_SCALE
        {
            return None;
        }
        if !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let digit = |sum: i128, byte: u8| 10 * sum + i128::from(byte - b'0');
        let mantissa = whole.bytes().chain(fraction.bytes()).fold(0, digit);
        let sign = if text.starts_with('-') { -1 } else { 1 };
        let mantissa = sign * mantissa;
        (wrap(mantissa) == mantissa).then(|| Self::new(mantissa, scale))
    }

    /// Whether it may be added at once: as many digits as an `i64` has. So it takes tens of thousands of
    /// increments, all of the largest kind, until a sum wraps around.
    #[must_use]
    pub fn is_step(self) -> bool {
        i64::try_from(self.mantissa).is_ok()
    }

    /// The number as JSON.
    #[must_use]
    pub fn to_text(self) -> String {
        if self.scale == 0 {
            return self.mantissa.to_string();
        }
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let one = 10_u128.pow(u32::from(self.scale));
        let units = self.mantissa.unsigned_abs();
        let width = usize::from(self.scale);
        format!("{sign}{}.{:0width$}", units / one, units % one)
    }

    /// Reads the payload of an integer or a number.
    pub(super) fn of_payload(kind: u8, payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        match kind {
            INTEGER => Some(Self::from(reader.zigzag().ok()?)),
            NUMBER => Self::parse(super::form::read_text(&mut reader).ok()?),
            _ => None,
        }
    }

    /// Kind and payload of the plain value.
    pub(super) fn to_payload(self) -> (u8, Vec<u8>) {
        let mut payload = Vec::new();
        let text = self.to_text();
        if let Ok(integer) = text.parse() {
            put_zigzag(&mut payload, integer);
            return (INTEGER, payload);
        }
        put_bytes(&mut payload, text.as_bytes());
        (NUMBER, payload)
    }

    /// Appends the binary form: a varint of the mantissa, zigzag, and one bit that says whether a
    /// scale follows.
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        let zigzag = ((self.mantissa << 1) ^ (self.mantissa >> 127)).cast_unsigned();
        let mut rest = (zigzag << 1) | u128::from(self.scale > 0);
        while rest >= 0x80 {
            out.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        out.push(rest.to_le_bytes()[0]);
        if self.scale > 0 {
            out.push(self.scale);
        }
    }

    /// Reads the binary form.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (mut raw, mut last, mut length) = (0_u128, 0x80, 0);
        for shift in (0..126).step_by(7) {
            last = reader.u8()?;
            length += 1;
            raw |= u128::from(last & 0x7f) << shift;
            if last < 0x80 {
                break;
            }
        }
        // Longer than it need be, or longer than any is.
        let is_longer = last == 0 && length > 1;
        if last >= 0x80 || is_longer || raw >> (BITS + 1) != 0 {
            return Err(Malformed);
        }
        let zigzag = raw >> 1;
        let mantissa = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
        let scale = if raw & 1 == 1 { reader.u8()? } else { 0 };
        let amount = Self::new(mantissa, scale);
        let canonical = amount.scale == scale && (raw & 1 == 1) == (scale > 0);
        match canonical && scale <= MAX_AMOUNT_SCALE {
            true => Ok(amount),
            false => Err(Malformed),
        }
    }

    fn at_scale(self, scale: u8) -> i128 {
        let times = 10_i128.pow(u32::from(scale - self.scale));
        self.mantissa.wrapping_mul(times)
    }
}

impl From<i64> for Amount {
    fn from(integer: i64) -> Self {
        Self {
            mantissa: i128::from(integer),
            scale: 0,
        }
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let scale = self.scale.max(other.scale);
        let sum = self.at_scale(scale).wrapping_add(other.at_scale(scale));
        Self::new(wrap(sum), scale)
    }
}

/// The lowest [`BITS`] bits, as a number of either sign.
fn wrap(mantissa: i128) -> i128 {
    let spare = i128::BITS - BITS;
    (mantissa << spare) >> spare
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decimals_add_up_exactly() {
        let sum = |numbers: &[&str]| {
            let amounts = numbers.iter().map(|n| Amount::parse(n).unwrap());
            amounts.fold(Amount::ZERO, Amount::add).to_text()
        };
        assert_eq!(sum(&["0.1", "0.2"]), "0.3");
        assert_eq!(sum(&["1.50", "0.5"]), "2");
        assert_eq!(sum(&["-0.05", "0.04"]), "-0.01");
        assert_eq!(sum(&["9223372036854775807", "1"]), "9223372036854775808");
    }

    #[test]
    fn what_is_not_exact_does_not_count() {
        let longest = "9".repeat(MAX_DIGITS + 1);
        for text in [
            "1e3",
            "1E3",
            "0.0000000000001",
            "",
            "-",
            ".5",
            "x",
            &longest,
        ] {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
        assert_eq!(Amount::parse(&longest[1..]), None, "beyond 2^119");
        assert!(Amount::parse(&longest[2..]).is_some());
    }

    #[test]
    fn nothing_has_one_form() {
        for longer in [&[0x80, 0][..], &[0x80, 0x80, 0], &[1, 0]] {
            assert_eq!(Amount::read(&mut Reader::new(longer)), Err(Malformed));
        }
        assert_eq!(Amount::read(&mut Reader::new(&[0])), Ok(Amount::ZERO));
    }

    proptest! {
        #[test]
        fn an_amount_reads_back(mantissa in -(1_i128 << 118)..1_i128 << 118, scale in 0..=MAX_AMOUNT_SCALE) {
            let amount = Amount::new(mantissa, scale);
            let mut bytes = Vec::new();
            amount.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Amount::read(&mut reader), Ok(amount));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn bytes_that_read_are_the_bytes_that_are_written(bytes in prop::collection::vec(any::<u8>(), 0..22)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(amount) = Amount::read(&mut reader) {
                let mut again = Vec::new();
                amount.encode(&mut again);
                prop_assert_eq!(again, &bytes[..bytes.len() - reader.remaining()]);
            }
        }

        #[test]
        fn sums_do_not_depend_on_their_order(
            a in any::<i64>(), b in -1_000_000_i128..1_000_000, c in any::<i64>(),
            scale in 0..=MAX_AMOUNT_SCALE,
        ) {
            let (a, b, c) = (Amount::from(a), Amount::new(b, scale), Amount::from(c));
            prop_assert_eq!((a + b) + c, a + (c + b));
        }
    }
}
