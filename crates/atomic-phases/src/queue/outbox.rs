//! Leases on staged jobs, for the way to a queue that is not in this database.
//!
//! A lease takes the place of an open transaction, because no transaction may be open while another system is asked.
//! None of these statements waits for the disk. A crash of the database may undo the claim of jobs, or the record that
//! they arrived. Either way they are due again and are pushed again under the same id, and the queue drops the
//! repetition. A crash never loses a job itself, which was flushed when it was staged.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{Relayed, StagedJob, storable};
use crate::database::{Database, DatabaseError};
use crate::idempotency::claim::LONGEST_PAUSE;

/// Jobs under one lease.
#[derive(Debug)]
pub struct Batch {
    /// Random for each claim. Settling the batch compares it.
    token: Uuid,
    /// In the order of staging.
    pub jobs: Vec<StagedJob>,
    /// How often each has been tried before.
    pub attempts: Vec<i32>,
    /// Whether there are as many jobs as were asked for, so that there may be more.
    pub full: bool,
    /// When the lease runs out, at the earliest, by this host's clock.
    pub runs_out: Instant,
}

/// Walks the rows by their primary key, which is the order of staging. Rows that are not due are walked too, but only
/// jobs that are under way or were refused individually are not due; an outage of the queue releases all jobs that it
/// has touched.
const CLAIM: &str = include_str!("outbox_claim.sql");

/// Claims up to `limit` due jobs behind the job `after`, oldest first, under a lease that lasts for `lease`.
///
/// Locks their rows and skips rows that others have locked, so that several enqueuers share the work.
pub async fn claim(database: &Database, after: i64, limit: i64, lease: Duration) -> Result<Batch, DatabaseError> {
    let (token, runs_out) = (Uuid::new_v4(), Instant::now() + lease);
    let mut rows =
        database.query(CLAIM, &[&limit, &token, &lease.as_secs_f64(), &after, &database.process()]).await?;
    rows.sort_unstable_by_key(|row| row.get::<_, i64>("id"));
    let job = |row: &tokio_postgres::Row| StagedJob {
        id: row.get("id"),
        name: row.get("job_name"),
        args: row.get::<_, Json<Box<RawValue>>>("job_args").0,
        staged_at: row.get("created_at"),
    };
    let (jobs, attempts) = rows.iter().map(|row| (job(row), row.get::<_, i32>("attempts"))).unzip();
    let full = i64::try_from(rows.len()) == Ok(limit);
    Ok(Batch { token, jobs, attempts, full, runs_out })
}

/// The results of a batch, job by job.
#[derive(Debug, Default)]
pub struct PushResults {
    /// The queue has them.
    pub delivered: Vec<i64>,
    /// Jobs to try again, after growing pauses, each with its error.
    pub failed: Failures,
    /// Jobs not to try again, each with its error.
    pub dead: Failures,
    /// Jobs that caused no failure: due again at once, no attempt spent.
    pub released: Vec<i64>,
}

/// Jobs and what went wrong with each.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "two columns")]
pub struct Failures {
    pub ids: Vec<i64>,
    pub errors: Vec<String>,
}

impl Failures {
    /// Adds a job and its error.
    pub fn push(&mut self, id: i64, error: &str) {
        self.ids.push(id);
        self.errors.push(storable(error));
    }
}

const SETTLE: &str = include_str!("outbox_settle.sql");

/// Ends the lease on a batch, in one statement, and returns what it did. Jobs whose lease ran out and that another
/// enqueuer has claimed stay as they are. `retry_after` is the pause after a job's first failure; it doubles with each.
///
/// Locks the rows of the jobs, which no other enqueuer claims while the lease lasts.
pub async fn settle(
    database: &Database,
    batch: &Batch,
    results: &PushResults,
    retry_after: Duration,
) -> Result<Relayed, DatabaseError> {
    let PushResults { delivered, failed, dead, released } = results;
    let row = database
        .query_opt(
            SETTLE,
            &[
                &batch.token,
                delivered,
                &failed.ids,
                &failed.errors,
                &dead.ids,
                &dead.errors,
                released,
                &retry_after.as_secs_f64(),
                &LONGEST_PAUSE.as_secs_f64(),
            ],
        )
        .await?;
    Ok(row.map_or_else(Relayed::default, |row| Relayed {
        delivered: row.get("delivered"),
        failed: row.get("failed"),
        dead: row.get("dead"),
        more: false,
    }))
}
