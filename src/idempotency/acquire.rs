//! A client's way to a lease: phase one of a request.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use uuid::Uuid;

use super::fence::by_token;
use super::{Lease, Request, Response};
use crate::database::{Batched, Database, DatabaseError, column};

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

/// Each request finds its key's row or none, by one look-up, and then takes one of three ways: create the key, take its
/// lease, or hear why not. Whoever gets no row was overtaken by somebody who uses the same key just now.
///
/// In a replay there is nothing to create or to take, so the statement gets no transaction id, writes nothing and waits
/// for no flush.
///
/// `num_nulls`, because `IS NULL` would let the planner walk a whole partial index in place of one look-up by id.
///
/// A batch of keys that are only created commits without a flush. A take-over is flushed: were it lost in a crash, the
/// token before it would be good again, and its holder could write what it learned before Stripe was asked anew.
const ACQUIRE: &str = "
    WITH known AS MATERIALIZED (
        SELECT i.*, k.id, k.response_code, k.response_body, k.parked_at,
               k.request_method = i.request_method AND k.request_path = i.request_path
                   AND k.request_params = i.request_params AS same,
               num_nulls(k.response_code, k.parked_at) = 2
                   AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => i.lock_timeout)) AS free
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::inet[], $7::uuid[],
                    $8::float8[], $9::float8[])
            AS i (user_id, idempotency_key, request_method, request_path, request_params, origin_ip, token,
                  lock_timeout, grace)
        LEFT JOIN idempotency_keys k ON k.user_id = i.user_id AND k.idempotency_key = i.idempotency_key
    ), created AS (
        INSERT INTO idempotency_keys (user_id, idempotency_key, request_method, request_path, request_params,
                                      origin_ip, lease_token, locked_at, next_attempt_at)
        SELECT user_id, idempotency_key, request_method, request_path, request_params,
               origin_ip, token, now(), now() + make_interval(secs => grace)
        FROM known WHERE id IS NULL
        ON CONFLICT (user_id, idempotency_key) DO NOTHING
        RETURNING id, lease_token, recovery_point, attempts, foreign_call_key, foreign_call_intended_at
    ), takeable AS MATERIALIZED (
        SELECT k.id, known.token, known.lock_timeout, known.grace
        FROM known JOIN idempotency_keys k ON k.id = known.id
        WHERE known.same AND known.free
        ORDER BY k.id FOR NO KEY UPDATE OF k
    ), taken AS (
        UPDATE idempotency_keys k
        SET lease_token = t.token, locked_at = now(), last_run_at = now(),
            attempts = k.attempts + 1, next_attempt_at = now() + make_interval(secs => t.grace)
        FROM takeable t
        WHERE k.id = t.id AND num_nulls(k.response_code, k.parked_at) = 2
          AND (k.locked_at IS NULL OR k.locked_at <= now() - make_interval(secs => t.lock_timeout))
        RETURNING k.id, k.lease_token, k.recovery_point, k.attempts, k.foreign_call_key,
                  k.foreign_call_intended_at
    ), leased AS (SELECT * FROM created UNION ALL SELECT * FROM taken)
    SELECT 'leased' AS verdict, id, lease_token, recovery_point, attempts, foreign_call_key,
           foreign_call_intended_at, extract(epoch FROM now() - foreign_call_intended_at)::float8 AS foreign_call_age,
           NULL::int AS response_code, NULL::text AS response_body,
           CASE WHEN EXISTS (SELECT FROM created) AND NOT EXISTS (SELECT FROM taken)
                THEN set_config('synchronous_commit', 'off', true) END AS commit_later
    FROM leased
    UNION ALL
    SELECT CASE WHEN NOT same THEN 'mismatch'
                WHEN response_code IS NOT NULL THEN 'finished'
                WHEN parked_at IS NOT NULL THEN 'parked'
                ELSE 'in_progress' END,
           id, token, NULL, NULL, NULL, NULL, NULL, response_code, response_body::text, NULL
    FROM known WHERE id IS NOT NULL AND NOT (same AND free)";

/// Takes the lease on the request's key, or says why not.
///
/// A lease older than `lock_timeout` is taken over; the completer leaves the request alone for `grace`. Locks
/// the key's row, and only if it takes the lease. Waits for a concurrent first use of the same key to commit.
pub async fn acquire(
    database: &Database,
    request: Arc<Request>,
    lock_timeout: Duration,
    grace: Duration,
) -> Result<Acquired, DatabaseError> {
    for _ in 0..RACES {
        let attempt = Attempt {
            request: Arc::clone(&request),
            token: Uuid::new_v4(),
            runs_out: Instant::now() + lock_timeout,
            lock_timeout: lock_timeout.as_secs_f64(),
            grace: grace.as_secs_f64(),
        };
        if let Some(acquired) = database.batched(attempt).await? {
            return Ok(acquired);
        }
    }
    Ok(Acquired::InProgress { key_id: None })
}

/// One try; `None` if another was faster.
struct Attempt {
    request: Arc<Request>,
    token: Uuid,
    runs_out: Instant,
    lock_timeout: f64,
    grace: f64,
}

impl Batched for Attempt {
    type Output = Option<Acquired>;

    fn order(&self, other: &Self) -> Ordering {
        let (one, two) = (&self.request, &other.request);
        (one.user_id, one.key.as_str()).cmp(&(two.user_id, two.key.as_str()))
    }

    async fn run(database: &Database, attempts: &[Self]) -> Result<Vec<Option<Acquired>>, DatabaseError> {
        let requests = || attempts.iter().map(|attempt| &*attempt.request);
        let rows = database
            .query(
                ACQUIRE,
                &[
                    &column(requests(), |request| request.user_id),
                    &column(requests(), |request| request.key.as_str()),
                    &column(requests(), |request| request.method.as_str()),
                    &column(requests(), |request| request.path.as_str()),
                    &column(requests(), |request| &request.params),
                    &column(requests(), |request| request.origin_ip),
                    &column(attempts, |attempt| attempt.token),
                    &column(attempts, |attempt| attempt.lock_timeout),
                    &column(attempts, |attempt| attempt.grace),
                ],
            )
            .await?;
        let mut rows = by_token(rows);
        Ok(column(attempts, |attempt| rows.remove(&attempt.token).map(|row| acquired(&row, attempt.runs_out))))
    }
}

fn acquired(row: &Row, runs_out: Instant) -> Acquired {
    match row.get("verdict") {
        "leased" => Acquired::Lease(Lease::from_row(row, runs_out)),
        "finished" => Acquired::Finished { key_id: row.get("id"), response: response(row) },
        "mismatch" => Acquired::Mismatch { key_id: row.get("id") },
        "parked" => Acquired::Parked { key_id: row.get("id") },
        _ => Acquired::InProgress { key_id: row.get("id") },
    }
}

fn response(row: &Row) -> Response {
    let code: i32 = row.get("response_code");
    Response { code: u16::try_from(code).expect("the schema bounds it"), body: row.get("response_body") }
}
