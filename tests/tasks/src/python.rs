//! An interpreter with the packages of the protocol test, which is a client in Python.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::shown;
use crate::requirements::{Requirement, starts};

/// What the protocol test imports.
const PACKAGES: [&str; 2] = ["websockets", "msgpack"];

/// What Python brings for making a virtual environment; Debian packs it apart.
const VENV_MODULES: [&str; 2] = ["venv", "ensurepip"];

const INTERPRETER: Requirement = Requirement {
    what: "Python 3, in which a client of the protocol is written as a test",
    package: "python3",
};
const VENV: Requirement = Requirement {
    what: "Python's venv and pip, which fetch the packages of that test",
    package: "python3-venv",
};

/// What [`prepare`] will need and does not find.
pub(crate) fn missing(target: &Path) -> Vec<Requirement> {
    if has_packages(target) {
        Vec::new()
    } else if !starts("python3") {
        vec![INTERPRETER, VENV]
    } else if !imports(OsStr::new("python3"), &VENV_MODULES) {
        vec![VENV]
    } else {
        Vec::new()
    }
}

/// Sees to it that the test finds an interpreter with the packages: `python3` itself, or one in a
/// virtual environment in the target folder.
///
/// # Errors
/// With what to do by hand.
pub(crate) fn prepare(target: &Path) -> Result<(), String> {
    if has_packages(target) {
        return Ok(());
    }
    let mut environment = Command::new("python3");
    environment
        .args(["-m", "venv", "--clear"])
        .arg(environment_in(target));
    let mut packages = Command::new(interpreter_in(target));
    packages
        .args(["-m", "pip", "install", "--quiet"])
        .args(PACKAGES);
    for mut command in [environment, packages] {
        eprintln!("running {}", shown(&command));
        if !command.status().is_ok_and(|status| status.success()) {
            return Err(format!(
                "\n{} failed, see above; the protocol test needs a python3 that can import {}",
                shown(&command),
                PACKAGES.join(" and ")
            ));
        }
    }
    Ok(())
}

fn has_packages(target: &Path) -> bool {
    let made = interpreter_in(target);
    imports(OsStr::new("python3"), &PACKAGES) || imports(made.as_os_str(), &PACKAGES)
}

fn imports(interpreter: &OsStr, modules: &[&str]) -> bool {
    let mut command = Command::new(interpreter);
    command.arg("-c");
    command.arg(format!("import {}", modules.join(", ")));
    command.output().is_ok_and(|output| output.status.success())
}

fn environment_in(target: &Path) -> PathBuf {
    target.join("python")
}

fn interpreter_in(target: &Path) -> PathBuf {
    environment_in(target).join("bin/python3")
}
