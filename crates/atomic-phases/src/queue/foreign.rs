//! The way out to a queue outside this database: claim, push, settle, and no transaction open meanwhile.
//!
//! While one batch is pushed, the one before it is settled and the next is claimed, so that database and queue work at
//! the same time. Pushes themselves never overlap: they keep the order of staging.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::health::QueueHealth;
use super::outbox::{self, Batch, PushResults};
use super::{BEFORE_FIRST, Delivery, Queue, QueueDown, ROUND_TIME, Relay, Relayed, dead};
use crate::database::{Database, DatabaseError};

/// How much is pushed at once, for how long, and how often.
#[derive(Debug, Clone, Copy)]
pub struct PushPolicy {
    /// Jobs in one push.
    pub batch: i64,
    /// Deadline for one push.
    pub timeout: Duration,
    /// How long the lease on claimed jobs lasts: longer than two pushes, because a batch may wait for the one before
    /// it.
    pub lease: Duration,
    /// Pause after a job's first failure; it doubles with each.
    pub retry_after: Duration,
    /// A job that was refused this often is a dead letter.
    pub max_attempts: i32,
}

/// The way out to `queue`.
#[derive(Debug)]
pub struct ExternalRelay<Q> {
    /// Where the outbox is.
    pub database: Database,
    /// Where jobs go.
    pub queue: Q,
    /// How jobs are pushed.
    pub policy: PushPolicy,
    /// What is known of the queue.
    pub health: Arc<QueueHealth>,
}

/// A batch to settle, and what becomes of each of its jobs.
struct Pushed {
    batch: Batch,
    results: PushResults,
}

impl<Q: Queue> Relay for ExternalRelay<Q> {
    async fn relay(&self) -> Result<Relayed, DatabaseError> {
        let began = Instant::now();
        let mut relayed = Relayed::default();
        let (mut before, mut current) = (None, self.claim(BEFORE_FIRST).await?);
        while let Some(batch) = current.take() {
            relayed.more |= batch.full;
            let behind = batch.jobs.last().map(|job| job.id);
            let behind = behind.filter(|_| batch.full && began.elapsed() < ROUND_TIME);
            let (pushed, database) = tokio::join!(self.push(&batch), async {
                self.settle(before.take(), &mut relayed).await?;
                match behind {
                    Some(last) => self.claim(last).await,
                    None => Ok(None),
                }
            });
            let up = pushed.is_ok();
            let results = pushed.unwrap_or_else(|_| release(&batch));
            before = Some(Pushed { batch, results });
            match database {
                Ok(next) if up => current = next,
                Ok(next) => {
                    relayed.more = false;
                    let next = next.map(|batch| Pushed { results: release(&batch), batch });
                    self.settle(next, &mut relayed).await?;
                }
                Err(error) => {
                    // The batch that was pushed is still settled if possible; otherwise its jobs are due again when
                    // their lease runs out.
                    let _ = self.settle(before.take(), &mut relayed).await;
                    return Err(error);
                }
            }
        }
        self.settle(before, &mut relayed).await?;
        Ok(relayed)
    }
}

impl<Q: Queue> ExternalRelay<Q> {
    /// Claims the next batch behind the job `after`, if anything is due.
    async fn claim(&self, after: i64) -> Result<Option<Batch>, DatabaseError> {
        let limit = self.health.share_of(self.policy.batch);
        let batch = outbox::claim(&self.database, after, limit, self.policy.lease).await?;
        Ok(Some(batch).filter(|batch| !batch.jobs.is_empty()))
    }

    /// Pushes a batch within the deadline and judges each job.
    async fn push(&self, batch: &Batch) -> Result<PushResults, QueueDown> {
        let deadline = self.policy.timeout;
        if batch.runs_out < Instant::now() + deadline {
            // This process stood still, and others may take these jobs before the push has ended.
            return Ok(release(batch));
        }
        let pushed = tokio::time::timeout(deadline, self.queue.push(&batch.jobs)).await;
        match pushed.unwrap_or_else(|_| Err(QueueDown(format!("no answer within {deadline:?}").into()))) {
            Ok(deliveries) => {
                // A job may be refused on this side, before the queue sees it; that shows nothing about the queue.
                if deliveries.contains(&Delivery::Delivered) {
                    self.health.took_jobs();
                }
                Ok(self.classify(batch, deliveries))
            }
            Err(error) => {
                self.health.took_nothing(&error);
                Err(error)
            }
        }
    }

    fn classify(&self, batch: &Batch, deliveries: Vec<Delivery>) -> PushResults {
        let mut results = PushResults::default();
        let mut deliveries = deliveries.into_iter();
        for (job, attempts) in batch.jobs.iter().zip(&batch.attempts) {
            match deliveries.next() {
                Some(Delivery::Delivered) => results.delivered.push(job.id),
                Some(Delivery::Transient(error)) if attempts + 1 < self.policy.max_attempts => {
                    results.failed.push(job.id, &error);
                }
                Some(Delivery::Transient(error)) => {
                    let attempts = attempts + 1;
                    results.dead.push(job.id, &format!("gave up after {attempts} attempts: {error}"));
                }
                Some(Delivery::Permanent(error)) => results.dead.push(job.id, &error),
                // The queue returned nothing for this job, so it is pushed again.
                None => results.released.push(job.id),
            }
        }
        results
    }

    async fn settle(&self, pushed: Option<Pushed>, relayed: &mut Relayed) -> Result<(), DatabaseError> {
        let Some(Pushed { batch, results }) = pushed else { return Ok(()) };
        let settled = outbox::settle(&self.database, &batch, &results, self.policy.retry_after).await?;
        for (id, error) in results.dead.ids.iter().zip(&results.dead.errors) {
            dead::tell(*id, error);
        }
        if let Some(error) = results.failed.errors.first() {
            let (queue, failed) = (self.queue.name(), settled.failed);
            tracing::warn!(queue, failed, error, "the queue refused some jobs; trying them again later");
        }
        relayed.delivered += settled.delivered;
        relayed.failed += settled.failed;
        relayed.dead += settled.dead;
        Ok(())
    }
}

/// Releases the whole batch, with no attempt spent.
fn release(batch: &Batch) -> PushResults {
    PushResults { released: batch.jobs.iter().map(|job| job.id).collect(), ..PushResults::default() }
}
