//! The effective configuration, as people and machines want it.

use serde_json::json;
use toml::Value;

use super::error::Origin;
use super::keys::{Config, KEYS, Key, SECTIONS};
use super::load::Loaded;

/// A file with every value, and where it came from as a comment.
pub(crate) fn as_toml(loaded: &Loaded) -> String {
    let mut out = String::new();
    for (section, _) in SECTIONS {
        out.push_str(&format!("[{section}]\n"));
        for key in KEYS.iter().filter(|key| key.section() == *section) {
            let line = format!("{} = {}", short(key), written(&loaded.config.get(key)));
            out.push_str(&format!("{line:<44} # {}\n", loaded.origin(key)));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

/// One object a line: key, value, origin.
pub(crate) fn as_json_lines(loaded: &Loaded) -> String {
    let line = |key: &Key| {
        let origin = match loaded.origin(key) {
            Origin::Default => json!({"from": "default"}),
            Origin::File(path) => json!({"from": "file", "path": path.display().to_string()}),
            Origin::Variable(name) => json!({"from": "environment", "variable": name}),
            Origin::Flag(flag) => json!({"from": "flag", "flag": flag}),
        };
        json!({"key": key.name, "value": loaded.config.get(key), "origin": origin}).to_string()
    };
    KEYS.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The reference of all keys, in Markdown.
pub(crate) fn as_table() -> String {
    let defaults = Config::default();
    let mut out = String::new();
    for (section, about) in SECTIONS {
        out.push_str(&format!("## [{section}]\n\n{}\n\n", about.trim()));
        out.push_str("| key | default | allowed | |\n|---|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.section() == *section) {
            let default = written(&defaults.get(key));
            let (name, doc) = (short(key), key.doc.trim().replace('|', "\\|"));
            out.push_str(&format!(
                "| `{name}` | `{default}` | {} | {doc} |\n",
                allowed(key)
            ));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn allowed(key: &Key) -> String {
    match key.bound.in_words(key.form) {
        range if range.is_empty() => key.form.to_owned(),
        range => format!("{}; {range}", key.form),
    }
}

fn short(key: &Key) -> &'static str {
    key.name
        .split_once('.')
        .map_or(key.name, |(_, short)| short)
}

fn written(value: &Value) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    const HEAD: &str = "# Configuration\n\n";

    #[test]
    fn the_reference_in_docs_is_this_table() {
        let introduction = include_str!("introduction.md");
        expect_file!["../../../../docs/CONFIGURATION.md"]
            .assert_eq(&format!("{HEAD}{introduction}\n{}", as_table()));
    }

    #[test]
    fn what_is_shown_loads_again_as_the_same() {
        let shown = as_toml(&Loaded::default());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shown.toml");
        std::fs::write(&path, &shown).unwrap();
        let sources = super::super::Sources {
            file: Some(path),
            ..Default::default()
        };
        let again = as_toml(&sources.load().unwrap());
        let values = |text: &str| {
            text.lines()
                .map(|line| line.split(" # ").next().unwrap_or("").trim().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(values(&shown), values(&again));
    }
}
