//! The files of the repository, as the checks see them.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold nothing that somebody wrote.
const NOT_OURS: [&str; 3] = [".git", "target", "__pycache__"];

/// A working copy.
pub(crate) struct Repository {
    root: PathBuf,
}

impl Repository {
    pub(crate) fn open() -> Self {
        Self {
            root: anabranch_tests::repository(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A file's text, by its path from the root.
    pub(crate) fn read(&self, path: &str) -> String {
        let full = self.root.join(path);
        fs::read_to_string(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()))
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Paths of all files, from the root, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_symlink() || NOT_OURS.contains(&name.as_str()) {
                    continue;
                }
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let relative = path.strip_prefix(&self.root).unwrap();
                    files.push(relative.to_string_lossy().into_owned());
                }
            }
        }
        files.sort();
        files
    }

    /// Paths of the files with this ending.
    pub(crate) fn files_with(&self, ending: &str) -> Vec<String> {
        let mut files = self.files();
        files.retain(|path| path.ends_with(ending));
        files
    }
}

/// Whether a Rust file holds nothing but tests.
pub(crate) fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// The lines of a Rust file that are code, with their numbers from 1: comments and blank lines
/// are left out, and so are the tests at the end.
pub(crate) fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with("//")
        })
}
