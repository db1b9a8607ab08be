//! The statements of the table `jobs`: claiming jobs, extending their leases, and the three ways to end an attempt.
//!
//! Jobs are protected in the same way as requests in the engine. A worker holds a job by a lease whose token is random
//! for each attempt, and every statement that ends an attempt begins with the fence: it writes only where that token is
//! still on the row. So a worker whose lease has gone to another one writes nothing, whatever it has done meanwhile.
//! `next_attempt_at` is both the end of a lease and the end of a pause, because to all other workers they are the same:
//! the moment from which any of them may take the job.
//!
//! A job is done at least once. Its work cannot be part of the statement that finishes it, so the work is done again if
//! the process or the database is lost between the two, or if the worker is held up there until its lease is lost.
//! Nothing else repeats a job: a finished one is never taken up again.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use serde_json::value::RawValue;
use tokio_postgres::types::{Json, ToSql};
use uuid::Uuid;

use crate::database::{Batched, Database, DatabaseError, column, intern};

/// The right to work a job until the lease runs out. Holding one does not prove that it is still valid: only a
/// statement that compares the token decides that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobLease {
    /// The job's id, the same as in the outbox.
    pub job_id: i64,
    /// Random for each attempt.
    pub token: Uuid,
}

/// A job to work.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The right to work it.
    pub lease: JobLease,
    /// The name by which the handler is found.
    pub name: String,
    /// The job's arguments.
    pub args: Box<RawValue>,
    /// When its request was finished, by the database's clock.
    pub staged_at: SystemTime,
    /// How often it has been taken up, this time included.
    pub attempt: i32,
}

/// The result of one claim.
#[derive(Debug, Default)]
pub struct Claims {
    /// To be worked now.
    pub claimed: Vec<Claimed>,
    /// Dead letters now: they were taken up as often as a job may be, and the end of the last attempt was never
    /// recorded.
    pub buried: Vec<i64>,
}

/// When to try again, and when to stop.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Pause after the first failed attempt; it doubles with each, up to [`LONGEST_PAUSE`], give or take a quarter.
    pub retry_after: Duration,
    /// A job that was taken up this often and did not succeed is a dead letter.
    pub max_attempts: i32,
}

/// A mail that a server refused for now is tried four times a day, and not more often.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);

/// Flushed, because the work follows. If a crash of the database undid the claim, a worker that has done its work would
/// have no lease under which to finish the job, and the work would be done again.
const CLAIM: &str = include_str!("work_claim.sql");

/// Claims up to `limit` jobs that are due, longest due first, under leases that last for `lease`. Jobs that were taken
/// up `max_attempts` times already become dead letters.
///
/// Locks the rows it returns and skips rows that others have locked, so that several workers share the work.
pub async fn claim(
    database: &Database,
    limit: i64,
    lease: Duration,
    max_attempts: i32,
) -> Result<Claims, DatabaseError> {
    let mut claims = Claims::default();
    let params: [&(dyn ToSql + Sync); 4] = [&limit, &lease.as_secs_f64(), &max_attempts, &database.process()];
    for row in database.query(CLAIM, &params).await? {
        let job_id = row.get("staged_id");
        match row.get::<_, Option<Uuid>>("lease_token") {
            Some(token) => claims.claimed.push(Claimed {
                lease: JobLease { job_id, token },
                name: row.get("job_name"),
                args: row.get::<_, Json<Box<RawValue>>>("job_args").0,
                staged_at: row.get("staged_at"),
                attempt: row.get("attempts"),
            }),
            None => claims.buried.push(job_id),
        }
    }
    Ok(claims)
}

/// The result of extending leases. A lease that is no longer its holder's own is in neither set.
#[derive(Debug, Default)]
pub struct Extended {
    /// Tokens of leases that last longer now.
    pub kept: HashSet<Uuid>,
    /// Tokens of leases that stay as they were, because another session has their rows locked just now.
    pub skipped: HashSet<Uuid>,
}

/// Skips locked rows: a worker extends all of its leases in this statement, and one row that a person or a hung process
/// has locked must not cost it the others.
const EXTEND: &str = include_str!("work_extend.sql");

/// Extends these leases to `lease` from now on, in one statement, as far as they are still their holders' own. A lease
/// that has run out is extended too, as long as no other worker has taken the job.
///
/// Locks the jobs' rows and skips rows that others have locked.
pub async fn extend(database: &Database, leases: &[JobLease], lease: Duration) -> Result<Extended, DatabaseError> {
    let ids = column(leases, |lease| lease.job_id);
    let tokens = column(leases, |lease| lease.token);
    let mut extended = Extended::default();
    for row in database.query(EXTEND, &[&ids, &tokens, &lease.as_secs_f64()]).await? {
        let tokens = if row.get("kept") { &mut extended.kept } else { &mut extended.skipped };
        tokens.insert(row.get("lease_token"));
    }
    Ok(extended)
}

/// The statement that finishes jobs of one kind. What a handler writes is taken from the fenced CTE, in the transaction
/// that ends the job. So what the handler writes is there for every finished job, and a worker that came too late
/// writes nothing.
#[derive(Debug, Clone, Copy)]
pub struct FinishStatement(&'static str);

impl FinishStatement {
    /// Builds the statement with a handler's own CTEs.
    pub fn with(effects: &str) -> Self {
        Self(intern(include_str!("work_finish.sql").replace("/* effects */", effects)))
    }
}

/// Finishes a job, durably, with what its handler writes. Returns `false` if the lease was lost; then nothing is
/// written.
///
/// Locks the job's row.
pub async fn finish(
    database: &Database,
    statement: FinishStatement,
    lease: JobLease,
    data: Value,
) -> Result<bool, DatabaseError> {
    database.batched(Finish { statement, lease, data }).await
}

struct Finish {
    statement: FinishStatement,
    lease: JobLease,
    data: Value,
}

impl Batched for Finish {
    type Output = bool;

    fn statement(&self) -> &'static str {
        self.statement.0
    }

    fn order(&self, other: &Self) -> Ordering {
        self.lease.cmp(&other.lease)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<bool>, DatabaseError> {
        let rows = database
            .query(
                items[0].statement.0,
                &[
                    &column(items, |finish| finish.lease.job_id),
                    &column(items, |finish| finish.lease.token),
                    &column(items, |finish| &finish.data),
                ],
            )
            .await?;
        let finished: HashSet<Uuid> = rows.iter().map(|row| row.get("lease_token")).collect();
        Ok(column(items, |finish| finished.contains(&finish.lease.token)))
    }
}

/// The state of a job after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Failed {
    /// It is tried again after this pause.
    Retried(Duration),
    /// It is a dead letter.
    Buried,
    /// The lease was lost, and another worker decides on the job. Nothing was written.
    LeaseLost,
}

const FAIL: &str = include_str!("work_fail.sql");

/// Ends a failed attempt: the job is tried again after a pause, or is a dead letter if the failure is `permanent` or
/// this was its last attempt.
///
/// Locks the job's row.
pub async fn fail(
    database: &Database,
    lease: JobLease,
    error: &str,
    permanent: bool,
    policy: &RetryPolicy,
) -> Result<Failed, DatabaseError> {
    let row = database
        .query_opt(
            FAIL,
            &[
                &lease.job_id,
                &lease.token,
                &super::storable(error),
                &permanent,
                &policy.max_attempts,
                &policy.retry_after.as_secs_f64(),
                &LONGEST_PAUSE.as_secs_f64(),
            ],
        )
        .await?;
    Ok(match row.map(|row| row.get::<_, Option<f64>>("pause")) {
        None => Failed::LeaseLost,
        Some(None) => Failed::Buried,
        Some(Some(pause)) => Failed::Retried(Duration::try_from_secs_f64(pause).unwrap_or_default()),
    })
}

const SWEEP: &str = include_str!("work_sweep.sql");

/// Removes up to `limit` jobs that were finished at least `keep` ago, and returns how many. What their handlers wrote
/// stays.
///
/// Locks their rows and skips rows that others have locked.
pub async fn sweep(database: &Database, keep: Duration, limit: i64) -> Result<i64, DatabaseError> {
    let row = database.query_opt(SWEEP, &[&keep.as_secs_f64(), &limit]).await?;
    Ok(row.map_or(0, |row| row.get("swept")))
}
