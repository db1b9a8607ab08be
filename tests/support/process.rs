//! The real binary as a separate process, which tests can kill.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::client::Http;
use super::{PATIENCE, cluster, eventually};

pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: JoinSet<()>,
}

impl Process {
    /// Runs the binary with these arguments and no variables but `PATH` and `PG_BIN`, so that the developer's own have
    /// no effect.
    pub fn spawn(arguments: &[String]) -> Self {
        Self::spawn_with(arguments, &[])
    }

    pub fn spawn_with(arguments: &[String], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rocket-rides-atomic"))
            .args(arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "PG_BIN"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("spawn");
        let (log, mut readers) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
        let (stderr, stdout) = (child.stderr.take().expect("piped"), child.stdout.take().expect("piped"));
        for mut lines in [
            Box::new(BufReader::new(stderr)) as Box<dyn tokio::io::AsyncBufRead + Send + Unpin>,
            Box::new(BufReader::new(stdout)),
        ]
        .map(AsyncBufReadExt::lines)
        {
            let log = Arc::clone(&log);
            readers.spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    log.lock().expect("no panic").push(line);
                }
            });
        }
        Self { child, log, readers }
    }

    /// Returns all lines printed so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    /// Returns all lines that it has printed, once it has ended.
    pub async fn all_said(mut self) -> Vec<String> {
        while self.readers.join_next().await.is_some() {}
        self.log()
    }

    /// Returns the API, once it is ready.
    pub async fn api(&self) -> Http {
        Http::new(self.field("api").await.trim_start_matches("http://").parse().expect("an address"))
    }

    /// Returns its process id, unless it has ended and been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns the first value of this field in a log line, if there is one by now.
    pub fn said(&self, name: &str) -> Option<String> {
        let log = self.log.lock().expect("no panic");
        log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
            line.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
    }

    /// Waits for the first value of this field in a log line.
    pub async fn field(&self, name: &str) -> String {
        eventually(name, async || {
            let (lines, found) = (self.log(), self.said(name));
            if found.is_none() && lines.iter().any(|line| line.starts_with("rocket-rides-atomic: ")) {
                panic!("{lines:#?}");
            }
            found
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("still there");
        kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("signal");
    }

    pub async fn exit(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends in time").expect("wait")
    }
}

/// Returns arguments for API and sandbox on free ports over this database; later ones override earlier ones.
pub fn arguments(database: Option<&tokio_postgres::Config>, dir: &Path, more: &[&str]) -> Vec<String> {
    let mut settings = vec![
        "api.listen=127.0.0.1:0".to_owned(),
        "stripe_sandbox.listen=127.0.0.1:0".to_owned(),
        "roles.simulator=false".to_owned(),
        format!("stripe_sandbox.ledger={}", dir.join("ledger.jsonl").display()),
        format!("receipts.dir={}", dir.join("receipts").display()),
        format!("database.data_dir={}", dir.join("postgres").display()),
        "stripe_sandbox.faults.latency=0s".to_owned(),
        "stripe_sandbox.faults.server_error=0".to_owned(),
        "stripe_sandbox.faults.reply_lost=0".to_owned(),
        "stripe_sandbox.faults.rate_limited=0".to_owned(),
        "log.format=json".to_owned(),
    ];
    settings.extend(database.map(|database| format!("database.url={}", cluster::url(database))));
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/dev.toml");
    let mut arguments = vec!["--config".to_owned(), config.to_owned()];
    arguments.extend(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
    arguments
}

/// Returns a port that was free a moment ago. It is below the range from which Linux and macOS choose ports by
/// themselves, so it stays free while the process that listens there is being restarted.
pub fn free_port() -> SocketAddr {
    let candidates =
        std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_000..32_000))));
    candidates.take(1000).find(|address| std::net::TcpListener::bind(address).is_ok()).expect("a free port")
}
