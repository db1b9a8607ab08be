//! The program's own files, for tests that check all of them.

use std::path::{Path, PathBuf};

/// The directories with the code of the program and of the library.
const CODE: [&str; 2] = ["src", "crates/atomic-phases/src"];

/// Returns the code's files with this extension, each with its path below `src`.
pub fn code(extension: &str) -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    CODE.iter()
        .map(|dir| root.join(dir))
        .flat_map(|dir| {
            let files = sources(&dir, extension);
            files.into_iter().map(move |file| (file.strip_prefix(&dir).expect("below").display().to_string(), file))
        })
        .collect()
}

/// Returns the files with this extension below `dir`.
pub fn sources(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files
        .into_iter()
        .chain(dirs.iter().flat_map(|dir| sources(dir, extension)))
        .filter(|path| path.extension() == Some(extension.as_ref()))
        .collect()
}
