//! The end of a key: removed once it is old, or parked if its request never finished.

use std::time::Duration;

use crate::database::{Database, DatabaseError};

/// What one batch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Finished keys that were removed. What their operations wrote stays.
    pub removed: i64,
    /// Unfinished keys that were parked: their foreign call may have been made.
    pub parked: i64,
}

/// Not flushed: if a crash of the database undoes it, the keys are as old afterwards, and are found again.
///
/// A key whose lease is still running is left for the next round, however old it is. So is a key that was taken up
/// within the retention: its client may still wait for the answer, or a person may have just asked for another attempt.
const REAP: &str = include_str!("reap.sql");

/// Handles up to `limit` keys that are at least `retention` old and have not been worked on for as long.
///
/// Locks their rows and skips rows that others have locked.
pub async fn reap(
    database: &Database,
    retention: Duration,
    lock_timeout: Duration,
    limit: i64,
) -> Result<Reaped, DatabaseError> {
    let row = database.query_opt(REAP, &[&retention.as_secs_f64(), &lock_timeout.as_secs_f64(), &limit]).await?;
    Ok(row.map_or_else(Reaped::default, |row| Reaped { removed: row.get("removed"), parked: row.get("parked") }))
}
