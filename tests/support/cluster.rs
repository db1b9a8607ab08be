//! One private Postgres for the whole test run, made by the code under test; each test gets a database in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::mpsc;
use std::time::Duration;

use rocket_rides_atomic::database::embedded::{EmbeddedError, EmbeddedPostgres};
use tokio_postgres::{Client, Config, NoTls};
use uuid::Uuid;

use super::tap;

/// The variable that names a directory for clusters other than Cargo's.
const CLUSTERS: &str = "TEST_CLUSTERS";

struct Cluster {
    server: Config,
    /// The config with which the program reaches it, which may lead through the tap.
    program: Config,
}

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let (started, cluster) = mpsc::channel();
    // The server ends with this process, and the thread that keeps it must not end with the first test's runtime.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let postgres = start().await;
            let server = postgres.config();
            let program = tap::in_front_of(&server).await;
            started.send(Cluster { server, program }).expect("the receiver waits");
            std::future::pending::<()>().await;
        });
    });
    cluster.recv().expect("Postgres starts")
});

/// Starts the cluster. A run that finds databases of the one before makes a new cluster, because that is ten times
/// faster than to drop some hundred databases. A run that finds a directory in use, or made by another user, takes the
/// next.
async fn start() -> EmbeddedPostgres {
    let dir = std::env::var_os(CLUSTERS).map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    for n in 0.. {
        let data_dir = dir.join(format!("postgres-{n}"));
        if !claim(&data_dir) {
            continue;
        }
        match EmbeddedPostgres::start(&data_dir).await {
            Ok(postgres) => {
                let Some(used) = used(&postgres.config()).await else { return postgres };
                postgres.stop(STOP_GRACE).await;
                std::fs::remove_dir_all(used).expect("no longer in use");
                return EmbeddedPostgres::start(&data_dir).await.expect("a new one");
            }
            Err(EmbeddedError::InUse { .. } | EmbeddedError::Owned { .. } | EmbeddedError::WrongOwner { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    unreachable!("some directory is free")
}

/// Claims the directory for this process until it ends, so that no other process starts in it while it is made again.
/// Returns whether that was possible.
fn claim(data_dir: &Path) -> bool {
    let Ok(file) = File::create(data_dir.with_extension("claim")) else { return false };
    let claimed = file.try_lock().is_ok();
    // The lock lasts for as long as the file is open.
    std::mem::forget(file);
    claimed
}

/// A Postgres without clients stops at once.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Returns the cluster's directory, if a run has made databases in it.
async fn used(config: &Config) -> Option<PathBuf> {
    const SQL: &str =
        "SELECT current_setting('data_directory') FROM pg_database WHERE datname LIKE 'test_%' LIMIT 1";
    let found = open(config.clone()).await.query_opt(SQL, &[]).await.expect("list");
    found.map(|row| PathBuf::from(row.get::<_, String>(0)))
}

/// Creates an empty database, and returns the config with which the program reaches it.
pub async fn database() -> Config {
    let cluster = tokio::task::spawn_blocking(|| LazyLock::force(&CLUSTER)).await.expect("no panic");
    let name = format!("test_{}", Uuid::new_v4().simple());
    tap::name_database(&name);
    open(cluster.server.clone()).await.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("create");
    let mut own = cluster.program.clone();
    own.dbname(&name);
    own
}

/// Returns the config as a connection string.
pub fn url(config: &Config) -> String {
    use tokio_postgres::config::Host;
    let host = match &config.get_hosts()[0] {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    };
    let (user, dbname) = (config.get_user().expect("a user"), config.get_dbname().expect("a database"));
    format!("host='{host}' port={} user={user} dbname={dbname}", config.get_ports()[0])
}

/// Opens a connection beside the pool's that does not go through the tap.
pub async fn connect(config: &Config) -> Client {
    open(tap::past(config)).await
}

async fn open(mut config: Config) -> Client {
    config.connect_timeout(Duration::from_secs(5));
    let (client, connection) = config.connect(NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}
