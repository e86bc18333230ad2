//! What is needed beyond Rust's toolchain, and how to tell that it is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Something that a package brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Requirement {
    /// For what it is needed.
    pub(crate) what: &'static str,
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
}

const COMPILER: Requirement = Requirement {
    what: "a C++ compiler, which compiles RocksDB",
    package: "g++",
};
const LIBCLANG: Requirement = Requirement {
    what: "libclang, which reads RocksDB's headers",
    package: "libclang-dev",
};

/// What the build lacks here.
pub(crate) fn missing_for_building() -> Vec<Requirement> {
    let mut missing = Vec::new();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if !starts(&compiler) {
        missing.push(COMPILER);
    }
    if !folders_with_libclang().any(|folder| holds_libclang(&folder)) {
        missing.push(LIBCLANG);
    }
    missing
}

/// Whether a program can be started.
pub(crate) fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Where the build looks for libclang, in short.
fn folders_with_libclang() -> impl Iterator<Item = PathBuf> {
    let named = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let plain = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"].map(PathBuf::from);
    let by_machine = folders_in("/usr/lib", |name| name.ends_with("-linux-gnu"));
    let by_version = folders_in("/usr/lib", |name| name.starts_with("llvm"))
        .into_iter()
        .map(|folder| folder.join("lib"));
    named
        .into_iter()
        .chain(plain)
        .chain(by_machine)
        .chain(by_version)
}

fn folders_in(parent: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

fn holds_libclang(path: &Path) -> bool {
    let is_library = |name: &str| {
        let versioned = name == "libclang.so"
            || name.starts_with("libclang.so.")
            || name.starts_with("libclang-");
        versioned && name.contains(".so")
    };
    let mut entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let inside = entries.any(|entry| is_library(&entry.file_name().to_string_lossy()));
    // LIBCLANG_PATH may name the file itself.
    inside || path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_builds_this_lacks_nothing() {
        assert_eq!(missing_for_building(), []);
    }

    #[test]
    fn what_cannot_be_started_is_missing() {
        assert!(!starts("a-program-that-does-not-exist"));
    }
}
