//! Finishes the requests that clients abandoned.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::periodic::{Periodic, Progress};
use crate::database::{Database, DatabaseError};
use crate::errors::chain;
use crate::idempotency::claim::{self, Claimed, RetryPolicy};
use crate::idempotency::{Answer, Executed, Operations, Stop};

/// `[completer]`: finishing what clients abandoned.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a client is left alone with its own retries before the completer steps in.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// The same for a request whose process has died: long enough for a client that lost its connection to repeat the
    /// request and take it up itself. It doubles with each process that dies while it completes the request. Never
    /// longer than `grace`.
    #[serde(with = "humantime_serde")]
    pub crash_grace: Duration,
    /// Pause after the completer's first failed attempt; it doubles with each further one, up to an hour, with
    /// jitter.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// A key that the completer has tried this often is parked for a person. With doubling pauses of 60 s to 1 h,
    /// 32 attempts take a little over a day. Stripe repeats even a failure for as long as it remembers its key, so
    /// the attempts must outlast that: the look-up after `stripe.key_retention` then decides.
    pub max_attempts: i32,
    /// Requests completed at once, and claimed at once: claiming more would let leases run out while waiting. At a
    /// third of a second for a charge, 32 stay below the 100 calls a second that Stripe allows.
    pub concurrency: i64,
    /// Pause between looks when there was nothing to do.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5 * 60),
            crash_grace: Duration::from_secs(1),
            retry_after: Duration::from_secs(60),
            max_attempts: 32,
            concurrency: 32,
            poll_interval: Duration::from_secs(1),
        }
    }
}

/// Claims requests that are due and has their operations carry them out, through the same code that the API uses.
#[derive(Debug)]
pub struct Completer {
    /// Where the keys are.
    pub database: Database,
    /// What this process can complete.
    pub operations: Operations,
    /// `[completer]`.
    pub settings: Settings,
    /// `idempotency.lock_timeout`.
    pub lock_timeout: Duration,
    /// Notified when requests may have become due earlier than they were.
    pub handed_back: Arc<Notify>,
}

impl Periodic for Completer {
    const NAME: &'static str = "completer";

    fn wake(&self) -> Option<&Notify> {
        Some(&self.handed_back)
    }

    fn interval(&self) -> Duration {
        self.settings.poll_interval
    }

    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        let limit = self.settings.concurrency;
        let policy = RetryPolicy {
            lock_timeout: self.lock_timeout,
            retry_after: self.settings.retry_after,
            max_attempts: self.settings.max_attempts,
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
