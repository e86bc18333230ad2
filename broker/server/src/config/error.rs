//! Why a configuration was refused.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A key that does not exist.
    #[error("AB7101 unknown configuration key {key} in {origin}; {}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// As it was written.
        key: String,
        /// Where.
        origin: Origin,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// A value that its key cannot have.
    #[error("AB7102 bad configuration value {value} for {key} in {origin}; expected {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// As it was written.
        value: String,
        /// Where.
        origin: Origin,
        /// What it may be.
        expected: String,
    },
    /// A file that is not TOML.
    #[error("AB7102 {} is not valid TOML: {message}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        message: String,
    },
    /// A file that cannot be read.
    #[error("AB7102 cannot read the configuration file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// An address that others could reach.
    #[error(
        "AB7202 refusing to listen on {address}, which other machines can reach, because there is no authentication yet; \
         listen on 127.0.0.1, or add --insecure-listen (listen.insecure = true) where the network itself keeps strangers out"
    )]
    BeyondLoopback {
        /// The address.
        address: SocketAddr,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("did you mean {name}?"),
        None => "`anabranch config` lists all keys".to_owned(),
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}
