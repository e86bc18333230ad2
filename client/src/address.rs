//! Where a broker is.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The port of a broker.
pub const DEFAULT_PORT: u16 = 7070;

/// A broker's host and port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Host and port, as they stand in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Reads `http://HOST:PORT`, `ws://HOST:PORT` or `HOST:PORT`; a path after it is ignored.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Address(text.chars().take(200).collect());
        let rest = ["http://", "ws://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .unwrap_or(text);
        if rest.contains("://") {
            return Err(bad());
        }
        let authority = rest.split('/').next().unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            // An IPv6 address has colons of its own, within brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (authority, DEFAULT_PORT),
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:%".contains(&b);
        let bare_colon = host.contains(':') && !host.starts_with('[');
        if host.is_empty() || bare_colon || !host.bytes().all(allowed) {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        let read = |text: &str| text.parse::<Address>().map(|a| a.to_string());
        for (text, expected) in [
            ("http://127.0.0.1:7070", "127.0.0.1:7070"),
            ("ws://localhost:81/v1/ws", "localhost:81"),
            ("broker", "broker:7070"),
            ("[::1]:90", "[::1]:90"),
            ("http://[::1]", "[::1]:7070"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "https://x",
            "::1",
            "a b",
            "x:port",
            "x:70000",
            "http://",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
