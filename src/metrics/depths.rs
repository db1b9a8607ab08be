//! How much waits in the database, and for how long.
//!
//! Read when Prometheus asks, and at most once a second, however many requests there are. Every figure walks an index
//! that holds only what waits, and none walks further than [`MOST`] entries, which takes some tens of milliseconds. For
//! an outbox with a million jobs the figure is 100,000, and that is alarming enough.

use std::time::{Duration, Instant};

use atomic_phases::database::{Database, DatabaseError};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;

/// Counts stop at this number.
pub const MOST: i64 = 100_000;
/// A database that does not answer by now counts as down. Prometheus waits for 10 s by default.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer, or the lack of one, is used again.
const FRESH: Duration = Duration::from_secs(1);

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Depths {
    last: Mutex<Option<(Instant, Option<Waiting>)>>,
}

/// What waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    keys_unfinished: i64,
    keys_parked: i64,
    staged_jobs: i64,
    staged_age: f64,
    queued_jobs: i64,
    queued_age: f64,
    dead_jobs: i64,
    processes: i64,
}

/// Each `ORDER BY` names the index to walk. With more than [`MOST`] unfinished jobs, the oldest is that of the [`MOST`]
/// jobs that are due first.
const ASK: &str = include_str!("depths.sql");

impl Depths {
    /// Returns what waits, at most a second old; `None` if the database does not answer. Locks no rows.
    pub(super) async fn read(&self, database: &Database) -> Option<Waiting> {
        let mut last = self.last.lock().await;
        if let Some((at, waiting)) = *last
            && at.elapsed() < FRESH
        {
            return waiting;
        }
        // The pool logs why it cannot connect, and `database_up` shows the rest.
        let answer = tokio::time::timeout(QUERY_TIMEOUT, ask(database)).await.ok().and_then(Result::ok);
        *last = Some((Instant::now(), answer));
        answer
    }
}

async fn ask(database: &Database) -> Result<Waiting, DatabaseError> {
    let rows = database.query(ASK, &[&MOST]).await?;
    let row = &rows[0];
    // It is null if nothing waits, and negative if the clock was set back.
    let age = |name| row.get::<_, Option<f64>>(name).unwrap_or(0.0).max(0.0);
    Ok(Waiting {
        keys_unfinished: row.get("keys_unfinished"),
        keys_parked: row.get("keys_parked"),
        staged_jobs: row.get("staged_jobs"),
        staged_age: age("staged_age"),
        queued_jobs: row.get("queued_jobs"),
        queued_age: age("queued_age"),
        dead_jobs: row.get("dead_jobs"),
        processes: row.get("processes"),
    })
}

impl Waiting {
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, depth) in [
            ("keys_unfinished", "Requests under way or waiting for the completer", self.keys_unfinished),
            ("keys_parked", "Requests that wait for a person", self.keys_parked),
            ("staged_jobs", "Jobs in the outbox", self.staged_jobs),
            ("queued_jobs", "Jobs in the default queue that are not finished", self.queued_jobs),
            ("dead_jobs", "Dead letters, which wait for a person", self.dead_jobs),
        ] {
            registry.register(name, format!("{help}, {MOST} at most"), ConstGauge::new(depth));
        }
        let help = "Processes on this database that have neither ended nor been found dead";
        registry.register("processes", help, ConstGauge::new(self.processes));
        for (name, help, age) in [
            ("staged_jobs_oldest_age", "How long the oldest job has been in the outbox", self.staged_age),
            ("queued_jobs_oldest_age", "How long the oldest unfinished job has been queued", self.queued_age),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(age));
        }
    }
}
