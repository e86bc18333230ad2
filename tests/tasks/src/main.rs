//! What the README's commands do: install what a bare machine lacks, then run the demo, all tests or
//! the program.
//!
//! | module | holds |
//! |---|---|
//! | [`requirements`] | what is needed beyond Rust's toolchain, and how to tell that it is missing |
//! | [`debian`] | installing it with apt-get, or naming the command |
//! | [`python`] | an interpreter with the packages of the protocol test |
//!
//! It has no dependencies, so that it can say what is missing before anything is compiled.

mod debian;
mod python;
mod requirements;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let done = match task.to_str() {
        Some("demo") => demo(&rest),
        Some("test") => test(&rest),
        Some("program") => program(&rest),
        _ => Err("expected a task: demo, test or program".to_owned()),
    };
    match done {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &[OsString]) -> Result<ExitCode, String> {
    prepare_first_build()?;
    run(program_build())?;
    become_program([OsString::from("demo")].iter().chain(arguments))
}

fn program(arguments: &[OsString]) -> Result<ExitCode, String> {
    let mut build = program_build();
    if program_path().exists() {
        build.arg("--quiet");
    } else {
        prepare_first_build()?;
    }
    run(build)?;
    become_program(arguments)
}

fn prepare_first_build() -> Result<(), String> {
    debian::install(&requirements::missing_for_building())?;
    note_first_build();
    Ok(())
}

/// Builds the program as the tests build it. The example stands for what only tests depend on:
/// with it, cargo chooses the features of every crate as it does for the tests, so that nothing
/// is compiled twice, and what was tested is what runs.
fn program_build() -> Command {
    let mut build = cargo("build");
    build.args(["--workspace", "--bin", "anabranch", "--example", "publish"]);
    build
}

fn program_path() -> PathBuf {
    target_folder().join("release/anabranch")
}

/// The program takes this process's place, so that Ctrl-C reaches it alone.
fn become_program<'a>(
    arguments: impl IntoIterator<Item = &'a OsString>,
) -> Result<ExitCode, String> {
    let program = program_path();
    let error = Command::new(&program).args(arguments).exec();
    Err(format!(
        "{} could not be started: {error}",
        program.display()
    ))
}

fn test(arguments: &[OsString]) -> Result<ExitCode, String> {
    let target = target_folder();
    let mut missing = requirements::missing_for_building();
    missing.extend(python::missing(&target));
    debian::install(&missing)?;
    python::prepare(&target)?;
    note_first_build();
    let started = Instant::now();
    // Tests that start the program find it beside themselves. `cargo test` alone would not build
    // it, and building it apart would compile what it shares with the tests twice.
    let mut build = cargo("build");
    build.args(["--workspace", "--all-targets"]);
    run(build)?;
    let mut tests = cargo("test");
    tests.arg("--workspace").args(arguments);
    run(tests)?;
    eprintln!("all passed, after {} s", started.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

fn run(mut command: Command) -> Result<(), String> {
    let status = command
        .status()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{} failed: {status}", debian::shown(&command)))
}

/// Cargo, as it was called, in the workspace, with the one profile.
fn cargo(verb: &str) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace());
    command.args([verb, "--release", "--locked"]);
    command
}

fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Where cargo builds: this program lies in `release/` in it.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    match program.ancestors().nth(2) {
        Some(target) => target.to_owned(),
        None => workspace().join("target"),
    }
}

fn note_first_build() {
    let built = target_folder().join("release/build");
    let entries = std::fs::read_dir(built).into_iter().flatten().flatten();
    let rocksdb = |name: OsString| name.to_string_lossy().starts_with("librocksdb-sys-");
    if !entries.map(|entry| entry.file_name()).any(rocksdb) {
        eprintln!(
            "the first build compiles RocksDB (librocksdb-sys): about 16 minutes on two cores, once"
        );
    }
}
