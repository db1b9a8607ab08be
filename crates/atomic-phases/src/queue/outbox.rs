//! Leases on staged jobs, for the way to a queue that is not in this database.
//!
//! A lease instead of an open transaction, because nothing is held open while anybody else is asked. None of these
//! statements waits for the disk: what a crash of the database forgets of them is that jobs were taken, or that they
//! arrived. Either way they are due again and pushed again under the same id, and the queue drops the repetition.
//! What it can never forget is a job, which was flushed when it was staged.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{Drained, StagedJob, storable};
use crate::database::{Database, DatabaseError};
use crate::idempotency::claim::LONGEST_PAUSE;

/// Jobs under one lease.
#[derive(Debug)]
pub struct Batch {
    /// Random for each claim, and what settling it compares.
    token: Uuid,
    /// In the order of staging.
    pub jobs: Vec<StagedJob>,
    /// How often each has been tried before.
    pub attempts: Vec<i32>,
    /// There are as many as were asked for, so there may be more.
    pub full: bool,
    /// When the lease runs out, at the earliest, by this host's clock.
    pub runs_out: Instant,
}

/// The rows are walked by their primary key, which is the order of staging. Rows that are not due lie in the way, but
/// only what is under way or was refused by itself is not due; an outage of the queue releases all it has touched.
const CLAIM: &str = include_str!("outbox_claim.sql");

/// Takes up to `limit` due jobs behind the job `after` for the time of `lease`, oldest first.
///
/// Locks their rows and skips rows that others have locked, so that several enqueuers share the work.
pub async fn claim(database: &Database, after: i64, limit: i64, lease: Duration) -> Result<Batch, DatabaseError> {
    let (token, runs_out) = (Uuid::new_v4(), Instant::now() + lease);
    let mut rows = database.query(CLAIM, &[&limit, &token, &lease.as_secs_f64(), &after]).await?;
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

/// What became of each job of a batch.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// The queue has them.
    pub delivered: Vec<i64>,
    /// To be tried again, later and later, and why.
    pub failed: Failures,
    /// Not to be tried again, and why.
    pub dead: Failures,
    /// None to blame: due again at once, no attempt spent.
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
    /// Notes one more.
    pub fn push(&mut self, id: i64, error: &str) {
        self.ids.push(id);
        self.errors.push(storable(error));
    }
}

const SETTLE: &str = include_str!("outbox_settle.sql");

/// Ends the lease on a batch, in one statement, and says what it did: jobs whose lease has run out and gone to somebody
/// else stay as they are. `retry_after` is the pause after a job's first failure; it doubles with each.
///
/// Locks the rows of the jobs, which nobody else takes while the lease lasts.
pub async fn settle(
    database: &Database,
    batch: &Batch,
    verdicts: &Verdicts,
    retry_after: Duration,
) -> Result<Drained, DatabaseError> {
    let Verdicts { delivered, failed, dead, released } = verdicts;
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
    Ok(row.map_or_else(Drained::default, |row| Drained {
        delivered: row.get("delivered"),
        failed: row.get("failed"),
        dead: row.get("dead"),
        more: false,
    }))
}
