//! A private, durable Postgres that starts and ends with this process, so that no server has to be set up first.
//!
//! It differs from the Postgres of a test kit on purpose. It trades no durability for speed, because what it stores
//! decides whether a card is charged again. It listens on a Unix socket only. And it is tied to this process: it ends
//! in order when asked to, and at once when this process is killed (on Linux; other systems cannot promise that). What
//! a crash leaves behind is cleared and recovered at the next start, without a person.
//!
//! There is no global state: every cluster has a thread, a lock and a child of its own.

mod binaries;
mod child;
mod data_dir;
mod error;
#[cfg(test)]
mod tests;

use std::env;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;

use binaries::Binaries;
use child::{Account, Guardian};
use data_dir::{DataDir, Lock, Log, NAME, PORT};
pub use error::EmbeddedError;

/// How long Postgres may give no answer at all. A start takes milliseconds; one that replays the
/// [`max_wal_size`](SETTINGS) of a crash on a slow disk takes minutes, and its answers say that it is recovering.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a long recovery is logged.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);
const START_POLL: Duration = Duration::from_millis(10);

/// How long an immediate shutdown may take before the postmaster is killed: it writes nothing, and only has to
/// reach its children.
const QUIT_GRACE: Duration = Duration::from_secs(1);

/// Settings on the command line, where they win over an edited `postgresql.conf` and follow this program's version
/// rather than the one that ran initdb.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    // A pool per process, several processes, and a person with psql.
    "max_connections=200",
    // The defaults, spelled out because everything here rests on them.
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    // Checkpoints by time rather than by volume: the default of 1 GB forces them under load.
    "max_wal_size=2GB",
    "logging_collector=off",
    // The client of a failed statement handles and logs it.
    "log_min_messages=log",
    // After a crash, one flush of the file system instead of one for each file: 0.3 s instead of 57 s, measured with
    // 20,000 files.
    #[cfg(target_os = "linux")]
    "recovery_init_sync_method=syncfs",
];

/// A running Postgres that belongs to this process. Dropping it ends Postgres without a checkpoint, so that the
/// next start replays the write-ahead log; [`stop`](Self::stop) is the orderly way.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    child: Child,
    pid: u32,
    psql: PathBuf,
    data_dir: DataDir,
    log: Log,
    _guardian: Guardian,
    _lock: Lock,
}

/// How [`EmbeddedPostgres::stop`] ended. Committed data is safe in each case; only the next start's work differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// In order, with a checkpoint.
    Clean,
    /// Without a checkpoint, because the grace period was over.
    Immediate,
    /// By SIGKILL, because it did not react to SIGQUIT either.
    Killed,
    /// By itself, or with an error while it was being stopped.
    Failed(ExitStatus),
}

impl EmbeddedPostgres {
    /// Starts the cluster in `data_dir`, which is made first if it is absent, and returns when the database
    /// `rocket_rides` accepts connections.
    ///
    /// Only one process at a time can have a cluster. For root, Postgres runs as another user, and a `data_dir`
    /// which that user cannot reach is replaced by one below `/var/lib/rocket-rides-atomic`.
    ///
    /// # Errors
    ///
    /// Each variant of [`EmbeddedError`] is a situation and says what to do about it.
    pub async fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let begun = Instant::now();
        let configured = data_dir.to_owned();
        // Files, the wait for a predecessor and initdb all block, so they run on a thread for that. If the caller is
        // cancelled meanwhile, the result is dropped on that thread, and Postgres with it.
        let mut postgres = match tokio::task::spawn_blocking(move || Self::launch(&configured)).await {
            Ok(launched) => launched?,
            Err(error) => resume_unwind(error.into_panic()),
        };
        postgres.wait_until_ready().await?;
        tracing::info!(
            pid = postgres.pid,
            data_dir = %postgres.data_dir.path().display(),
            elapsed_ms = begun.elapsed().as_millis(),
            "the embedded Postgres accepts connections"
        );
        Ok(postgres)
    }

    /// Returns how to connect: over the socket, as superuser `rocket_rides`, to database `rocket_rides`.
    #[must_use]
    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.data_dir.socket_dir()).port(PORT).user(NAME).dbname(NAME);
        // TLS does not exist on Unix sockets; saying so saves a round trip per connection.
        config.ssl_mode(SslMode::Disable);
        config
    }

    /// Returns a command line for a shell, to look inside with `psql`.
    #[must_use]
    pub fn psql_command(&self) -> String {
        // The socket's directory has a path that needs no quotes.
        let (psql, socket_dir) = (self.psql.display(), self.data_dir.socket_dir());
        format!("'{psql}' -h {} -p {PORT} -U {NAME} {NAME}", socket_dir.display())
    }

    /// Returns the postmaster's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Resolves when Postgres has ended by itself. May be cancelled and called again.
    ///
    /// # Panics
    ///
    /// If something else in this process reaped the child.
    pub async fn exited(&mut self) -> ExitStatus {
        self.child.wait().await.expect("nobody else waits for this child")
    }

    /// Stops Postgres: in order (SIGINT: sessions are ended, open transactions rolled back, a checkpoint is
    /// written) within `grace`, else at once. Returns at most about a second after `grace`.
    pub async fn stop(mut self, grace: Duration) -> Stopped {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Stopped::Failed(status);
        }
        self.signal(Signal::SIGINT);
        if let Ok(status) = tokio::time::timeout(grace, self.exited()).await {
            return if status.success() { Stopped::Clean } else { Stopped::Failed(status) };
        }
        self.signal(Signal::SIGQUIT);
        if tokio::time::timeout(QUIT_GRACE, self.exited()).await.is_ok() {
            return Stopped::Immediate;
        }
        // Backends notice the postmaster's death and end.
        self.signal(Signal::SIGKILL);
        self.exited().await;
        Stopped::Killed
    }

    /// Does everything up to spawning Postgres. Blocks, and has to be called within a runtime.
    fn launch(configured: &Path) -> Result<Self, EmbeddedError> {
        let account = Account::current()?;
        let data_dir = DataDir::locate(configured, &account)?;
        data_dir.check_owner(&account)?;
        // Checked before the lock's file is put beside the directory, which may not be ours.
        if data_dir.major()?.is_none() {
            data_dir.check_vacant()?;
        }
        let lock = Lock::acquire(&data_dir)?;

        let major = data_dir.major()?;
        let pg_bin = env::var_os("PG_BIN").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let binaries = Binaries::find(&account, major.map(|major| (data_dir.path(), major)), pg_bin)?;
        if major.is_none() {
            data_dir.initialise(&binaries, &account, &lock)?;
        }
        data_dir.make_socket_dir(&account)?;
        data_dir.clear_stale(&lock)?;

        let log = data_dir.open_log()?;
        let program = binaries.program("postgres");
        let (child, pid, guardian) = spawn(&program, &data_dir, &account, &log, &lock)
            .map_err(|source| EmbeddedError::CannotRun { program, user: account.name().to_owned(), source })?;
        Ok(Self { child, pid, psql: binaries.psql(), data_dir, log, _guardian: guardian, _lock: lock })
    }

    /// Connects again and again until the database accepts a connection. Creates the database if it is missing: a kill
    /// may have come between initdb and its creation.
    ///
    /// A server that says it is recovering gets all the time it needs: if it were killed for being late, the next one
    /// would begin the recovery anew.
    async fn wait_until_ready(&mut self) -> Result<(), EmbeddedError> {
        let mut last_answer = Instant::now();
        let mut announced = last_answer;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                let (log, tail) = (self.log.path().to_owned(), self.log.tail());
                return Err(EmbeddedError::Ended { status, log, tail });
            }
            let connected = tokio::time::timeout(START_TIMEOUT, self.config().connect(NoTls)).await;
            let error = match connected {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.timed_out()),
            };
            match error.code() {
                None if last_answer.elapsed() > START_TIMEOUT => return Err(self.timed_out()),
                None => {}
                Some(&SqlState::CANNOT_CONNECT_NOW) => {
                    last_answer = Instant::now();
                    if announced.elapsed() > ANNOUNCE_EVERY {
                        announced = last_answer;
                        tracing::info!(log = %self.log.path().display(), "Postgres is recovering; waiting for it");
                    }
                }
                Some(&SqlState::INVALID_CATALOG_NAME) => {
                    self.create_database().await.map_err(|error| self.refused(error))?;
                }
                Some(_) => return Err(self.refused(error)),
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    fn timed_out(&self) -> EmbeddedError {
        let (log, tail) = (self.log.path().to_owned(), self.log.tail());
        EmbeddedError::TimedOut { within: START_TIMEOUT, log, tail }
    }

    async fn create_database(&self) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = self.config().dbname("postgres").connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let created = client.batch_execute(&format!("CREATE DATABASE {NAME}")).await;
        drop(client);
        // A failure of the connection shows in the result of the statement.
        let _ = connection.await;
        created
    }

    fn refused(&self, source: tokio_postgres::Error) -> EmbeddedError {
        let (data_dir, log) = (self.data_dir.path().to_owned(), self.log.path().to_owned());
        EmbeddedError::Refused { data_dir, log, source }
    }

    /// Signals the postmaster, whose number stays its own until this process has reaped it.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.signal(Signal::SIGQUIT);
    }
}

/// Spawns the postmaster, tied to this process by the guardian's thread.
fn spawn(
    program: &Path,
    data_dir: &DataDir,
    account: &Account,
    log: &Log,
    lock: &Lock,
) -> std::io::Result<(Child, u32, Guardian)> {
    let mut command = account.command(program, data_dir.parent());
    command.arg("-D").arg(data_dir.path());
    command.arg("-p").arg(PORT.to_string()).arg("-k").arg(data_dir.socket_dir());
    command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
    command.stdout(log.file().try_clone()?).stderr(log.file().try_clone()?);
    child::tie(&mut command, lock.file())?;

    let (child, guardian) = child::spawn_guarded(command)?;
    let pid = child.id().ok_or_else(|| std::io::Error::other("the child was reaped before it was known"))?;
    Ok((child, pid, guardian))
}
