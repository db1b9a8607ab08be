//! Keys that wait for a person: listing them, and letting them be tried again.

use super::seconds;
use crate::database::{Database, DatabaseError};

/// A request that is not tried again until a person has looked at it.
#[derive(Debug, Clone)]
pub struct Parked {
    /// The key's row.
    pub key_id: i64,
    /// What was to be done.
    pub operation: String,
    /// The client's key.
    pub key: String,
    /// Whose it is.
    pub user_id: i64,
    /// How far it came.
    pub recovery_point: String,
    /// How often it was taken up.
    pub attempts: i32,
    /// How long it has been waiting.
    pub waiting: std::time::Duration,
    /// Why it was parked.
    pub reason: String,
    /// What went wrong last.
    pub last_error: Option<String>,
}

const LIST: &str = include_str!("parked_list.sql");

/// Returns the keys that have been parked longest, `limit` at most. Locks nothing.
pub async fn list(database: &Database, limit: i64) -> Result<Vec<Parked>, DatabaseError> {
    let rows = database.query(LIST, &[&limit]).await?;
    Ok(rows
        .iter()
        .map(|row| Parked {
            key_id: row.get("id"),
            operation: row.get("operation"),
            key: row.get("idempotency_key"),
            user_id: row.get("user_id"),
            recovery_point: row.get("recovery_point"),
            attempts: row.get("attempts"),
            waiting: seconds(row.get("waiting")),
            reason: row.get("parked_reason"),
            last_error: row.get("last_error"),
        })
        .collect())
}

const RETRY: &str = include_str!("parked_retry.sql");

/// Lets the completer, or the client, try these keys again. Returns the ids of those that were parked.
///
/// Locks their rows.
pub async fn retry(database: &Database, key_ids: &[i64]) -> Result<Vec<i64>, DatabaseError> {
    Ok(database.query(RETRY, &[&key_ids]).await?.iter().map(|row| row.get("id")).collect())
}
