//! Finishes the requests that clients abandoned.

use std::time::Duration;

use tokio::task::JoinSet;

use super::periodic::{Periodic, Progress};
use crate::config::{self, Role};
use crate::database::{Database, DatabaseError};
use crate::errors::chain;
use crate::idempotency::claim::{self, Claimed, RetryPolicy};
use crate::idempotency::{Answer, Executed, Operations, Stop};

/// Claims what is due and has its operation carry it out, through the very code that the API uses.
#[derive(Debug)]
pub struct Completer {
    /// Where the keys are.
    pub database: Database,
    /// What this process can complete.
    pub operations: Operations,
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
        let claims = claim::claim(&self.database, &self.operations.names(), limit, &policy).await?;
        for key_id in &claims.parked {
            tracing::error!(key_id, "a request used up its attempts and is parked; see `keys parked`");
        }
        let found = claims.claimed.len() + claims.parked.len();
        let mut under_way = JoinSet::new();
        for claimed in claims.claimed {
            under_way.spawn(complete(self.operations.clone(), claimed));
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

async fn complete(operations: Operations, claimed: Claimed) {
    let (key_id, attempt) = (claimed.lease.key_id, claimed.lease.attempts);
    let from = claimed.lease.recovery_point.clone();
    let operation = operations.get(&claimed.operation).expect("only what is known was asked for");
    let name = operation.name();
    let Executed { answer, reached, .. } = operation.complete(claimed).await;
    match answer {
        Answer::Done { response, .. } => {
            tracing::info!(key_id, operation = name, attempt, from, status = response.code, "completed a request");
        }
        Answer::Stopped(stop @ Stop::Park(_)) => {
            let error = chain(&stop);
            tracing::error!(
                key_id,
                operation = name,
                attempt,
                from,
                error,
                "a request is parked; see `keys parked`"
            );
        }
        Answer::Stopped(stop) => {
            let error = chain(&stop);
            tracing::warn!(
                key_id,
                operation = name,
                attempt,
                from,
                reached,
                error,
                "could not complete a request yet"
            );
        }
        Answer::Refused(_) | Answer::Mismatch | Answer::InProgress | Answer::Parked => {
            unreachable!("a claim is a lease")
        }
    }
}
