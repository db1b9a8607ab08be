//! With 100,000 keys present, no poll and no lookup reads a whole table, nor a whole index.
//!
//! Postgres's own counters show what was really read. `EXPLAIN` would show only what one plan promises, and would
//! present a scan of an entire index as a good plan.

use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::queue::outbox::{self, Verdicts};
use atomic_phases::queue::postgres::{ToPostgres, deliver};
use atomic_phases::queue::work::{self, Failed, RetryPolicy};
use atomic_phases::queue::{Outlet, START, dead};
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::metrics::Metrics;

use crate::support::client::{Post, new_key};
use crate::support::eventually;
use crate::support::receipts::{SentReceipt, finish};
use crate::support::world::{World, insert_keys, pool_of, stage};

#[tokio::test]
async fn no_statement_of_the_program_reads_a_whole_table() {
    let mut world = world(|config| {
        config.roles.completer = true;
        config.roles.enqueuer = true;
        config.roles.worker = true;
        config.roles.reaper = true;
        config.completer.grace = Duration::from_millis(50);
    })
    .await;
    // The connections prepare their plans while the tables are almost empty, and keep them.
    for _ in 0..2 * world.config.database.pool_size {
        let key = new_key();
        assert_eq!(world.post(Post::default().key(&key).raising()).await.status, 500);
        // The completer may be at work on it already.
        eventually("a ride", async || (world.post(Post::default().key(&key)).await.status == 201).then_some(()))
            .await;
    }
    world.until_count("staged_jobs", 0).await;
    insert_keys(&world, 100_000, "1 hour").await;
    let staged: i64 = world.get("SELECT max(staged_id) FROM jobs").await;
    world.query("SELECT pg_stat_reset()", &[]).await;

    // Every statement of the API and of the completer: a failure, its completion, a replay.
    let key = new_key();
    assert_eq!(world.post(Post::default().key(&key).raising()).await.status, 500);
    eventually("the completer's answer", async || {
        world.post(Post::default().key(&key)).await.is_replay().then_some(())
    })
    .await;
    assert_eq!(world.post(Post::default()).await.status, 201);
    // The reaper's statement: one key becomes old and is removed.
    let by_key = format!("idempotency_keys WHERE user_id = 1 AND idempotency_key = '{key}'");
    world
        .execute(&format!("UPDATE {by_key}").replace(
            " WHERE",
            " SET created_at = now() - interval '73 hours', last_run_at = now() - interval '73 hours' WHERE",
        ))
        .await;
    world.until_count(&by_key, 0).await;
    // The enqueuer's statements: both receipts are delivered.
    world.until_count(&format!("jobs WHERE staged_id > {staged}"), 2).await;

    // A backend reports its counters when it ends.
    world.stop().await.unwrap();
    until_removed(&world, "idempotency_keys", 1).await;
    // Except `jobs`, whose rows this test counts itself.
    assert_nothing_was_read_whole(&world, "jobs").await;
}

#[tokio::test]
async fn nor_do_the_metrics() {
    let world = world(|_| {}).await;
    let only = pool_of(&world.database_config, 1).await;
    assert!(Metrics::default().render(&only, None).await.contains("\nrocket_rides_database_up 1\n"));
    insert_keys(&world, 100_000, "1 hour").await;
    world
        .execute(
            "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
             SELECT n, 'n', '0', now(), now() FROM generate_series(1, 100000) n",
        )
        .await;
    insert_dead(&world, 1).await;
    world.query("SELECT pg_stat_reset()", &[]).await;
    assert!(Metrics::default().render(&only, None).await.contains("\nrocket_rides_dead_jobs 1\n"));
    dead::purge(&only, &[1_000_001]).await.unwrap();
    drop(only);
    until_removed(&world, "dead_jobs", 1).await;
    assert_nothing_was_read_whole(&world, "").await;
}

#[tokio::test]
async fn nor_does_the_outbox() {
    let world = world(|_| {}).await;
    let only = pool_of(&world.database_config, 1).await;
    stage(&world, 13).await;
    move_thirteen(&world, &only, 1).await;
    stage(&world, 100_000).await;
    insert_dead(&world, 100_000).await;
    world.query("SELECT pg_stat_reset()", &[]).await;
    move_thirteen(&world, &only, 14).await;
    drop(only);
    until_removed(&world, "dead_jobs", 2).await;
    assert_nothing_was_read_whole(&world, "").await;
}

#[tokio::test]
async fn nor_does_the_worker() {
    let world = world(|_| {}).await;
    let only = pool_of(&world.database_config, 1).await;
    work_five(&world, &only, 1).await;
    // Finished jobs that are kept, and jobs that are not due yet.
    world
        .execute(
            "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, next_attempt_at, finished_at)
             SELECT 1000 + n, 'n', '0', now(), now() + interval '1 hour', CASE WHEN n % 2 = 0 THEN now() END
             FROM generate_series(1, 100000) n",
        )
        .await;
    world.query("SELECT pg_stat_reset()", &[]).await;
    work_five(&world, &only, 11).await;
    drop(only);
    until_removed(&world, "jobs", 2).await;
    assert_nothing_was_read_whole(&world, "").await;
}

/// Starts a world on a schema that exists already: making an index reads its table, and a backend may not report that
/// until it ends.
async fn world(change: impl FnOnce(&mut Config)) -> World {
    World::with(change).await.restarted(|_| {}).await
}

/// Runs every statement of the worker and the sweep, over five jobs from `first` on.
async fn work_five(world: &World, database: &Database, first: i64) {
    let minute = Duration::from_secs(60);
    let insert = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
         SELECT n, 'n', '0', now() FROM generate_series({first}, {}) n",
        first + 4
    );
    world.execute(&insert).await;
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
    world.execute(&old).await;
    assert_eq!(work::sweep(database, minute, 10).await.unwrap(), 1);
}

async fn insert_dead(world: &World, count: i64) {
    let sql = format!(
        "INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
         SELECT 1000000 + n, 'n', '0', now(), 'queue', 1, 'x' FROM generate_series(1, {count}) n"
    );
    world.execute(&sql).await;
}

/// Runs every statement of the outbox and of dead letters, over thirteen jobs of which `first` is the first due.
async fn move_thirteen(world: &World, database: &Database, first: i64) {
    let minute = Duration::from_secs(60);
    let batch = outbox::claim(database, START, 5, minute).await.unwrap();
    assert_eq!(batch.jobs[0].id, first);
    let mut verdicts =
        Verdicts { delivered: vec![first], released: vec![first + 3, first + 4], ..Verdicts::default() };
    verdicts.failed.push(first + 1, "failed");
    verdicts.dead.push(first + 2, "dead");
    outbox::settle(database, &batch, &verdicts, minute).await.unwrap();
    assert_eq!(deliver(database, START, 5).await.unwrap().jobs, 5);
    let taken = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES ({}, 'n', '0', now())",
        first + 10
    );
    world.execute(&taken).await;
    let drained = ToPostgres { database: database.clone(), batch: 5 }.drain().await.unwrap();
    assert_eq!((drained.delivered, drained.dead), (4, 1));
    assert_eq!(dead::list(database, 2).await.unwrap().len(), 2);
    assert_eq!(dead::ids(database, first, 2).await.unwrap(), [first + 2, first + 10]);
    assert_eq!(dead::purge(database, &[first + 10]).await.unwrap(), [first + 10]);
    assert_eq!(dead::retry(database, &[first + 2]).await.unwrap(), [first + 2]);
    assert_eq!(deliver(database, START, 1).await.unwrap().jobs, 1);
}

/// Waits until the counters of all backends that have ended are there.
async fn until_removed(world: &World, table: &str, count: i64) {
    eventually("the counters", async || {
        world.query("SELECT pg_stat_clear_snapshot()", &[]).await;
        let removed = format!("SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = '{table}'");
        (world.get::<i64>(&removed).await >= count).then_some(())
    })
    .await;
}

/// Entries that a scan may read of an index that has 100,000. A poll skips the entries of the few keys that were
/// finished just now, until Postgres knows that no transaction can see them any more. A long transaction delays that,
/// even one in another database, such as another test's.
const ENTRIES: i64 = 100;

async fn assert_nothing_was_read_whole(world: &World, but: &str) {
    for row in world.query("SELECT relname::text, seq_scan, seq_tup_read FROM pg_stat_user_tables", &[]).await {
        let (table, scans, read): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(table == but || scans == 0, "{table}: {scans} scans read {read} rows");
    }
    for row in world.query("SELECT indexrelname::text, idx_scan, idx_tup_read FROM pg_stat_user_indexes", &[]).await
    {
        let (index, scans, read): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(read <= scans * ENTRIES, "{index}: {scans} scans read {read} entries");
    }
}
