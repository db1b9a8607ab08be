//! Which queue the enqueuer delivers to, and what the sections of the queues must satisfy.

use serde::{Deserialize, Serialize};

use super::validate::require;
use super::{Config, ConfigError, Role};
pub use crate::jobs::nats::Settings as Nats;
pub use crate::jobs::redis::Settings as Redis;
use crate::jobs::{nats, postgres, redis};

/// A job queue that the enqueuer can deliver to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// The table `jobs` in the same database: nothing to install, and nothing can come between.
    Postgres,
    /// A list in Redis, worked by Sidekiq.
    Redis,
    /// A stream in NATS JetStream.
    Nats,
}

impl Queue {
    /// Its name in config, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => postgres::NAME,
            Self::Redis => redis::NAME,
            Self::Nats => nats::NAME,
        }
    }
}

impl Config {
    pub(super) fn check_queues(&self) -> Result<(), ConfigError> {
        let delivers_to = |queue| self.runs(Role::Enqueuer) && self.enqueuer.queue == queue;
        require(!delivers_to(Queue::Redis) || self.redis.url.is_some(), "enqueuer.queue", || {
            "is \"redis\", and redis.url is missing: set REDIS_URL".to_owned()
        })?;
        require(!delivers_to(Queue::Nats) || self.nats.url.is_some(), "enqueuer.queue", || {
            "is \"nats\", and nats.url is missing: set NATS_URL".to_owned()
        })?;
        let lease = self.enqueuer.lease;
        for (key, memory) in
            [("redis.marker_ttl", self.redis.marker_ttl), ("nats.duplicate_window", self.nats.duplicate_window)]
        {
            require(memory > lease, key, || {
                format!("must be longer than enqueuer.lease ({lease:?}), after which a job is pushed again")
            })?;
        }
        require(is_word(&self.redis.queue), "redis.queue", || "must be a word".to_owned())?;
        require(self.redis.namespace.is_empty() || is_word(&self.redis.namespace), "redis.namespace", || {
            "must be a word or nothing".to_owned()
        })?;
        require(self.redis.wrong_class().is_none(), "redis.classes", || {
            format!("{:?} is no name of a Ruby class", self.redis.wrong_class().unwrap_or_default())
        })?;
        require(self.nats.has_stream_name(), "nats.stream", || "must be a word without . * > / and \\".to_owned())?;
        require(self.nats.has_subject(), "nats.subject_prefix", || {
            "must be words with dots between them, without wildcards".to_owned()
        })?;
        require((1..=5).contains(&self.nats.replicas), "nats.replicas", || {
            format!("must be from 1 to 5, not {}", self.nats.replicas)
        })
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}
