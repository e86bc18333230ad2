//! The guides are true: what they type is typed, and what they show comes out.
//!
//! Blocks of a guide that are marked `console` are a terminal, with `$` before each command and
//! its output below. Blocks under the comment `<!-- typed -->` are what is typed where the regions
//! were started, on the first line, and what comes of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anabranch_tests::broker::{command, program};
use anabranch_tests::condition::{eventually, soon};
use anabranch_tests::home::Home;
use anabranch_tests::repository;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// What a reader does, and sees.
#[derive(Debug, PartialEq)]
enum Step {
    /// A command in a shell, and its output.
    Shell(String, Vec<String>),
    /// A line for the regions, and what they say.
    Typed(String, Vec<String>),
}

fn steps(guide: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = guide.lines();
    let mut typed = false;
    while let Some(line) = lines.next() {
        let marked = line.starts_with("<!-- typed -->");
        let Some(kind) = line.strip_prefix("```").filter(|_| !marked) else {
            typed = marked || (typed && line.is_empty());
            continue;
        };
        let block = lines.by_ref().take_while(|line| *line != "```");
        let mut block = block.map(str::to_owned);
        if typed {
            let order = block.next().unwrap();
            steps.push(Step::Typed(order, block.collect()));
        } else if kind == "console" {
            for line in block {
                match (line.strip_prefix("$ "), steps.last_mut()) {
                    (Some(command), _) => steps.push(Step::Shell(command.to_owned(), Vec::new())),
                    (None, Some(Step::Shell(_, output))) => output.push(line),
                    _ => panic!("{line:?} is the output of no command"),
                }
            }
        } else {
            block.for_each(drop);
        }
        typed = false;
    }
    steps
}

/// Regions as a person starts them, in a folder of their own.
struct Regions {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// The addresses of the guide, and those of this run.
    addresses: BTreeMap<String, String>,
}

impl Regions {
    /// Starts what the guide starts, on free ports. Its banner must have the lines that are shown.
    async fn start(folder: &Path, typed: &str, shown: &[String]) -> Self {
        let words: Vec<&str> = typed.split_whitespace().collect();
        assert_eq!(words[0], "anabranch", "{typed}");
        let mut command = Command::from(command());
        command.args(&words[1..]).args(["--listen", "127.0.0.1:0"]);
        command.current_dir(folder).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = BTreeMap::new();
        for shown in shown {
            let line = soon("the banner", output.next_line()).await.unwrap();
            let line = line.expect("it runs");
            let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
            assert_eq!(first(&line), first(shown), "{line}");
            if let (Some((name, here)), Some((_, there))) = (address(&line), address(shown)) {
                assert!(name.starts_with("  "), "{line}");
                addresses.insert(there.to_owned(), here.to_owned());
            }
        }
        Self {
            _child: child,
            input,
            output,
            addresses,
        }
    }

    /// A line of the guide, with the addresses of this run.
    fn here(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (there, here) in &self.addresses {
            line = line.replace(there, here);
        }
        line
    }

    async fn typed(&mut self, order: &str, shown: &[String]) {
        let line = format!("{order}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        for shown in shown {
            let line = soon(order, self.output.next_line()).await.unwrap();
            assert_eq!(line, Some(self.here(shown)), "{order}");
        }
    }
}

/// The address of a line that has a name, then one.
fn address(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.split_once("http://")?;
    (name.split_whitespace().count() == 1).then_some((name, rest.trim()))
}

/// A line in which no time is more than a place where a time stands.
fn without_times(line: &str) -> String {
    let is_time = |word: &&str| word.contains('.') && word.parse::<f64>().is_ok();
    let words = line
        .split(' ')
        .map(|word| if is_time(&word) { "#.#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// What a command prints on a terminal.
async fn shell(folder: &Path, regions: &Regions, typed: &str) -> Vec<String> {
    let typed = regions.here(typed);
    let first = &regions.addresses["127.0.0.1:7070"];
    let folder_of_program = program();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", folder_of_program.parent().unwrap().display());
    let mut command = Command::new("script");
    command
        .args(["-qec", &typed, "/dev/null"])
        .current_dir(folder);
    command.env("PATH", path).env("TERM", "dumb");
    command.env("ANABRANCH_SERVER", format!("http://{first}"));
    let nothing = File::open("/dev/null").unwrap();
    let output = soon(&typed, command.stdin(nothing).output()).await;
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let lines = output.lines().map(|line| line.trim_end().to_owned());
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_of_regions_shows_what_happens() {
    let home = Home::new();
    let guide = std::fs::read_to_string(repository().join("docs/guides/regions.md")).unwrap();
    let mut steps = steps(&guide).into_iter();
    let Some(Step::Shell(start, banner)) = steps.next() else {
        panic!("the guide starts nothing");
    };
    let mut regions = Regions::start(home.path(), &start, &banner).await;
    assert_eq!(regions.addresses.len(), 3);
    let mut done = 0;
    for step in steps {
        done += 1;
        match step {
            Step::Typed(order, shown) => regions.typed(&order, &shown).await,
            // What one region does takes its time to be seen in another.
            Step::Shell(typed, shown) => {
                let mut last = Vec::new();
                let shown: Vec<String> = shown.iter().map(|line| without_times(line)).collect();
                let same = async || {
                    let lines = shell(home.path(), &regions, &typed).await;
                    let lines: Vec<String> = lines.iter().map(|line| without_times(line)).collect();
                    if lines != shown && last != lines {
                        eprintln!("{typed}\nshows {lines:#?}");
                        last.clone_from(&lines);
                    }
                    (lines == shown).then_some(())
                };
                let what = format!("{typed}\nshows {shown:#?}");
                eventually(&what, same).await;
            }
        }
    }
    assert!(
        done > 10,
        "only {done} steps were found; has their form changed?"
    );
}

#[test]
fn steps_are_found_in_their_blocks() {
    let guide = "```console\n$ a b\nout\n$ c\n```\n<!-- typed -->\n```text\ncut r3\nr1-r3  cut\n```\n```text\nno\n```\n";
    let lines = |line: &str| vec![line.to_owned()];
    let expected = [
        Step::Shell("a b".to_owned(), lines("out")),
        Step::Shell("c".to_owned(), Vec::new()),
        Step::Typed("cut r3".to_owned(), lines("r1-r3  cut")),
    ];
    assert_eq!(steps(guide), expected);
}
