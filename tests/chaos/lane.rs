//! A lane: the place of one run at a time, with its own database and sandbox, the real binary, and proxies in between.
//!
//! Preparation and checks do not go through the proxies: they use roles in this process, which no fault strikes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use atomic_phases::database::Database;
use atomic_phases::idempotency::parked;
use atomic_phases::queue;
use futures_util::FutureExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::kind::Books;
use super::proxy::{Proxy, Script};
use super::weather::{Memory, Weather};
use crate::support::app::{TempDir, TestApp, hold_the_heart, pool};
use crate::support::client::{Answer, Http, Post};
use crate::support::eventually;
use crate::support::process::{Process, arguments};

/// How long a lease lasts here. The config accepts none this short, so the lane changes the rows: every lease that is
/// older becomes an hour old. A worker that is only slow then loses its lease, too, which must do no harm either.
const LEASE: Duration = Duration::from_millis(250);
/// A job's row stores only when its lease ends, so the lane must know how long a lease lasts.
const JOB_LEASE: &str = "worker.lease=30s";
/// A client without a final answer after this time never gets one.
const PATIENCE: Duration = Duration::from_secs(30);
/// The process's deadline at Stripe, and how late a slow reply is.
const STRIPE_TIMEOUT: &str = "stripe.timeout=1s";
const SLOW_REPLY: Duration = Duration::from_millis(1500);
/// The pause between two attempts of a client, and between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// A process's connections to the database and to Stripe, through proxies with a script that may break them.
pub struct Route {
    pub script: Script,
    postgres: Proxy,
    stripe: Proxy,
    database: tokio_postgres::Config,
}

impl Route {
    pub async fn new(app: &TestApp) -> Self {
        let (script, config) = (Script::default(), &app.database_config);
        Self {
            postgres: Proxy::postgres(&script, config).await,
            stripe: Proxy::stripe(&script, app.sandbox_address).await,
            database: config.clone(),
            script,
        }
    }

    pub fn database_url(&self) -> String {
        self.postgres.postgres_url(&self.database)
    }

    pub fn stripe_url(&self) -> String {
        self.stripe.stripe_url()
    }
}

pub struct Lane {
    /// An API and a sandbox that no fault strikes; no other role.
    pub app: TestApp,
    pub script: Script,
    database: Database,
    route: Route,
    dir: TempDir,
}

impl Lane {
    pub async fn new() -> Self {
        let app = TestApp::with(|config| {
            config.stripe_sandbox.faults.slow_reply_delay = SLOW_REPLY;
            hold_the_heart(config);
        })
        .await;
        let route = Route::new(&app).await;
        Self {
            database: pool(&app.database_config).await,
            script: route.script.clone(),
            route,
            dir: TempDir::new(),
            app,
        }
    }

    /// Starts the binary with these roles only. From now on, a fault that kills ends this process.
    pub fn spawn(&self, roles: &str) -> Process {
        let (database, stripe) = (
            format!("database.url={}", self.route.database_url()),
            format!("stripe.api_base={}", self.route.stripe_url()),
        );
        let settings = [
            database.as_str(),
            stripe.as_str(),
            STRIPE_TIMEOUT,
            // Beats only when it starts: the messages of a run are then the same in each.
            "processes.beat=1h",
            "processes.dead_after=3h",
            "completer.grace=50ms",
            "completer.crash_grace=10ms",
            "completer.retry_after=50ms",
            "completer.max_attempts=1000",
            "completer.poll_interval=100ms",
            "enqueuer.poll_interval=100ms",
            JOB_LEASE,
            "worker.retry_after=50ms",
            "worker.poll_interval=200ms",
            "reaper.poll_interval=100ms",
            "reaper.retention=72h",
        ];
        let mut arguments = arguments(None, self.dir.path(), &settings);
        arguments.extend(["--only".to_owned(), roles.to_owned()]);
        let process = Process::spawn(&arguments);
        let pid = Pid::from_raw(i32::try_from(process.pid().unwrap()).unwrap());
        self.script.aim(move || {
            // It may have been killed a moment ago; its id is still its own until it has been waited for.
            let _ = kill(pid, Signal::SIGKILL);
        });
        process
    }

    /// Makes leases run out that are older than [`LEASE`]. Those of a process that died are handed back by the next.
    async fn age_leases(&self) {
        let older_than = LEASE.as_secs_f64();
        self.app
            .execute(&format!(
                "UPDATE idempotency_keys SET locked_at = now() - interval '1 hour', next_attempt_at = now()
                 WHERE locked_at <= now() - make_interval(secs => {older_than})"
            ))
            .await;
        // See `JOB_LEASE`.
        self.app
            .execute(&format!(
                "UPDATE jobs SET next_attempt_at = now() WHERE lease_token IS NOT NULL
                 AND next_attempt_at <= now() + make_interval(secs => 30 - {older_than})"
            ))
            .await;
    }

    /// Returns the directory into which the process writes receipts.
    pub fn receipts(&self) -> PathBuf {
        self.dir.path().join("receipts")
    }

    /// Returns the highest number of attempts of any key whose last attempt has ended without an answer.
    async fn failures(&self) -> i64 {
        let ended = "response_code IS NULL AND lease_token IS NULL AND last_error IS NOT NULL";
        self.app
            .get(&format!("SELECT coalesce(max(attempts), 0)::bigint FROM idempotency_keys WHERE {ended}"))
            .await
    }

    pub async fn books(&self) -> Books {
        Books::of(&self.app).await
    }

    /// Delivers all staged jobs. A statement of a process that was killed may still run in its backend and lock jobs,
    /// which are then skipped; so this repeats until the outbox is empty.
    pub async fn deliver(&self) {
        eventually("an empty outbox", async || {
            queue::postgres::deliver(&self.database, queue::BEFORE_FIRST, 1000).await.unwrap();
            (self.app.count("staged_jobs").await == 0).then_some(())
        })
        .await;
    }

    /// Asserts that `done` has been done since `before`, and nothing of it twice.
    pub async fn assert_exactly_once(&self, before: Books, done: Books) {
        self.deliver().await;
        assert_eq!(self.books().await, before + done);
        self.app.assert_sound().await;
    }
}

/// The process under test, started again whenever it has ended, as a service manager does.
pub struct Service<'a> {
    lane: &'a Lane,
    memory: Memory,
    roles: &'static str,
    process: Process,
    /// The value of [`Lane::failures`] that was last seen.
    failures: i64,
    /// How often a person had to decide.
    pub decisions: usize,
}

impl<'a> Service<'a> {
    /// Starts these roles in this weather. A process that is started after a crash has all roles.
    pub async fn start(lane: &'a Lane, roles: &'static str, weather: Weather) -> Self {
        weather.set_in(lane).await;
        let failures = lane.failures().await;
        Self { lane, memory: weather.memory, roles, process: lane.spawn(roles), failures, decisions: 0 }
    }

    /// Starts it again if it has ended.
    async fn revive(&mut self) {
        if self.process.exit().now_or_never().is_some() {
            self.roles = "api,completer,enqueuer,worker,reaper";
            self.start_again().await;
        }
    }

    /// Starts the process again. If Stripe forgets in this weather, it does so now, as if the process had been down for
    /// two days.
    async fn start_again(&mut self) {
        if self.memory != Memory::Keeps {
            while self.lane.script.calls_to_stripe() > 0 {
                self.lane.app.release_held().await;
                tokio::time::sleep(PAUSE).await;
            }
            self.lane.app.forget().await;
            let sql = "UPDATE idempotency_keys SET foreign_call_intended_at = now() - interval '2 days'
                       WHERE response_code IS NULL AND foreign_call_intended_at IS NOT NULL";
            self.lane.app.execute(sql).await;
        }
        self.process = self.lane.spawn(self.roles);
    }

    /// Does what has to happen between a failed attempt and the next.
    async fn after_failure(&mut self) {
        self.lane.app.release_held().await;
        if self.memory != Memory::Keeps {
            self.lane.script.pause_until(if self.roles == "completer" { CLAIM } else { ACQUIRE });
            self.process.signal(Signal::SIGKILL);
            self.process.exit().await;
            self.start_again().await;
        }
        if self.memory == Memory::ForgetsAndIsVague {
            self.decide().await;
        }
    }

    /// Plays the operator, who asks Stripe's support about the charges of parked keys, and retries those keys.
    async fn decide(&mut self) {
        let parked = self.lane.app.query("SELECT id FROM idempotency_keys WHERE parked_at IS NOT NULL", &[]).await;
        let parked: Vec<i64> = parked.iter().map(|row| row.get(0)).collect();
        if !parked.is_empty() {
            self.lane.script.remove_bug();
            self.decisions += parked::retry(&self.lane.database, &parked).await.unwrap().len();
        }
    }

    /// Returns the process's API, as soon as it listens.
    pub async fn api(&mut self) -> Http {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.revive().await;
            if let Some(address) = self.process.said("api") {
                return Http::new(address.trim_start_matches("http://").parse().unwrap());
            }
            assert!(Instant::now() < deadline, "it does not start: {:#?}", self.process.log());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Repeats a request, as a client does, until it has a final answer, whatever breaks.
    pub async fn insist(&mut self, post: &Post) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let api = self.api().await;
            match api.try_post(post.clone()).await {
                Ok(answer) if matches!(answer.status, 201 | 402) => return answer,
                Ok(answer) if answer.status == 503 => self.after_failure().await,
                Ok(answer) => assert_eq!(answer.status, 409, "{answer:?}"),
                Err(_) => {}
            }
            assert!(Instant::now() < deadline, "no final answer: {:#?}", self.process.log());
            self.lane.age_leases().await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until there are `count` such rows, whatever breaks.
    pub async fn until_count(&mut self, sql: &str, count: i64) {
        let deadline = Instant::now() + PATIENCE;
        while self.lane.app.count(sql).await != count {
            assert!(Instant::now() < deadline, "not {count} of {sql}: {:#?}", self.process.log());
            self.revive().await;
            let failures = self.lane.failures().await;
            if failures > self.failures {
                self.failures = failures;
                self.after_failure().await;
            }
            self.lane.age_leases().await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The first boundary of an API's work, of a completer's, and of a successor's: all are parts of labels.
pub const ACQUIRE: &str = "insert idempotency_keys";
pub const CLAIM: &str = "update idempotency_keys";
pub const HAND_BACK: &str = "update processes";
