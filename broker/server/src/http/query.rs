//! The query of a request, read strictly: a parameter that a route does not have is an error, since
//! a misspelt one would otherwise be passed over in silence.

use std::borrow::Cow;
use std::time::Duration;

use anabranch_protocol::error::Code;
use http::Uri;
use percent_encoding::percent_decode;

use super::refusal::Refusal;

/// The parameters of one request. Values are bytes, since keys are.
#[derive(Debug, Default)]
pub(super) struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, [u8]>)>,
}

/// Most parameters that one request may have: 1000 keys of a multi-row read, and some.
const MAX_PARAMETERS: usize = 1_024;

impl<'a> Query<'a> {
    /// Reads the query of a route that has the given parameters.
    pub(super) fn read(uri: &'a Uri, known: &[&str]) -> Result<Self, Refusal> {
        let mut query = Self::default();
        for pair in uri.query().unwrap_or_default().split('&') {
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8_lossy(&decode(name)).into_owned();
            if !known.contains(&name.as_str()) {
                return Err(unknown(&name, known));
            }
            if query.pairs.len() == MAX_PARAMETERS {
                return Err(bad(format!(
                    "more than {MAX_PARAMETERS} query parameters; split the request"
                )));
            }
            query.pairs.push((Cow::Owned(name), decode(value)));
        }
        Ok(query)
    }

    /// All values of a parameter that may be given several times.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.pairs
            .iter()
            .filter(move |(held, _)| held == name)
            .map(|(_, value)| &value[..])
    }

    /// The value of a parameter that may be given once.
    pub(super) fn one(&self, name: &str) -> Result<Option<&[u8]>, Refusal> {
        let mut values = self.all(name);
        let value = values.next();
        match values.next() {
            None => Ok(value),
            Some(_) => Err(bad(format!("{name} is given more than once"))),
        }
    }

    /// The same, as text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.one(name)?.map(std::str::from_utf8) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(bad(format!("{name} is not UTF-8"))),
        }
    }

    /// A count from 1 to `most`.
    pub(super) fn count(&self, name: &str, most: usize) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(count) if (1..=most).contains(&count) => Ok(Some(count)),
            _ => Err(bad(format!(
                "{name}={}: must be a whole number from 1 to {most}",
                cut(text)
            ))),
        }
    }

    /// Seconds, with or without a fraction, not negative.
    pub(super) fn seconds(&self, name: &str) -> Result<Option<Duration>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse().map(Duration::try_from_secs_f64) {
            Ok(Ok(duration)) => Ok(Some(duration)),
            _ => Err(bad(format!(
                "{name}={}: must be seconds, such as 10 or 0.5",
                cut(text)
            ))),
        }
    }
}

/// Percent-decoded; a plus is a space, as browsers and curl encode it in queries.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded: Vec<u8> = percent_decode(spaced.as_bytes()).collect();
        return Cow::Owned(decoded);
    }
    percent_decode(text.as_bytes()).into()
}

fn unknown(name: &str, known: &[&str]) -> Refusal {
    let takes = match known {
        [] => "this route takes no parameters".to_owned(),
        known => format!("this route takes {}", known.join(", ")),
    };
    bad(format!("unknown query parameter {:?}; {takes}", cut(name)))
}

pub(super) fn bad(detail: String) -> Refusal {
    Refusal::new(Code::BadParameter, detail)
}

/// What is shown of a value that came from outside.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(uri: &'a Uri, known: &[&str]) -> Result<Query<'a>, String> {
        Query::read(uri, known).map_err(|refusal| refusal.into_problem().to_string())
    }

    #[test]
    fn values_are_percent_decoded_bytes() {
        let uri: Uri = "/?prefix=a%2Fb+c%ff&key=1&key=2&empty".parse().unwrap();
        let query = read(&uri, &["prefix", "key", "empty"]).unwrap();
        assert_eq!(query.one("prefix").unwrap(), Some(&b"a/b c\xff"[..]));
        assert_eq!(query.all("key").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(query.one("empty").unwrap(), Some(&b""[..]));
        assert!(query.one("key").is_err() && query.text("prefix").is_err());
    }

    #[test]
    fn unknown_parameters_are_refused_with_those_there_are() {
        let uri: Uri = "/?form=earliest".parse().unwrap();
        let error = read(&uri, &["from", "limit"]).unwrap_err();
        assert_eq!(
            error,
            "AB1007 unknown query parameter \"form\"; this route takes from, limit"
        );
    }

    #[test]
    fn numbers_are_bounded() {
        let uri: Uri = "/?a=0&b=11&c=x&d=10&e=0.5&f=-1&g=inf".parse().unwrap();
        let query = read(&uri, &["a", "b", "c", "d", "e", "f", "g"]).unwrap();
        for wrong in ["a", "b", "c"] {
            assert!(query.count(wrong, 10).is_err(), "{wrong}");
        }
        assert_eq!(query.count("d", 10).unwrap(), Some(10));
        assert_eq!(
            query.seconds("e").unwrap(),
            Some(Duration::from_millis(500))
        );
        assert!(query.seconds("f").is_err() && query.seconds("g").is_err());
    }
}
