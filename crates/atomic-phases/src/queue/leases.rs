//! The leases that a worker holds, and the heartbeat that extends them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::work::{self, JobLease};
use crate::database::Database;
use crate::errors::chain;

/// If two heartbeats in a row do not extend a lease, a third of its time is still left.
const BEATS_PER_LEASE: u32 = 3;

/// All leases of one worker, by their tokens.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<Uuid, Entry>>);

#[derive(Debug)]
struct Entry {
    lease: JobLease,
    /// By this host's clock, and no later than by the database's, because it is computed before the statement is sent.
    runs_out: Instant,
    lost: CancellationToken,
}

/// A lease held by the task that works the job. When this is dropped, the lease is no longer extended.
#[derive(Debug)]
pub struct Held {
    leases: Arc<Leases>,
    pub(crate) lease: JobLease,
    lost: CancellationToken,
}

impl Held {
    /// Resolves when another worker has the job, or may have it.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether the lease certainly lasts for this much longer.
    pub fn outlasts(&self, time: Duration) -> bool {
        let runs_out = self.leases.lock().get(&self.lease.token).map(|entry| entry.runs_out);
        runs_out.is_some_and(|runs_out| Instant::now() + time < runs_out)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.lease.token);
    }
}

impl Leases {
    /// Keeps this lease alive until the returned [`Held`] is dropped.
    pub fn hold(self: &Arc<Self>, lease: JobLease, runs_out: Instant) -> Held {
        let lost = CancellationToken::new();
        self.lock().insert(lease.token, Entry { lease, runs_out, lost: lost.clone() });
        Held { leases: Arc::clone(self), lease, lost }
    }

    /// Extends all leases at intervals, and resolves [`Held::lost`] for those that are lost. Never returns.
    pub async fn beat(self: Arc<Self>, database: Database, lasts: Duration) {
        let mut beats = interval(lasts / BEATS_PER_LEASE);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            let leases: Vec<_> = self.lock().values().map(|entry| entry.lease).collect();
            if leases.is_empty() {
                continue;
            }
            let runs_out = Instant::now() + lasts;
            match work::extend(&database, &leases, lasts).await {
                Ok(extended) => {
                    for lease in leases {
                        if extended.kept.contains(&lease.token) {
                            self.update(lease, |entry| entry.runs_out = runs_out);
                        } else if !extended.skipped.contains(&lease.token) {
                            self.update(lease, |entry| entry.lost.cancel());
                        }
                    }
                }
                Err(error) => tracing::warn!(error = chain(&error), "the leases on jobs could not be extended"),
            }
            self.lock()
                .values()
                .filter(|entry| entry.runs_out <= Instant::now())
                .for_each(|entry| entry.lost.cancel());
        }
    }

    fn update(&self, lease: JobLease, change: impl FnOnce(&mut Entry)) {
        // The entry is gone if the job has ended meanwhile.
        if let Some(entry) = self.lock().get_mut(&lease.token) {
            change(entry);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
