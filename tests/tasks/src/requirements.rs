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
    what: "libclang with its own headers, which reads those of RocksDB",
    package: "libclang-dev",
};

/// What the build lacks here.
pub(crate) fn missing_for_building() -> Vec<Requirement> {
    let mut missing = Vec::new();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if !starts(&compiler) {
        missing.push(COMPILER);
    }
    let folders = folders_with_libraries();
    let library = folders.iter().any(|folder| holds_libclang(folder));
    let headers = starts("clang")
        || std::env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_some()
        || folders.iter().any(|folder| holds_headers(folder));
    if !(library && headers) {
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

/// Where the build looks for libclang.
fn folders_with_libraries() -> Vec<PathBuf> {
    let named = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let mut folders: Vec<_> = named.into_iter().collect();
    for root in [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/local/lib64",
    ] {
        add_folders(&mut folders, PathBuf::from(root), 2);
    }
    folders
}

fn add_folders(found: &mut Vec<PathBuf>, folder: PathBuf, depth: usize) {
    if depth > 0 {
        for path in entries_in(&folder).filter(|path| path.is_dir()) {
            add_folders(found, path, depth - 1);
        }
    }
    found.push(folder);
}

fn entries_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// Whether the folder, or the file itself, which `LIBCLANG_PATH` may name too, is libclang.
fn holds_libclang(path: &Path) -> bool {
    path.is_file() || entries_in(path).any(|entry| entry.file_name().is_some_and(is_libclang))
}

/// The names that the build takes. `libclang-cpp` is another library, which graphics drivers bring.
fn is_libclang(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    let plain = name == "libclang.so" || name.starts_with("libclang.so.");
    let versioned = name.starts_with("libclang-") && name.contains(".so");
    plain || (versioned && !name.contains("-cpp."))
}

/// Whether the compiler's own headers lie there: libclang comes without them where it was installed
/// for a program that uses it.
fn holds_headers(folder: &Path) -> bool {
    entries_in(&folder.join("clang")).any(|version| version.join("include/stddef.h").is_file())
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

    #[test]
    fn the_library_of_graphics_drivers_is_not_libclang() {
        for name in ["libclang.so", "libclang.so.1", "libclang-14.so.14.0.6"] {
            assert!(is_libclang(name.as_ref()), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang-cpp.so", "libclang.a"] {
            assert!(!is_libclang(name.as_ref()), "{name}");
        }
    }
}
