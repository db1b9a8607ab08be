//! The way of a job from the outbox, `staged_jobs`, to a queue, and the default queue itself.
//!
//! There are two ways out, and each is a [`Relay`]:
//!
//! - [`postgres`]: to the default queue, the table `jobs`; delivery is one statement.
//! - [`foreign`]: to a [`Queue`] outside this database, under leases ([`outbox`]), because no transaction may be open
//!   while another system is asked.
//!
//! [`work`] holds the statements of the default queue: how its jobs are claimed, finished, tried again and given up.
//! [`leases`] extends the leases of jobs under way; a [`handler`] does a job.
//!
//! [`health`] records whether the queue takes jobs just now; [`dead`] keeps the jobs that no retry helps.

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
    /// Its row in `staged_jobs`. A consumer recognises a repetition by it.
    pub id: i64,
    /// The name by which the queue's workers find the handler, as in `send_ride_receipt`.
    pub name: String,
    /// The job's arguments: a JSON object, as text, because it is only copied on the way to a queue.
    pub args: Box<RawValue>,
    /// When its request was finished, by the database's clock.
    pub staged_at: SystemTime,
}

/// The result of one job's push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The queue has it, from this push or an earlier one.
    Delivered,
    /// The push failed this time; a later attempt may succeed. Counts as an attempt.
    Transient(String),
    /// No attempt will ever succeed with this job.
    Permanent(String),
}

/// The queue as a whole takes nothing just now: it is down, full, or did not answer. Each job of the push may or may
/// not have arrived, and none of them caused the failure.
#[derive(Debug, thiserror::Error)]
#[error("the queue takes no jobs")]
pub struct QueueDown(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A queue outside this database.
///
/// After a crash between push and delete, a job is pushed again. So an implementation derives an identity from
/// [`StagedJob::id`] that makes the second push a no-op for as long as the implementation promises.
pub trait Queue: Send + Sync {
    /// The queue's name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Pushes the jobs in the order given and returns, in that order, the result of each. A queue that takes only the
    /// first of them returns nothing for the rest. The caller limits the time.
    fn push(&self, jobs: &[StagedJob]) -> impl Future<Output = Result<Vec<Delivery>, QueueDown>> + Send;
}

/// The result of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Jobs that are in the queue now.
    pub delivered: i64,
    /// Attempts that failed; each job is tried again later.
    pub failed: i64,
    /// Jobs that are dead letters now.
    pub dead: i64,
    /// Whether more jobs may be due already.
    pub more: bool,
}

/// An id before that of every job.
pub const BEFORE_FIRST: i64 = i64::MIN;

/// A round takes no new batch after this time. So whatever waits for its end, above all a shutdown, does not wait for
/// an outbox that other processes keep filling.
const ROUND_TIME: Duration = Duration::from_secs(1);

/// A way out of the outbox.
///
/// A round takes its first batch from [`BEFORE_FIRST`] on, and each further one from behind the one before it. The index
/// entries of jobs that have left stay at the front of the index until the table is vacuumed; so they are walked once a
/// round and not once a batch. A round keeps no position for the next one, and a round of several batches asks for
/// another: a transaction that commits late has a low id, and must not be passed over.
pub trait Relay: Send + Sync {
    /// Carries out one round: moves the jobs that are due, oldest first, and returns within seconds.
    fn relay(&self) -> impl Future<Output = Result<Relayed, DatabaseError>> + Send;
}

/// The most characters of an error that are stored: as much as helps a person.
const ERROR_CHARS: usize = 1000;

/// Returns the message of a queue or a mail server in a form that can be stored. Such a text may be long, and may hold
/// the null character, which Postgres does not store.
fn storable(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(ERROR_CHARS).collect()
}
