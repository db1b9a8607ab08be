//! Tests for every queue outside the database; `redis` and `nats` run them against the real servers.

use std::time::{Duration, SystemTime};

use atomic_phases::queue::{Delivery, Queue, StagedJob};
use hyper::Method;
use nix::sys::signal::Signal;
use serde_json::json;
use serde_json::value::RawValue;

use crate::support::app::{TempDir, TestApp};
use crate::support::broker::Broker;
use crate::support::process::{Process, arguments};
use crate::support::{cluster, eventually};

/// A push that takes this long hangs.
const DEADLINE: Duration = Duration::from_secs(20);

pub fn job(id: i64, name: &str) -> StagedJob {
    let args = RawValue::from_string(json!({ "n": id }).to_string()).unwrap();
    StagedJob { id, name: name.to_owned(), args, staged_at: SystemTime::now() }
}

pub fn batch(ids: std::ops::RangeInclusive<i64>) -> Vec<StagedJob> {
    ids.map(|id| job(id, "send_ride_receipt")).collect()
}

/// Returns what happened to each job, or the whole chain of errors if the push failed.
pub async fn push(queue: &impl Queue, jobs: &[StagedJob]) -> Result<Vec<Delivery>, String> {
    let pushed = tokio::time::timeout(DEADLINE, queue.push(jobs)).await.expect("an answer");
    pushed.map_err(|error| atomic_phases::errors::chain(&error))
}

/// Returns the numbers of the jobs that wait, in the order in which workers get them.
pub async fn numbers(broker: &impl Broker) -> Vec<i64> {
    broker.jobs().await.iter().map(|args| args["n"].as_i64().expect("a number")).collect()
}

async fn assert_each_once(broker: &impl Broker, count: i64) {
    let mut numbers = numbers(broker).await;
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(1..=count), "{} jobs for {count}", numbers.len());
}

const STAGE: &str =
    "INSERT INTO staged_jobs (job_name, job_args) SELECT 'send_ride_receipt', jsonb_build_object('n', n)";

async fn stage(app: &TestApp, first: i64, last: i64) {
    app.execute(&format!("{STAGE} FROM generate_series({first}, {last}) n")).await;
}

/// Asserts that the outage of the queue has cost no job an attempt.
async fn assert_no_attempts_spent(app: &TestApp) {
    assert_eq!(app.count("staged_jobs WHERE attempts > 0").await, 0);
    assert_eq!(app.count("dead_jobs").await, 0);
}

async fn app(broker: &impl Broker) -> TestApp {
    TestApp::with(|config| broker.configure(config)).await
}

/// Jobs are pushed again, whole or in part, in another order, by another process: each is there once, in order.
pub async fn a_repeated_push_adds_nothing<B: Broker, Q: Queue>(broker: &B, open: impl Fn() -> Q) {
    let (first, second) = (open(), open());
    let delivered = |count| Ok(vec![Delivery::Delivered; count]);
    assert_eq!(push(&first, &batch(1..=1500)).await, delivered(1500));
    assert_eq!(push(&first, &batch(1..=1500)).await, delivered(1500));
    let mut backwards = batch(1400..=1600);
    backwards.reverse();
    assert_eq!(push(&second, &backwards).await, delivered(201));
    assert_eq!(broker.depth().await, 1600);
    let numbers = numbers(broker).await;
    assert!(numbers[..1500].iter().copied().eq(1..=1500));
    assert!(numbers[1500..].iter().copied().eq((1501..=1600).rev()));
}

/// The process is killed when both the queue and the outbox have the jobs.
pub async fn killed_between_push_and_delete<B: Broker>() {
    let mut broker = B::start().await;
    let (database, dir) = (cluster::database().await, TempDir::new());
    let settings = broker.settings();
    let mut more: Vec<&str> = settings.iter().map(String::as_str).collect();
    more.extend(["enqueuer.push_timeout=20s", "enqueuer.lease=60s"]);
    let arguments = arguments(Some(&database), dir.path(), &more);

    let mut process = Process::spawn(&arguments);
    process.api().await;
    let outbox = cluster::connect(&database).await;
    let count = async |rows: &str| -> i64 {
        outbox.query_one(&format!("SELECT count(*) FROM {rows}"), &[]).await.unwrap().get(0)
    };
    broker.server().pause();
    outbox.batch_execute(&format!("{STAGE} FROM generate_series(1, 500) n")).await.unwrap();
    eventually("a lease on the jobs", async || {
        (count("staged_jobs WHERE lease_token IS NOT NULL").await == 500).then_some(())
    })
    .await;
    // A statement that deletes them waits for this session.
    let blocker = cluster::connect(&database).await;
    blocker.batch_execute("BEGIN; SELECT FROM staged_jobs FOR UPDATE").await.unwrap();
    broker.server().resume();
    eventually("the push", async || (broker.depth().await == 500).then_some(())).await;
    eventually("the delete", async || {
        (count("pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").await == 1)
            .then_some(())
    })
    .await;
    process.signal(Signal::SIGKILL);
    process.exit().await;
    // Postgres would still execute the statement: it does not check whether its client is still there.
    let terminate = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    outbox.execute(terminate, &[]).await.unwrap();
    blocker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(count("staged_jobs").await, 500);
    // The dead process's lease would run out by itself; the test does not wait for that.
    outbox.execute("UPDATE staged_jobs SET next_attempt_at = now()", &[]).await.unwrap();

    let process = Process::spawn(&arguments);
    process.api().await;
    eventually("an empty outbox", async || (count("staged_jobs").await == 0).then_some(())).await;
    assert!(process.log().iter().any(|line| line.contains(r#""repeated":500"#)), "{:#?}", process.log());
    assert_each_once(&broker, 500).await;
}

/// The queue is killed in the middle of the pushes, twice, and started again.
pub async fn the_queue_dies_while_jobs_are_pushed<B: Broker>() {
    let mut broker = B::start().await;
    let mut app = app(&broker).await;
    for death in 1..=2 {
        stage(&app, 1 + (death - 1) * 10_000, death * 10_000).await;
        eventually("some jobs in the queue", async || (app.count("staged_jobs").await < 9_000).then_some(())).await;
        broker.server().kill();
        broker.server().restart();
    }
    app.until_count("staged_jobs WHERE attempts = 0", 0).await;
    assert_no_attempts_spent(&app).await;
    app.stop().await.unwrap();
    assert_each_once(&broker, 20_000).await;
}

/// A queue that is down prevents neither the start of the program nor the booking of rides.
pub async fn down_at_start<B: Broker>() {
    let mut broker = B::start().await;
    broker.server().kill();
    let app = app(&broker).await;
    stage(&app, 1, 10).await;
    eventually("a ride", async || (app.post(Default::default()).await.status == 201).then_some(())).await;
    assert_eq!(app.count("staged_jobs").await, 11);
    broker.server().restart();
    app.until_count("staged_jobs", 0).await;
    assert_eq!(broker.depth().await, 11);
}

/// 100,000 jobs, two enqueuers, and low ids whose transaction commits after all others are delivered.
pub async fn late_commits_are_neither_lost_nor_doubled<B: Broker>() {
    let broker = B::start().await;
    let mut app = app(&broker).await;
    let mut neighbour = app.neighbour(|config| config.roles.api = false).await;
    let late = cluster::connect(&app.database_config).await;
    late.batch_execute(&format!("BEGIN; {STAGE} FROM generate_series(99001, 100000) n")).await.unwrap();
    for tenth in 0..10 {
        stage(&app, 1 + tenth * 9_900, (tenth + 1) * 9_900).await;
    }
    // In steps, each with the whole time limit of `eventually`, because a busy machine is slow.
    for left in [80_000, 60_000, 40_000, 20_000, 0] {
        eventually("the outbox to drain", async || (app.count("staged_jobs").await <= left).then_some(())).await;
    }
    assert_eq!(broker.depth().await, 99_000);
    late.batch_execute("COMMIT").await.unwrap();
    eventually("the late ones", async || (broker.depth().await == 100_000).then_some(())).await;
    app.until_count("staged_jobs", 0).await;
    assert_eq!(app.count("dead_jobs").await, 0);
    app.stop().await.unwrap();
    neighbour.stop().await.unwrap();
    assert_each_once(&broker, 100_000).await;
}

/// Even a log with `trace` on contains no password.
pub async fn no_password_is_logged<B: Broker>() {
    let broker = B::start().await;
    let (database, dir) = (cluster::database().await, TempDir::new());
    let [queue, url] = broker.settings().map(|setting| setting.replace("://", "://rides:hunter2@"));
    let process = Process::spawn(&arguments(Some(&database), dir.path(), &[&queue, &url, "log.filter=trace"]));
    assert_eq!(process.api().await.post(Default::default()).await.status, 201);
    // A NATS that asks for no password accepts any; a Redis does not.
    let line = eventually("a word on the push", async || {
        let said = |line: &String| line.contains("takes no jobs") || line.contains("moved staged jobs");
        process.log().into_iter().find(said)
    })
    .await;
    assert!(line.contains(B::QUEUE.name()) || line.contains("moved"), "{line}");
    for line in process.log() {
        assert!(!line.contains("hunter2"), "{line}");
    }
}

/// A queue that is full takes no more jobs until it has room again.
pub async fn full_and_then_relieved<B: Broker>(broker: &B, relieve: impl AsyncFnOnce()) {
    let mut app = app(broker).await;
    stage(&app, 1, 500).await;
    eventually("a refusal", async || {
        let metrics = String::from_utf8(app.api.call(Method::GET, "/metrics", "").await.body.to_vec()).unwrap();
        metrics.contains(&format!("queue_up{{queue=\"{}\"}} 0", B::QUEUE.name())).then_some(())
    })
    .await;
    relieve().await;
    app.until_count("staged_jobs", 0).await;
    assert_no_attempts_spent(&app).await;
    app.stop().await.unwrap();
    assert_each_once(broker, 500).await;
}
