//! Works the default queue, the table `jobs`.
//!
//! Unlike the roles that [poll](super::periodic), this one works many jobs at once that have nothing to do with each
//! other, and one that waits for a slow mail server must not keep the next from starting. So it takes as many jobs as
//! it has free slots, whenever there are both. Each job's lease is extended by one heartbeat for all of them; a job
//! whose lease is lost is broken off, and would be turned away at the fence if it went on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::periodic::{AFTER_ERROR, jittered};
use crate::config::{self, Role};
use crate::database::{Database, DatabaseError};
use crate::errors::chain;
use crate::jobs::handler::{HandlerError, Handlers};
use crate::jobs::leases::{Held, Leases};
use crate::jobs::work::{self, Claimed, Failed, FinishStatement, RetryPolicy};
use crate::metrics::{Metrics, Outcome};

/// Takes jobs and works them.
#[derive(Debug)]
pub struct Worker {
    /// Where the queue is.
    pub database: Database,
    /// What this process can work.
    pub handlers: Handlers,
    /// `[worker]`.
    pub config: config::Worker,
    /// Notified when this process has delivered jobs to the queue.
    pub delivered: Arc<Notify>,
    /// Where attempts are counted.
    pub metrics: Arc<Metrics>,
}

/// Why an attempt did not do the job.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    /// No handler is registered for it.
    #[error("no worker knows the job {0:?}")]
    UnknownJob(String),
    /// A bug.
    #[error("the worker panicked")]
    Panicked,
    /// The handler did not do it. If its lease is lost, another worker may have the job by now.
    #[error(transparent)]
    Handler(#[from] HandlerError),
}

impl WorkError {
    fn is_permanent(&self) -> bool {
        match self {
            Self::UnknownJob(_) | Self::Handler(HandlerError::Permanent(_)) => true,
            Self::Handler(HandlerError::LeaseLost | HandlerError::Transient(_)) | Self::Panicked => false,
        }
    }
}

impl Worker {
    /// Works until `stop`; then takes nothing more, and ends when what is under way has ended.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let leases = Arc::new(Leases::default());
        let heart = Arc::clone(&leases).beat(self.database.clone(), self.config.lease);
        let _heart = AbortOnDropHandle::new(tokio::spawn(heart));
        let mut under_way = JoinSet::new();
        let mut look_at = Instant::now();
        while !stop.is_cancelled() {
            let free = i64::from(self.config.concurrency) - i64::try_from(under_way.len()).unwrap_or(i64::MAX);
            if free > 0 && look_at <= Instant::now() {
                let pause = self.take(free, &leases, &mut under_way).await;
                look_at = Instant::now() + pause;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.delivered.notified(), if free > 0 => look_at = Instant::now(),
                () = sleep_until(look_at), if free > 0 => {}
                Some(_) = under_way.join_next() => {}
            }
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Takes up to `free` jobs and starts them. Returns how long to wait before the next look: not at all if there may
    /// be more, so that the next free slot looks at once.
    async fn take(self: &Arc<Self>, free: i64, leases: &Arc<Leases>, under_way: &mut JoinSet<()>) -> Duration {
        let runs_out = Instant::now() + self.config.lease;
        let claimed = work::claim(&self.database, free, self.config.lease, self.config.max_attempts).await;
        let claims = match claimed {
            Ok(claims) => claims,
            Err(error) => {
                let (role, error) = (Role::Worker.name(), chain(&error));
                tracing::warn!(role, error, "jobs could not be taken; trying again");
                return AFTER_ERROR.min(self.config.poll_interval);
            }
        };
        for job_id in &claims.buried {
            self.metrics.count_worked(Outcome::Died);
            tracing::error!(job_id, "a job never came back from its last attempt and is a dead letter");
        }
        let found = claims.claimed.len() + claims.buried.len();
        for job in claims.claimed {
            let held = leases.hold(job.lease, runs_out);
            under_way.spawn(Arc::clone(self).work(job, held));
        }
        if i64::try_from(found) == Ok(free) { Duration::ZERO } else { jittered(self.config.poll_interval) }
    }

    /// One attempt, from having the lease to having none.
    async fn work(self: Arc<Self>, job: Claimed, held: Held) {
        let began = Instant::now();
        let attempt = AssertUnwindSafe(self.attempt(&job, &held)).catch_unwind();
        let ended = tokio::select! {
            ended = attempt => ended.unwrap_or(Err(WorkError::Panicked)),
            () = held.lost() => Err(HandlerError::LeaseLost.into()),
        };
        let (job_id, name, attempt) = (job.lease.job_id, job.name.as_str(), job.attempt);
        match ended {
            Ok((finish, data)) => {
                let finish = || work::finish(&self.database, finish, job.lease, data.clone());
                match persist(&held, finish).await {
                    Some(true) => {
                        self.metrics.count_worked(Outcome::Done);
                        let ms = began.elapsed().as_millis() as u64;
                        tracing::info!(job_id, job = name, attempt, ms, "worked a job");
                    }
                    Some(false) => {
                        self.metrics.count_worked(Outcome::LeaseLost);
                        tracing::warn!(job_id, job = name, attempt, "worked a job, and somebody else may too");
                    }
                    None => self.metrics.count_worked(Outcome::LeaseLost),
                }
            }
            Err(WorkError::Handler(HandlerError::LeaseLost)) => {
                self.metrics.count_worked(Outcome::LeaseLost);
                tracing::warn!(job_id, job = name, attempt, "lost the lease on a job; whoever has it works it");
            }
            Err(error) => self.fail(&job, &held, &error).await,
        }
    }

    /// Does what the job says, and returns how it is to be finished.
    async fn attempt(&self, job: &Claimed, held: &Held) -> Result<(FinishStatement, Value), WorkError> {
        let known = self.handlers.get(&job.name).ok_or_else(|| WorkError::UnknownJob(job.name.clone()))?;
        Ok((known.finish, known.handler.work(job, held).await?))
    }

    async fn fail(&self, job: &Claimed, held: &Held, error: &WorkError) {
        let policy = RetryPolicy { retry_after: self.config.retry_after, max_attempts: self.config.max_attempts };
        let (text, permanent) = (chain(error), error.is_permanent());
        let fail = || work::fail(&self.database, job.lease, &text, permanent, &policy);
        let (job_id, name, attempt) = (job.lease.job_id, job.name.as_str(), job.attempt);
        match persist(held, fail).await {
            Some(Failed::Retried(pause)) => {
                self.metrics.count_worked(Outcome::Retried);
                let again_in_ms = pause.as_millis() as u64;
                tracing::warn!(job_id, job = name, attempt, again_in_ms, error = text, "a job failed");
            }
            Some(Failed::Buried) => {
                self.metrics.count_worked(Outcome::Died);
                tracing::error!(job_id, job = name, attempt, error = text, "a job failed and is a dead letter");
            }
            Some(Failed::LeaseLost) | None => {
                self.metrics.count_worked(Outcome::LeaseLost);
                tracing::warn!(job_id, job = name, attempt, error = text, "a job failed, and its lease is lost");
            }
        }
    }
}

/// Runs the statement that ends an attempt until the database carries it out or the lease has gone: what was done must
/// not be done again for a connection that broke. If it was carried out and only the answer got lost, the next try
/// finds the fence shut and changes nothing.
async fn persist<T, F>(held: &Held, statement: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, DatabaseError>>,
{
    let job_id = held.job_id();
    loop {
        let error = match statement().await {
            Ok(done) => return Some(done),
            Err(error) => error,
        };
        let hopeless = !error.is_transient() || !held.outlasts(AFTER_ERROR);
        let error = chain(&error);
        if hopeless {
            tracing::error!(job_id, error, "how a job ended could not be recorded; it will be worked again");
            return None;
        }
        tracing::warn!(job_id, error, "how a job ended could not be recorded; trying again");
        sleep(AFTER_ERROR).await;
    }
}
