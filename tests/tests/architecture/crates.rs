//! Which crate may depend on which, and who alone may name a library.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::repository::Repository;
use super::{architecture_document, arrows, checked_block, differences, expect_none};

/// What the names of our crates begin with; the document leaves it out.
const PREFIX: &str = "anabranch-";

/// A crate and the names of what it depends on.
type Dependencies = BTreeMap<String, Vec<String>>;

/// Direct dependencies of each crate of the workspace. Those that only its own tests need are left
/// out, as they never reach a user.
fn dependencies() -> Dependencies {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--offline",
            "--no-deps",
            "--format-version",
            "1",
        ])
        .current_dir(Repository::open().root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {said}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().map(dependencies_of).collect()
}

fn dependencies_of(package: &Value) -> (String, Vec<String>) {
    let mut names: Vec<String> = package["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|dependency| dependency["kind"].is_null())
        .map(|dependency| short(dependency["name"].as_str().unwrap()))
        .collect();
    names.sort();
    names.dedup();
    (short(package["name"].as_str().unwrap()), names)
}

fn short(name: &str) -> String {
    name.strip_prefix(PREFIX).unwrap_or(name).to_owned()
}

#[test]
fn crates_depend_on_each_other_as_documented() {
    let found = dependencies();
    let documented = arrows(&checked_block(&architecture_document(), "crates"));
    let mut faults = Vec::new();
    for name in found.keys() {
        if !documented.iter().any(|(from, _)| from == name) {
            faults.push(format!("crate {name} is not in the document"));
        }
    }
    for (name, to) in &documented {
        let Some(all) = found.get(name) else {
            faults.push(format!("crate {name} is not in the workspace"));
            continue;
        };
        let ours: Vec<String> = all
            .iter()
            .filter(|name| found.contains_key(*name))
            .cloned()
            .collect();
        faults.extend(differences(name, to, &ours));
    }
    expect_none("crates depend on each other as documented", &faults);
}

#[test]
fn libraries_with_one_owner_are_named_by_no_other() {
    let found = dependencies();
    let mut faults = Vec::new();
    for (library, owners) in arrows(&checked_block(&architecture_document(), "libraries")) {
        let users: Vec<String> = found
            .iter()
            .filter(|(_, names)| names.contains(&library))
            .map(|(name, _)| name.clone())
            .collect();
        faults.extend(differences(&library, &owners, &users));
    }
    expect_none("a library is named only where documented", &faults);
}

#[test]
fn crate_roots_say_what_every_module_holds() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for path in repository.files_with(".rs") {
        if !path.ends_with("src/lib.rs") && !path.ends_with("src/main.rs") {
            continue;
        }
        let text = repository.read(&path);
        if !text.starts_with("//!") {
            faults.push(format!("{path} does not begin with what the crate is"));
        }
        let docs: String = text
            .lines()
            .filter(|line| line.starts_with("//!"))
            .collect();
        for module in public_modules(&text) {
            if !docs.contains(&format!("`{module}`")) {
                faults.push(format!("{path} does not say what `{module}` holds"));
            }
        }
    }
    expect_none("the root of a crate is its map", &faults);
}

/// Modules that a crate's root shows: the public ones, or all in a binary, which has none.
fn public_modules(text: &str) -> Vec<&str> {
    let declared = |prefix: &'static str| {
        text.lines()
            .filter_map(move |line| line.strip_prefix(prefix)?.strip_suffix(';'))
            .collect::<Vec<_>>()
    };
    let public = declared("pub mod ");
    if public.is_empty() && text.contains("fn main()") {
        declared("mod ")
    } else {
        public
    }
}
