//! Tests that a host's wrong clock decides nothing: leases, graces, backoffs and ages are judged by the database's
//! clock.
//!
//! The whole program runs on a host that is a day ahead or behind. The database holds everything twice: one row that is
//! just due or just old enough, and one that is not yet. The row that is due shows that the role has looked.

use std::path::{Path, PathBuf};
use std::process::Command;

use rocket_rides_atomic::queues::Queue;

use crate::say;
use crate::support::app::{TempDir, TestApp, insert_keys};
use crate::support::broker::Broker;
use crate::support::client::{Post, new_key};
use crate::support::eventually;
use crate::support::nats::NatsServer;
use crate::support::process::{Process, arguments};
use crate::support::redis::RedisServer;

/// Moves the wall clock of the process that loads it, as an administrator or a broken NTP server does. Compiled here,
/// with the compiler that Rust links with.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    const char *jump = getenv("CLOCK_JUMP_SECONDS");
    if (jump && clock == CLOCK_REALTIME) now->tv_sec += atol(jump);
    return result;
}
"#;

fn shim(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, SHIM).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status().unwrap();
    assert!(compiled.success());
    library
}

/// A day ahead and a day behind, in seconds.
const JUMPS: [i64; 2] = [86_400, -86_400];

/// Jobs of the outbox and of the queue, all with a name that no worker knows. By their numbers: 1 is due, 2 is in a
/// backoff of an hour, 3 is leased for an hour. In the queue, 4 was finished an hour ago and 5 a little later.
const JOBS: &str = "
    INSERT INTO staged_jobs (job_name, job_args, next_attempt_at, lease_token)
    SELECT 'strange', jsonb_build_object('n', n), now() + CASE n WHEN 1 THEN '0' ELSE '1 hour' END::interval,
           CASE n WHEN 3 THEN gen_random_uuid() END
    FROM generate_series(1, 3) n;
    INSERT INTO jobs (staged_id, job_name, job_args, staged_at, next_attempt_at, lease_token, finished_at)
    SELECT 1000 + n, 'strange', '{}', now(), now() + CASE n WHEN 1 THEN '0' ELSE '1 hour' END::interval,
           CASE n WHEN 3 THEN gen_random_uuid() END,
           now() - CASE n WHEN 4 THEN interval '1 hour' WHEN 5 THEN interval '59 minutes' END
    FROM generate_series(1, 5) n";

/// Returns the rows that are not due yet.
async fn not_due(app: &TestApp) -> Vec<String> {
    let sql = "SELECT to_jsonb(s)::text FROM staged_jobs s WHERE job_args ->> 'n' IN ('2', '3')
               UNION ALL SELECT to_jsonb(j)::text FROM jobs j WHERE staged_id IN (1002, 1003, 1005)
               UNION ALL SELECT to_jsonb(k)::text FROM idempotency_keys k
               WHERE response_code IS NULL AND next_attempt_at > now() ORDER BY 1";
    app.query(sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

/// Leaves four requests that their clients gave up: one whose grace has half an hour left, and three that are due.
/// Returns the keys of the three: the first has no lease, the second has a dead process's lease, and the third was
/// charged 30 hours ago, but the reply was lost. Stripe has forgotten the third key, but by the clock of a host that is
/// a day behind it is young enough to be known.
async fn abandon(app: &TestApp) -> [String; 3] {
    let change = async |key: &str, columns: &str| {
        let sql = format!("UPDATE idempotency_keys SET {columns} WHERE idempotency_key = '{key}'");
        assert_eq!(app.execute(&sql).await, 1);
    };
    let [graced, let_go, held, paid] = [(); 4].map(|()| new_key());
    app.script(&["reply_lost"]).await;
    assert_eq!(app.post(Post::default().key(&paid)).await.status, 503);
    app.age_stripe("30h").await;
    for key in [&graced, &let_go, &held] {
        assert_eq!(app.post(Post::default().key(key).raising()).await.status, 500);
    }
    change(&graced, "next_attempt_at = now() + interval '30 minutes'").await;
    change(&let_go, "next_attempt_at = now()").await;
    let run_out = "lease_token = gen_random_uuid(), locked_at = now() - interval '30 seconds'";
    change(&held, &format!("next_attempt_at = now(), {run_out}")).await;
    let long_ago = "foreign_call_intended_at = now() - interval '30 hours'";
    change(&paid, &format!("next_attempt_at = now(), {long_ago}")).await;
    [let_go, held, paid]
}

/// Runs all roles on a host whose clock is off by `jump` seconds, with these settings of the queue. `delivered` returns
/// whether the one job that was due has reached the queue.
async fn run_on_wrong_host(jump: i64, queue: &[&str], delivered: impl AsyncFn(&TestApp) -> bool) {
    let dir = TempDir::new();
    let shim = shim(dir.path());
    let app = TestApp::start().await;
    let (finished, held) = (new_key(), new_key());
    assert_eq!(app.post(Post::default().key(&finished)).await.status, 201);
    let due = abandon(&app).await.join("', '");
    insert_keys(&app, 1, "1 hour").await;
    insert_keys(&app, 1, "59 minutes").await;
    app.database.batch_execute(JOBS).await.unwrap();
    app.script(&["hold"]).await;
    let (api, post) = (app.api.clone(), Post::default().key(&held));
    let charging = tokio::spawn(async move { api.post(post).await });
    app.until_held().await;
    let before = not_due(&app).await;
    assert_eq!(before.len(), 2 + 3 + 2);

    let sandbox = format!("stripe.api_base=http://{}", app.sandbox_address);
    let mut settings = vec![
        sandbox.as_str(),
        "roles.stripe_sandbox=false",
        "idempotency.lock_timeout=30s",
        "completer.grace=5m",
        "completer.poll_interval=10ms",
        "enqueuer.poll_interval=10ms",
        "worker.poll_interval=10ms",
        "worker.keep_finished=1h",
        "reaper.poll_interval=10ms",
        "reaper.retention=1h",
    ];
    settings.extend(queue);
    let seconds = jump.to_string();
    let environment = [("LD_PRELOAD", shim.to_str().unwrap()), ("CLOCK_JUMP_SECONDS", &seconds)];
    let jumped = Process::spawn_with(&arguments(Some(&app.database_config), dir.path(), &settings), &environment);
    let api = jumped.api().await;
    let date: String = jumped.field("timestamp").await[..10].to_owned();
    let days: i32 = app.get(&format!("SELECT date '{date}' - (now() AT TIME ZONE 'UTC')::date")).await;
    assert_eq!(days.signum(), if jump > 0 { 1 } else { -1 }, "the shim works: it is {date} there");

    // What is due is done.
    app.until_count(&format!("idempotency_keys WHERE response_code = 201 AND idempotency_key IN ('{due}')"), 3)
        .await;
    eventually("the job that is due", async || delivered(&app).await.then_some(())).await;
    app.until_count("dead_jobs WHERE staged_id = 1001", 1).await;
    app.until_count("jobs WHERE staged_id = 1004", 0).await;
    app.until_count("idempotency_keys WHERE created_at <= now() - interval '1 hour'", 0).await;
    // And nothing else.
    assert_eq!(not_due(&app).await, before);
    assert_eq!(app.count("idempotency_keys WHERE created_at <= now() - interval '59 minutes'").await, 1);
    assert_eq!(api.post(Post::default().key(&held)).await.status, 409, "the lease is respected");
    assert!(api.post(Post::default().key(&finished)).await.is_replay(), "not reaped");
    app.release_held().await;
    assert_eq!(charging.await.unwrap().status, 201);

    // The rest is done as well, once it is due.
    let all_due =
        "UPDATE staged_jobs SET next_attempt_at = now(); UPDATE idempotency_keys SET next_attempt_at = now();
               UPDATE jobs SET next_attempt_at = now() WHERE finished_at IS NULL";
    app.database.batch_execute(all_due).await.unwrap();
    app.until_count("staged_jobs", 0).await;
    app.until_count("dead_jobs WHERE staged_id IN (1002, 1003)", 2).await;
    app.until_count("idempotency_keys WHERE response_code IS NULL", 0).await;
    assert_eq!(app.charges().await.len(), 6, "one for each ride");
    say(&format!("clock: a host {days} days off did what was due, and nothing else"));
}

#[tokio::test]
async fn a_host_whose_clock_is_a_day_off_does_what_is_due_and_nothing_else() {
    for jump in JUMPS {
        run_on_wrong_host(jump, &[], async |app| app.count("dead_jobs WHERE job_args = '{\"n\": 1}'").await == 1)
            .await;
    }
}

async fn run_with_queue_elsewhere<B: Broker>() {
    assert_ne!(B::QUEUE, Queue::Postgres);
    for jump in JUMPS {
        let broker = B::start().await;
        let settings = broker.settings();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let left = async |app: &TestApp| app.count("staged_jobs WHERE job_args ->> 'n' = '1'").await == 0;
        run_on_wrong_host(jump, &settings, left).await;
        let mut strange: Vec<i64> = broker.jobs().await.iter().filter_map(|job| job["n"].as_i64()).collect();
        strange.sort_unstable();
        assert_eq!(strange, [1, 2, 3], "each once");
    }
}

#[tokio::test]
async fn a_host_whose_clock_is_a_day_off_delivers_to_redis_what_is_due_and_nothing_else() {
    run_with_queue_elsewhere::<RedisServer>().await;
}

#[tokio::test]
async fn a_host_whose_clock_is_a_day_off_delivers_to_nats_what_is_due_and_nothing_else() {
    run_with_queue_elsewhere::<NatsServer>().await;
}
