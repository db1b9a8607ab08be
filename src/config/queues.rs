//! Checks the sections of the queues.

use super::validate::require;
use super::{Config, ConfigError};
use crate::queues::Queue;
use crate::role::Role;

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
