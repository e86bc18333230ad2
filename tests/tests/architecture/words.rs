//! No traces of a machine, nothing unfinished.

use super::expect_none;
use super::repository::{Repository, code, is_test};

/// Files that are text, by their endings.
const TEXT: [&str; 12] = [
    ".rs",
    ".md",
    ".toml",
    ".py",
    ".json",
    ".yml",
    ".yaml",
    ".sh",
    ".txt",
    ".lock",
    "run",
    "Dockerfile",
];

/// Directories that only exist on somebody's machine. In pieces, since this file is text as well.
const MACHINES: [&str; 5] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/tmp/", "bash"),
];

/// What unfinished work looks like.
const UNFINISHED: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[ig", "nore"),
];

/// File names that say nothing of what the file owns.
const EMPTY_NAMES: [&str; 7] = [
    "utils", "util", "helpers", "common", "models", "types", "manager",
];

#[test]
fn no_file_names_somebodys_machine_or_is_unfinished() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for path in repository.files() {
        if !TEXT.iter().any(|ending| path.ends_with(ending)) {
            continue;
        }
        for (index, line) in repository.read(&path).lines().enumerate() {
            for word in MACHINES.iter().chain(&UNFINISHED) {
                if line.contains(word) {
                    faults.push(format!("{path}:{} has {word:?}", index + 1));
                }
            }
        }
    }
    expect_none(
        "the repository speaks of itself alone, and is finished",
        &faults,
    );
}

#[test]
fn file_names_say_what_the_file_owns() {
    let repository = Repository::open();
    let faults: Vec<String> = repository
        .files()
        .into_iter()
        .filter(|path| {
            let empty = |part: &str| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"));
            path.split('/').any(empty)
        })
        .collect();
    expect_none("a name says what is owned", &faults);
}

#[test]
fn nothing_is_unsafe_and_libraries_never_print() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for path in repository.files_with(".rs") {
        let library = ["core", "protocol", "storage"]
            .iter()
            .any(|name| path.starts_with(&format!("broker/{name}/src/")))
            || path.starts_with("client/src/");
        for (number, line) in code(&repository.read(&path)) {
            if library && !is_test(&path) && (line.contains("println!(") || line.contains("eprint"))
            {
                faults.push(format!("{path}:{number} prints"));
            }
        }
    }
    for path in repository.files_with("Cargo.toml") {
        let text = repository.read(&path);
        if text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
            faults.push(format!("{path} does not take the lints of the workspace"));
        }
    }
    let workspace = repository.read("Cargo.toml");
    if !workspace.contains("unsafe_code = \"forbid\"") {
        faults.push("the workspace does not forbid unsafe code".to_owned());
    }
    expect_none("no unsafe code, and the library never prints", &faults);
}
