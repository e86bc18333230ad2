//! An interpreter with the packages of the protocol test, which is a client in Python.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use crate::debian;
use crate::requirements::{Requirement, starts};

/// What the protocol test imports.
const PACKAGES: [&str; 2] = ["websockets", "msgpack"];

const INTERPRETER: Requirement = Requirement {
    what: "Python 3, in which a client of the protocol is written as a test",
    package: "python3",
};
const VENV: Requirement = Requirement {
    what: "Python's venv and pip, to install the packages of that test",
    package: "python3-venv",
};

/// A `PATH` whose `python3` has the packages: the one there is, or one in a virtual environment
/// beside the build.
///
/// # Errors
/// With what to do by hand.
pub(crate) fn path_with_packages(target: &Path) -> Result<OsString, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !starts("python3") {
        debian::install(&[INTERPRETER])?;
    }
    if imports(OsStr::new("python3")) {
        return Ok(path);
    }
    let environment = target.join("python");
    let interpreter = environment.join("bin/python3");
    if !imports(interpreter.as_os_str()) {
        create(&environment)?;
        fill(&environment)?;
    }
    let folders = std::iter::once(environment.join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).map_err(|error| error.to_string())
}

fn imports(interpreter: &OsStr) -> bool {
    let mut command = Command::new(interpreter);
    command.arg("-c");
    command.arg(format!("import {}", PACKAGES.join(", ")));
    command.output().is_ok_and(|output| output.status.success())
}

fn create(environment: &Path) -> Result<(), String> {
    let venv = || {
        let mut command = Command::new("python3");
        command.args(["-m", "venv", "--clear"]).arg(environment);
        command.output().is_ok_and(|output| output.status.success())
    };
    if venv() {
        return Ok(());
    }
    debian::install(&[VENV])?;
    if venv() {
        return Ok(());
    }
    Err(format!(
        "python3 -m venv {} failed; without it the protocol test cannot run",
        environment.display()
    ))
}

fn fill(environment: &Path) -> Result<(), String> {
    let mut command = Command::new(environment.join("bin/python3"));
    command
        .args(["-m", "pip", "install", "--quiet"])
        .args(PACKAGES);
    eprintln!("running {command:?}");
    if command.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(format!(
        "the protocol test needs Python packages that pip could not install; install by hand, then try again:\n\n    \
         sudo apt-get install --yes python3-{}\n",
        PACKAGES.join(" python3-")
    ))
}
