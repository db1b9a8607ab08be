//! The queues that the enqueuer can deliver to: the default one, which is a table, and two outside this database, [`redis`] and
//! [`nats`].

mod ca;
pub mod nats;
pub mod redis;
mod spare;

use std::time::Duration;

use atomic_phases::queue::foreign::PushPolicy;
use atomic_phases::queue::postgres;
use serde::{Deserialize, Serialize};

pub use ca::CaError;

/// A job queue that the enqueuer can deliver to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// The table `jobs` in the same database: nothing to install, and no crash can come between push and delete.
    Postgres,
    /// A list in Redis, worked by Sidekiq.
    Redis,
    /// A stream in NATS JetStream.
    Nats,
}

impl Queue {
    /// Returns its name in config, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => postgres::NAME,
            Self::Redis => redis::NAME,
            Self::Nats => nats::NAME,
        }
    }
}

/// `[enqueuer]`: from the outbox to the queue.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where jobs go.
    pub queue: Queue,
    /// Jobs moved by one statement. Measured best of 100, 1,000 and 10,000.
    pub batch: i64,
    /// Pause between polls; a ride that finishes in this process wakes the enqueuer at once.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Deadline for one push to a queue outside the database. A batch takes it some tens of milliseconds.
    #[serde(with = "humantime_serde")]
    pub push_timeout: Duration,
    /// How long an enqueuer's claim on jobs lasts while it pushes them. A batch waits for the push before it and then
    /// has its own, so this is longer than two pushes; when a process dies, its jobs are pushed again after this time.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Pause after a job's first failed push; it doubles with each further one, up to an hour, with jitter. An outage
    /// of the whole queue does not count as a failure of a job.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// A job that was refused this often becomes a dead letter. With doubling pauses of 5 s to 1 h, 25 attempts take
    /// most of a day: time enough to fix the cause.
    pub max_attempts: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue: Queue::Postgres,
            batch: 1000,
            poll_interval: Duration::from_secs(5),
            push_timeout: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            retry_after: Duration::from_secs(5),
            max_attempts: 25,
        }
    }
}

impl Settings {
    /// Returns the settings for a queue outside the database.
    pub fn push_policy(&self) -> PushPolicy {
        let Self { batch, push_timeout: timeout, lease, retry_after, max_attempts, .. } = *self;
        PushPolicy { batch, timeout, lease, retry_after, max_attempts }
    }
}
