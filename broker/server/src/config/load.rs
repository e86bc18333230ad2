//! The layers: defaults, then the file, then the environment, then flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, Origin};
use super::keys::{Config, KEYS, Key, SECTIONS};

/// A key that a flag sets.
#[derive(Debug, Clone)]
pub(crate) struct Flag {
    /// The flag, for messages.
    pub(crate) flag: &'static str,
    /// The key.
    pub(crate) key: String,
    /// Its value.
    pub(crate) value: Value,
}

impl Flag {
    /// A flag that sets this key.
    pub(crate) fn new(flag: &'static str, key: &str, value: impl Into<Value>) -> Self {
        Self {
            flag,
            key: key.to_owned(),
            value: value.into(),
        }
    }
}

/// All that a configuration is made of.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The file that was named, if one was.
    pub(crate) file: Option<PathBuf>,
    /// All environment variables; those that begin with `ANABRANCH_` count.
    pub(crate) environment: Vec<(String, String)>,
    /// Flags, in order: the last one wins.
    pub(crate) flags: Vec<Flag>,
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The configuration.
    pub(crate) config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

/// Variables that begin like a key and belong to something else.
const OTHER_VARIABLES: &[&str] = &["ANABRANCH_SERVER", "ANABRANCH_CONFIG"];

/// Kubernetes sets these in every container of a namespace that has a service named `anabranch`.
const KUBERNETES_VARIABLES: &[&str] = &["ANABRANCH_SERVICE_", "ANABRANCH_PORT"];

/// Half of the characters may differ before a suggestion stops being one.
const LIKELY: f64 = 0.5;

impl Sources {
    /// Reads and checks everything.
    pub(crate) fn load(self) -> Result<Loaded, ConfigError> {
        let mut loaded = Loaded::default();
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                path: path.clone(),
                error,
            })?;
            loaded.add_file(path, &text)?;
        }
        loaded.add_environment(&self.environment)?;
        for flag in &self.flags {
            let origin = Origin::Flag(flag.flag);
            loaded.set_named(&flag.key, &flag.value, origin)?;
        }
        loaded.check()?;
        Ok(loaded)
    }
}

impl Loaded {
    /// Where a key's value came from.
    pub(crate) fn origin(&self, key: &Key) -> &Origin {
        self.origins.get(key.name).unwrap_or(&Origin::Default)
    }

    /// Whether nobody said anything about a key.
    pub(crate) fn is_default(&self, name: &str) -> bool {
        !self.origins.contains_key(name)
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::NotToml {
                path: path.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        let origin = Origin::File(path.to_owned());
        for (section, content) in &table {
            let Value::Table(keys) = content else {
                return Err(unknown(section, origin));
            };
            if !SECTIONS.iter().any(|(name, _)| name == section) {
                let first = keys.keys().next().map_or("", String::as_str);
                return Err(unknown(&format!("{section}.{first}"), origin));
            }
            for (key, value) in keys {
                self.set_named(&format!("{section}.{key}"), value, origin.clone())?;
            }
        }
        Ok(())
    }

    fn add_environment(&mut self, variables: &[(String, String)]) -> Result<(), ConfigError> {
        let belongs_elsewhere = |name: &str| {
            OTHER_VARIABLES.contains(&name)
                || KUBERNETES_VARIABLES.iter().any(|p| name.starts_with(p))
        };
        for (name, value) in variables {
            if !name.starts_with("ANABRANCH_") || belongs_elsewhere(name) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            match KEYS.iter().find(|key| key.variable() == *name) {
                Some(key) => self.set(key, &Value::from(value.as_str()), origin)?,
                None => return Err(unknown_variable(name, origin)),
            }
        }
        Ok(())
    }

    fn set_named(&mut self, name: &str, value: &Value, origin: Origin) -> Result<(), ConfigError> {
        match Key::named(name) {
            Some(key) => self.set(key, value, origin),
            None => Err(unknown(name, origin)),
        }
    }

    fn set(&mut self, key: &'static Key, value: &Value, origin: Origin) -> Result<(), ConfigError> {
        match self.config.set(key, value) {
            Ok(()) => {
                self.origins.insert(key.name, origin);
                Ok(())
            }
            Err(expected) => Err(ConfigError::BadValue {
                key: key.name,
                value: value.to_string().chars().take(80).collect(),
                origin,
                expected: expected.0,
            }),
        }
    }

    /// What concerns more than one key.
    fn check(&self) -> Result<(), ConfigError> {
        let listen = &self.config.listen;
        let peers = listen.peer_address.address(!listen.peers.is_empty());
        let beyond = [Some(listen.address), peers]
            .into_iter()
            .flatten()
            .find(|address| !address.ip().is_loopback());
        match beyond {
            Some(address) if !listen.insecure => Err(ConfigError::BeyondLoopback { address }),
            _ => Ok(()),
        }
    }
}

fn unknown(name: &str, origin: Origin) -> ConfigError {
    let likeness = |key: &Key| {
        // A right key in the wrong section is nearer than the same section with another key.
        let last = |name: &str| name.rsplit('.').next().unwrap_or("").to_owned();
        let whole = strsim::normalized_damerau_levenshtein(name, key.name);
        whole.max(strsim::normalized_damerau_levenshtein(&last(name), &last(key.name)) - 0.05)
    };
    let nearest = KEYS
        .iter()
        .map(|key| (likeness(key), key.name))
        .filter(|(likeness, _)| *likeness >= LIKELY)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    ConfigError::UnknownKey {
        key: name.chars().take(80).collect(),
        origin,
        nearest: nearest.map(|(_, name)| name.to_owned()),
    }
}

fn unknown_variable(name: &str, origin: Origin) -> ConfigError {
    let rest = name.trim_start_matches("ANABRANCH_").to_ascii_lowercase();
    let mut error = unknown(&rest.replacen('_', ".", 1), origin);
    if let ConfigError::UnknownKey { key, nearest, .. } = &mut error {
        name.clone_into(key);
        let near = nearest.as_deref().and_then(Key::named);
        *nearest = near.map(Key::variable);
    }
    error
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::value::HostPort;
    use super::*;

    fn load(
        file: &str,
        environment: &[(&str, &str)],
        flags: Vec<Flag>,
    ) -> Result<Loaded, ConfigError> {
        let mut loaded = Loaded::default();
        loaded.add_file(Path::new("a.toml"), file)?;
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(pair).collect();
        loaded.add_environment(&environment)?;
        for flag in &flags {
            loaded.set_named(&flag.key, &flag.value, Origin::Flag(flag.flag))?;
        }
        loaded.check()?;
        Ok(loaded)
    }

    fn refused(file: &str, environment: &[(&str, &str)], expected: &Expect) {
        let error = load(file, environment, Vec::new()).unwrap_err();
        expected.assert_eq(&error.to_string());
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        let file =
            "[log]\nsegment_bytes = \"8 MiB\"\ntail_bytes = 2097152\n[broker]\nregion = \"a\"";
        let environment = [
            ("ANABRANCH_BROKER_REGION", "b"),
            ("ANABRANCH_LOG_TAIL_BYTES", "3MiB"),
        ];
        let flags = vec![Flag::new("--region", "broker.region", "c")];
        let loaded = load(file, &environment, flags).unwrap();
        let origin = |name| loaded.origin(Key::named(name).unwrap()).to_string();
        assert_eq!(loaded.config.broker.region.as_str(), "c");
        assert_eq!(loaded.config.log.tail_bytes.get(), 3 << 20);
        assert_eq!(loaded.config.log.segment_bytes.get(), 8 << 20);
        assert_eq!(origin("broker.region"), "flag --region");
        assert_eq!(
            origin("log.tail_bytes"),
            "environment ANABRANCH_LOG_TAIL_BYTES"
        );
        assert_eq!(origin("log.segment_bytes"), "file a.toml");
        assert_eq!(origin("limits.connections"), "default");
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_one() {
        refused(
            "[log]\nsegment_byte = 1",
            &[],
            &expect![[
                r#"AB7101 unknown configuration key log.segment_byte in file a.toml; did you mean log.segment_bytes?"#
            ]],
        );
        refused(
            "[lgo]\nsegment_bytes = 1",
            &[],
            &expect![[
                r#"AB7101 unknown configuration key lgo.segment_bytes in file a.toml; did you mean log.segment_bytes?"#
            ]],
        );
        refused(
            "[broker]\naddress = \"x\"",
            &[],
            &expect![[
                r#"AB7101 unknown configuration key broker.address in file a.toml; did you mean listen.address?"#
            ]],
        );
        refused(
            "qqqq = 1",
            &[],
            &expect![[
                r#"AB7101 unknown configuration key qqqq in file a.toml; `anabranch config` lists all keys"#
            ]],
        );
        refused(
            "",
            &[("ANABRANCH_LOG_SEGMENTBYTES", "1")],
            &expect![[
                r#"AB7101 unknown configuration key ANABRANCH_LOG_SEGMENTBYTES in environment ANABRANCH_LOG_SEGMENTBYTES; did you mean ANABRANCH_LOG_SEGMENT_BYTES?"#
            ]],
        );
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_expected() {
        refused(
            "[log]\nsegment_bytes = \"lots\"",
            &[],
            &expect![[
                r#"AB7102 bad configuration value "lots" for log.segment_bytes in file a.toml; expected a number of bytes, or text such as "64 MiB""#
            ]],
        );
        refused(
            "[log]\nsegment_bytes = 5",
            &[],
            &expect![[
                r#"AB7102 bad configuration value 5 for log.segment_bytes in file a.toml; expected a number of bytes, or text such as "64 MiB", from 1 MiB to 4 GiB"#
            ]],
        );
        refused(
            "[limits]\nconnections = true",
            &[],
            &expect![[
                r#"AB7102 bad configuration value true for limits.connections in file a.toml; expected a whole number"#
            ]],
        );
        refused(
            "",
            &[("ANABRANCH_LISTEN_ADDRESS", "here")],
            &expect![[
                r#"AB7102 bad configuration value "here" for listen.address in environment ANABRANCH_LISTEN_ADDRESS; expected ADDRESS:PORT, for example 127.0.0.1:7070 or [::1]:7070"#
            ]],
        );
        refused(
            "[log",
            &[],
            &expect![[r#"
            AB7102 a.toml is not valid TOML: TOML parse error at line 1, column 5
              |
            1 | [log
              |     ^
            unclosed table, expected `]`"#]],
        );
    }

    #[test]
    fn a_peer_that_cannot_be_dialled_is_refused() {
        for peer in ["here", "http://10.0.0.2:7071", "10.0.0.2:0", "::1:7071"] {
            let error = load("", &[("ANABRANCH_LISTEN_PEERS", peer)], Vec::new());
            let error = error.unwrap_err().to_string();
            let said = format!("bad configuration value \"{peer}\" for listen.peers");
            assert!(error.contains(&said), "{error}");
            assert!(error.contains("for example 10.0.0.2:7071"), "{error}");
        }
        let environment = [("ANABRANCH_LISTEN_PEERS", "b.example:7071, [::1]:7072")];
        let loaded = load("", &environment, Vec::new()).unwrap();
        let peers = loaded.config.listen.peers.iter();
        let peers: Vec<_> = peers.map(HostPort::as_str).collect();
        assert_eq!(peers, ["b.example:7071", "[::1]:7072"]);
    }

    #[test]
    fn an_address_beyond_loopback_needs_a_word() {
        refused(
            "[listen]\naddress = \"0.0.0.0:7070\"",
            &[],
            &expect![[
                r#"AB7202 refusing to listen on 0.0.0.0:7070, which other machines can reach, because there is no authentication yet; listen on 127.0.0.1, or add --insecure-listen (listen.insecure = true) where the network itself keeps strangers out"#
            ]],
        );
        let file = "[listen]\naddress = \"0.0.0.0:7070\"\ninsecure = true";
        assert!(load(file, &[], Vec::new()).is_ok());
        assert!(load("[listen]\naddress = \"[::1]:0\"", &[], Vec::new()).is_ok());
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let environment = [
            ("ANABRANCH_SERVER", "http://127.0.0.1:1"),
            ("ANABRANCH_SERVICE_HOST", "10.0.0.1"),
            ("ANABRANCH_PORT_7070_TCP", "tcp://10.0.0.1:7070"),
            ("PATH", "/bin"),
        ];
        assert!(load("", &environment, Vec::new()).is_ok());
    }
}
