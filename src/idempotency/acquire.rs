//! A client's way to a lease: phase one of a request.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Lease, Request, Response};
use crate::database::{Database, DatabaseError};

/// What a key says to a request that comes with it.
#[derive(Debug, Clone)]
pub enum Acquired {
    /// The request is new or unfinished, and ours to work on.
    Lease(Lease),
    /// It was answered before; this is the answer.
    Finished {
        /// The key's row.
        key_id: i64,
        /// To be repeated byte for byte.
        response: Response,
    },
    /// The key belongs to another request of this user.
    Mismatch {
        /// The key's row.
        key_id: i64,
    },
    /// Somebody else is working on it just now.
    InProgress {
        /// The key's row; unknown when the other one has only just begun.
        key_id: Option<i64>,
    },
    /// It waits for a person.
    Parked {
        /// The key's row.
        key_id: i64,
    },
}

/// How often a statement that lost a race against another is run again to see what the other did. The winner
/// has committed by then, so once is enough; twice leaves room for a finish in between.
const RACES: usize = 3;

/// One row per request. In a replay `created` and `taken` find nothing to do, so the statement gets no
/// transaction id, writes nothing and waits for no flush.
///
/// `num_nulls`, because `IS NULL` would let the planner walk a whole partial index in place of one look-up by id.
///
/// A key that is only created commits without a flush. A take-over is flushed: were it lost in a crash, the token before
/// it would be good again, and its holder could write what it learned before Stripe was asked anew.
const ACQUIRE: &str = "
    WITH input AS MATERIALIZED (
        SELECT i.* FROM unnest(
            $1::bigint[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::inet[], $7::uuid[]
        ) AS i (user_id, idempotency_key, request_method, request_path, request_params, origin_ip, lease_token)
    ), known AS MATERIALIZED (
        SELECT k.id, k.response_code, k.response_body, k.parked_at, i.lease_token,
               k.request_method = i.request_method AND k.request_path = i.request_path
                   AND k.request_params = i.request_params AS same,
               k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $8) AS free
        FROM input i
        JOIN idempotency_keys k ON k.user_id = i.user_id AND k.idempotency_key = i.idempotency_key
    ), created AS (
        INSERT INTO idempotency_keys (user_id, idempotency_key, request_method, request_path, request_params,
                                      origin_ip, lease_token, locked_at, next_attempt_at)
        SELECT i.user_id, i.idempotency_key, i.request_method, i.request_path, i.request_params,
               i.origin_ip, i.lease_token, now(), now() + make_interval(secs => $9)
        FROM input i
        WHERE NOT EXISTS (SELECT FROM known WHERE known.lease_token = i.lease_token)
        ORDER BY i.user_id, i.idempotency_key
        ON CONFLICT (user_id, idempotency_key) DO NOTHING
        RETURNING id, lease_token, recovery_point, attempts, foreign_call_key, foreign_call_intended_at
    ), taken AS (
        UPDATE idempotency_keys k
        SET lease_token = known.lease_token, locked_at = now(), last_run_at = now(),
            attempts = k.attempts + 1, next_attempt_at = now() + make_interval(secs => $9)
        FROM known
        WHERE k.id = known.id AND known.same AND num_nulls(k.response_code, k.parked_at) = 2
          AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => $8))
        RETURNING k.id, k.lease_token, k.recovery_point, k.attempts, k.foreign_call_key,
                  k.foreign_call_intended_at
    ), leased AS (SELECT * FROM created UNION ALL SELECT * FROM taken)
    SELECT i.lease_token, coalesce(leased.id, known.id) AS id,
           CASE WHEN leased.id IS NOT NULL THEN 'leased'
                WHEN known.id IS NULL THEN 'raced'
                WHEN NOT known.same THEN 'mismatch'
                WHEN known.response_code IS NOT NULL THEN 'finished'
                WHEN known.parked_at IS NOT NULL THEN 'parked'
                WHEN known.free THEN 'raced'
                ELSE 'in_progress' END AS verdict,
           leased.recovery_point, leased.attempts, leased.foreign_call_key,
           leased.foreign_call_intended_at,
           extract(epoch FROM now() - leased.foreign_call_intended_at)::float8 AS foreign_call_age,
           known.response_code, known.response_body::text AS response_body,
           CASE WHEN EXISTS (SELECT FROM created) AND NOT EXISTS (SELECT FROM taken)
                THEN set_config('synchronous_commit', 'off', true) END AS commit_later
    FROM input i
    LEFT JOIN leased USING (lease_token)
    LEFT JOIN known USING (lease_token)";

/// Takes the lease on the request's key, or says why not.
///
/// A lease older than `lock_timeout` is taken over; the completer leaves the request alone for `grace`. Locks
/// the key's row, and only if it takes the lease. Waits for a concurrent first use of the same key to commit.
pub async fn acquire(
    database: &Database,
    request: &Request,
    lock_timeout: Duration,
    grace: Duration,
) -> Result<Acquired, DatabaseError> {
    for _ in 0..RACES {
        let runs_out = Instant::now() + lock_timeout;
        let rows = database
            .query(
                ACQUIRE,
                &[
                    &[request.user_id].as_slice(),
                    &[request.key.as_str()].as_slice(),
                    &[request.method.as_str()].as_slice(),
                    &[request.path.as_str()].as_slice(),
                    &[&request.params].as_slice(),
                    &[request.origin_ip].as_slice(),
                    &[Uuid::new_v4()].as_slice(),
                    &lock_timeout.as_secs_f64(),
                    &grace.as_secs_f64(),
                ],
            )
            .await?;
        let [row] = rows.as_slice() else { unreachable!("the statement returns a row per request") };
        return Ok(match row.get("verdict") {
            "leased" => Acquired::Lease(Lease::from_row(row, runs_out)),
            "finished" => Acquired::Finished { key_id: row.get("id"), response: response(row) },
            "mismatch" => Acquired::Mismatch { key_id: row.get("id") },
            "parked" => Acquired::Parked { key_id: row.get("id") },
            "in_progress" => Acquired::InProgress { key_id: row.get("id") },
            _ => continue,
        });
    }
    Ok(Acquired::InProgress { key_id: None })
}

fn response(row: &tokio_postgres::Row) -> Response {
    let code: i32 = row.get("response_code");
    Response { code: u16::try_from(code).expect("the schema bounds it"), body: row.get("response_body") }
}
