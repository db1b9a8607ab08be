//! Moves staged jobs into the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Observer;
use super::periodic::{Periodic, Progress};
use crate::database::DatabaseError;
use crate::queue::Relay;
use crate::queue::health::QueueHealth;

/// Drains the outbox whenever this process has staged jobs, and at intervals for the jobs of other processes.
#[derive(Debug)]
pub struct Enqueuer<O> {
    /// The way to the queue.
    pub relay: O,
    /// What is known of the queue.
    pub health: Arc<QueueHealth>,
    /// `enqueuer.poll_interval`.
    pub poll_interval: Duration,
    /// Notified when a request of this process has staged jobs.
    pub staged: Arc<Notify>,
    /// Notified of deliveries, for a worker in this process.
    pub delivered: Arc<Notify>,
    /// Receives the result of each round.
    pub observer: Arc<dyn Observer>,
}

impl<O: Relay> Periodic for Enqueuer<O> {
    const NAME: &'static str = "enqueuer";

    fn interval(&self) -> Duration {
        self.health.pause().unwrap_or(self.poll_interval)
    }

    fn wake(&self) -> Option<&Notify> {
        Some(&self.staged)
    }

    /// A queue is left alone during its pause, however many staged jobs wake this role meanwhile.
    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        if self.health.pause().is_some() {
            return Ok(Progress::Idle);
        }
        let relayed = self.relay.relay().await?;
        self.observer.relayed(self.health.queue(), &relayed);
        if relayed.delivered > 0 {
            self.delivered.notify_one();
            tracing::info!(delivered = relayed.delivered, "moved staged jobs into the queue");
        }
        Ok(if relayed.more { Progress::More } else { Progress::Idle })
    }
}
