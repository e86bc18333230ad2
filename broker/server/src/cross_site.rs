//! Keeps web pages of strangers out of a broker that listens on loopback.
//!
//! A browser lets any page open a WebSocket to `localhost`, and a name that suddenly resolves to
//! 127.0.0.1 (DNS rebinding) opens HTTP to it as well. Both show: the page's origin is not ours,
//! or the host that it asked for is not one of loopback.

use anabranch_protocol::error::{Code, Problem};
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName};

/// Checks a request to a broker that listens on loopback only.
///
/// # Errors
/// When it was made for another host, or by a page of another site.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Problem> {
    let host = text(headers, &HOST);
    if let Some(host) = host
        && !is_loopback(host)
    {
        return refuse(format!(
            "the request is for the host {:?}, but this broker serves its own machine only; use localhost",
            cut(host)
        ));
    }
    match text(headers, &ORIGIN) {
        None => Ok(()),
        Some(origin) if of_loopback(origin) => Ok(()),
        Some(origin) => refuse(format!(
            "pages of {:?} may not use this broker, which serves its own machine only",
            cut(origin)
        )),
    }
}

fn refuse(what: String) -> Result<(), Problem> {
    Err(Problem::new(Code::Foreign, what))
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    // What is not text is not one of ours either.
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn of_loopback(origin: &str) -> bool {
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_some_and(is_loopback)
}

fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        check(&headers).is_ok()
    }

    #[test]
    fn pages_and_names_of_strangers_are_refused() {
        assert!(checked("127.0.0.1:7070", None));
        assert!(checked("[::1]:7070", Some("http://localhost:3000")));
        assert!(checked("LOCALHOST", Some("http://127.0.0.1")));
        assert!(!checked("evil.example", None));
        assert!(!checked("127.0.0.1.evil.example:7070", None));
        assert!(!checked("localhost:7070", Some("http://evil.example")));
        assert!(!checked(
            "localhost:7070",
            Some("http://localhost.evil.example")
        ));
        assert!(!checked("localhost:7070", Some("null")));
    }
}
