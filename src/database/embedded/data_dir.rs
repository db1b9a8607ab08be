//! The files of one cluster: where they are, which account may use them, and how a cluster is made.
//!
//! For a data directory `pg` there are, beside it, `pg.lock` (held by the process that runs the cluster), `pg.log`
//! (what Postgres logs) and, while initdb works, `pg.new`.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::binaries::Binaries;
use super::child::{self, Account};
use super::error::EmbeddedError;

/// The superuser and the database of every embedded cluster.
pub(super) const NAME: &str = "rocket_rides";
/// The port only names the socket's file, since nothing listens on TCP.
pub(super) const PORT: u16 = 5432;
/// The socket's file, which Postgres names after the port.
const SOCKET: &str = ".s.PGSQL.5432";
/// A socket's path has at most 107 bytes on Linux and 103 on macOS.
const SOCKET_PATH_BYTES: usize = 103;

/// Where root's clusters go if the user that Postgres runs as cannot reach the configured place.
const SHARED_STATE: &str = "/var/lib/rocket-rides-atomic";

/// How long a start waits for the Postgres of a dead predecessor. It was sent SIGQUIT, and takes milliseconds to
/// obey; a backend stuck in a system call may take until the postmaster kills it, 5 s later.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(7);
const PREDECESSOR_POLL: Duration = Duration::from_millis(10);
/// How long the owner of a lock must look alive to count as alive: a process that was just killed still looks so for
/// some milliseconds.
const OWNER_WAIT: Duration = Duration::from_millis(250);

/// A log that has grown beyond this, in bytes, is renamed to `.log.old` at the next start, and replaces the one before.
const LOG_BYTES: u64 = 16 * 1024 * 1024;
/// How much of a log or of initdb's error output an error quotes.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 8;

/// The place of one cluster. Its path is absolute, and free of symbolic links.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    parent: PathBuf,
}

impl DataDir {
    /// Finds the place for the configured path, making its parent directory where it is missing.
    ///
    /// Root's children run as another user, who cannot open files below a private directory such as `/root`. Such a
    /// cluster is placed in [`SHARED_STATE`], under a name derived from the configured one.
    pub(super) fn locate(configured: &Path, account: &Account) -> Result<Self, EmbeddedError> {
        let configured = std::path::absolute(configured).map_err(EmbeddedError::unusable(configured))?;
        let here = Self::resolve(&configured).map_err(EmbeddedError::unusable(&configured))?;
        if account.can_enter(&here.parent)? {
            return Ok(here);
        }
        let path = Path::new(SHARED_STATE).join(short_hash(&here.path));
        let there = Self::resolve(&path).map_err(EmbeddedError::unusable(&path))?;
        tracing::info!(
            configured = %here.path.display(),
            data_dir = %there.path.display(),
            user = account.name(),
            "Postgres cannot run as root, and its user cannot reach the configured data directory: another is used"
        );
        Ok(there)
    }

    fn resolve(path: &Path) -> io::Result<Self> {
        let unnamed = || io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a name");
        let parent = path.parent().ok_or_else(unnamed)?;
        fs::create_dir_all(parent)?;
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(_) => parent.canonicalize()?.join(path.file_name().ok_or_else(unnamed)?),
        };
        let parent = path.parent().ok_or_else(unnamed)?.to_owned();
        Ok(Self { path, parent })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    /// Returns `<data_dir>.<extension>`. Not `with_extension`, which would replace what follows a dot in the name.
    fn sibling(&self, extension: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(".");
        name.push(extension);
        name.into()
    }

    /// Returns the socket's directory: the data directory, which only its owner can enter, or a short directory that
    /// [`make_socket_dir`](Self::make_socket_dir) makes just as private. The latter is for paths that are too long for
    /// a socket, or that hold a comma or a quote, which have a meaning to libpq, Postgres or a shell.
    pub(super) fn socket_dir(&self) -> PathBuf {
        let inside = self.path.join(SOCKET);
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-@+".contains(byte);
        let bytes = inside.as_os_str().as_bytes();
        if bytes.len() <= SOCKET_PATH_BYTES && bytes.iter().all(is_plain) {
            self.path.clone()
        } else {
            PathBuf::from(format!("/tmp/rocket-rides-{}", short_hash(&self.path)))
        }
    }

    /// Makes the directory for the socket unless that is the data directory, and refuses one that another user
    /// may have put there to answer in Postgres' place.
    pub(super) fn make_socket_dir(&self, account: &Account) -> Result<(), EmbeddedError> {
        let dir = self.socket_dir();
        if dir == self.path {
            return Ok(());
        }
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(EmbeddedError::Unusable { path: dir, source: error });
            }
            _ => {}
        }
        let found = fs::symlink_metadata(&dir).map_err(EmbeddedError::unusable(&dir))?;
        let is_ours = account.owns(found.uid()) || found.uid() == geteuid().as_raw();
        if !found.is_dir() || !is_ours || found.mode() & 0o077 != 0 {
            return Err(EmbeddedError::SocketDirectory { dir, user: account.name().to_owned() });
        }
        account.take_over(&dir).map_err(EmbeddedError::unusable(&dir))
    }

    /// Returns a connection string for the cluster, in libpq's keyword form.
    pub(super) fn url(&self) -> String {
        format!("host={} user={NAME} dbname={NAME}", self.socket_dir().display())
    }

    /// Refuses a cluster of another user early: Postgres itself would only say "Permission denied".
    pub(super) fn check_owner(&self, account: &Account) -> Result<(), EmbeddedError> {
        let owner = match fs::metadata(&self.path) {
            Ok(metadata) => metadata.uid(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(EmbeddedError::Unusable { path: self.path.clone(), source }),
        };
        // Root may have made the directory before there was a cluster; the finished cluster replaces it.
        let is_vacant = owner == geteuid().as_raw() && !self.path.join("PG_VERSION").exists();
        if account.owns(owner) || is_vacant {
            return Ok(());
        }
        let (owner, user) = (child::user_name(owner), account.name().to_owned());
        let starter = if child::ROOTS_ACCOUNTS.contains(&owner.as_str()) { "root" } else { &owner }.to_owned();
        Err(EmbeddedError::WrongOwner { data_dir: self.path.clone(), owner, user, starter })
    }

    /// Returns the major version of the cluster, or `None` where there is no cluster yet.
    pub(super) fn major(&self) -> Result<Option<u32>, EmbeddedError> {
        let path = self.path.join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| {
                let source = io::Error::new(io::ErrorKind::InvalidData, "it does not hold a version");
                EmbeddedError::Unusable { path, source }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(EmbeddedError::Unusable { path, source }),
        }
    }

    /// Makes the cluster: initdb works on (and syncs) `<data_dir>.new`, which becomes the data directory only when
    /// it is complete. A process killed in between leaves a `.new` that the next start removes.
    pub(super) fn initialise(
        &self,
        binaries: &Binaries,
        account: &Account,
        lock: &Lock,
    ) -> Result<(), EmbeddedError> {
        self.check_vacant()?;
        let fresh = self.sibling("new");
        remove(&fresh, |path| fs::remove_dir_all(path))?;
        DirBuilder::new().mode(0o700).create(&fresh).map_err(EmbeddedError::unusable(&fresh))?;
        account.take_over(&fresh).map_err(EmbeddedError::unusable(&fresh))?;

        let program = binaries.program("initdb");
        let mut command = account.command(&program, &self.parent);
        command.arg("--pgdata").arg(&fresh);
        // Only its owner can enter the socket's directory, so a password would protect nothing.
        command.args(["--username", NAME, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]);
        let output = child::tie(&mut command, lock.file())
            .and_then(|()| command.output())
            .map_err(|source| EmbeddedError::CannotRun { program, user: account.name().to_owned(), source })?;
        if !output.status.success() {
            let tail = last_lines(&String::from_utf8_lossy(&output.stderr));
            return Err(EmbeddedError::InitdbFailed { status: output.status, tail });
        }

        fs::rename(&fresh, &self.path).map_err(EmbeddedError::unusable(&self.path))?;
        File::open(&self.parent).and_then(|parent| parent.sync_all()).map_err(EmbeddedError::unusable(&self.parent))
    }

    /// Checks that a new cluster can be put there: the path is absent, or an empty directory that a rename can replace.
    pub(super) fn check_vacant(&self) -> Result<(), EmbeddedError> {
        let mut entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(EmbeddedError::Unusable { path: self.path.clone(), source }),
        };
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
        if device(&self.path).ok() != device(&self.parent).ok() {
            return Err(EmbeddedError::MountPoint { data_dir: self.path.clone() });
        }
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(EmbeddedError::NotACluster { data_dir: self.path.clone() }),
        }
    }

    /// Removes what a killed Postgres left. Its process number may belong to another process by now, even to the
    /// Postgres of another cluster, and Postgres itself would then refuse to start.
    ///
    /// The lock is held, so that no Postgres of ours is running; one that a person started by hand may be.
    pub(super) fn clear_stale(&self, _lock: &Lock) -> Result<(), EmbeddedError> {
        if let Some(pid) = self.postmaster().filter(|pid| child::is_postgres_of(*pid, &self.path)) {
            return Err(EmbeddedError::InUse { pid: Some(pid), data_dir: self.path.clone() });
        }
        let socket = self.socket_dir().join(SOCKET);
        let socket_lock = self.socket_dir().join(format!("{SOCKET}.lock"));
        for path in [self.path.join("postmaster.pid"), socket, socket_lock] {
            remove(&path, |path| fs::remove_file(path))?;
        }
        Ok(())
    }

    /// Returns the process number in `postmaster.pid`. That process may have ended long ago.
    fn postmaster(&self) -> Option<u32> {
        fs::read_to_string(self.path.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
    }

    /// Opens the log to append to it.
    pub(super) fn open_log(&self) -> Result<Log, EmbeddedError> {
        let path = self.sibling("log");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES) {
            fs::rename(&path, self.sibling("log.old")).map_err(EmbeddedError::unusable(&path))?;
        }
        let open = OpenOptions::new().create(true).append(true).open(&path);
        let (file, start) = open
            .and_then(|file| file.metadata().map(|metadata| (file, metadata.len())))
            .map_err(EmbeddedError::unusable(&path))?;
        Ok(Log { path, file, start })
    }
}

/// The claim to a cluster: at most one process of this program has it, from before initdb until Postgres is gone.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Claims the cluster, or returns an error that names its owner. Waits for a Postgres whose owner is gone, because
    /// it is about to end.
    pub(super) fn acquire(data_dir: &DataDir) -> Result<Self, EmbeddedError> {
        let path = data_dir.sibling("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(EmbeddedError::unusable(&path))?;

        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(EmbeddedError::Unusable { path, source }),
                Err(TryLockError::WouldBlock) => {}
            }
            let owner = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
            let owner = owner.filter(|pid| child::running_program(*pid).is_some());
            if let Some(pid) = owner.filter(|_| begun.elapsed() >= OWNER_WAIT) {
                let (data_dir, url) = (data_dir.path.clone(), data_dir.url());
                return Err(EmbeddedError::Owned { pid, data_dir, url });
            }
            if begun.elapsed() >= PREDECESSOR_WAIT {
                return Err(EmbeddedError::InUse { pid: data_dir.postmaster(), data_dir: data_dir.path.clone() });
            }
            thread::sleep(PREDECESSOR_POLL);
        }

        let claim = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        claim.map_err(EmbeddedError::unusable(&path))?;
        Ok(Self(file))
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Lock {
    /// Removes the owner's number from the file: a Postgres that is still ending keeps the lock, without an owner.
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
    }
}

/// The log of one start.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Where this start's part begins.
    start: u64,
}

impl Log {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the last lines that were written since the start.
    pub(super) fn tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.start.max(length.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(last_lines(&String::from_utf8_lossy(&bytes)))
        };
        read().unwrap_or_else(|error| format!("(its log cannot be read: {error})"))
    }
}

/// Returns the end of a program's output, for an error.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Removes a path that may be absent already.
fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), EmbeddedError> {
    match how(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(EmbeddedError::Unusable { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Returns sixteen hexadecimal digits that stand for a path. Uses FNV-1a, because the standard library's hasher may
/// change between releases, while the directories named after the hash stay.
fn short_hash(path: &Path) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in path.as_os_str().as_bytes() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
