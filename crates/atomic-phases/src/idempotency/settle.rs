//! The two ways to end a lease without an answer: release it for another attempt, or park the request for a person.
//!
//! Each writes only while the lease's token is still on the key.

use std::cmp::Ordering;

use super::Lease;
use super::phase::Fence;
use crate::database::{Batched, Database, DatabaseError, column};

const RELEASE: &str = include_str!("settle_release.sql");

/// Gives the lease back, so that a retry need not wait until it runs out. If the lease was lost, this does nothing. Not
/// flushed: a crash of the database that undoes it does no harm.
///
/// Locks the key's row.
pub async fn release(database: &Database, lease: &Lease, error: &str) -> Result<(), DatabaseError> {
    database.batched(Release { fence: Fence::of(lease), error: error.to_owned() }).await
}

struct Release {
    fence: Fence,
    error: String,
}

impl Batched for Release {
    type Output = ();

    fn order(&self, other: &Self) -> Ordering {
        self.fence.cmp(&other.fence)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<()>, DatabaseError> {
        database
            .query(
                RELEASE,
                &[
                    &column(items, |release| release.fence.key_id),
                    &column(items, |release| release.fence.token),
                    &column(items, |release| release.error.as_str()),
                ],
            )
            .await?;
        Ok(vec![(); items.len()])
    }
}

const PARK: &str = include_str!("settle_park.sql");

/// Ends the lease and parks the request until a person has decided.
///
/// Locks the key's row.
pub async fn park(database: &Database, lease: &Lease, reason: &str) -> Result<(), DatabaseError> {
    database.query(PARK, &[&lease.key_id, &lease.token, &reason]).await.map(drop)
}
