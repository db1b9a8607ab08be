//! Receipts as files, one each.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

/// Files that are being written begin with this: mail programs and shells pass over them.
const UNFINISHED: &str = ".unfinished-";
/// An unfinished file this old was left behind by a process that died.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// A directory that receipts are put into.
///
/// A file is there whole or not at all: it is written under another name, flushed, renamed, and the directory flushed
/// too. Putting the same receipt again replaces the file, at whatever moment the first attempt ended.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes the directory if it is missing, and proves that files can be written to it.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let directory = Self(path.to_owned());
        let probe = directory.unfinished();
        File::create_new(&probe)?;
        fs::remove_file(&probe)?;
        directory.clean()?;
        Ok(directory)
    }

    /// Writes a file into the directory, durably.
    pub async fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (unfinished, finished) = (self.unfinished(), self.0.join(name));
        let (directory, bytes) = (self.0.clone(), bytes.to_owned());
        // Disks block. If nobody waits any more the file is put there all the same, which does no harm.
        let written = tokio::task::spawn_blocking(move || {
            let written = write(&unfinished, &bytes).and_then(|()| fs::rename(&unfinished, &finished));
            if written.is_err() {
                // A full disk wants it gone; if it cannot be removed it is passed over and cleaned up later.
                let _ = fs::remove_file(&unfinished);
            }
            written?;
            File::open(directory)?.sync_all()
        });
        written.await.map_err(io::Error::other)?
    }

    /// Returns a name that no other attempt uses: two attempts that write the same receipt at once must not share a
    /// file.
    fn unfinished(&self) -> PathBuf {
        self.0.join(format!("{UNFINISHED}{}", Uuid::new_v4().simple()))
    }

    fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let old = |entry: &fs::DirEntry| entry.metadata()?.modified()?.elapsed().map_err(io::Error::other);
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
                && old(&entry).is_ok_and(|age| age > LEFT_BEHIND)
            {
                // Another process may be cleaning up too.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
