//! The types of values, each with how it is read and written.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anabranch_core::id::RegionName;
use toml::Value;

/// 1024 bytes.
pub(crate) const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub(crate) const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub(crate) const GIB: u64 = 1 << 30;

/// What a value should have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotAllowed(pub(crate) String);

/// A type that a key may have.
///
/// Environment variables and flags arrive as strings; so every type reads itself from a string,
/// and from whatever else TOML has for it.
pub(crate) trait Setting: Sized {
    /// What its values look like, for the reference and for error messages.
    const FORM: &'static str;

    /// Reads a value.
    fn parse(value: &Value) -> Option<Self>;

    /// Writes a value as a file would have it.
    fn write(&self) -> Value;

    /// What [`Bound`] compares: bytes, seconds or pieces.
    fn magnitude(&self) -> Option<u64> {
        None
    }

    /// Reads a value, or says what it should have been.
    fn read(value: &Value) -> Result<Self, NotAllowed> {
        Self::parse(value).ok_or_else(|| NotAllowed(Self::FORM.to_owned()))
    }
}

/// Smallest and largest allowed magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    low: u64,
    high: u64,
}

impl Bound {
    /// No bound but the type's.
    pub(crate) const ANY: Self = Self::of(0, u64::MAX);

    /// Both ends included.
    pub(crate) const fn of(low: u64, high: u64) -> Self {
        Self { low, high }
    }

    /// The value, when it is within.
    pub(crate) fn check<T: Setting>(self, value: T) -> Result<T, NotAllowed> {
        match value.magnitude() {
            Some(size) if size < self.low || size > self.high => {
                Err(NotAllowed(format!("{}, {}", T::FORM, self.describe::<T>())))
            }
            _ => Ok(value),
        }
    }

    /// `"1 MiB" to "4 GiB"`, in words.
    fn describe<T: Setting>(self) -> String {
        format!("from {}", self.in_words(T::FORM))
    }

    /// The two ends as a reader of the reference wants them; empty when there are none.
    pub(crate) fn in_words(self, form: &str) -> String {
        if self == Self::ANY {
            return String::new();
        }
        let end = |n: u64| match form {
            ByteSize::FORM => ByteSize::new(n).to_string(),
            _ => n.to_string(),
        };
        format!("{} to {}", end(self.low), end(self.high))
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

impl Setting for String {
    const FORM: &'static str = "text";

    fn parse(value: &Value) -> Option<Self> {
        text(value).map(str::to_owned)
    }

    fn write(&self) -> Value {
        Value::from(self.as_str())
    }
}

/// Where another broker listens. The name is looked up with each dial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HostPort(String);

impl HostPort {
    fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let is_bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        let is_url = host.contains('/');
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        let is_one = !host.is_empty() && !is_bare_ipv6 && !is_url && is_port;
        is_one.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for Vec<HostPort> {
    const FORM: &'static str =
        "HOST:PORT of each (separated by commas in a variable or flag), for example 10.0.0.2:7071";

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Array(items) => items
                .iter()
                .map(|item| HostPort::read(text(item)?))
                .collect(),
            Value::String(list) => {
                let items = list.split(',').map(str::trim);
                items
                    .filter(|item| !item.is_empty())
                    .map(HostPort::read)
                    .collect()
            }
            _ => None,
        }
    }

    fn write(&self) -> Value {
        Value::Array(self.iter().map(|peer| Value::from(peer.as_str())).collect())
    }
}

impl Setting for bool {
    const FORM: &'static str = "true or false";

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Boolean(flag) => Some(*flag),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn write(&self) -> Value {
        Value::Boolean(*self)
    }
}

impl Setting for usize {
    const FORM: &'static str = "a whole number";

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(number) => Self::try_from(*number).ok(),
            Value::String(text) => text.replace('_', "").parse().ok(),
            _ => None,
        }
    }

    fn write(&self) -> Value {
        Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
    }

    fn magnitude(&self) -> Option<u64> {
        u64::try_from(*self).ok()
    }
}

impl Setting for PathBuf {
    const FORM: &'static str = "a path";

    fn parse(value: &Value) -> Option<Self> {
        text(value).filter(|path| !path.is_empty()).map(Self::from)
    }

    fn write(&self) -> Value {
        Value::from(self.to_string_lossy().as_ref())
    }
}

impl Setting for SocketAddr {
    const FORM: &'static str = "ADDRESS:PORT, for example 127.0.0.1:7070 or [::1]:7070";

    fn parse(value: &Value) -> Option<Self> {
        let text = text(value)?;
        match text.strip_prefix("localhost:") {
            Some(port) => Some(Self::from(([127, 0, 0, 1], port.parse().ok()?))),
            None => text.parse().ok(),
        }
    }

    fn write(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// Where other brokers connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PeerListen {
    /// At the usual address, where peers are named; else nowhere.
    Auto,
    /// Here.
    At(SocketAddr),
}

impl PeerListen {
    /// The address, if there is one to listen at.
    pub(crate) fn address(self, has_peers: bool) -> Option<SocketAddr> {
        match self {
            Self::At(address) => Some(address),
            Self::Auto => has_peers.then_some(SocketAddr::from(([127, 0, 0, 1], 7071))),
        }
    }
}

impl Setting for PeerListen {
    const FORM: &'static str = "\"auto\", or ADDRESS:PORT, for example 127.0.0.1:7071";

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text == "auto" => Some(Self::Auto),
            other => SocketAddr::parse(other).map(Self::At),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Auto => Value::from("auto"),
            Self::At(address) => address.write(),
        }
    }
}

impl Setting for Duration {
    const FORM: &'static str = "a number of seconds";

    fn parse(value: &Value) -> Option<Self> {
        let seconds = match value {
            Value::Integer(number) => return u64::try_from(*number).ok().map(Self::from_secs),
            Value::Float(number) => *number,
            Value::String(text) => text.strip_suffix('s').unwrap_or(text).parse().ok()?,
            _ => return None,
        };
        Self::try_from_secs_f64(seconds).ok()
    }

    fn write(&self) -> Value {
        if self.subsec_nanos() == 0 {
            Value::Integer(i64::try_from(self.as_secs()).unwrap_or(i64::MAX))
        } else {
            Value::Float(self.as_secs_f64())
        }
    }

    fn magnitude(&self) -> Option<u64> {
        // Rounded up, so that a fraction of a second counts as one.
        Some(self.as_secs() + u64::from(self.subsec_nanos() > 0))
    }
}

impl Setting for RegionName {
    const FORM: &'static str = "1 to 63 lower-case letters, digits and dashes";

    fn parse(value: &Value) -> Option<Self> {
        Self::parse(text(value)?).ok()
    }

    fn write(&self) -> Value {
        Value::from(self.as_str())
    }
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ByteSize(u64);

impl ByteSize {
    /// Wraps a number.
    pub(crate) const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number.
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// The number to one decimal, as people say it.
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    pub(crate) fn rounded(self) -> String {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit {
                return format!("{:.1} {name}", self.0 as f64 / unit as f64);
            }
        }
        format!("{} B", self.0)
    }

    /// The number, as what measures memory.
    pub(crate) fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{} {name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Setting for ByteSize {
    const FORM: &'static str = "a number of bytes, or text such as \"64 MiB\"";

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(number) => u64::try_from(*number).ok().map(Self),
            Value::String(text) => bytes_in(text).map(Self),
            _ => None,
        }
    }

    fn write(&self) -> Value {
        match i64::try_from(self.0) {
            Ok(number) if self.0 < KIB || !self.0.is_multiple_of(KIB) => Value::Integer(number),
            _ => Value::from(self.to_string()),
        }
    }

    fn magnitude(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// Reads `512`, `64 MiB`, `1GB`.
pub(crate) fn bytes_in(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number: u64 = number.replace('_', "").parse().ok()?;
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => KIB,
        "MiB" | "M" => MIB,
        "GiB" | "G" => GIB,
        "TiB" | "T" => 1024 * GIB,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// How much disk is kept free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reserve {
    /// 5 % of the disk, at most 1 GiB.
    Auto,
    /// So many bytes.
    Bytes(ByteSize),
}

impl Reserve {
    /// The reserve on a disk of this size.
    pub(crate) fn on_disk_of(self, total: u64) -> u64 {
        match self {
            Self::Auto => (total / 20).min(GIB),
            Self::Bytes(size) => size.get(),
        }
    }
}

impl Setting for Reserve {
    const FORM: &'static str = "\"auto\", a number of bytes, or text such as \"5 GiB\"";

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text == "auto" => Some(Self::Auto),
            other => ByteSize::parse(other).map(Self::Bytes),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Auto => Value::from("auto"),
            Self::Bytes(size) => size.write(),
        }
    }
}

/// A cluster's name: 1 to 63 characters without spaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClusterName {
    fn default() -> Self {
        Self("anabranch".to_owned())
    }
}

impl Setting for ClusterName {
    const FORM: &'static str = "1 to 63 letters, digits, dots, underscores and dashes";

    fn parse(value: &Value) -> Option<Self> {
        let name = text(value)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let fits = (1..=63).contains(&name.len()) && name.bytes().all(allowed);
        fits.then(|| Self(name.to_owned()))
    }

    fn write(&self) -> Value {
        Value::from(self.0.as_str())
    }
}

/// Which log lines are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    /// The directives.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl Setting for LogFilter {
    const FORM: &'static str =
        "error, warn, info, debug, trace, or directives such as info,anabranch=debug";

    fn parse(value: &Value) -> Option<Self> {
        let directives = text(value).filter(|directives| !directives.is_empty())?;
        // A word alone would be taken for a module's name, and silence all others.
        let mut words = directives.split(',').map(str::trim);
        let known = |word: &str| {
            word.contains('=') || word.parse::<tracing::level_filters::LevelFilter>().is_ok()
        };
        words.all(known).then_some(())?;
        tracing_subscriber::EnvFilter::try_new(directives).ok()?;
        Some(Self(directives.to_owned()))
    }

    fn write(&self) -> Value {
        Value::from(self.0.as_str())
    }
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Setting for LogFormat {
    const FORM: &'static str = "text or json";

    fn parse(value: &Value) -> Option<Self> {
        match text(value)? {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    fn write(&self) -> Value {
        Value::from(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_read_units_and_write_the_largest_whole_one() {
        let cases = [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64 MiB", Some(64 * MIB)),
            ("1GB", Some(1_000_000_000)),
            ("1_000", Some(1_000)),
            ("-1", None),
            ("1.5 GiB", None),
            ("MiB", None),
            ("99999999999 TiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes_in(text), expected, "{text}");
        }
        assert_eq!(ByteSize::new(3 * MIB).to_string(), "3 MiB");
        assert_eq!(ByteSize::new(1536 * KIB).to_string(), "1536 KiB");
        assert_eq!(ByteSize::new(1001).to_string(), "1001");
    }

    #[test]
    fn the_automatic_reserve_is_small_on_small_disks() {
        assert_eq!(Reserve::Auto.on_disk_of(100 * MIB), 5 * MIB);
        assert_eq!(Reserve::Auto.on_disk_of(1000 * GIB), GIB);
    }

    #[test]
    fn a_fraction_of_a_second_counts_as_one() {
        let half = Duration::parse(&Value::Float(0.5)).unwrap();
        assert_eq!(half.magnitude(), Some(1));
        assert_eq!(
            Duration::parse(&Value::from("90s")),
            Some(Duration::from_secs(90))
        );
        assert_eq!(Duration::parse(&Value::Integer(-1)), None);
    }
}
