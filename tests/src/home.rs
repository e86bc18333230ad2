//! A folder of its own for each test.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder that is gone after the test, unless the test failed.
#[derive(Debug)]
pub struct Home {
    folder: Option<TempDir>,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// A new one, where temporary files lie.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// A new one within another folder.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn within(folder: &Path) -> Self {
        let made = tempfile::Builder::new()
            .prefix("anabranch-test-")
            .tempdir_in(folder);
        Self {
            folder: Some(made.unwrap()),
        }
    }

    /// Where it is.
    ///
    /// # Panics
    /// Never: it is there until it is dropped.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.as_ref().expect("there until dropped").path()
    }

    /// The broker's data directory in it.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// What brokers on it wrote to standard error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path().join("broker.log")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept for a closer look: {}", folder.keep().display());
        }
    }
}
