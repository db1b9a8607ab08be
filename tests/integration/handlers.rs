//! Handlers that a program brings along: each finishes its own jobs, and one that fails harms no other.

use std::sync::Arc;
use std::time::Duration;

use atomic_phases::queue::handler::{Handler, HandlerError, Handlers};
use atomic_phases::queue::leases::Held;
use atomic_phases::queue::work;
use atomic_phases::roles::worker::{Settings, Worker};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::worker::queue;
use crate::support::app::{TestApp, pool};

/// Does the jobs called `n`, which no other handler knows, and panics at the first of them.
struct PanicsOnce;

impl Handler for PanicsOnce {
    fn name(&self) -> &'static str {
        "n"
    }

    fn work<'a>(&'a self, job: &'a work::Claimed, _: &'a Held) -> BoxFuture<'a, Result<Value, HandlerError>> {
        Box::pin(async {
            assert_ne!(job.lease.job_id, 1, "as a handler may panic");
            Ok(Value::Null)
        })
    }
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_job_an_attempt_and_no_other_anything() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let mut handlers = Handlers::default();
    handlers.register(PanicsOnce);
    queue(&app, 3).await;
    let settings = Settings { max_attempts: 2, retry_after: Duration::from_millis(20), ..Settings::default() };
    let worker = Worker { database, handlers, settings, delivered: Arc::default(), observer: Arc::new(()) };
    let stop = CancellationToken::new();
    let ran = tokio::spawn(Arc::new(worker).run(stop.clone()));
    let died = "dead_jobs WHERE attempts = 2 AND error = 'the worker panicked'";
    app.until_count(died, 1).await;
    app.until_count("jobs WHERE finished_at IS NOT NULL AND staged_id > 1", 2).await;
    stop.cancel();
    ran.await.expect("it goes on after a panic, and ends when told");
}

/// Writes its own name with each job that it finishes.
struct WritesItsName {
    name: &'static str,
    effects: &'static str,
}

impl WritesItsName {
    fn new(name: &'static str) -> Self {
        let effects = format!(
            ", named AS (INSERT INTO receipts (ride_id, staged_id, message_id) SELECT job_id, job_id, '{name}' FROM finished)"
        );
        Self { name, effects: effects.leak() }
    }
}

impl Handler for WritesItsName {
    fn name(&self) -> &'static str {
        self.name
    }

    fn effects(&self) -> &'static str {
        self.effects
    }

    fn work<'a>(&'a self, _: &'a work::Claimed, _: &'a Held) -> BoxFuture<'a, Result<Value, HandlerError>> {
        Box::pin(async { Ok(Value::Null) })
    }
}

#[tokio::test]
async fn jobs_that_end_at_once_are_each_finished_by_their_own_handlers_statement() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
         SELECT n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, '{}', now() FROM generate_series(1, 200) n",
    )
    .await;
    let mut handlers = Handlers::default();
    handlers.register(WritesItsName::new("a"));
    handlers.register(WritesItsName::new("b"));
    let settings = Settings { concurrency: 50, ..Settings::default() };
    let worker = Worker { database, handlers, settings, delivered: Arc::default(), observer: Arc::new(()) };
    let stop = CancellationToken::new();
    let ran = tokio::spawn(Arc::new(worker).run(stop.clone()));
    app.until_count("jobs WHERE finished_at IS NOT NULL", 200).await;
    assert_eq!(app.count("receipts r JOIN jobs j USING (staged_id) WHERE r.message_id = j.job_name").await, 200);
    stop.cancel();
    ran.await.expect("it ends when told");
}
