use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::NoTls;

use super::{DataDir, EmbeddedError, EmbeddedPostgres, Stopped, child};

const GRACE: Duration = Duration::from_secs(20);
/// Tells the helper test, which is a process of its own, where its cluster goes.
const HELPER_DIR: &str = "EMBEDDED_POSTGRES_TEST_DIR";

/// A directory that is removed again, for a cluster and the files beside it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("embedded-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn data_dir(&self) -> PathBuf {
        self.0.join("pg")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn execute(postgres: &EmbeddedPostgres, sql: &str) {
    let (client, connection) = postgres.config().connect(NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap();
    drop(client);
    let _ = connection.await;
}

async fn count(postgres: &EmbeddedPostgres, table: &str) -> i64 {
    let (client, connection) = postgres.config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Waits for what a condition describes, since a fixed sleep is either too short or a waste.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn keeps_its_data_through_an_orderly_stop() {
    let scratch = Scratch::new();
    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    execute(&postgres, "CREATE TABLE t AS SELECT 1").await;
    assert!(postgres.psql_command().ends_with("-U rocket_rides rocket_rides"));
    let pid = postgres.pid();
    assert_eq!(postgres.stop(GRACE).await, Stopped::Clean);
    assert_eq!(child::running_program(pid), None);

    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    assert_eq!(count(&postgres, "t").await, 1);
    assert_eq!(postgres.stop(GRACE).await, Stopped::Clean);
}

#[tokio::test]
async fn is_durable_and_listens_on_its_socket_only() {
    let scratch = Scratch::new();
    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    let (client, connection) = postgres.config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let expected = [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("lc_collate", "C"),
        ("max_connections", "200"),
        #[cfg(target_os = "linux")]
        ("recovery_init_sync_method", "syncfs"),
    ];
    for (name, value) in expected {
        let sql = "SELECT coalesce(current_setting($1, true), (SELECT datcollate FROM pg_database \
                   WHERE datname = current_database()))";
        assert_eq!(client.query_one(sql, &[&name]).await.unwrap().get::<_, String>(0), value, "{name}");
    }
    postgres.stop(GRACE).await;
}

#[tokio::test]
async fn a_second_start_learns_who_owns_the_cluster() {
    let scratch = Scratch::new();
    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    let error = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::Owned { pid, .. } if pid == std::process::id()), "{error}");

    let EmbeddedError::Owned { url, .. } = error else { unreachable!() };
    let (config, tls) = atomic_phases::database::tls::parse(&url).unwrap();
    drop(config.connect(tls).await.unwrap());
    postgres.stop(GRACE).await;
}

#[tokio::test]
async fn two_starts_at_once_leave_one_owner() {
    let scratch = Scratch::new();
    let data_dir = scratch.data_dir();
    let (first, second) = tokio::join!(EmbeddedPostgres::start(&data_dir), EmbeddedPostgres::start(&data_dir));
    let (running, refused) = if first.is_ok() { (first, second) } else { (second, first) };
    assert!(matches!(refused, Err(EmbeddedError::Owned { .. })));
    running.unwrap().stop(GRACE).await;
}

#[tokio::test]
async fn recovers_from_a_killed_postmaster() {
    let scratch = Scratch::new();
    let mut postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    execute(&postgres, "CREATE TABLE t AS SELECT 1").await;
    signal(postgres.pid(), Signal::SIGKILL);
    assert!(!postgres.exited().await.success());
    assert!(matches!(postgres.stop(GRACE).await, Stopped::Failed(_)));
    assert!(scratch.data_dir().join("postmaster.pid").exists());

    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    assert_eq!(count(&postgres, "t").await, 1);
    postgres.stop(GRACE).await;
}

#[tokio::test]
async fn a_drop_ends_postgres_and_a_start_can_follow_at_once() {
    let scratch = Scratch::new();
    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    execute(&postgres, "CREATE TABLE t AS SELECT 1").await;
    drop(postgres);

    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    assert_eq!(count(&postgres, "t").await, 1);
    postgres.stop(GRACE).await;
}

#[tokio::test]
async fn a_stop_without_grace_ends_a_busy_postgres() {
    let scratch = Scratch::new();
    let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
    // A stopped process cannot obey: only SIGKILL gets through.
    signal(postgres.pid(), Signal::SIGSTOP);
    assert_eq!(postgres.stop(Duration::from_millis(10)).await, Stopped::Killed);
}

#[tokio::test]
async fn a_recycled_process_number_is_no_obstacle() {
    let scratch = Scratch::new();
    EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap().stop(GRACE).await;
    let pid_file = scratch.data_dir().join("postmaster.pid");
    let socket_lock = scratch.data_dir().join(".s.PGSQL.5432.lock");

    // The number of a process that is no Postgres, then that of a Postgres of another cluster.
    let elsewhere = Scratch::new();
    let other = EmbeddedPostgres::start(&elsewhere.data_dir()).await.unwrap();
    for pid in [std::process::id(), other.pid()] {
        fs::write(&pid_file, format!("{pid}\n{}\n", scratch.data_dir().display())).unwrap();
        fs::write(&socket_lock, format!("{pid}\n")).unwrap();
        EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap().stop(GRACE).await;
    }
    other.stop(GRACE).await;
}

#[tokio::test]
async fn an_interrupted_initdb_is_done_again() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.0.join("pg.new/base/1")).unwrap();
    File::create(scratch.0.join("pg.new/PG_VERSION")).unwrap();
    EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap().stop(GRACE).await;
    assert!(!scratch.0.join("pg.new").exists());
}

#[tokio::test]
async fn any_path_works_and_can_be_looked_into_with_psql() {
    let scratch = Scratch::new();
    for name in ["plain", "it's, \"so\"", &"long".repeat(30)] {
        let postgres = EmbeddedPostgres::start(&scratch.0.join(name)).await.unwrap();
        let command = postgres.psql_command() + " -Atc 'SELECT 7'";
        let shell = Command::new("sh").arg("-c").arg(command).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&shell.stdout).trim(), "7", "{shell:?}");

        let (socket_dir, path) = (postgres.data_dir.socket_dir(), postgres.data_dir.path().to_owned());
        assert_eq!(socket_dir == path, name == "plain");
        postgres.stop(GRACE).await;
        fs::remove_dir_all(socket_dir).unwrap();
    }
}

#[tokio::test]
async fn a_socket_directory_that_others_can_enter_is_refused() {
    let scratch = Scratch::new();
    let account = super::Account::current().unwrap();
    let place = DataDir::locate(&scratch.0.join("a, b"), &account).unwrap();
    place.make_socket_dir(&account).unwrap();
    place.make_socket_dir(&account).expect("the one of an earlier start will do");

    let dir = place.socket_dir();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(place.make_socket_dir(&account), Err(EmbeddedError::SocketDirectory { .. })));
    fs::remove_dir(&dir).unwrap();
    std::os::unix::fs::symlink(&scratch.0, &dir).unwrap();
    assert!(matches!(place.make_socket_dir(&account), Err(EmbeddedError::SocketDirectory { .. })));
    fs::remove_file(&dir).unwrap();
}

#[tokio::test]
async fn what_is_not_a_cluster_is_left_alone() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.data_dir()).unwrap();
    fs::write(scratch.data_dir().join("thesis.txt"), "years of work").unwrap();
    let error = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::NotACluster { .. }), "{error}");
    assert!(scratch.data_dir().join("thesis.txt").exists());
}

#[tokio::test]
async fn a_failed_start_quotes_the_log() {
    let scratch = Scratch::new();
    EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap().stop(GRACE).await;
    fs::write(scratch.data_dir().join("postgresql.conf"), "no_such_setting = 1\n").unwrap();
    let error = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap_err();
    assert!(matches!(&error, EmbeddedError::Ended { tail, .. } if tail.contains("no_such_setting")), "{error}");
}

#[tokio::test]
async fn a_cluster_of_another_version_is_named() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.data_dir()).unwrap();
    give_to_the_account(&scratch.data_dir());
    fs::write(scratch.data_dir().join("PG_VERSION"), "99\n").unwrap();
    let error = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::WrongMajor { needed: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_kill_of_the_whole_process_takes_postgres_along_and_loses_nothing() {
    // The process that is killed is this very test, run once more.
    if let Some(data_dir) = std::env::var_os(HELPER_DIR) {
        return run_until_killed(Path::new(&data_dir)).await;
    }
    let scratch = Scratch::new();
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("database::embedded::tests::a_kill_of_the_whole_process_takes_postgres_along_and_loses_nothing")
        .env(HELPER_DIR, scratch.data_dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let pid: u32 = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("postmaster ")?.1.parse().ok())
        .expect("the helper tells its postmaster");
    assert!(child::is_postgres_of(pid, &scratch.data_dir()));

    helper.kill().unwrap();
    // Not reaped yet, as below an init that does not reap: a zombie must not count as the owner.
    if cfg!(target_os = "linux") {
        let postgres = EmbeddedPostgres::start(&scratch.data_dir()).await.unwrap();
        assert_eq!(count(&postgres, "t").await, 1);
        postgres.stop(GRACE).await;
        wait_until("the orphan is gone", || child::running_program(pid).is_none());
    } else {
        signal(pid, Signal::SIGQUIT);
    }
    helper.wait().unwrap();
}

async fn run_until_killed(data_dir: &Path) {
    let postgres = EmbeddedPostgres::start(data_dir).await.unwrap();
    execute(&postgres, "CREATE TABLE t AS SELECT 1").await;
    #[expect(clippy::print_stdout, reason = "the other test reads it")]
    {
        println!("\npostmaster {}", postgres.pid());
    }
    std::future::pending::<()>().await;
}

/// Gives a directory to the account that Postgres runs as; changes something for root only.
fn give_to_the_account(dir: &Path) {
    super::Account::current().unwrap().take_over(dir).unwrap();
}
