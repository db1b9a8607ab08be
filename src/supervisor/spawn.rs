//! How each role is made from the config, and what the roles of one process share.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::{Mutex, Notify};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{StartError, Supervisor, never_fails};
use crate::api::{self, Api, Seen};
use crate::clock::Clock;
use crate::config::{Config, Queue, Role};
use crate::database::Database;
use crate::database::embedded::EmbeddedPostgres;
use crate::http::Listener;
use crate::idempotency::Engine;
use crate::jobs::Outlet;
use crate::jobs::foreign::ToForeign;
use crate::jobs::handler::Handlers;
use crate::jobs::health::QueueHealth;
use crate::jobs::nats::Nats;
use crate::jobs::postgres::ToPostgres;
use crate::jobs::redis::Redis;
use crate::metrics::Metrics;
use crate::operations::{self, Registry};
use crate::receipts::{Receipts, RefundReceipts, Sender};
use crate::roles::completer::Completer;
use crate::roles::enqueuer::Enqueuer;
use crate::roles::periodic::{Periodic, poll};
use crate::roles::reaper::Reaper;
use crate::roles::worker::Worker;
use crate::roles::{postgres, simulator};
use crate::stripe;
use crate::stripe::sandbox::{self, FaultControl, Ledger};

/// What the roles of one process share. It outlives a role that is restarted.
pub(super) struct Shared {
    database: Database,
    installation: Uuid,
    registry: Registry,
    metrics: Arc<Metrics>,
    /// What the enqueuer knows of its queue.
    health: Arc<QueueHealth>,
    /// The engine tells the enqueuer of the jobs that are staged.
    staged: Arc<Notify>,
    /// The enqueuer tells the worker of the jobs that it delivers.
    delivered: Arc<Notify>,
}

impl Shared {
    pub(super) fn new(config: &Config, database: Database, stripe: stripe::Client, installation: Uuid) -> Self {
        let staged = Arc::new(Notify::new());
        let engine = Engine {
            database: database.clone(),
            lock_timeout: config.idempotency.lock_timeout,
            grace: config.completer.grace,
            staged: Arc::clone(&staged),
            clock: Clock::default(),
        };
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
        }
    }
}

impl Supervisor {
    pub(super) fn spawn_postgres(&mut self, embedded: EmbeddedPostgres, config: &Config) {
        let running = Arc::new(Mutex::new(Some(embedded)));
        let data_dir = config.database.data_dir.clone();
        self.spawn(Role::Postgres, move |stop| {
            let run = postgres::run(Arc::clone(&running), data_dir.clone(), stop);
            async move { Ok(run.await?) }
        });
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
            config: config.api.clone(),
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
        self.spawn_periodic(config, || Completer {
            database: shared.database.clone(),
            operations: shared.registry.operations.clone(),
            config: config.completer.clone(),
            lock_timeout: config.idempotency.lock_timeout,
        });
    }

    pub(super) fn spawn_enqueuer(&mut self, config: &Config, shared: &Shared) -> Result<(), StartError> {
        if !config.runs(Role::Enqueuer) {
            return Ok(());
        }
        match config.enqueuer.queue {
            Queue::Postgres => {
                let (database, batch) = (shared.database.clone(), config.enqueuer.batch);
                self.spawn_enqueuer_to(ToPostgres { database, batch }, config, shared);
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

    fn spawn_enqueuer_to(&mut self, outlet: impl Outlet + 'static, config: &Config, shared: &Shared) {
        self.spawn_periodic(config, || Enqueuer {
            outlet,
            health: Arc::clone(&shared.health),
            poll_interval: config.enqueuer.poll_interval,
            staged: Arc::clone(&shared.staged),
            delivered: Arc::clone(&shared.delivered),
            metrics: Arc::clone(&shared.metrics),
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
            config: config.worker.clone(),
            delivered: Arc::clone(&shared.delivered),
            metrics: Arc::clone(&shared.metrics),
        });
        self.spawn(Role::Worker, move |stop| never_fails(Arc::clone(&worker).run(stop)));
    }

    pub(super) fn spawn_reaper(&mut self, config: &Config, shared: &Shared) {
        self.spawn_periodic(config, || Reaper {
            database: shared.database.clone(),
            config: config.reaper.clone(),
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

    fn spawn_periodic<P: Periodic + 'static>(&mut self, config: &Config, role: impl FnOnce() -> P) {
        if config.runs(P::ROLE) {
            let role = Arc::new(role());
            self.spawn(P::ROLE, move |stop| never_fails(poll(Arc::clone(&role), stop)));
        }
    }
}

fn to_foreign<Q>(queue: Q, config: &Config, shared: &Shared) -> ToForeign<Q> {
    ToForeign {
        database: shared.database.clone(),
        queue,
        policy: config.enqueuer.push_policy(),
        health: Arc::clone(&shared.health),
    }
}
