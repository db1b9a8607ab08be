//! Dead letters: jobs that no retry helps, kept until a person has looked at them.
//!
//! A job dies in the outbox, on its way to a queue, or in the queue `jobs`, being worked; retrying it takes it back to
//! where it died, under its own id, so that a queue that has it already knows it.

use std::time::Duration;

use crate::database::{Database, DatabaseError};
use crate::errors::chain;

/// A job that waits for a person.
#[derive(Debug, Clone)]
pub struct DeadJob {
    /// Its id in the outbox.
    pub id: i64,
    /// What the queue's workers know it by.
    pub name: String,
    /// `outbox` or `queue`.
    pub died_in: String,
    /// How often it was tried.
    pub attempts: i32,
    /// How long ago it died.
    pub dead_for: Duration,
    /// Why.
    pub error: String,
}

const LIST: &str = include_str!("dead_list.sql");

/// The dead letters, those that were staged first before others, `limit` at most. Locks nothing.
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

/// An identity is given with the row, which the column allows only when it is told so.
const RETRY: &str = include_str!("dead_retry.sql");

/// Puts dead jobs back to where they died, with no attempts spent. Returns those that were dead.
///
/// Locks their rows. An id that is staged or queued already refuses the whole statement.
pub async fn retry(database: &Database, ids: &[i64]) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(RETRY, &[&ids]).await?.iter().map(|row| row.get("staged_id")).collect())
}

const PURGE: &str = include_str!("dead_purge.sql");

/// Gives dead jobs up for good. Returns those that were dead. That they were given up stays on record, so that nobody
/// takes them for lost.
///
/// Locks their rows.
pub async fn purge(database: &Database, ids: &[i64]) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(PURGE, &[&ids]).await?.iter().map(|row| row.get("staged_id")).collect())
}

const IDS: &str = "SELECT staged_id FROM dead_jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2";

/// The next ids after `after`, `limit` at most. Locks nothing.
///
/// Pages by id, so that a job that dies again while all are being retried is not retried for ever.
pub async fn ids(database: &Database, after: i64, limit: i64) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(IDS, &[&after, &limit]).await?.iter().map(|row| row.get("staged_id")).collect())
}

const BURY: &str = include_str!("dead_bury.sql");

/// Makes a dead letter of a staged job that nobody holds. `false` if it is gone or held by now.
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

/// The one log line of a death.
pub(super) fn tell(job_id: i64, error: &str) {
    tracing::error!(job_id, error, "a job cannot be delivered and is a dead letter; see `jobs list`");
}
