//! Links lead somewhere, functions that are named exist, decisions are written down in full, and
//! the README's example is code that compiles.

use std::path::{Component, Path};

use super::expect_none;
use super::repository::Repository;

/// A link of a document.
struct Link {
    text: String,
    /// Path from the root of the repository, without the anchor.
    path: String,
    anchor: Option<String>,
    line: usize,
}

/// The links of a document to other files and places, code blocks left out.
fn links(document: &str, text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        let mut before = "";
        for piece in line.split("](") {
            if let (Some((_, label)), Some((target, _))) =
                (before.rsplit_once('['), piece.split_once(')'))
            {
                found.extend(link(document, label, target, index + 1));
            }
            before = piece;
        }
    }
    found
}

fn link(document: &str, label: &str, target: &str, line: usize) -> Option<Link> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_owned())),
        None => (target, None),
    };
    let path = match path {
        "" => document.to_owned(),
        path => resolve(document, path),
    };
    Some(Link {
        text: label.to_owned(),
        path,
        anchor,
        line,
    })
}

/// A path from the root, given one from the directory of a document.
fn resolve(document: &str, path: &str) -> String {
    let directory = Path::new(document).parent().unwrap_or(Path::new(""));
    let mut parts: Vec<&str> = Vec::new();
    let joined = directory.join(path);
    for part in joined.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name.to_str().unwrap_or_default()),
            _ => {}
        }
    }
    parts.join("/")
}

/// The anchor that a heading gets.
fn slug(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for document in repository.files_with(".md") {
        for link in links(&document, &repository.read(&document)) {
            let Link { path, line, .. } = &link;
            if !repository.has(path) {
                faults.push(format!(
                    "{document}:{line} leads to {path}, which is not there"
                ));
                continue;
            }
            let Some(anchor) = &link.anchor else { continue };
            let text = repository.read(path);
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            if path.ends_with(".md") && !headings.any(|heading| slug(heading) == *anchor) {
                faults.push(format!(
                    "{document}:{line}: {path} has no heading #{anchor}"
                ));
            }
        }
    }
    expect_none("links lead somewhere", &faults);
}

/// Comments send the reader to documents by their path from the root.
#[test]
fn documents_that_the_code_names_exist() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    for path in repository.files() {
        if !path.ends_with(".rs") && !path.ends_with(".toml") {
            continue;
        }
        for (index, line) in repository.read(&path).lines().enumerate() {
            for (at, _) in line.match_indices("docs/") {
                let inside = |c: &char| c.is_alphanumeric() || "/._-".contains(*c);
                let name: String = line[at..].chars().take_while(inside).collect();
                let name = name.trim_end_matches('.');
                if name.ends_with(".md") && !repository.has(name) {
                    faults.push(format!("{path}:{} names {name}", index + 1));
                }
            }
        }
    }
    expect_none("a document that the code names is there", &faults);
}

/// A link `` [`Writer::gather`](….rs) `` promises that the file defines `gather` and knows `Writer`.
#[test]
fn functions_and_types_that_documents_name_exist() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    let mut named = 0;
    for document in repository.files_with(".md") {
        for link in links(&document, &repository.read(&document)) {
            let symbol = link
                .text
                .strip_prefix('`')
                .and_then(|text| text.strip_suffix('`'));
            let Some(symbol) =
                symbol.filter(|text| link.path.ends_with(".rs") && !text.contains(['/', '.']))
            else {
                continue;
            };
            if !repository.has(&link.path) {
                continue;
            }
            named += 1;
            let text = repository.read(&link.path);
            if let Some(missing) = missing_name(symbol, &text) {
                let (line, path) = (link.line, &link.path);
                faults.push(format!(
                    "{document}:{line}: {path} has no {missing} ({symbol})"
                ));
            }
        }
    }
    expect_none("what a document names is where it says", &faults);
    assert!(
        named > 20,
        "only {named} names were found; has their form changed?"
    );
}

/// The first part of a path that a file does not have: the last must be defined there, the others
/// must occur.
fn missing_name<'a>(symbol: &'a str, text: &str) -> Option<&'a str> {
    let symbol = symbol.strip_suffix("()").unwrap_or(symbol);
    let mut parts: Vec<&str> = symbol.split("::").collect();
    let last = parts.pop()?;
    if let Some(missing) = parts.into_iter().find(|part| !text.contains(*part)) {
        return Some(missing);
    }
    let kinds = [
        "fn", "struct", "enum", "trait", "const", "type", "mod", "static",
    ];
    let defined = kinds.iter().any(|kind| {
        text.match_indices(&format!("{kind} {last}"))
            .any(|(at, found)| {
                let after = text[at + found.len()..].chars().next();
                after.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            })
    });
    // A variant stands alone on its line.
    let variant = text.lines().any(|line| {
        let line = line.trim().trim_end_matches([',', '(', '{', ' ']);
        line == last || line.starts_with(&format!("{last}("))
    });
    (!defined && !variant).then_some(last)
}

/// What every decision says.
const SECTIONS: [&str; 4] = [
    "## Context",
    "## Decision",
    "## Consequences",
    "## Alternatives",
];

#[test]
fn decisions_are_numbered_complete_and_listed() {
    let repository = Repository::open();
    let index = repository.read("docs/adr/README.md");
    let mut decisions = repository.files_with(".md");
    decisions.retain(|path| path.starts_with("docs/adr/") && !path.ends_with("README.md"));
    let mut faults = Vec::new();
    for (number, path) in decisions.iter().enumerate() {
        let name = path.rsplit('/').next().unwrap_or_default();
        if !name.starts_with(&format!("{:04}-", number + 1)) {
            faults.push(format!("{path} should have number {:04}", number + 1));
        }
        let text = repository.read(path);
        for section in SECTIONS {
            if !text.lines().any(|line| line == section) {
                faults.push(format!("{path} has no section {section:?}"));
            }
        }
        if !index.contains(&format!("({name})")) {
            faults.push(format!("{path} is not in docs/adr/README.md"));
        }
    }
    expect_none(
        "a decision says why, what, and what else there was",
        &faults,
    );
    assert!(!decisions.is_empty());
}

#[test]
fn the_readmes_rust_is_an_example_that_compiles() {
    let repository = Repository::open();
    let readme = repository.read("README.md");
    let examples: Vec<String> = repository
        .files_with(".rs")
        .iter()
        .filter(|path| path.starts_with("client/examples/"))
        .map(|path| repository.read(path))
        .collect();
    let mut quoted = 0;
    let mut rest = readme.as_str();
    while let Some((_, block)) = rest.split_once("```rust\n") {
        let (quote, after) = block.split_once("```").expect("the block ends");
        quoted += 1;
        let known = examples
            .iter()
            .any(|example| example.contains(quote.trim()));
        assert!(known, "no file of client/examples has this:\n{quote}");
        rest = after;
    }
    assert!(quoted > 0, "the README quotes no Rust");
}

#[test]
fn words_of_the_glossary_stand_in_order_and_once() {
    let text = Repository::open().read("docs/GLOSSARY.md");
    let words: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| **")?.split_once("**"))
        .map(|(word, _)| word.to_lowercase())
        .collect();
    let faults: Vec<String> = words
        .windows(2)
        .filter(|pair| pair[0] >= pair[1])
        .map(|pair| format!("{} stands before {}", pair[0], pair[1]))
        .collect();
    expect_none("the glossary is in order", &faults);
    assert!(words.len() > 30, "only {} words were found", words.len());
}

#[test]
fn links_are_found_and_resolved() {
    let text = "a [b](../x/y.rs) and [`C::d`](#here)\n```\n[no](no)\n```\n";
    let found = links("guide/A.md", text);
    let short: Vec<_> = found
        .iter()
        .map(|l| (l.text.as_str(), l.path.as_str()))
        .collect();
    assert_eq!(short, [("b", "x/y.rs"), ("`C::d`", "guide/A.md")]);
    assert_eq!(
        slug("## The write path, step by step"),
        "the-write-path-step-by-step"
    );
    assert_eq!(
        missing_name("W::gather", "impl W {\n fn gather(&self)"),
        None
    );
    assert_eq!(
        missing_name("W::gather", "impl W {\n fn gathered()"),
        Some("gather")
    );
}
