//! From the outbox to the queue.

use crate::database::{Database, DatabaseError};

/// Delete and insert are one statement, so there is no moment in which a job is in neither table or in both.
/// `RETURNING` has no order, so the insert restores that of staging.
const DELIVER: &str = "
    WITH due AS MATERIALIZED (
        SELECT id FROM staged_jobs ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
    ), taken AS (
        DELETE FROM staged_jobs s USING due WHERE s.id = due.id
        RETURNING s.id, s.job_name, s.job_args, s.created_at
    ), delivered AS (
        INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
        SELECT id, job_name, job_args, created_at FROM taken ORDER BY id
        RETURNING id
    )
    SELECT count(*) AS delivered FROM delivered";

/// Moves up to `limit` staged jobs to the table `jobs`, oldest first, and says how many.
///
/// Locks the staged rows and skips rows that others have locked, so that several enqueuers share the work. Rows
/// are found by what is there, never by a remembered id: a transaction that commits late has a low one.
pub async fn deliver_to_postgres(database: &Database, limit: i64) -> Result<i64, DatabaseError> {
    Ok(database.query_opt(DELIVER, &[&limit]).await?.map_or(0, |row| row.get("delivered")))
}
