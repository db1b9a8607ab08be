//! With 100,000 keys present, no poll and no lookup reads a whole table, nor a whole index.
//!
//! Postgres's own counters show what was really read. `EXPLAIN` would show only what one plan promises, and would
//! present a scan of an entire index as a good plan.

use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::processes::{self, Place, Process, Verdict};
use atomic_phases::queue::outbox::{self, PushResults};
use atomic_phases::queue::postgres::{PostgresRelay, deliver};
use atomic_phases::queue::work::{self, Failed, RetryPolicy};
use atomic_phases::queue::{BEFORE_FIRST, Relay, dead};
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::metrics::Metrics;

use crate::support::app::{TestApp, insert_keys, pool_of, stage};
use crate::support::client::{Post, new_key};
use crate::support::eventually;
use crate::support::receipts::{SentReceipt, finish};

#[tokio::test]
async fn no_statement_of_the_program_reads_a_whole_table() {
    let mut app = app(|config| {
        config.roles.completer = true;
        config.roles.enqueuer = true;
        config.roles.worker = true;
        config.roles.reaper = true;
        config.completer.grace = Duration::from_millis(50);
    })
    .await;
    // The connections prepare their plans while the tables are almost empty, and keep them.
    for _ in 0..2 * app.config.database.pool_size {
        let key = new_key();
        assert_eq!(app.post(Post::default().key(&key).raising()).await.status, 500);
        // The completer may be at work on it already.
        eventually("a ride", async || (app.post(Post::default().key(&key)).await.status == 201).then_some(()))
            .await;
    }
    app.until_count("staged_jobs", 0).await;
    insert_keys(&app, 100_000, "1 hour").await;
    let staged: i64 = app.get("SELECT max(staged_id) FROM jobs").await;
    app.query("SELECT pg_stat_reset()", &[]).await;

    // Every statement of the API and of the completer: a failure, its completion, a replay.
    let key = new_key();
    assert_eq!(app.post(Post::default().key(&key).raising()).await.status, 500);
    eventually("the completer's answer", async || {
        app.post(Post::default().key(&key)).await.is_replay().then_some(())
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    // The reaper's statement: one key becomes old and is removed.
    let by_key = format!("idempotency_keys WHERE user_id = 1 AND idempotency_key = '{key}'");
    app.execute(&format!("UPDATE {by_key}").replace(
        " WHERE",
        " SET created_at = now() - interval '73 hours', last_run_at = now() - interval '73 hours' WHERE",
    ))
    .await;
    app.until_count(&by_key, 0).await;
    // The enqueuer's statements: both receipts are delivered.
    app.until_count(&format!("jobs WHERE staged_id > {staged}"), 2).await;

    // A backend reports its counters when it ends.
    app.stop().await.unwrap();
    until_removed(&app, "idempotency_keys", 1).await;
    // Except `jobs`, whose rows this test counts itself.
    assert_nothing_was_read_whole(&app, "jobs").await;
}

#[tokio::test]
async fn nor_do_the_metrics() {
    let app = app(|_| {}).await;
    let only = pool_of(&app.database_config, 1).await;
    assert!(Metrics::default().render(&only, None).await.contains("\nrocket_rides_database_up 1\n"));
    insert_keys(&app, 100_000, "1 hour").await;
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
             SELECT n, 'n', '0', now(), now() FROM generate_series(1, 100000) n",
    )
    .await;
    insert_dead(&app, 1).await;
    app.query("SELECT pg_stat_reset()", &[]).await;
    assert!(Metrics::default().render(&only, None).await.contains("\nrocket_rides_dead_jobs 1\n"));
    dead::purge(&only, &[1_000_001]).await.unwrap();
    drop(only);
    until_removed(&app, "dead_jobs", 1).await;
    assert_nothing_was_read_whole(&app, "").await;
}

#[tokio::test]
async fn nor_does_the_outbox() {
    let app = app(|_| {}).await;
    let only = pool_of(&app.database_config, 1).await;
    stage(&app, 13).await;
    move_thirteen(&app, &only, 1).await;
    stage(&app, 100_000).await;
    insert_dead(&app, 100_000).await;
    app.query("SELECT pg_stat_reset()", &[]).await;
    move_thirteen(&app, &only, 14).await;
    drop(only);
    until_removed(&app, "dead_jobs", 2).await;
    assert_nothing_was_read_whole(&app, "").await;
}

#[tokio::test]
async fn nor_does_the_worker() {
    let app = app(|_| {}).await;
    let only = pool_of(&app.database_config, 1).await;
    work_five(&app, &only, 1).await;
    // Finished jobs that are kept, and jobs that are not due yet.
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, next_attempt_at, finished_at)
             SELECT 1000 + n, 'n', '0', now(), now() + interval '1 hour', CASE WHEN n % 2 = 0 THEN now() END
             FROM generate_series(1, 100000) n",
    )
    .await;
    app.query("SELECT pg_stat_reset()", &[]).await;
    work_five(&app, &only, 11).await;
    drop(only);
    until_removed(&app, "jobs", 2).await;
    assert_nothing_was_read_whole(&app, "").await;
}

/// Only for the one process that has died may the unfinished requests and jobs be read once.
#[tokio::test]
async fn nor_does_a_heart() {
    let app = app(|_| {}).await;
    let only = pool_of(&app.database_config, 1).await;
    let process = || Process { place: Place::default(), ..Process::new(None, "1") };
    let (me, dead, now) = (process(), process(), Duration::ZERO);
    let live = async |dead: &Process| {
        processes::beat(&only, &me).await.unwrap();
        processes::beat(&only, dead).await.unwrap();
        let (process, why) = (dead.id, "for a test");
        let verdict = Verdict { process, silent_for: now, ended_after: now, crash_grace: now, why };
        assert!(processes::hand_back(&only, verdict).await.unwrap().ended);
        assert!(processes::remove(&only, now, 10).await.unwrap() > 0);
        assert_eq!(processes::list(&only, 10).await.unwrap().len(), 2, "the app, and who looks");
    };
    live(&dead).await;
    insert_keys(&app, 100_000, "1 hour").await;
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
             SELECT n, 'n', '0', now(), now() FROM generate_series(1, 100000) n",
    )
    .await;
    app.query("SELECT pg_stat_reset()", &[]).await;
    live(&process()).await;
    drop(only);
    until_removed(&app, "processes", 1).await;
    assert_nothing_was_read_whole(&app, "").await;
}

/// Starts an app on a schema that exists already: making an index reads its table, and a backend may not report that
/// until it ends.
async fn app(change: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::with(change).await.restarted(|_| {}).await
}

/// Runs every statement of the worker and the sweep, over five jobs from `first` on.
async fn work_five(app: &TestApp, database: &Database, first: i64) {
    let minute = Duration::from_secs(60);
    let insert = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
         SELECT n, 'n', '0', now() FROM generate_series({first}, {}) n",
        first + 4
    );
    app.execute(&insert).await;
    let claims = work::claim(database, 10, minute, 5).await.unwrap();
    let leases: Vec<_> = claims.claimed.iter().map(|job| job.lease).collect();
    assert_eq!(work::extend(database, &leases, minute).await.unwrap().kept.len(), 5);
    let policy = RetryPolicy { retry_after: minute, max_attempts: 5 };
    let sent = SentReceipt { ride_id: first, message_id: "<x@y>".to_owned() };
    assert!(finish(database, leases[0], Some(sent)).await.unwrap());
    assert!(finish(database, leases[1], None).await.unwrap());
    assert_eq!(work::fail(database, leases[2], "x", true, &policy).await.unwrap(), Failed::Buried);
    assert!(matches!(work::fail(database, leases[3], "x", false, &policy).await.unwrap(), Failed::Retried(_)));
    let old = format!("UPDATE jobs SET finished_at = now() - interval '1 day' WHERE staged_id = {first}");
    app.execute(&old).await;
    assert_eq!(work::sweep(database, minute, 10).await.unwrap(), 1);
}

async fn insert_dead(app: &TestApp, count: i64) {
    let sql = format!(
        "INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
         SELECT 1000000 + n, 'n', '0', now(), 'queue', 1, 'x' FROM generate_series(1, {count}) n"
    );
    app.execute(&sql).await;
}

/// Runs every statement of the outbox and of dead letters, over thirteen jobs of which `first` is the first due.
async fn move_thirteen(app: &TestApp, database: &Database, first: i64) {
    let minute = Duration::from_secs(60);
    let batch = outbox::claim(database, BEFORE_FIRST, 5, minute).await.unwrap();
    assert_eq!(batch.jobs[0].id, first);
    let mut verdicts =
        PushResults { delivered: vec![first], released: vec![first + 3, first + 4], ..PushResults::default() };
    verdicts.failed.push(first + 1, "failed");
    verdicts.dead.push(first + 2, "dead");
    outbox::settle(database, &batch, &verdicts, minute).await.unwrap();
    assert_eq!(deliver(database, BEFORE_FIRST, 5).await.unwrap().jobs, 5);
    let taken = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES ({}, 'n', '0', now())",
        first + 10
    );
    app.execute(&taken).await;
    let relayed = PostgresRelay { database: database.clone(), batch: 5 }.relay().await.unwrap();
    assert_eq!((relayed.delivered, relayed.dead), (4, 1));
    assert_eq!(dead::list(database, 2).await.unwrap().len(), 2);
    assert_eq!(dead::ids(database, first, 2).await.unwrap(), [first + 2, first + 10]);
    assert_eq!(dead::purge(database, &[first + 10]).await.unwrap(), [first + 10]);
    assert_eq!(dead::retry(database, &[first + 2]).await.unwrap(), [first + 2]);
    assert_eq!(deliver(database, BEFORE_FIRST, 1).await.unwrap().jobs, 1);
}

/// Waits until the counters of all backends that have ended are there.
async fn until_removed(app: &TestApp, table: &str, count: i64) {
    eventually("the counters", async || {
        app.query("SELECT pg_stat_clear_snapshot()", &[]).await;
        let removed = format!("SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = '{table}'");
        (app.get::<i64>(&removed).await >= count).then_some(())
    })
    .await;
}

/// Entries that a scan may read of an index that has 100,000. A poll skips the entries of the few keys that were
/// finished just now, until Postgres knows that no transaction can see them any more. A long transaction delays that,
/// even one in another database, such as another test's.
const ENTRIES: i64 = 100;

async fn assert_nothing_was_read_whole(app: &TestApp, but: &str) {
    for row in app.query("SELECT relname::text, seq_scan, seq_tup_read FROM pg_stat_user_tables", &[]).await {
        let (table, scans, read): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(table == but || scans == 0, "{table}: {scans} scans read {read} rows");
    }
    for row in app.query("SELECT indexrelname::text, idx_scan, idx_tup_read FROM pg_stat_user_indexes", &[]).await {
        let (index, scans, read): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(read <= scans * ENTRIES, "{index}: {scans} scans read {read} entries");
    }
}
