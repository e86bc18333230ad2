//! The code is built as the documents say, and the documents say what is there.
//!
//! | module | checks |
//! |---|---|
//! | `repository` | (the files, as the others see them) |
//! | `crates` | which crate may depend on which, and who alone may name a library |
//! | `modules` | who may name whom inside the server; what the core does without |
//! | `documents` | links, named functions, decisions, the README's example |
//! | `sizes` | files that hold one idea, functions that fit a screen |
//! | `words` | no traces of a machine, nothing unfinished |

mod crates;
mod documents;
mod modules;
mod repository;
mod sizes;
mod words;

use repository::Repository;

/// Fails with all faults at once, one a line.
fn expect_none(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}\n  {}\n", faults.join("\n  "));
}

/// The lines of the code block that follows the comment `<!-- checked: NAME -->`, trimmed; empty
/// ones left out.
fn checked_block(document: &str, name: &str) -> Vec<String> {
    let marker = format!("<!-- checked: {name} -->");
    let (_, after) = document
        .split_once(&marker)
        .unwrap_or_else(|| panic!("the document has no {marker}"));
    after
        .lines()
        .skip_while(|line| !line.starts_with("```"))
        .skip(1)
        .take_while(|line| !line.starts_with("```"))
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// Reads lines of the form `a → b, c` as pairs of `a` and the set of `b` and `c`.
fn arrows(lines: &[String]) -> Vec<(String, Vec<String>)> {
    lines
        .iter()
        .map(|line| {
            let (from, to) = line
                .split_once('→')
                .unwrap_or_else(|| panic!("{line:?} has no arrow"));
            let mut to: Vec<String> = to
                .split(',')
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
            to.sort();
            (from.trim().to_owned(), to)
        })
        .collect()
}

/// What one list has that the other lacks, both ways, as sentences.
fn differences(what: &str, documented: &[String], found: &[String]) -> Vec<String> {
    let missing = found
        .iter()
        .filter(|name| !documented.contains(name))
        .map(|name| format!("{what} → {name} is in the code, not in the document"));
    let stale = documented
        .iter()
        .filter(|name| !found.contains(name))
        .map(|name| format!("{what} → {name} is in the document, not in the code"));
    missing.chain(stale).collect()
}

fn architecture_document() -> String {
    Repository::open().read("docs/ARCHITECTURE.md")
}
