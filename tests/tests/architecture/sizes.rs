//! A file holds one idea, a function fits a screen.

use super::expect_none;
use super::repository::{Repository, code, is_test};

/// Lines of a file before its tests.
const MOST_LINES_OF_A_FILE: usize = 600;

/// Lines of code of a function's body; clippy's `too_many_lines` has the same limit.
const MOST_LINES_OF_A_FUNCTION: usize = 60;

/// Nine functions in ten are at most this long.
const LINES_OF_NINE_IN_TEN: usize = 40;

/// Half of all functions are at most this long.
const LINES_OF_THE_MEDIAN: usize = 12;

#[test]
fn files_hold_one_idea() {
    let repository = Repository::open();
    let faults: Vec<String> = repository
        .files_with(".rs")
        .iter()
        .filter_map(|path| {
            let text = repository.read(path);
            let tests_at = text
                .lines()
                .position(|line| line.starts_with("#[cfg(test)]"));
            let lines = tests_at.unwrap_or(text.lines().count());
            (lines > MOST_LINES_OF_A_FILE).then(|| format!("{path} has {lines} lines"))
        })
        .collect();
    let rule = format!("a file has at most {MOST_LINES_OF_A_FILE} lines before its tests");
    expect_none(&rule, &faults);
}

#[test]
fn functions_fit_a_screen() {
    let repository = Repository::open();
    let mut faults = Vec::new();
    let mut lengths = Vec::new();
    for path in repository.files_with(".rs") {
        // A table of cases is as long as it has cases.
        if is_test(&path) {
            continue;
        }
        for function in functions(&repository.read(&path)) {
            lengths.push(function.lines);
            if function.lines > MOST_LINES_OF_A_FUNCTION {
                let Function { name, at, lines } = function;
                faults.push(format!("{path}:{at} {name} has {lines} lines"));
            }
        }
    }
    let rule = format!("a function has at most {MOST_LINES_OF_A_FUNCTION} lines of code");
    expect_none(&rule, &faults);
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    let nine_in_ten = lengths[lengths.len() * 9 / 10];
    assert!(
        median <= LINES_OF_THE_MEDIAN,
        "the median has {median} lines"
    );
    assert!(
        nine_in_ten <= LINES_OF_NINE_IN_TEN,
        "nine in ten have up to {nine_in_ten} lines"
    );
}

struct Function {
    name: String,
    /// Line of its signature, from 1.
    at: usize,
    /// Lines of code of its body.
    lines: usize,
}

/// The functions of a formatted file, outside its tests.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<(usize, &str)> = code(text).collect();
    let mut found = Vec::new();
    for (index, &(at, line)) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let body = lines[index..]
            .iter()
            .position(|(_, line)| line.ends_with('{') || line.ends_with(['}', ';']));
        let Some(body) = body.filter(|&body| lines[index + body].1.ends_with('{')) else {
            continue;
        };
        let end = format!("{indent}}}");
        let inside = lines[index + body + 1..]
            .iter()
            .take_while(|(_, line)| **line != end);
        found.push(Function {
            name: name.to_owned(),
            at,
            lines: inside.count(),
        });
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let words = ["pub", "pub(crate)", "pub(super)", "const", "async"];
    if !before.split_whitespace().all(|word| words.contains(&word)) {
        return None;
    }
    after
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

#[test]
fn bodies_are_counted_without_comments() {
    let text = "impl A {\n    pub fn a(\n        x: u8,\n    ) -> u8 {\n        // why\n\n        x\n    }\n}\nfn b() {}\n";
    let found = functions(text);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].name.as_str(), found[0].at, found[0].lines),
        ("a", 2, 1)
    );
}
