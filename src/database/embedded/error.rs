//! What can keep the embedded Postgres from running; each text says what to do about it.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why the embedded Postgres did not start. One variant for each situation that an operator has to distinguish.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Neither `PATH` nor any usual place holds `initdb` and `postgres`.
    #[error(
        "Postgres is not installed: `apt-get install -y postgresql` on Debian or Ubuntu, \
         `brew install postgresql@17` on macOS, or set PG_BIN to the directory that holds `initdb` and `postgres`"
    )]
    NotInstalled,
    /// `PG_BIN` is set, and wrong.
    #[error("PG_BIN is `{dir}`, which does not hold both `initdb` and `postgres`")]
    WrongPgBin {
        /// The directory that `PG_BIN` names.
        dir: PathBuf,
    },
    /// A program is there, but the user that has to run it cannot.
    #[error("cannot run `{program}` as user `{user}`")]
    CannotRun {
        /// What was run.
        program: PathBuf,
        /// The user that it was run as.
        user: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Every installed version is older than the schema needs.
    #[error("Postgres {major} in `{dir}` is too old: install version {oldest} or newer, or set PG_BIN to it")]
    TooOld {
        /// Where its binaries are.
        dir: PathBuf,
        /// Its major version.
        major: u32,
        /// The oldest major version that is accepted.
        oldest: u32,
    },
    /// The cluster was initialised by a major version that is not installed.
    #[error(
        "`{data_dir}` was made by Postgres {needed}, but only {installed} is installed: \
         install version {needed} (or set PG_BIN to it), or migrate the directory with pg_upgrade"
    )]
    WrongMajor {
        /// The cluster.
        data_dir: PathBuf,
        /// The major version that made it.
        needed: u32,
        /// The major versions found, for people to read.
        installed: String,
    },
    /// There is no user that Postgres could run as for root.
    #[error("Postgres refuses to run as root, and there is no user `postgres` or `nobody` to run it as")]
    NoAccount,
    /// A file or directory cannot be read, written or made: permissions, a full disk, a read-only mount.
    #[error("cannot use `{path}` (it has to be writable: see database.data_dir)")]
    Unusable {
        /// What could not be used.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The directory holds something else, which initdb must not touch.
    #[error("`{data_dir}` is neither empty nor a Postgres cluster: set database.data_dir to another directory")]
    NotACluster {
        /// The directory.
        data_dir: PathBuf,
    },
    /// A new cluster is renamed into place, which a mount point does not allow.
    #[error("`{data_dir}` is a mount point: set database.data_dir to a directory below it")]
    MountPoint {
        /// The directory.
        data_dir: PathBuf,
    },
    /// The cluster belongs to another user, whose files Postgres would refuse.
    #[error(
        "`{data_dir}` belongs to user `{owner}`, but Postgres would run as `{user}` now: start this program as \
         `{starter}` again, or set database.data_dir to another directory, or hand it over with \
         `chown -R {user} {data_dir} {data_dir}.lock {data_dir}.log`"
    )]
    WrongOwner {
        /// The cluster.
        data_dir: PathBuf,
        /// The user that owns it.
        owner: String,
        /// The user that Postgres would run as.
        user: String,
        /// The user that started this program when the cluster was made.
        starter: String,
    },
    /// The directory for the socket is not ours alone, so that another program could answer in Postgres' place.
    #[error(
        "`{dir}` is to hold the socket of Postgres, but is not a private directory of user `{user}`: remove it"
    )]
    SocketDirectory {
        /// The directory.
        dir: PathBuf,
        /// The user that has to own it.
        user: String,
    },
    /// Another process of this program runs the cluster.
    #[error(
        "process {pid} already runs the Postgres in `{data_dir}`: to share it, start this process with \
         database.embedded = false and database.url = \"{url}\""
    )]
    Owned {
        /// The owning process.
        pid: u32,
        /// The cluster.
        data_dir: PathBuf,
        /// How to connect to it.
        url: String,
    },
    /// A Postgres that this program does not control uses the cluster.
    #[error("a Postgres that is not this program's, or whose owner was killed, still uses `{data_dir}`{}", stop(*pid))]
    InUse {
        /// The other Postgres, where known.
        pid: Option<u32>,
        /// The cluster.
        data_dir: PathBuf,
    },
    /// `initdb` failed.
    #[error("initdb failed with {status}: {tail}")]
    InitdbFailed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to its standard error.
        tail: String,
    },
    /// Postgres ended before it accepted a connection.
    #[error("Postgres ended with {status} while starting (log: `{log}`): {tail}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The end of what it logged since it was started.
        tail: String,
    },
    /// Postgres runs but turned the first connection away, as a cluster made by something else would.
    #[error("the Postgres in `{data_dir}` refuses its own user (log: `{log}`)")]
    Refused {
        /// The cluster.
        data_dir: PathBuf,
        /// Its log.
        log: PathBuf,
        /// What Postgres answered.
        source: tokio_postgres::Error,
    },
    /// Postgres accepted no connection before the deadline.
    #[error("Postgres did not accept connections within {within:?} (log: `{log}`): {tail}")]
    TimedOut {
        /// The deadline.
        within: Duration,
        /// Its log.
        log: PathBuf,
        /// The end of what it logged since it was started.
        tail: String,
    },
}

impl EmbeddedError {
    /// Returns a function for `map_err` that adds `path` to an I/O error.
    pub(super) fn unusable(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Unusable { path, source }
    }
}

/// Returns how to stop a Postgres by hand, for the end of a message.
fn stop(pid: Option<u32>) -> String {
    pid.map(|pid| format!(": stop it with `kill -INT {pid}`")).unwrap_or_default()
}
