//! Who may name whom inside the server, and what the core does without.

use std::collections::{BTreeMap, BTreeSet};

use super::repository::{Repository, code, is_test};
use super::{architecture_document, arrows, checked_block, differences, expect_none};

const SERVER: &str = "broker/server/src/";
const CORE: &str = "broker/core/src/";

/// Surfaces: what faces the network. They know the node, and not each other.
const SURFACES: [&str; 2] = ["http", "websocket"];

/// The server's top-level modules and the others that each one names.
fn server_modules(repository: &Repository) -> BTreeMap<String, Vec<String>> {
    let files: Vec<String> = repository
        .files_with(".rs")
        .into_iter()
        .filter(|path| path.starts_with(SERVER) && *path != format!("{SERVER}main.rs"))
        .collect();
    let modules: BTreeSet<String> = files
        .iter()
        .map(|path| module_path(path).remove(0))
        .collect();
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &files {
        let own = module_path(path);
        let to = named.entry(own[0].clone()).or_default();
        let text = repository.read(path);
        let lines: Vec<&str> = code(&text).map(|(_, line)| line).collect();
        for name in names_at_root(&lines.join("\n"), own.len()) {
            if modules.contains(&name) && name != own[0] {
                to.insert(name);
            }
        }
    }
    named
        .into_iter()
        .map(|(from, to)| (from, to.into_iter().collect()))
        .collect()
}

/// `broker/server/src/node/writer.rs` → `["node", "writer"]`.
fn module_path(path: &str) -> Vec<String> {
    let inside = path.strip_prefix(SERVER).unwrap_or(path);
    let inside = inside.strip_suffix(".rs").unwrap_or(inside);
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    inside.split('/').map(str::to_owned).collect()
}

/// The names that follow `crate::`, or as many `super::` as lead to the root from a file of this
/// depth. Of `{a, b::c}` these are `a` and `b`.
fn names_at_root(text: &str, depth: usize) -> Vec<String> {
    let to_root = "super::".repeat(depth);
    ["crate::", to_root.as_str()]
        .iter()
        .flat_map(|root| text.split(root).skip(1))
        .flat_map(first_names)
        .collect()
}

fn first_names(rest: &str) -> Vec<String> {
    let identifier = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![identifier(rest)];
    };
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                names.push(identifier(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn modules_of_the_server_name_each_other_as_documented() {
    let found = server_modules(&Repository::open());
    let documented = arrows(&checked_block(&architecture_document(), "server modules"));
    let mut faults = Vec::new();
    for name in found.keys() {
        if !documented.iter().any(|(from, _)| from == name) {
            faults.push(format!("module {name} is not in the document"));
        }
    }
    for (name, to) in &documented {
        match found.get(name) {
            Some(found) => faults.extend(differences(name, to, found)),
            None => faults.push(format!("module {name} is not in the server")),
        }
    }
    expect_none("modules name each other as documented", &faults);
}

#[test]
fn surfaces_know_the_node_and_never_each_other_nor_the_storage() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for (module, named) in server_modules(&repository) {
        let surface = SURFACES.contains(&module.as_str());
        for other in named
            .iter()
            .filter(|name| SURFACES.contains(&name.as_str()))
        {
            if surface || module == "node" {
                faults.push(format!("{module} names {other}"));
            }
        }
    }
    for path in repository.files_with(".rs") {
        let inside = path.strip_prefix(SERVER).unwrap_or_default();
        if !SURFACES
            .iter()
            .any(|surface| inside.starts_with(&format!("{surface}/")))
        {
            continue;
        }
        for (number, line) in code(&repository.read(&path)) {
            if line.contains("anabranch_storage") {
                faults.push(format!("{path}:{number} names the storage; ask the node"));
            }
        }
    }
    expect_none("surfaces know only the node", &faults);
}

/// What a pure core does without, and why.
const NOT_IN_THE_CORE: [(&str, &str); 14] = [
    ("Instant", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("std::thread", "threads belong to the server"),
    ("std::sync", "nothing in the core is shared"),
    ("std::fs", "files belong to the storage"),
    ("std::net", "sockets belong to the server"),
    ("std::env", "configuration is an argument"),
    ("std::process", "the core never ends the process"),
    (
        "collections::HashMap",
        "its order is random; take BTreeMap, or sort",
    ),
    (
        "collections::HashSet",
        "its order is random; take BTreeSet, or sort",
    ),
    (
        "Serialize",
        "formats are written by hand; serde belongs to the protocol",
    ),
    ("async ", "the core does not wait"),
    ("println!", "a library never prints"),
    ("tracing", "a library of values has nothing to log"),
];

#[test]
fn the_core_has_no_clock_no_threads_and_no_files() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for path in repository.files_with(".rs") {
        if !path.starts_with(CORE) || is_test(&path) {
            continue;
        }
        for (number, line) in code(&repository.read(&path)) {
            for (word, why) in NOT_IN_THE_CORE {
                if line.contains(word) {
                    faults.push(format!("{path}:{number} has {word:?}: {why}"));
                }
            }
            // The traits over memory are fine: decompressors are made of them.
            if line.contains("std::io") && line.trim() != "use std::io::{Read, Write};" {
                faults.push(format!("{path}:{number} has std::io: {}", line.trim()));
            }
        }
    }
    expect_none("the core is pure", &faults);
}

#[test]
fn names_are_found_in_groups_and_alone() {
    let text = "use crate::{http, node::{self, Ack}, websocket};\ncrate::config::Limits\n";
    assert_eq!(
        names_at_root(text, 1),
        ["http", "node", "websocket", "config"]
    );
    assert_eq!(names_at_root("super::super::serve::x", 2), ["serve"]);
}
