//! The outbox's other end: from `staged_jobs` to a queue.
//!
//! There are two ways out, and each is an [`Outlet`]:
//!
//! - [`postgres`]: the default queue, the table `jobs`; delivery is one statement.
//! - [`foreign`]: to a [`Queue`] outside this database, under leases ([`outbox`]), because no transaction is open
//!   while anybody else is asked.
//!
//! [`work`] is the default queue's other side: how its jobs are taken, finished, tried again and given up; [`leases`] keeps
//! those that are worked; a [`handler`] does them.
//!
//! [`health`] knows whether the queue takes anything just now; [`dead`] keeps the jobs that no retry helps.

pub mod dead;
pub mod foreign;
pub mod handler;
pub mod health;
pub mod leases;
pub mod outbox;
pub mod postgres;
pub mod work;

use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

use crate::database::DatabaseError;

/// A job on its way from the outbox to a queue.
#[derive(Debug, Clone)]
pub struct StagedJob {
    /// Its row in `staged_jobs`, and what a consumer knows a repetition by.
    pub id: i64,
    /// What the queue's workers know it by, as in `send_ride_receipt`.
    pub name: String,
    /// What it needs to know: a JSON object, as text, because the way to a queue only copies it.
    pub args: Box<RawValue>,
    /// When its request was finished, by the database's clock.
    pub staged_at: SystemTime,
}

/// What became of one job that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The queue has it, from this push or an earlier one.
    Delivered,
    /// Not this time; a later attempt may succeed. Counts as an attempt.
    Transient(String),
    /// No attempt will ever succeed with this job.
    Permanent(String),
}

/// The queue as a whole takes nothing just now: it is down, full, or did not answer. Each job of the push may or may not
/// have arrived, and none is to blame.
#[derive(Debug, thiserror::Error)]
#[error("the queue takes no jobs")]
pub struct QueueDown(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A queue outside this database.
///
/// A crash between push and delete pushes a job again, so an implementation derives an identity from
/// [`StagedJob::id`] that makes the second push a no-op for as long as it promises to.
pub trait Queue: Send + Sync {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// Pushes the jobs in the order given and says, in that order, what became of each. A queue that takes only the
    /// first of them says nothing of the rest. Bounded in time by the caller.
    fn push(&self, jobs: &[StagedJob]) -> impl Future<Output = Result<Vec<Delivery>, QueueDown>> + Send;
}

/// What one look at the outbox did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Jobs that are in the queue now.
    pub delivered: i64,
    /// Attempts that failed; each job is tried again later.
    pub failed: i64,
    /// Jobs that are dead letters now.
    pub dead: i64,
    /// There may be more to do at once.
    pub more: bool,
}

/// Before every job.
pub const START: i64 = i64::MIN;

/// One drain takes no new batch after this time: who waits for it, a shutdown above all, does not wait for an outbox
/// that others keep filling.
const ROUND: Duration = Duration::from_secs(1);

/// A way out of the outbox.
///
/// A drain takes its first batch from the [`START`] and each further one from behind the one before it. So the index
/// entries of jobs that have left, which lie at its front until the table is vacuumed, are walked once a drain and not
/// once a batch. No bound outlives a drain, and a drain of several batches asks for another: a transaction that commits
/// late has a low id, and must not be passed over.
pub trait Outlet: Send + Sync {
    /// Moves what is due, oldest first, and returns within seconds.
    fn drain(&self) -> impl Future<Output = Result<Drained, DatabaseError>> + Send;
}

/// As much of an error as helps a person.
const ERROR_CHARS: usize = 1000;

/// A queue's or a mail server's message as it can be stored: it is foreign text, which may be long, and hold the one
/// character that Postgres's does not have.
fn storable(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(ERROR_CHARS).collect()
}
