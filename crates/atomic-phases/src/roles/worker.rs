//! Works the default queue, the table `jobs`.
//!
//! Unlike the roles that [poll](super::periodic), this one works many independent jobs at once, and a job that waits
//! for a slow mail server must not keep the next from starting. So it claims as many jobs as it has free slots,
//! whenever there are both. One heartbeat extends the leases of all jobs. A job whose lease is lost is aborted; if it
//! went on, the fence would stop its last statement.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::periodic::{AFTER_ERROR, jittered};
use super::{Observer, Outcome};
use crate::database::{Database, DatabaseError};
use crate::errors::chain;
use crate::queue::handler::{HandlerError, Handlers};
use crate::queue::leases::{Held, Leases};
use crate::queue::work::{self, Claimed, Failed, FinishStatement, RetryPolicy};

/// The role's name in logs.
const NAME: &str = "worker";

/// `[worker]`: working the default queue, the table `jobs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Jobs worked at once, and the most that are taken at once: a job that waits for a slot would use up its lease.
    /// While a job waits for a mail server it holds no database connection, so it is the mail server that sets the
    /// limit: common ones take ten connections from one client without complaint.
    pub concurrency: u32,
    /// How long the lease on a job lasts without a heartbeat. A heartbeat extends it every third of this time, so it
    /// does not limit how long a job may take, but how long the jobs of a dead process wait.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Pause after a job's first failed attempt; it doubles with each further one, up to six hours, with jitter.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// A job that was tried this often is a dead letter. With pauses of 10 s to 6 h, 30 attempts take a little under
    /// five days, which is how long mail servers themselves go on trying (RFC 5321, 4.5.4.1).
    pub max_attempts: i32,
    /// Pause between looks; an enqueuer of this process that delivers wakes the worker at once.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// How long a finished job stays where a person can see it, before the reaper removes it. The receipt itself is
    /// recorded elsewhere and stays, so a day is for looking into what went wrong yesterday.
    #[serde(with = "humantime_serde")]
    pub keep_finished: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 8,
            lease: Duration::from_secs(30),
            retry_after: Duration::from_secs(10),
            max_attempts: 30,
            poll_interval: Duration::from_secs(5),
            keep_finished: Duration::from_secs(24 * 3600),
        }
    }
}

/// Takes jobs and works them.
#[derive(Debug)]
pub struct Worker {
    /// Where the queue is.
    pub database: Database,
    /// The handlers of the jobs that this process can work.
    pub handlers: Handlers,
    /// `[worker]`.
    pub settings: Settings,
    /// Notified when this process has delivered jobs to the queue.
    pub delivered: Arc<Notify>,
    /// Receives the outcome of each attempt.
    pub observer: Arc<dyn Observer>,
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
    /// Works until `stop`; then claims no more jobs, and returns when the jobs under way have ended.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let leases = Arc::new(Leases::default());
        let heart = Arc::clone(&leases).beat(self.database.clone(), self.settings.lease);
        let _heart = AbortOnDropHandle::new(tokio::spawn(heart));
        let mut under_way = JoinSet::new();
        let mut look_at = Instant::now();
        while !stop.is_cancelled() {
            let free = i64::from(self.settings.concurrency) - i64::try_from(under_way.len()).unwrap_or(i64::MAX);
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

    /// Claims up to `free` jobs and starts them. Returns the pause before the next look: zero if more jobs may be due,
    /// so that the next free slot is used at once.
    async fn take(self: &Arc<Self>, free: i64, leases: &Arc<Leases>, under_way: &mut JoinSet<()>) -> Duration {
        let runs_out = Instant::now() + self.settings.lease;
        let claimed = work::claim(&self.database, free, self.settings.lease, self.settings.max_attempts).await;
        let claims = match claimed {
            Ok(claims) => claims,
            Err(error) => {
                let (role, error) = (NAME, chain(&error));
                tracing::warn!(role, error, "jobs could not be taken; trying again");
                return AFTER_ERROR.min(self.settings.poll_interval);
            }
        };
        for job_id in &claims.buried {
            self.observer.worked(Outcome::Died);
            tracing::error!(job_id, "a job never came back from its last attempt and is a dead letter");
        }
        let found = claims.claimed.len() + claims.buried.len();
        for job in claims.claimed {
            let held = leases.hold(job.lease, runs_out);
            under_way.spawn(Arc::clone(self).work(job, held));
        }
        if i64::try_from(found) == Ok(free) { Duration::ZERO } else { jittered(self.settings.poll_interval) }
    }

    /// Makes one attempt, from the claimed lease to the end of the lease.
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
                        self.observer.worked(Outcome::Done);
                        let ms = began.elapsed().as_millis() as u64;
                        tracing::info!(job_id, job = name, attempt, ms, "worked a job");
                    }
                    Some(false) => {
                        self.observer.worked(Outcome::LeaseLost);
                        tracing::warn!(job_id, job = name, attempt, "worked a job, and somebody else may too");
                    }
                    None => self.observer.worked(Outcome::LeaseLost),
                }
            }
            Err(WorkError::Handler(HandlerError::LeaseLost)) => {
                self.observer.worked(Outcome::LeaseLost);
                tracing::warn!(job_id, job = name, attempt, "lost the lease on a job; whoever has it works it");
            }
            Err(error) => self.fail(&job, &held, &error).await,
        }
    }

    /// Has the job's handler do it, and returns the statement and the data that finish it.
    async fn attempt(&self, job: &Claimed, held: &Held) -> Result<(FinishStatement, Value), WorkError> {
        let known = self.handlers.get(&job.name).ok_or_else(|| WorkError::UnknownJob(job.name.clone()))?;
        Ok((known.finish, known.handler.work(job, held).await?))
    }

    async fn fail(&self, job: &Claimed, held: &Held, error: &WorkError) {
        let policy =
            RetryPolicy { retry_after: self.settings.retry_after, max_attempts: self.settings.max_attempts };
        let (text, permanent) = (chain(error), error.is_permanent());
        let fail = || work::fail(&self.database, job.lease, &text, permanent, &policy);
        let (job_id, name, attempt) = (job.lease.job_id, job.name.as_str(), job.attempt);
        match persist(held, fail).await {
            Some(Failed::Retried(pause)) => {
                self.observer.worked(Outcome::Retried);
                let again_in_ms = pause.as_millis() as u64;
                tracing::warn!(job_id, job = name, attempt, again_in_ms, error = text, "a job failed");
            }
            Some(Failed::Buried) => {
                self.observer.worked(Outcome::Died);
                tracing::error!(job_id, job = name, attempt, error = text, "a job failed and is a dead letter");
            }
            Some(Failed::LeaseLost) | None => {
                self.observer.worked(Outcome::LeaseLost);
                tracing::warn!(job_id, job = name, attempt, error = text, "a job failed, and its lease is lost");
            }
        }
    }
}

/// Repeats the statement that ends an attempt until the database carries it out or the lease is about to run out: a
/// connection that broke must not cause work to be done again. If the statement was carried out and only its answer was
/// lost, the next try no longer passes the fence and changes nothing. Returns `None` if the end could not be recorded.
async fn persist<T, F>(held: &Held, statement: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, DatabaseError>>,
{
    let job_id = held.lease.job_id;
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
