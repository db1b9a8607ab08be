//! Temporary files of a test.

use std::path::{Path, PathBuf};

use uuid::Uuid;

/// A directory that is removed when it is dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("rocket-rides-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&dir).expect("create");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
