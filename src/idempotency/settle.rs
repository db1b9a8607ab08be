//! The three ways to end a lease: finish the request, release it for another attempt, or park it for a person.
//!
//! Each writes only while the lease is still its holder's own.

use std::cmp::Ordering;

use super::fence::{Pass, by_token};
use super::{Job, Lease, Response};
use crate::database::{Batched, Database, DatabaseError, column};

/// Advances the key to `finished` as any phase does, and gives the lease back in the same breath. It takes
/// the recovery point as a parameter, because a request can be finished from more than one.
const FINISH: &str = include_str!("settle_finish.sql");

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

const RELEASE: &str = include_str!("settle_release.sql");

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
                RELEASE,
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

const PARK: &str = include_str!("settle_park.sql");

/// Ends the lease and sets the request aside until a person has decided.
///
/// Locks the key's row.
pub async fn park(database: &Database, lease: &Lease, reason: &str) -> Result<(), DatabaseError> {
    database.query(PARK, &[&lease.key_id, &lease.token, &reason]).await.map(drop)
}
