//! The completer's way to leases: requests whose clients have given up.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::Lease;
use crate::database::{Database, DatabaseError};

/// When to try again, and when to stop.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// A lease older than this may be taken over.
    pub lock_timeout: Duration,
    /// Pause after the first attempt; it doubles with each, up to [`LONGEST_PAUSE`], give or take a quarter.
    pub retry_after: Duration,
    /// A request that was tried this often is parked instead.
    pub max_attempts: i32,
}

/// Past an hour, waiting longer helps no outage and only delays the answer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A request to complete.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The right to.
    pub lease: Lease,
    /// Who asked for it.
    pub user_id: i64,
    /// What was asked, as the client's request put it.
    pub params: Value,
    /// The client's address.
    pub origin_ip: IpAddr,
}

/// What one claim found.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// To be completed.
    pub claimed: Vec<Claimed>,
    /// Rows of keys that have used up their attempts and were parked.
    pub parked: Vec<i64>,
}

/// The next attempt is scheduled by the claim itself, not by whoever fails: a process that dies in the attempt
/// cannot write anything.
///
/// Flushed, as every take-over is: see [`super::acquire`].
const CLAIM: &str = "
    WITH due AS MATERIALIZED (
        SELECT k.id, k.completer_attempts >= $5 AS exhausted
        FROM idempotency_keys k
        WHERE k.response_code IS NULL AND k.parked_at IS NULL AND k.next_attempt_at <= now()
          AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $2))
        ORDER BY k.next_attempt_at
        LIMIT $1 FOR UPDATE SKIP LOCKED
    ), parked AS (
        UPDATE idempotency_keys k
        SET parked_at = now(), parked_reason = 'gave up after ' || k.completer_attempts || ' attempts',
            lease_token = NULL, locked_at = NULL
        FROM due WHERE k.id = due.id AND due.exhausted
        RETURNING k.id
    ), claimed AS (
        UPDATE idempotency_keys k
        SET lease_token = gen_random_uuid(), locked_at = now(), last_run_at = now(),
            attempts = k.attempts + 1, completer_attempts = k.completer_attempts + 1,
            next_attempt_at = now() + make_interval(
                secs => least($3 * 2 ^ least(k.completer_attempts, 30), $4) * (0.75 + random() / 2))
        FROM due WHERE k.id = due.id AND NOT due.exhausted
        RETURNING k.*
    )
    SELECT id, lease_token, recovery_point, attempts, foreign_call_key, foreign_call_intended_at,
           extract(epoch FROM now() - foreign_call_intended_at)::float8 AS foreign_call_age,
           user_id, request_params, origin_ip
    FROM claimed
    UNION ALL
    SELECT id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM parked";

/// Claims up to `limit` requests that are due, oldest first, and parks those that were tried too often.
///
/// Locks the rows it returns and skips rows that others have locked, so that several completers share the work.
pub async fn claim(database: &Database, limit: i64, policy: &RetryPolicy) -> Result<Claims, DatabaseError> {
    let runs_out = Instant::now() + policy.lock_timeout;
    let rows = database
        .query(
            CLAIM,
            &[
                &limit,
                &policy.lock_timeout.as_secs_f64(),
                &policy.retry_after.as_secs_f64(),
                &LONGEST_PAUSE.as_secs_f64(),
                &policy.max_attempts,
            ],
        )
        .await?;
    let mut claims = Claims::default();
    for row in &rows {
        if row.get::<_, Option<Uuid>>("lease_token").is_none() {
            claims.parked.push(row.get("id"));
            continue;
        }
        claims.claimed.push(Claimed {
            lease: Lease::from_row(row, runs_out),
            user_id: row.get("user_id"),
            params: row.get("request_params"),
            origin_ip: row.get("origin_ip"),
        });
    }
    Ok(claims)
}
