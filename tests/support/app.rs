//! A whole supervisor in this process, with everything that it needs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use atomic_phases::database::{Database, PoolSettings, tls};
use atomic_phases::rules::{Circumstances, Report};
use hyper::Method;
use rocket_rides_atomic::config::{self, Config};
use rocket_rides_atomic::supervisor::{RunError, Supervisor};
use rocket_rides_atomic::{open_files, stripe};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;

use super::books::{self, AT_REST, LIVE};
use super::client::{Answer, Http, Post};
pub use super::temp::TempDir;
use super::{cluster, eventually};

/// Done once for all tests: allows enough open files for both ends of every connection, and logs if `RUST_LOG` is set.
static ONCE: LazyLock<()> = LazyLock::new(|| {
    open_files::raise_limit();
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    }
});

pub struct TestApp {
    pub api: Http,
    pub sandbox: Http,
    pub api_address: SocketAddr,
    pub sandbox_address: SocketAddr,
    pub database: Client,
    pub database_config: tokio_postgres::Config,
    pub config: Config,
    stop: CancellationToken,
    ran: Option<JoinHandle<Result<(), RunError>>>,
    dir: TempDir,
}

/// Returns a config with API and sandbox on free ports over the given database; other roles off, delays short.
pub fn config(database: &tokio_postgres::Config, dir: &Path) -> Config {
    let mut config = Config::default();
    config.roles.completer = false;
    config.roles.enqueuer = false;
    config.roles.worker = false;
    config.roles.reaper = false;
    config.roles.stripe_sandbox = true;
    config.database.url = Some(SecretString::from(cluster::url(database)));
    config.database.pool_size = 8;
    config.api.listen = "127.0.0.1:0".parse().expect("an address");
    config.stripe.api_key = SecretString::from("sk_test_world");
    config.stripe.timeout = Duration::from_secs(5);
    config.stripe_sandbox.listen = "127.0.0.1:0".parse().expect("an address");
    config.stripe_sandbox.ledger = dir.join("ledger.jsonl");
    config.idempotency.lock_timeout = Duration::from_secs(30);
    config.completer.poll_interval = Duration::from_millis(20);
    config.enqueuer.poll_interval = Duration::from_millis(20);
    config.reaper.poll_interval = Duration::from_millis(20);
    config.worker.poll_interval = Duration::from_millis(20);
    config.receipts.dir = dir.join("receipts");
    config.demo.enabled = true;
    config
}

/// Has the heart beat only when it starts: it takes no process for dead, and sends nothing of its own accord while a test counts
/// messages.
pub fn hold_the_heart(config: &mut Config) {
    config.processes.beat = Duration::from_secs(3600);
    config.processes.dead_after = 3 * config.processes.beat;
}

/// Opens a pool beside the supervisor's.
pub async fn pool(database: &tokio_postgres::Config) -> Database {
    pool_of(database, 8).await
}

/// Like [`pool`], with this many connections.
pub async fn pool_of(database: &tokio_postgres::Config, size: u32) -> Database {
    let settings = PoolSettings { size, ..config::Database::default().pool_settings() };
    Database::connect(database.clone(), tls::none(), settings).await.expect("connect")
}

/// Inserts finished keys of this age, such as many rides leave.
pub async fn insert_keys(app: &TestApp, count: i64, age: &str) {
    let sql = format!(
        "INSERT INTO idempotency_keys (created_at, last_run_at, idempotency_key, user_id, operation, request_method,
             request_path, request_params, origin_ip, recovery_point, step, state, next_attempt_at, response_code,
             response_body)
         SELECT now() - interval '{age}', now() - interval '{age}', gen_random_uuid(), 1, 'ride', 'POST', '/rides',
                '{{}}', '127.0.0.1', 'finished', 32767, '{{}}', now() - interval '{age}', 201, '{{}}'
         FROM generate_series(1, {count})"
    );
    assert_eq!(app.execute(&sql).await, count.unsigned_abs());
}

/// Stages this many jobs, each with its number as its argument.
pub async fn stage(app: &TestApp, count: i64) {
    let sql = format!(
        "INSERT INTO staged_jobs (job_name, job_args) SELECT 'n', to_jsonb(n) FROM generate_series(1, {count}) n"
    );
    assert_eq!(app.execute(&sql).await, count.unsigned_abs());
}

impl TestApp {
    /// Starts an API and a sandbox.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Like [`TestApp::start`], with changes to the config.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        LazyLock::force(&ONCE);
        let dir = TempDir::new();
        let database = cluster::database().await;
        let mut config = config(&database, dir.path());
        change(&mut config);
        Self::boot(config, database, dir).await
    }

    async fn boot(config: Config, database_config: tokio_postgres::Config, dir: TempDir) -> Self {
        let supervisor = Supervisor::start(config.clone()).await.expect("start");
        let addresses = supervisor.addresses();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let (api, sandbox) = (addresses.api.unwrap_or(nowhere), addresses.stripe_sandbox.unwrap_or(nowhere));
        let stop = CancellationToken::new();
        let ran = tokio::spawn(supervisor.run(stop.clone().cancelled_owned()));
        Self {
            api: Http::new(api),
            sandbox: Http::new(sandbox),
            api_address: api,
            sandbox_address: sandbox,
            database: cluster::connect(&database_config).await,
            database_config,
            config,
            stop,
            ran: Some(ran),
            dir,
        }
    }

    /// Starts a second supervisor over the same database and sandbox.
    pub async fn neighbour(&self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.config.clone();
        config.roles.stripe_sandbox = false;
        config.stripe.api_base = Some(format!("http://{}", self.sandbox_address));
        change(&mut config);
        Self::boot(config, self.database_config.clone(), TempDir::new()).await
    }

    /// Stops and starts again with the same database and the same ledger.
    pub async fn restarted(mut self, change: impl FnOnce(&mut Config)) -> Self {
        self.stop().await.expect("a clean stop");
        self.restarted_after_stop(change).await
    }

    /// Starts again with the same database and the same ledger.
    pub async fn restarted_after_stop(mut self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.config.clone();
        change(&mut config);
        let dir = std::mem::replace(&mut self.dir, TempDir::new());
        Self::boot(config, self.database_config.clone(), dir).await
    }

    pub async fn post(&self, post: Post) -> Answer {
        self.api.post(post).await
    }

    /// Starts the shutdown and waits for its end.
    pub async fn stop(&mut self) -> Result<(), RunError> {
        self.begin_stop();
        self.ran.take().expect("stopped once").await.expect("no panic")
    }

    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    pub fn has_ended(&self) -> bool {
        self.ran.as_ref().is_none_or(JoinHandle::is_finished)
    }

    pub async fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.database.query(sql, params).await.expect(sql)
    }

    pub async fn count(&self, sql: &str) -> i64 {
        self.query(&format!("SELECT count(*) FROM {sql}"), &[]).await[0].get(0)
    }

    /// Returns one value, which must exist.
    pub async fn get<T: for<'a> tokio_postgres::types::FromSql<'a>>(&self, sql: &str) -> T {
        self.query(sql, &[]).await[0].get(0)
    }

    pub async fn execute(&self, sql: &str) -> u64 {
        self.database.execute(sql, &[]).await.expect(sql)
    }

    /// Like [`TestApp::execute`], but without the triggers that guard the invariants: for changes that only a test may
    /// make.
    pub async fn tamper(&self, sql: &str) {
        let unguarded = format!("SET session_replication_role = replica; {sql}; RESET session_replication_role");
        self.database.batch_execute(&unguarded).await.expect(sql);
    }

    /// Returns a client of the sandbox beside the supervisor's.
    pub fn stripe(&self) -> stripe::Client {
        let sandbox = format!("http://{}", self.sandbox_address);
        stripe::Client::new(&sandbox, &"sk_test_world".into(), Duration::from_secs(10)).expect("a client")
    }

    /// Checks all rules, over the database and the sandbox's ledger.
    pub async fn verify(&self, circumstances: Circumstances) -> Report {
        if circumstances.at_rest && !self.config.roles.worker {
            self.finish_jobs().await;
        }
        let database = pool(&self.database_config).await;
        books::verify(&database, self.stripe(), circumstances).await
    }

    /// Finishes the queued jobs as a worker does, for tests without a worker.
    async fn finish_jobs(&self) {
        self.execute(
            "WITH finished AS (
                 UPDATE jobs SET finished_at = now(), lease_token = NULL WHERE finished_at IS NULL
                 RETURNING staged_id, job_args
             )
             , refunds AS (
                 INSERT INTO refund_receipts (refund_id, staged_id, message_id)
                 SELECT (job_args ->> 'refund_id')::bigint, staged_id, 'by nobody' FROM finished
                 WHERE job_args ? 'refund_id' ON CONFLICT DO NOTHING
             )
             INSERT INTO receipts (ride_id, staged_id, message_id)
             SELECT (job_args ->> 'ride_id')::bigint, staged_id, 'by nobody' FROM finished
             WHERE job_args ? 'ride_id' AND NOT job_args ? 'refund_id' ON CONFLICT DO NOTHING",
        )
        .await;
    }

    /// Asserts that nothing is under way, and that every invariant holds.
    pub async fn assert_sound(&self) {
        let report = self.verify(AT_REST).await;
        assert!(report.violated().is_empty(), "{report}");
    }

    /// Waits until there are `count` such rows.
    pub async fn until_count(&self, sql: &str, count: i64) {
        eventually(&format!("{count} of {sql}"), async || (self.count(sql).await == count).then_some(())).await;
    }

    /// Sets the sandbox's faults for the next charges, in order.
    pub async fn script(&self, faults: &[&str]) {
        let answer = self.sandbox.call(Method::POST, "/_sandbox/faults/next", &json!(faults).to_string()).await;
        assert_eq!(answer.status / 100, 2, "{answer:?}");
    }

    /// Waits until a charge is held in the sandbox: it has been sent, and its outcome is not known yet.
    pub async fn until_held(&self) {
        eventually("a held charge", async || {
            let held = self.sandbox.call(Method::GET, "/_sandbox/faults/held", "").await.json();
            (held.as_u64() == Some(1)).then_some(())
        })
        .await;
    }

    /// Lets held charges go on.
    pub async fn release_held(&self) {
        let answer = self.sandbox.call(Method::PUT, "/_sandbox/faults/release", "").await;
        assert_eq!(answer.status / 100, 2, "{answer:?}");
    }

    /// Makes the sandbox forget its idempotency keys, as Stripe does after a day.
    pub async fn forget(&self) {
        let answer = self.sandbox.call(Method::PUT, "/_sandbox/forget", "").await;
        assert_eq!(answer.status / 100, 2, "{answer:?}");
    }

    /// Returns all charges that succeeded, from the sandbox's own ledger.
    pub async fn charges(&self) -> Vec<Value> {
        self.succeeded("charges").await
    }

    /// Returns all refunds that succeeded, from the sandbox's own ledger.
    pub async fn refunds(&self) -> Vec<Value> {
        self.succeeded("refunds").await
    }

    async fn succeeded(&self, list: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or_else(String::new, |last: &Value| {
                format!("&starting_after={}", last["id"].as_str().expect("an id"))
            });
            let page = self.sandbox.call(Method::GET, &format!("/v1/{list}?limit=100{after}"), "").await.json();
            all.extend(page["data"].as_array().expect("a list").iter().cloned());
            if page["has_more"] != true {
                all.retain(|one| one["status"] == "succeeded");
                return all;
            }
        }
    }

    /// Asserts that there is one ride, one charge and one receipt: this is how exactly once looks from outside.
    pub async fn assert_one_of_each(&self) {
        assert_eq!(self.count("rides WHERE stripe_charge_id IS NOT NULL").await, 1, "rides");
        assert_eq!(self.count("rides").await, 1, "rides without a charge");
        assert_eq!(self.charges().await.len(), 1, "charges");
        assert_eq!(self.count("staged_jobs").await + self.count("jobs").await, 1, "receipts");
        assert_eq!(self.count("audit_records").await, 1, "audit records");
        let charge: String = self.get("SELECT stripe_charge_id FROM rides").await;
        assert_eq!(self.charges().await[0]["id"], charge.as_str());
        let report = self.verify(LIVE).await;
        assert!(report.violated().is_empty(), "{report}");
    }
}
