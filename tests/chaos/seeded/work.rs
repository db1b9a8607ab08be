//! Jobs on the stage, and the workers for them.

use std::path::Path;
use std::sync::Arc;

use atomic_phases::database::Database;
use atomic_phases::queue::handler::Handlers;
use atomic_phases::roles::worker::Worker;
use rocket_rides_atomic::config;
use rocket_rides_atomic::receipts::{Receipts, Sender};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::proxy::{Fault, Strike};
use super::Stage;
use crate::support::app::pool;
use crate::support::client::Post;

/// The disk that receipts are written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Good,
    /// Nothing can be written any more.
    Gone,
}

impl Stage {
    /// Books a ride and delivers the job of its receipt to the queue.
    pub(super) async fn queue_a_receipt(&self) {
        self.ask(&Post::default(), &[]).await;
        self.deliver().await;
    }

    /// Runs a worker that has the bug on the jobs that are due.
    pub(super) async fn work(&self, disk: Disk) {
        self.look(&self.crew.completer.database, disk, config::Worker::default().max_attempts).await;
    }

    /// Ends every job's lease and backoff.
    pub(super) async fn expire_jobs(&self) {
        self.house.execute("UPDATE jobs SET next_attempt_at = now() WHERE finished_at IS NULL").await;
    }

    /// Holds a worker that has sent a receipt until a successor without the bug has found that this was the job's last
    /// attempt.
    pub(super) async fn outlive_a_dead_letter(&self) {
        let script = &self.crew.route.script;
        self.queue_a_receipt().await;
        script.arm_from("execute update jobs + insert receipts", vec![Strike::at(1, Fault::Hold)]);
        let successor = async {
            script.until_held().await;
            self.expire_jobs().await;
            self.look(&pool(&self.house.database_config).await, Disk::Good, 1).await;
            script.release();
        };
        tokio::join!(self.work(Disk::Good), successor);
    }

    /// Holds a worker with a bad disk and one attempt when it has read the ride, until a successor without the bug has
    /// sent the receipt.
    pub(super) async fn outlive_a_receipt(&self) {
        let script = &self.crew.route.script;
        self.queue_a_receipt().await;
        // If it were held before this read, it would see that there is a receipt and not try again.
        script.arm_from("execute SELECT r.user_id,", vec![Strike::at(1, Fault::HoldReply)]);
        let successor = async {
            script.until_held().await;
            self.expire_jobs().await;
            let database = pool(&self.house.database_config).await;
            self.look(&database, Disk::Good, config::Worker::default().max_attempts).await;
            script.release();
        };
        tokio::join!(self.look(&self.crew.completer.database, Disk::Gone, 1), successor);
    }

    /// Runs the worker role once: it takes the jobs that are due and returns when they have ended.
    async fn look(&self, database: &Database, disk: Disk, max_attempts: i32) {
        let dir = &self.house.config.receipts.dir;
        let mut handlers = Handlers::default();
        let sender = sender(dir, disk);
        handlers.register(Receipts { database: database.clone(), installation: Uuid::nil(), sender });
        let worker = Arc::new(Worker {
            database: database.clone(),
            handlers,
            settings: config::Worker { max_attempts, ..config::Worker::default() },
            delivered: Arc::new(Notify::new()),
            observer: Arc::new(()),
        });
        let stop = CancellationToken::new();
        // `biased`: the worker has begun to take jobs before the token is cancelled.
        tokio::join!(biased; worker.run(stop.clone()), async { stop.cancel() });
    }
}

fn sender(dir: &Path, disk: Disk) -> Sender {
    let dir = dir.join(format!("{disk:?}"));
    let sender = Sender::new(&config::Receipts { dir: dir.clone(), ..config::Receipts::default() }).unwrap();
    if disk == Disk::Gone {
        std::fs::remove_dir(dir).unwrap();
    }
    sender
}
