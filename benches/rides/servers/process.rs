//! The release binary as a separate process.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::postgres::Database;
use super::usage::resident_mb;
use crate::load::wire;
use crate::options::scratch_dir;

/// A start or a stop takes well under a second; the sandbox has nothing to finish when it stops.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(1);
const LOOK_AT_MEMORY: Duration = Duration::from_millis(100);
const LEDGER: &str = "ledger.jsonl";

pub(crate) struct Process {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
    /// The address of the API, or of the sandbox if the process runs that.
    pub(crate) address: SocketAddr,
    /// From its start to the first 200 of `/readyz`.
    pub(crate) ready_after: Duration,
}

/// Where the stand-in for Stripe is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sandbox {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
}

impl Process {
    /// Runs `roles` over the database with the settings of production, and waits until it is ready.
    pub(crate) async fn start(roles: &str, database: &Database, stripe: Sandbox, settings: &[&str]) -> Self {
        let url = format!("database.url={}", database.url());
        Self::start_without_database(roles, stripe, &[&[url.as_str()], settings].concat(), None).await
    }

    /// Like [`Process::start`], with settings that name the database.
    pub(crate) async fn start_without_database(
        roles: &str,
        stripe: Sandbox,
        settings: &[&str],
        pg_bin: Option<&Path>,
    ) -> Self {
        let address = free_port();
        let always = [
            format!("api.listen={address}"),
            format!("stripe.api_base=http://{}", stripe.address),
            // Creates the two users, of which the load uses one; otherwise the API is as in production.
            "demo.enabled=true".to_owned(),
            format!("receipts.dir={}", receipts_dir().display()),
        ];
        let settings: Vec<&str> = always.iter().map(String::as_str).chain(settings.iter().copied()).collect();
        let mut process = Self::spawn(roles, address, &settings, pg_bin);
        if roles.split(',').any(|role| role == "api") {
            process.wait_until(|| wire::is_ready(address)).await;
        } else {
            let log = process.log.clone();
            process.wait_until(|| roles_are_up(&log)).await;
        }
        process
    }

    /// Starts the stand-in for Stripe, with a new ledger, without delays, and without faults until some are set. It
    /// needs a database like every role, but does not use it.
    pub(crate) async fn sandbox(database: &Database) -> (Self, Sandbox) {
        let ledger = scratch_dir().join(LEDGER);
        let _ = std::fs::remove_file(&ledger);
        Self::sandbox_with(database, &ledger).await
    }

    /// Like [`Process::sandbox`], with this ledger.
    pub(crate) async fn sandbox_with(database: &Database, ledger: &Path) -> (Self, Sandbox) {
        let address = free_port();
        let settings = [
            format!("database.url={}", database.url()),
            format!("stripe_sandbox.listen={address}"),
            format!("stripe_sandbox.ledger={}", ledger.display()),
            "stripe_sandbox.faults.latency=0s".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let mut process = Self::spawn("stripe_sandbox", address, &settings, None);
        let log = process.log.clone();
        process.wait_until(|| roles_are_up(&log)).await;
        let pid = process.pid;
        (process, Sandbox { address, pid })
    }

    fn spawn(roles: &str, address: SocketAddr, settings: &[&str], pg_bin: Option<&Path>) -> Self {
        let log = scratch_dir().join(format!("{}-{}.log", roles.replace(',', "-"), address.port()));
        let file = File::create(&log).expect("create a log file");
        let mut command = binary(settings);
        command.args(["--only", roles]).envs(pg_bin.map(|dir| ("PG_BIN", dir))).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("start the release binary");
        let pid = child.id().expect("it has not been waited for");
        Self { child, pid, log, address, ready_after: Duration::ZERO }
    }

    async fn wait_until<F: Future<Output = bool>>(&mut self, mut is_up: impl FnMut() -> F) {
        let began = Instant::now();
        while !is_up().await {
            let ended = self.child.try_wait().expect("look after the process");
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "the process did not become ready ({ended:?}); its log is {}",
                self.log.display()
            );
            tokio::time::sleep(LOOK).await;
        }
        self.ready_after = began.elapsed();
    }

    /// Stops the process in order, so that nothing that it leaves behind disturbs the next measurement.
    pub(crate) async fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.pid).expect("a process number"));
        kill(pid, Signal::SIGTERM).expect("signal the process");
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("the process ends in time").expect("wait for the process");
        assert!(status.success(), "the process ended with {status}; its log is {}", self.log.display());
        // One line per request makes hundreds of megabytes.
        let _ = std::fs::remove_file(&self.log);
        // One file per ride, if it ran a worker. No two workers run at the same time.
        let _ = std::fs::remove_dir_all(receipts_dir());
    }

    /// Stops the sandbox and removes its ledger.
    pub(crate) async fn stop_sandbox(self) {
        self.stop().await;
        let _ = std::fs::remove_file(scratch_dir().join(LEDGER));
    }

    /// Returns the JSON lines logged so far that have this field.
    pub(crate) fn logged(&self, field: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).expect("read the log");
        let named = format!("\"{field}\":");
        let lines = text.lines().filter(|line| line.contains(&named));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// Runs `verify` over this many rides in this database and over the sandbox's ledger. Returns how long it took and the
/// most memory that it held, in MB.
pub(crate) async fn verify(database: &Database, stripe: Sandbox, rides: u32) -> (Duration, f64) {
    let settings =
        [format!("database.url={}", database.url()), format!("stripe.api_base=http://{}", stripe.address)];
    let mut command = binary(&settings.each_ref().map(String::as_str));
    let began = Instant::now();
    let child =
        command.arg("verify").stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("start verify");
    let (pid, mut most) = (child.id().expect("it has not been waited for"), 0.0_f64);
    let mut ended = std::pin::pin!(child.wait_with_output());
    let output = loop {
        match tokio::time::timeout(LOOK_AT_MEMORY, ended.as_mut()).await {
            Ok(output) => break output.expect("wait for verify"),
            Err(_) => most = most.max(resident_mb(pid).unwrap_or(f64::NAN)),
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(&format!(" {rides} examined")), "verify found:\n{said}");
    (began.elapsed(), most)
}

/// Returns the release binary with the settings of production and these.
fn binary(settings: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rocket-rides-atomic"));
    command
        .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/config/production.toml")])
        .args(["--set", "stripe.api_key=sk_test_bench"])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        // Variables of the developer's shell would count as settings, too.
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Returns whether the roles run: a process without an API logs them then.
async fn roles_are_up(log: &Path) -> bool {
    std::fs::read_to_string(log).is_ok_and(|text| text.contains("\"message\":\"roles\""))
}

/// Returns the directory into which workers write receipts.
pub(crate) fn receipts_dir() -> PathBuf {
    scratch_dir().join("receipts")
}

/// Returns a free port. It must be known beforehand: the sandbox cannot report its port, and `/readyz` is asked before
/// the process has reported its own.
pub(crate) fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}
