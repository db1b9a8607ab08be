//! Removes what is old: keys, and jobs that were finished.

use std::time::Duration;

use serde::Deserialize;

use super::periodic::{Periodic, Progress};
use crate::database::{Database, DatabaseError};
use crate::idempotency::reap::reap;
use crate::processes;
use crate::queue::work::sweep;

/// `[reaper]`: removing old keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A key this old is removed, or parked if its request never finished.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// Keys handled by one statement.
    pub batch: i64,
    /// Pause between looks when there was nothing to do.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { retention: Duration::from_secs(72 * 3600), batch: 1000, poll_interval: Duration::from_secs(5) }
    }
}

/// Removes keys and jobs that were finished long ago, and parks old keys that never finished.
#[derive(Debug)]
pub struct Reaper {
    /// Where the keys are.
    pub database: Database,
    /// `[reaper]`.
    pub settings: Settings,
    /// `worker.keep_finished`.
    pub keep_finished: Duration,
    /// `idempotency.lock_timeout`.
    pub lock_timeout: Duration,
}

/// How long a person can see that a process has ended.
const KEEP_ENDED: Duration = Duration::from_secs(3600);

impl Periodic for Reaper {
    const NAME: &'static str = "reaper";

    fn interval(&self) -> Duration {
        self.settings.poll_interval
    }

    /// Rests for half of the time. No client waits for the reaper, and clients do wait for the processor and the disk
    /// that it uses.
    fn rest(&self, batch: Duration) -> Duration {
        batch
    }

    async fn run_once(&self) -> Result<Progress, DatabaseError> {
        let Settings { retention, batch, .. } = self.settings;
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
        processes::remove(&self.database, KEEP_ENDED, batch).await?;
        let full = reaped.removed + reaped.parked == batch || swept == batch;
        Ok(if full { Progress::More } else { Progress::Idle })
    }
}
