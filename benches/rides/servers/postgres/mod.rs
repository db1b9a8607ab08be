//! The Postgres that the service and pgbench share: the library's own private one, durable as always.

pub(crate) mod binaries;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rocket_rides_atomic::database::embedded::EmbeddedPostgres;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

const STOP_GRACE: Duration = Duration::from_secs(20);

pub(crate) struct Postgres {
    server: EmbeddedPostgres,
    pub(crate) binaries: PathBuf,
    data_dir: PathBuf,
    /// For statements about the whole server; no measurement runs in its database.
    pub(crate) admin: Client,
}

/// One database of the server.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    config: Config,
    pub(crate) name: String,
}

impl Postgres {
    /// Starts the server, or returns why it cannot: another benchmark may be running.
    pub(crate) async fn start(binaries: PathBuf) -> Result<Self, String> {
        let configured = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-postgres");
        let started = EmbeddedPostgres::start(&configured).await;
        binaries::remove_wrapper();
        let server = started.map_err(|error| atomic_phases::errors::chain(&error))?;
        let admin = connect(&server.config()).await;
        let data_dir = PathBuf::from(show(&admin, "data_directory").await);
        refuse_memory(&data_dir);
        let postgres = Self { server, binaries, data_dir, admin };
        postgres.drop_left_overs().await;
        Ok(postgres)
    }

    /// Drops the databases of an earlier run that was killed before it could drop them.
    async fn drop_left_overs(&self) {
        let found =
            self.admin.query("SELECT datname::text FROM pg_database WHERE datname LIKE 'bench_%'", &[]).await;
        for row in found.expect("list the databases") {
            self.drop_database(row.get(0)).await;
        }
    }

    /// Creates an empty database; one of the same name from an earlier part is dropped.
    pub(crate) async fn fresh(&self, part: &str) -> Database {
        let name = format!("bench_{part}");
        self.drop_database(&name).await;
        self.admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("create a database");
        let mut config = self.server.config();
        config.dbname(&name);
        Database { config, name }
    }

    pub(crate) async fn drop_database(&self, name: &str) {
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        self.admin.batch_execute(&sql).await.expect("drop a database");
    }

    /// Makes a checkpoint, so that no measurement pays for writing out the pages of the one before it.
    pub(crate) async fn checkpoint(&self) {
        self.admin.batch_execute("CHECKPOINT").await.expect("a checkpoint");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub(crate) async fn version(&self) -> String {
        show(&self.admin, "server_version").await
    }

    /// Ends the server and removes its files.
    pub(crate) async fn end(self) {
        self.server.stop(STOP_GRACE).await;
        let _ = std::fs::remove_dir_all(&self.data_dir);
        for extension in ["log", "log.old", "lock"] {
            let _ = std::fs::remove_file(format!("{}.{extension}", self.data_dir.display()));
        }
    }
}

impl Database {
    pub(crate) async fn connect(&self) -> Client {
        connect(&self.config).await
    }

    /// Returns the directory of the server's socket.
    pub(crate) fn socket_dir(&self) -> String {
        match &self.config.get_hosts()[0] {
            Host::Unix(path) => path.display().to_string(),
            Host::Tcp(name) => name.clone(),
        }
    }

    pub(crate) fn user(&self) -> &str {
        self.config.get_user().expect("the private Postgres has a user")
    }

    pub(crate) fn url(&self) -> String {
        format!("host='{}' port={} user={} dbname={}", self.socket_dir(), self.port(), self.user(), self.name)
    }

    pub(crate) fn port(&self) -> u16 {
        self.config.get_ports()[0]
    }
}

async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connect to Postgres");
    tokio::spawn(connection);
    client
}

async fn show(client: &Client, setting: &str) -> String {
    let row = client.query_one(&format!("SHOW {setting}"), &[]).await;
    row.expect("read a setting").get(0)
}

/// Panics if the directory is in memory: fsync costs nothing there, and every figure would be wrong.
#[cfg(target_os = "linux")]
fn refuse_memory(data_dir: &Path) {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    let found = statfs(data_dir).expect("the file system of the data directory");
    assert!(
        found.filesystem_type() != TMPFS_MAGIC,
        "{} is in memory (tmpfs): set CARGO_TARGET_DIR to a place on a disk",
        data_dir.display()
    );
}

#[cfg(not(target_os = "linux"))]
fn refuse_memory(_: &Path) {}
