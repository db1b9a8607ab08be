//! Moves staged jobs into the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::periodic::{Periodic, Progress};
use crate::config::{self, Queue, Role};
use crate::database::{Database, DatabaseError};
use crate::jobs;

/// Drains the outbox whenever a ride of this process is done, and looks at intervals for those of others.
#[derive(Debug)]
pub struct Enqueuer {
    /// Where the outbox is.
    pub database: Database,
    /// `[enqueuer]`.
    pub config: config::Enqueuer,
    /// Notified of each job that this process stages.
    pub staged: Arc<Notify>,
}

impl Periodic for Enqueuer {
    const ROLE: Role = Role::Enqueuer;

    fn interval(&self) -> Duration {
        self.config.poll_interval
    }

    fn wake(&self) -> Option<&Notify> {
        Some(&self.staged)
    }

    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        let delivered = match self.config.queue {
            Queue::Postgres => jobs::deliver_to_postgres(&self.database, self.config.batch).await?,
        };
        if delivered > 0 {
            tracing::info!(delivered, "moved staged jobs into the queue");
        }
        Ok(if delivered == self.config.batch { Progress::More } else { Progress::Idle })
    }
}
