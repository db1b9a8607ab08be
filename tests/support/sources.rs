//! The program's own files, for tests that hold for all of them.

use std::path::{Path, PathBuf};

/// The files with this extension below `dir`.
pub fn sources(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files
        .into_iter()
        .chain(dirs.iter().flat_map(|dir| sources(dir, extension)))
        .filter(|path| path.extension() == Some(extension.as_ref()))
        .collect()
}
