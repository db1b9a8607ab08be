//! The three ways to end a lease: finish the request, release it for another attempt, or park it for a person.
//!
//! Each writes only while the lease is still its holder's own.

use std::sync::LazyLock;

use serde_json::Value;

use super::fence::Durability;
use super::{Job, Lease, Response};
use crate::database::{Database, DatabaseError};

/// Advances the key to `finished` as any phase does, and gives the lease back in the same breath. It takes
/// the recovery point as a parameter, because a request can be finished from more than one.
const FINISH: &str = "
    WITH input AS MATERIALIZED (
        SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::jsonb[])
            AS i (key_id, lease_token, recovery_point, response_code, response_body, job_name, job_args)
    ), fenced AS (
        UPDATE idempotency_keys k
        SET recovery_point = 'finished', response_code = i.response_code, response_body = i.response_body::json,
            lease_token = NULL, locked_at = NULL, last_error = NULL
        FROM input i
        WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.recovery_point = i.recovery_point
        RETURNING k.id AS key_id, i.job_name, i.job_args
    ), staged AS (
        INSERT INTO staged_jobs (job_name, job_args)
        SELECT job_name, job_args FROM fenced WHERE job_name IS NOT NULL
    )
    SELECT key_id FROM fenced";

/// Stores the answer, stages the job and ends the lease, durably: the client is told next. `false` if the lease
/// was no longer ours, in which case nothing is written.
///
/// Locks the key's row.
pub async fn finish(
    database: &Database,
    lease: &Lease,
    from: &'static str,
    response: &Response,
    job: Option<&Job>,
) -> Result<bool, DatabaseError> {
    let rows = database
        .query(
            FINISH,
            &[
                &[lease.key_id].as_slice(),
                &[lease.token].as_slice(),
                &[from].as_slice(),
                &[i32::from(response.code)].as_slice(),
                &[response.body.as_str()].as_slice(),
                &[job.map(|job| job.name)].as_slice(),
                &[job.map(|job| &job.args as &Value)].as_slice(),
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}

static RELEASE: LazyLock<String> = LazyLock::new(|| {
    let commit = Durability::Later.source();
    format!(
        "WITH mine AS MATERIALIZED (
            SELECT m.* FROM {commit} (SELECT $1::bigint AS id, $2::uuid AS lease_token) AS m
        )
        UPDATE idempotency_keys k
        SET lease_token = NULL, locked_at = NULL, last_error = $3
        FROM mine WHERE k.id = mine.id AND k.lease_token = mine.lease_token"
    )
});

/// Gives the lease back, so that a retry need not wait until it runs out. If it is no longer ours this does
/// nothing, and so does losing it in a crash.
///
/// Locks the key's row.
pub async fn release(database: &Database, lease: &Lease, error: &str) -> Result<(), DatabaseError> {
    database.query(&RELEASE, &[&lease.key_id, &lease.token, &error]).await.map(drop)
}

const PARK: &str = "
    UPDATE idempotency_keys
    SET lease_token = NULL, locked_at = NULL, parked_at = now(), parked_reason = $3, last_error = $3
    WHERE id = $1 AND lease_token = $2";

/// Ends the lease and sets the request aside until a person has decided.
///
/// Locks the key's row.
pub async fn park(database: &Database, lease: &Lease, reason: &str) -> Result<(), DatabaseError> {
    database.query(PARK, &[&lease.key_id, &lease.token, &reason]).await.map(drop)
}
