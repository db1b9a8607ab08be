//! The three ways to end a lease: finish the request, release it for another attempt, or park it for a person.
//!
//! Each writes only while the lease is still its holder's own.

use std::cmp::Ordering;
use std::sync::LazyLock;

use super::fence::{Durability, Pass, by_token};
use super::{Job, Lease, Response};
use crate::database::{Batched, Database, DatabaseError, column};

/// Advances the key to `finished` as any phase does, and gives the lease back in the same breath. It takes
/// the recovery point as a parameter, because a request can be finished from more than one.
const FINISH: &str = "
    WITH fenced AS (
        UPDATE idempotency_keys k
        SET recovery_point = 'finished', response_code = i.response_code, response_body = i.response_body::json,
            lease_token = NULL, locked_at = NULL, last_error = NULL
        FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[], $7::jsonb[])
            AS i (key_id, lease_token, recovery_point, response_code, response_body, job_name, job_args)
        WHERE k.id = i.key_id AND k.lease_token = i.lease_token AND k.recovery_point = i.recovery_point
        RETURNING i.lease_token, i.job_name, i.job_args
    ), staged AS (
        INSERT INTO staged_jobs (job_name, job_args)
        SELECT job_name, job_args FROM fenced WHERE job_name IS NOT NULL
    )
    SELECT lease_token FROM fenced";

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
    database.batched(Finish { pass: lease.into(), from, response: response.clone(), job: job.cloned() }).await
}

struct Finish {
    pass: Pass,
    from: &'static str,
    response: Response,
    job: Option<Job>,
}

impl Batched for Finish {
    type Output = bool;

    fn order(&self, other: &Self) -> Ordering {
        self.pass.cmp(&other.pass)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<bool>, DatabaseError> {
        let rows = database
            .query(
                FINISH,
                &[
                    &column(items, |finish| finish.pass.key_id),
                    &column(items, |finish| finish.pass.token),
                    &column(items, |finish| finish.from),
                    &column(items, |finish| i32::from(finish.response.code)),
                    &column(items, |finish| finish.response.body.as_str()),
                    &column(items, |finish| finish.job.as_ref().map(|job| job.name)),
                    &column(items, |finish| finish.job.as_ref().map(|job| &job.args)),
                ],
            )
            .await?;
        let finished = by_token(rows);
        Ok(column(items, |finish| finished.contains_key(&finish.pass.token)))
    }
}

static RELEASE: LazyLock<String> = LazyLock::new(|| {
    let commit = Durability::Later.column();
    format!(
        "UPDATE idempotency_keys k
        SET lease_token = NULL, locked_at = NULL, last_error = mine.error
        FROM unnest($1::bigint[], $2::uuid[], $3::text[]) AS mine (id, lease_token, error)
        WHERE k.id = mine.id AND k.lease_token = mine.lease_token
        RETURNING k.id{commit}"
    )
});

/// Gives the lease back, so that a retry need not wait until it runs out. If it is no longer ours this does
/// nothing, and so does losing it in a crash.
///
/// Locks the key's row.
pub async fn release(database: &Database, lease: &Lease, error: &str) -> Result<(), DatabaseError> {
    database.batched(Release { pass: lease.into(), error: error.to_owned() }).await
}

struct Release {
    pass: Pass,
    error: String,
}

impl Batched for Release {
    type Output = ();

    fn order(&self, other: &Self) -> Ordering {
        self.pass.cmp(&other.pass)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<()>, DatabaseError> {
        database
            .query(
                &RELEASE,
                &[
                    &column(items, |release| release.pass.key_id),
                    &column(items, |release| release.pass.token),
                    &column(items, |release| release.error.as_str()),
                ],
            )
            .await?;
        Ok(vec![(); items.len()])
    }
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
