//! What a read must include: `Anabranch-Token`, and how long it may wait: `Prefer: wait=SECONDS`.

use std::time::Duration;

use anabranch_protocol::error::Code;
use http::{HeaderMap, HeaderName};

use super::answer::TOKEN;
use super::query::{bad, cut};
use super::refusal::Refusal;
use crate::config::Limits;
use crate::node::{ReadAt, Running};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Reads both headers.
pub(super) fn read_at(
    headers: &HeaderMap,
    running: &Running,
    limits: &Limits,
) -> Result<ReadAt, Refusal> {
    let Some(token) = headers.get(TOKEN) else {
        return Ok(ReadAt::Latest);
    };
    let text = token.to_str().map_err(|_| {
        Refusal::new(
            Code::BadCursor,
            "the header Anabranch-Token is not a token; pass on unchanged what the broker sent",
        )
    })?;
    let budget = wait(headers)?.unwrap_or(limits.token_wait_seconds);
    Ok(ReadAt::After {
        token: running.token(text)?,
        budget: budget.min(limits.longest_wait_seconds),
    })
}

/// `wait` among the preferences of RFC 7240.
pub(super) fn wait(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let values = headers.get_all(PREFER).iter();
    let preferences = values
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    for preference in preferences {
        let preference = preference.split(';').next().unwrap_or_default();
        let Some((name, value)) = preference.split_once('=') else {
            continue;
        };
        if !name.trim().eq_ignore_ascii_case("wait") {
            continue;
        }
        let value = value.trim().trim_matches('"');
        return match value.parse() {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
            Err(_) => Err(bad(format!(
                "Prefer: wait={}: must be whole seconds",
                cut(value)
            ))),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_found_among_other_preferences() {
        for (text, expected) in [
            ("wait=3", Some(Some(3))),
            ("respond-async, Wait = \"12\"; x=1", Some(Some(12))),
            ("return=minimal", Some(None)),
            ("wait=soon", None),
            ("wait=-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(PREFER, text.parse().unwrap());
            let expected = expected.map(|wait: Option<u64>| wait.map(Duration::from_secs));
            assert_eq!(wait(&headers).ok(), expected, "{text}");
        }
    }
}
