//! Removes what is old: keys, and jobs that were finished.

use std::time::Duration;

use super::periodic::{Periodic, Progress};
use crate::config::{self, Role};
use crate::database::{Database, DatabaseError};
use crate::idempotency::reap::reap;
use crate::jobs::work::sweep;

/// Forgets what was finished long ago, and sets aside what should have been.
#[derive(Debug)]
pub struct Reaper {
    /// Where the keys are.
    pub database: Database,
    /// `[reaper]`.
    pub config: config::Reaper,
    /// `worker.keep_finished`.
    pub keep_finished: Duration,
    /// `idempotency.lock_timeout`.
    pub lock_timeout: Duration,
}

impl Periodic for Reaper {
    const ROLE: Role = Role::Reaper;

    fn interval(&self) -> Duration {
        self.config.poll_interval
    }

    /// Half of the time. Nobody waits for the reaper, and clients do wait for the processor and the disk that it uses.
    fn rest(&self, batch: Duration) -> Duration {
        batch
    }

    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        let config::Reaper { retention, batch, .. } = self.config;
        let reaped = reap(&self.database, retention, self.lock_timeout, batch).await?;
        if reaped.removed > 0 {
            tracing::info!(removed = reaped.removed, "removed old keys");
        }
        if reaped.parked > 0 {
            tracing::error!(parked = reaped.parked, "parked old keys that never finished; see `keys parked`");
        }
        let swept = sweep(&self.database, self.keep_finished, batch).await?;
        if swept > 0 {
            tracing::info!(swept, "removed jobs that were finished long ago");
        }
        let full = reaped.removed + reaped.parked == batch || swept == batch;
        Ok(if full { Progress::More } else { Progress::Idle })
    }
}
