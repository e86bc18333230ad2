//! Ages, sizes and limits as people type them.

use std::time::{SystemTime, UNIX_EPOCH};

use anabranch_protocol::position::From as Place;
use serde_json::{Map, Value};

use super::arguments::RetentionFlags;
use super::failure::Failure;
use crate::config::bytes_in;

/// Seconds of `7d`, `12h`, `30m`, `10s`, `10`.
pub(super) fn seconds_in(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The reverse of [`seconds_in`], in the largest whole unit.
pub(super) fn text(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let whole = |(size, _): &(u64, &str)| seconds >= *size && seconds.is_multiple_of(*size);
    match units.into_iter().find(whole) {
        Some((size, unit)) => format!("{}{unit}", seconds / size),
        None => format!("{seconds}s"),
    }
}

/// Milliseconds since 1970 of an age or a time.
pub(super) fn moment(text: &str) -> Result<u64, Failure> {
    // A bare number is a time, as everywhere; an age has a unit.
    let is_age = text.ends_with(|c: char| c.is_ascii_lowercase());
    if let Some(age) = seconds_in(text).filter(|_| is_age) {
        return Ok(now_ms().saturating_sub(age.saturating_mul(1000)));
    }
    match Place::parse(text) {
        Ok(Place::Time(ms)) => Ok(ms),
        _ => Err(Failure::usage(format!(
            "--before {text:?} is neither an age such as 7d, 12h, 30m or 10s, nor a time such as 2026-01-31T00:00:00Z"
        ))),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// The `retention` of a stream definition, as far as flags say something.
pub(super) fn retention(flags: &RetentionFlags) -> Result<Map<String, Value>, Failure> {
    let mut fields = Map::new();
    if let Some(text) = &flags.max_age {
        let value = limit("--max-age", text, seconds_in, "7d, 12h, 30m, 10s")?;
        fields.insert("max_age_seconds".to_owned(), value);
    }
    if let Some(text) = &flags.max_bytes {
        let value = limit("--max-bytes", text, bytes_in, "10GiB, 500MB")?;
        fields.insert("max_bytes".to_owned(), value);
    }
    if let Some(compact) = flags.compact {
        fields.insert("compact".to_owned(), Value::from(compact));
    }
    Ok(fields)
}

fn limit(
    flag: &str,
    text: &str,
    parse: impl Fn(&str) -> Option<u64>,
    examples: &str,
) -> Result<Value, Failure> {
    if text == "none" {
        return Ok(Value::Null);
    }
    let number = parse(text).ok_or_else(|| {
        Failure::usage(format!(
            "{flag} {text:?} is not understood; use {examples} or none"
        ))
    })?;
    Ok(Value::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        let cases = [
            ("10", Some(10)),
            ("10s", Some(10)),
            ("30m", Some(1_800)),
            ("12h", Some(43_200)),
            ("7d", Some(604_800)),
            ("", None),
            ("d", None),
            ("7y", None),
            ("-7d", None),
            ("99999999999999999d", None),
        ];
        for (typed, expected) in cases {
            assert_eq!(seconds_in(typed), expected, "{typed}");
        }
        assert_eq!(text(604_800), "7d");
        assert_eq!(text(90), "90s");
    }

    #[test]
    fn a_moment_is_an_age_or_a_time() {
        assert_eq!(moment("2013-01-01T00:00:00Z").unwrap(), 1_356_998_400_000);
        assert_eq!(moment("1356998400000").unwrap(), 1_356_998_400_000);
        let hour_ago = now_ms() - moment("1h").unwrap();
        assert!((3_600_000..3_601_000).contains(&hour_ago), "{hour_ago}");
        assert!(moment("yesterday").is_err());
        assert!(moment("latest").is_err());
    }

    #[test]
    fn limits_can_be_lifted() {
        let flags = RetentionFlags {
            max_age: Some("none".to_owned()),
            max_bytes: Some("1KiB".to_owned()),
            compact: None,
        };
        let fields = Value::Object(retention(&flags).unwrap());
        assert_eq!(
            fields.to_string(),
            r#"{"max_age_seconds":null,"max_bytes":1024}"#
        );
    }
}
