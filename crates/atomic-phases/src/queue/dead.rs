//! Dead letters: jobs that no retry helps, kept until a person has looked at them.
//!
//! A job becomes a dead letter in the outbox, on its way to a queue, or in the queue `jobs`, while it is worked. A
//! retry puts the job back there under its own id, so that a queue that has the job already recognises it.

use std::time::Duration;

use crate::database::{Database, DatabaseError};
use crate::errors::chain;

/// A job that waits for a person.
#[derive(Debug, Clone)]
pub struct DeadJob {
    /// Its id in the outbox.
    pub id: i64,
    /// The job's name.
    pub name: String,
    /// Where it became a dead letter: `outbox` or `queue`.
    pub died_in: String,
    /// How often it was tried.
    pub attempts: i32,
    /// How long it has been a dead letter.
    pub dead_for: Duration,
    /// Why it is a dead letter.
    pub error: String,
}

const LIST: &str = include_str!("dead_list.sql");

/// Returns up to `limit` dead letters, in the order of staging. Locks nothing.
pub async fn list(database: &Database, limit: i64) -> Result<Vec<DeadJob>, DatabaseError> {
    let rows = database.query(LIST, &[&limit]).await?;
    Ok(rows
        .iter()
        .map(|row| DeadJob {
            id: row.get("staged_id"),
            name: row.get("job_name"),
            died_in: row.get("died_in"),
            attempts: row.get("attempts"),
            dead_for: Duration::from_secs_f64(row.get("dead_for")),
            error: row.get("error"),
        })
        .collect())
}

/// The row is inserted with its own id, which an identity column allows only with `OVERRIDING SYSTEM VALUE`.
const RETRY: &str = include_str!("dead_retry.sql");

/// Puts dead letters back to where they came from, with no attempts spent. Returns the ids of those that were dead
/// letters.
///
/// Locks their rows. If an id is staged or queued already, the whole statement is refused.
pub async fn retry(database: &Database, ids: &[i64]) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(RETRY, &[&ids]).await?.iter().map(|row| row.get("staged_id")).collect())
}

const PURGE: &str = include_str!("dead_purge.sql");

/// Removes dead letters for good. Returns the ids of those that were dead letters. The table `purged_jobs` records
/// them, so that they are not taken for lost.
///
/// Locks their rows.
pub async fn purge(database: &Database, ids: &[i64]) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(PURGE, &[&ids]).await?.iter().map(|row| row.get("staged_id")).collect())
}

const IDS: &str = "SELECT staged_id FROM dead_jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2";

/// Returns the next ids of dead letters after `after`, `limit` at most. Locks nothing.
///
/// Pages by id, so that a job that becomes a dead letter again while all are retried is not retried for ever.
pub async fn ids(database: &Database, after: i64, limit: i64) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(IDS, &[&after, &limit]).await?.iter().map(|row| row.get("staged_id")).collect())
}

const BURY: &str = include_str!("dead_bury.sql");

/// Makes a dead letter of a staged job that is due. Returns `false` if the job is gone or leased by now.
///
/// Locks its row.
pub(super) async fn bury(database: &Database, id: i64, error: &DatabaseError) -> Result<bool, DatabaseError> {
    let error = chain(error);
    let buried = database.query_opt(BURY, &[&id, &error]).await?.is_some();
    if buried {
        tell(id, &error);
    }
    Ok(buried)
}

/// Logs a new dead letter, in one line.
pub(super) fn tell(job_id: i64, error: &str) {
    tracing::error!(job_id, error, "a job cannot be delivered and is a dead letter; see `jobs list`");
}
