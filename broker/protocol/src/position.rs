//! Where a subscription or a read starts.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where to start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum From {
    /// With the oldest record that is kept.
    Earliest,
    /// With what comes from now on.
    #[default]
    Latest,
    /// With the rows of the table, then what changes.
    Table,
    /// With the first record appended at or after this time, in milliseconds since 1970.
    Time(u64),
    /// After what this cursor has seen. The text is checked by the broker that reads it.
    Cursor(String),
}

/// A text that names no place to start from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot start from {0:?}; use earliest, latest, table, milliseconds since 1970, a time such as 2013-01-01T06:00:00Z, or a cursor"
)]
pub struct BadFrom(String);

impl From {
    /// Reads `earliest`, `latest`, `table`, milliseconds, RFC 3339 or a cursor.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn parse(text: &str) -> Result<Self, BadFrom> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            "table" => return Ok(Self::Table),
            _ => {}
        }
        let bad = || BadFrom(text.chars().take(80).collect());
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Time).map_err(|_| bad());
        }
        if let Some(millis) = parse_rfc3339(text) {
            return Ok(Self::Time(millis));
        }
        if looks_like_a_cursor(text) {
            return Ok(Self::Cursor(text.to_owned()));
        }
        Err(bad())
    }

    /// Starts at this time; times before 1970 count as 1970.
    #[must_use]
    pub fn time(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Table => f.write_str("table"),
            Self::Time(millis) => write!(f, "{millis}"),
            Self::Cursor(cursor) => f.write_str(cursor),
        }
    }
}

impl std::str::FromStr for From {
    type Err = BadFrom;

    fn from_str(text: &str) -> Result<Self, BadFrom> {
        Self::parse(text)
    }
}

/// Cursors are URL-safe base64 of bytes that begin with a `c`. Looking at the first letter turns
/// a misspelt `earliest` into an error that says what is possible.
fn looks_like_a_cursor(text: &str) -> bool {
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    text.len() >= 8 && text.starts_with('Y') && text.bytes().all(alphabet)
}

/// Milliseconds since 1970 of an RFC 3339 time, from 1970 to 9999. A leap second counts as the
/// second after it.
fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let (millis, rest) = parse_fraction(rest)?;
    let offset_minutes = parse_zone(rest)?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range {
        return None;
    }
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
    u64::try_from((minutes * 60 + second) * 1000 + millis).ok()
}

fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<[i64; 3]> {
    let mut fields = text.split(separator);
    let mut numbers = [0; 3];
    for (number, width) in numbers.iter_mut().zip(widths) {
        *number = digits(fields.next()?, width)?;
    }
    fields.next().is_none().then_some(numbers)
}

fn digits(text: &str, width: usize) -> Option<i64> {
    let all = text.len() == width && text.bytes().all(|b| b.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

/// The milliseconds of an optional `.123…`, and what follows.
fn parse_fraction(text: &str) -> Option<(i64, &str)> {
    let Some(rest) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let end = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (fraction, rest) = rest.split_at(end);
    if fraction.is_empty() {
        return None;
    }
    let millis = format!("{fraction:0<3}");
    Some((millis.get(..3)?.parse().ok()?, rest))
}

/// Minutes that the zone is ahead of UTC.
fn parse_zone(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil`, for years from 0.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_kind_of_place_is_recognised() {
        let cursor = "YwECAwQAAA".to_owned();
        for (text, expected) in [
            ("earliest", From::Earliest),
            ("latest", From::Latest),
            ("table", From::Table),
            ("1357020000000", From::Time(1_357_020_000_000)),
            ("2013-01-01T06:00:00Z", From::Time(1_357_020_000_000)),
            ("2013-01-01T01:00:00.5-05:00", From::Time(1_357_020_000_500)),
            ("2024-02-29T00:00:00.1239Z", From::Time(1_709_164_800_123)),
            ("1970-01-01t00:00:00z", From::Time(0)),
            ("2016-12-31T23:59:60Z", From::Time(1_483_228_800_000)),
            (&cursor, From::Cursor(cursor.clone())),
        ] {
            assert_eq!(From::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "earlist",
            "-5",
            "99999999999999999999999",
            "2013-01-01",
            "2013-02-29T00:00:00Z",
            "2013-13-01T00:00:00Z",
            "2013-01-01T24:00:00Z",
            "2013-01-01T00:00:00",
            "2013-01-01T00:00:00.Z",
            "2013-01-01T00:00:00+5:00",
            "1969-12-31T23:59:59Z",
            "Y w E C A w",
            "2013-01-01T00:0\u{e9}:00Z",
        ] {
            assert!(From::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = From::parse(&text);
        }

        #[test]
        fn what_is_shown_reads_back(millis in any::<u64>()) {
            let from = From::Time(millis);
            prop_assert_eq!(From::parse(&from.to_string()), Ok(from));
        }
    }
}
