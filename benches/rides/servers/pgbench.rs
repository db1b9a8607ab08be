//! pgbench with the same two statements: the throughput of Postgres when each request sends its own statements.
//!
//! The statements (`phases.sql`) are the plainest that keep the promises: one row at a time, no arrays, the same fence.
//! There is no HTTP, no look-up of the user and no charge. So no service that sends its phases one by one can reach
//! this throughput.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::postgres::{Database, Postgres};
use crate::load::percentile_ms;
use crate::options::scratch_dir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rides/servers/phases.sql");
const SCHEMA: &str = include_str!("../../../schema.sql");
/// The settings of the service's own sessions: no plan that was made for an empty table is kept while it grows.
const SESSION: &str = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off \
                       -c plan_cache_mode=force_generic_plan";

pub(crate) struct Pgbench {
    program: PathBuf,
    pub(crate) database: Database,
}

/// How long clients waited, from when each request was due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Pgbench {
    /// Creates a database for pgbench, from the same schema.
    pub(crate) async fn prepare(postgres: &Postgres) -> Self {
        let database = postgres.fresh("pgbench").await;
        let client = database.connect().await;
        client.batch_execute(SCHEMA).await.expect("apply the schema");
        let user = "INSERT INTO users (email, stripe_customer_id) VALUES ('user@example.com', 'cus_pgbench')";
        client.batch_execute(user).await.expect("insert the user");
        Self { program: postgres.binaries.join("pgbench"), database }
    }

    /// Returns requests per second of this many clients in a closed loop.
    pub(crate) async fn closed(&self, clients: usize, warm_up: Duration, window: Duration) -> f64 {
        // One progress line per second, so that the warm-up can be left out.
        let said = self.run(clients, warm_up + window, &["--progress=1"]).await;
        let warm = warm_up.as_secs_f64() + 0.5;
        let rates: Vec<f64> =
            said.lines().filter_map(progress).filter(|(at, _)| *at > warm).map(|(_, r)| r).collect();
        assert!(!rates.is_empty(), "pgbench reported no progress:\n{said}");
        rates.iter().sum::<f64>() / rates.len() as f64
    }

    /// Returns the waits at a given rate, counted from when each request was due, as pgbench does under `--rate`.
    pub(crate) async fn open(&self, clients: usize, rate: f64, warm_up: Duration, window: Duration) -> Waits {
        let prefix = scratch_dir().join("pgbench-log");
        let (rate, log) = (format!("--rate={rate:.1}"), format!("--log-prefix={}", prefix.display()));
        remove_logs();
        self.run(clients, warm_up + window, &[&rate, "--log", &log]).await;
        let mut lines: Vec<(f64, u32)> = Vec::new();
        for path in logs() {
            let text = std::fs::read_to_string(&path).expect("read pgbench's log");
            lines.extend(text.lines().filter_map(logged));
        }
        remove_logs();
        let first = lines.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
        let warm = first + warm_up.as_secs_f64();
        let mut waits: Vec<u32> = lines.into_iter().filter(|(at, _)| *at >= warm).map(|(_, us)| us).collect();
        Waits { p50_ms: percentile_ms(&mut waits, 50.0), p99_ms: percentile_ms(&mut waits, 99.0) }
    }

    async fn run(&self, clients: usize, length: Duration, more: &[&str]) -> String {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(clients);
        let database = &self.database;
        let output = Command::new(&self.program)
            .args(["--no-vacuum", "--protocol=prepared", "--file", SCRIPT])
            .args(["--host", &database.socket_dir(), "--username", database.user(), &database.name])
            .args(["--port", &database.port().to_string()])
            .args(["--client", &clients.to_string(), "--jobs", &threads.to_string()])
            .args(["--time", &length.as_secs().to_string()])
            // The coordinates of a request, passed as parameters like everything else.
            .args(["-D", "origin_lat=37.7749", "-D", "origin_lon=-122.4194"])
            .args(["-D", "target_lat=34.0522", "-D", "target_lon=-118.2437"])
            .args(more)
            .env("PGOPTIONS", SESSION)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("run pgbench");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("aborted"), "pgbench failed:\n{said}");
        said
    }
}

/// Parses `progress: 2.0 s, 4711.0 tps, …` into seconds and transactions per second.
fn progress(line: &str) -> Option<(f64, f64)> {
    let mut fields = line.strip_prefix("progress: ")?.split(", ");
    let at = fields.next()?.strip_suffix(" s")?.parse().ok()?;
    Some((at, fields.next()?.strip_suffix(" tps")?.parse().ok()?))
}

/// Parses `client transaction wait_us script epoch_s epoch_us lag_us` into when it ended, and how long the client
/// waited.
fn logged(line: &str) -> Option<(f64, u32)> {
    let fields: Vec<f64> = line.split(' ').map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [_, _, wait, _, seconds, micros, ..] = fields[..] else { return None };
    Some((seconds + micros / 1e6, wait as u32))
}

/// Returns pgbench's logs, one for each of its threads.
fn logs() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(scratch_dir()).expect("list the scratch directory");
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgbench-log"));
    entries.flatten().map(|entry| entry.path()).filter(named).collect()
}

fn remove_logs() {
    for path in logs() {
        let _ = std::fs::remove_file(path);
    }
}
