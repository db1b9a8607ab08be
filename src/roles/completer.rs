//! Finishes the requests that clients abandoned.

use std::time::Duration;

use tokio::task::JoinSet;

use super::periodic::{Periodic, Progress};
use crate::config::{self, Role};
use crate::database::{Database, DatabaseError};
use crate::errors::chain;
use crate::idempotency::claim::{self, Claimed, RetryPolicy};
use crate::idempotency::settle;
use crate::rides::{Booking, RideParams, Rides};
use crate::users;

/// Claims what is due and drives it through the very code that the API uses.
#[derive(Debug)]
pub struct Completer {
    /// Where the keys are.
    pub database: Database,
    /// What drives them.
    pub rides: Rides,
    /// `[completer]`.
    pub config: config::Completer,
    /// `idempotency.lock_timeout`.
    pub lock_timeout: Duration,
}

impl Periodic for Completer {
    const ROLE: Role = Role::Completer;

    fn interval(&self) -> Duration {
        self.config.poll_interval
    }

    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        let limit = self.config.concurrency;
        let policy = RetryPolicy {
            lock_timeout: self.lock_timeout,
            retry_after: self.config.retry_after,
            max_attempts: self.config.max_attempts,
        };
        let claims = claim::claim(&self.database, limit, &policy).await?;
        for key_id in &claims.parked {
            tracing::error!(key_id, "a request used up its attempts and is parked; see `keys parked`");
        }
        let found = claims.claimed.len() + claims.parked.len();
        let mut under_way = JoinSet::new();
        for claimed in claims.claimed {
            under_way.spawn(complete(self.database.clone(), self.rides.clone(), claimed));
        }
        // One request that panics must not take the others down: its lease runs out, its attempt is counted.
        while let Some(ended) = under_way.join_next().await {
            if let Err(error) = ended {
                tracing::error!(error = chain(&error), "completing a request panicked");
            }
        }
        Ok(if i64::try_from(found) == Ok(limit) { Progress::More } else { Progress::Idle })
    }
}

async fn complete(database: Database, rides: Rides, claimed: Claimed) {
    let (key_id, attempt) = (claimed.lease.key_id, claimed.lease.attempts);
    let from = claimed.lease.recovery_point.clone();
    let booking = match booking(&database, claimed).await {
        Ok(Some(booking)) => booking,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(
                key_id,
                error = chain(&error),
                "a claimed request could not be read; trying again later"
            );
            return;
        }
    };
    let driven = rides.drive(&booking).await;
    let reached = driven.reached.name();
    match driven.result {
        Ok(response) => tracing::info!(key_id, attempt, from, status = response.code, "completed a request"),
        Err(error) => {
            tracing::warn!(
                key_id,
                attempt,
                from,
                reached,
                error = chain(&error),
                "could not complete a request yet"
            );
        }
    }
}

/// What is claimed, as a booking; a request that cannot be read is parked, because no retry will mend it.
async fn booking(database: &Database, claimed: Claimed) -> Result<Option<Booking>, DatabaseError> {
    let user = users::find(database, claimed.user_id).await?;
    let params = RideParams::from_json(&claimed.params);
    let problem = match (user, params) {
        (Some(user), Ok(params)) => {
            return Ok(Some(Booking { lease: claimed.lease, user, params, raise_error: false }));
        }
        (None, _) => format!("user {} does not exist any more", claimed.user_id),
        (_, Err(error)) => format!("its parameters make no sense: {error}"),
    };
    let key_id = claimed.lease.key_id;
    tracing::error!(key_id, problem, "a request cannot be completed and is parked; see `keys parked`");
    settle::park(database, &claimed.lease, &problem).await?;
    Ok(None)
}
