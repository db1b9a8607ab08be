//! How each role is made from the config, and what the roles of one process share.

use std::panic::resume_unwind;
use std::sync::Arc;

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::idempotency::Engine;
use atomic_phases::idempotency::points::PointsError;
use atomic_phases::processes::Process;
use atomic_phases::queue::Relay;
use atomic_phases::queue::foreign::ExternalRelay;
use atomic_phases::queue::handler::Handlers;
use atomic_phases::queue::health::QueueHealth;
use atomic_phases::queue::postgres::PostgresRelay;
use atomic_phases::roles::completer::Completer;
use atomic_phases::roles::enqueuer::Enqueuer;
use atomic_phases::roles::heart::Heart;
use atomic_phases::roles::periodic::{Periodic, poll};
use atomic_phases::roles::reaper::Reaper;
use atomic_phases::roles::worker::Worker;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{HeartTask, StartError, Supervisor, never_fails};
use crate::api::{self, Api, Seen};
use crate::config::Config;
use crate::database::embedded::EmbeddedPostgres;
use crate::database::{keeper, schema};
use crate::demo::simulator;
use crate::http::Listener;
use crate::metrics::Metrics;
use crate::operations::{self, Registry};
use crate::queues::Queue;
use crate::queues::nats::Nats;
use crate::queues::redis::Redis;
use crate::receipts::{Receipts, RefundReceipts, Sender};
use crate::role::Role;
use crate::stripe;
use crate::stripe::sandbox::{self, FaultControl, Ledger};

/// What the roles of one process share. It outlives a role that is restarted.
pub(super) struct Shared {
    database: Database,
    installation: Uuid,
    registry: Registry,
    metrics: Arc<Metrics>,
    /// Whether the enqueuer's queue takes jobs.
    health: Arc<QueueHealth>,
    /// The engine wakes the enqueuer with this when jobs are staged.
    staged: Arc<Notify>,
    /// The enqueuer wakes the worker with this when it has delivered jobs.
    delivered: Arc<Notify>,
    /// The heart wakes the completer with this when it has handed leases back.
    handed_back: Arc<Notify>,
}

impl Shared {
    pub(super) fn new(config: &Config, database: Database, stripe: stripe::Client, installation: Uuid) -> Self {
        let (lock_timeout, grace) = (config.idempotency.lock_timeout, config.completer.grace);
        let staged = Arc::new(Notify::new());
        let engine = Engine { staged: Arc::clone(&staged), ..Engine::new(database.clone(), lock_timeout, grace) };
        let registry = operations::register(&engine, stripe, config.stripe.key_retention);
        let health = Arc::new(QueueHealth::new(config.enqueuer.queue.name()));
        Self {
            database,
            installation,
            registry,
            metrics: Arc::default(),
            health,
            staged,
            delivered: Arc::default(),
            handed_back: Arc::default(),
        }
    }

    /// Checks that this release can go on with the unfinished requests in the database.
    pub(super) async fn check_points(&self) -> Result<(), PointsError> {
        self.registry.operations.check_points(&self.database).await
    }
}

impl Supervisor {
    pub(super) fn spawn_postgres(&mut self, embedded: EmbeddedPostgres, config: &Config) {
        let running = Arc::new(Mutex::new(Some(embedded)));
        let data_dir = config.database.data_dir.clone();
        self.spawn(Role::Postgres, move |stop| {
            let run = keeper::run(Arc::clone(&running), data_dir.clone(), stop);
            async move { Ok(run.await?) }
        });
    }

    /// Says that this process lives, from now on. When this returns, the leases of processes that this host shows to have
    /// ended are handed back.
    pub(super) async fn start_heart(
        &mut self,
        process: Process,
        config: &Config,
        shared: &Shared,
    ) -> Result<(), DatabaseError> {
        let Shared { database, handed_back, staged, delivered, .. } = shared;
        let heart = Arc::new(Heart {
            handed_back: [handed_back, staged, delivered].map(Arc::clone).into(),
            ..Heart::new(database, process, config.processes.clone(), config.completer.crash_grace)
        });
        heart.run_once().await?;
        let (stop, task) = self.keep_running(Heart::NAME, {
            let heart = Arc::clone(&heart);
            move |stop| never_fails(beat_on(Arc::clone(&heart), stop))
        });
        self.heart = Some(HeartTask { heart, stop, task });
        Ok(())
    }

    /// Completes a migration beside the roles. What is not done when the shutdown begins is left to the next start.
    pub(super) fn complete_schema(&self, shared: &Shared) {
        let (leaving, database) = (self.leaving.clone(), shared.database.clone());
        tokio::spawn(async move { leaving.run_until_cancelled(schema::complete(&database)).await });
    }

    pub(super) async fn spawn_sandbox(
        &mut self,
        listener: Arc<Listener>,
        config: &Config,
    ) -> Result<(), StartError> {
        let sandbox = &config.stripe_sandbox;
        let (path, key_retention) = (sandbox.ledger.clone(), sandbox.key_retention);
        let opened = tokio::task::spawn_blocking(move || Ledger::open(&path, key_retention)).await;
        let ledger = Arc::new(opened.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))?);
        let faults = Arc::new(FaultControl::new(sandbox.faults.clone()));
        self.spawn(Role::StripeSandbox, move |stop| {
            never_fails(sandbox::serve(Arc::clone(&listener), Arc::clone(&ledger), Arc::clone(&faults), stop))
        });
        Ok(())
    }

    pub(super) fn spawn_api(&mut self, config: &Config, shared: &Shared, listener: Arc<Listener>) {
        let api = Arc::new(Api {
            database: shared.database.clone(),
            operations: shared.registry.endpoints.clone(),
            settings: config.api.clone(),
            demo: config.demo.enabled,
            queue: config.runs(Role::Enqueuer).then(|| Arc::clone(&shared.health)),
            metrics: Arc::clone(&shared.metrics),
            leaving: self.leaving.clone(),
            seen: Seen::default(),
            under_way: TaskTracker::new(),
        });
        self.spawn(Role::Api, move |stop| never_fails(api::run(Arc::clone(&api), Arc::clone(&listener), stop)));
    }

    pub(super) fn spawn_completer(&mut self, config: &Config, shared: &Shared) {
        self.spawn_periodic(Role::Completer, config, || Completer {
            database: shared.database.clone(),
            operations: shared.registry.operations.clone(),
            settings: config.completer.clone(),
            lock_timeout: config.idempotency.lock_timeout,
            handed_back: Arc::clone(&shared.handed_back),
        });
    }

    pub(super) fn spawn_enqueuer(&mut self, config: &Config, shared: &Shared) -> Result<(), StartError> {
        if !config.runs(Role::Enqueuer) {
            return Ok(());
        }
        match config.enqueuer.queue {
            Queue::Postgres => {
                let (database, batch) = (shared.database.clone(), config.enqueuer.batch);
                self.spawn_enqueuer_to(PostgresRelay { database, batch }, config, shared);
            }
            Queue::Redis => {
                let queue = Redis::new(&config.redis, shared.installation)?;
                self.spawn_enqueuer_to(to_foreign(queue, config, shared), config, shared);
            }
            Queue::Nats => {
                let queue = Nats::new(&config.nats, shared.installation)?;
                self.spawn_enqueuer_to(to_foreign(queue, config, shared), config, shared);
            }
        }
        Ok(())
    }

    fn spawn_enqueuer_to(&mut self, relay: impl Relay + 'static, config: &Config, shared: &Shared) {
        self.spawn_periodic(Role::Enqueuer, config, || Enqueuer {
            relay,
            health: Arc::clone(&shared.health),
            poll_interval: config.enqueuer.poll_interval,
            staged: Arc::clone(&shared.staged),
            delivered: Arc::clone(&shared.delivered),
            observer: Arc::clone(&shared.metrics) as _,
        });
    }

    pub(super) fn spawn_worker(&mut self, config: &Config, shared: &Shared, sender: Sender) {
        let (database, installation) = (shared.database.clone(), shared.installation);
        let mut handlers = Handlers::default();
        let receipts = Receipts { database: database.clone(), installation, sender };
        handlers.register(receipts.clone());
        handlers.register(RefundReceipts(receipts));
        let worker = Arc::new(Worker {
            database,
            handlers,
            settings: config.worker.clone(),
            delivered: Arc::clone(&shared.delivered),
            observer: Arc::clone(&shared.metrics) as _,
        });
        self.spawn(Role::Worker, move |stop| never_fails(Arc::clone(&worker).run(stop)));
    }

    pub(super) fn spawn_reaper(&mut self, config: &Config, shared: &Shared) {
        self.spawn_periodic(Role::Reaper, config, || Reaper {
            database: shared.database.clone(),
            settings: config.reaper.clone(),
            keep_finished: config.worker.keep_finished,
            lock_timeout: config.idempotency.lock_timeout,
        });
    }

    pub(super) fn spawn_simulator(&mut self, config: &Config) {
        let own_api = self.addresses.api.map(|address| format!("http://{address}"));
        let target = config.simulator.api_base.clone().or(own_api);
        if let Some(target) = target.filter(|_| config.runs(Role::Simulator)) {
            let config = config.simulator.clone();
            self.spawn(Role::Simulator, move |stop| {
                never_fails(simulator::run(config.clone(), target.clone(), stop))
            });
        }
    }

    fn spawn_periodic<P: Periodic + 'static>(&mut self, role: Role, config: &Config, new: impl FnOnce() -> P) {
        if config.runs(role) {
            let periodic = Arc::new(new());
            self.spawn(role, move |stop| never_fails(poll(Arc::clone(&periodic), stop)));
        }
    }
}

/// Beats until `stop`, for the first time after a pause.
async fn beat_on(heart: Arc<Heart>, stop: CancellationToken) {
    let paused = stop.run_until_cancelled(tokio::time::sleep(heart.interval())).await;
    if paused.is_some() {
        poll(heart, stop).await;
    }
}

fn to_foreign<Q>(queue: Q, config: &Config, shared: &Shared) -> ExternalRelay<Q> {
    ExternalRelay {
        database: shared.database.clone(),
        queue,
        policy: config.enqueuer.push_policy(),
        health: Arc::clone(&shared.health),
    }
}
