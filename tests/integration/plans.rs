//! With 100,000 keys present, no poll and no lookup reads a whole table, nor a whole index.
//!
//! Postgres's own counters say what was really read. `EXPLAIN` would say what one plan promised, and would take a
//! walk through an entire index for a good one.

use std::time::Duration;

use crate::support::client::{Post, new_key};
use crate::support::eventually;
use crate::support::world::{World, insert_keys};

#[tokio::test]
async fn no_statement_of_the_program_reads_a_whole_table() {
    let mut world = World::with(|config| {
        config.roles.completer = true;
        config.roles.enqueuer = true;
        config.roles.reaper = true;
        config.completer.grace = Duration::from_millis(50);
    })
    .await;
    // The connections prepare their plans while there is next to nothing, and keep them.
    for _ in 0..2 * world.config.database.pool_size {
        let key = new_key();
        assert_eq!(world.post(Post::default().key(&key).raising()).await.status, 500);
        assert_eq!(world.post(Post::default().key(&key)).await.status, 201);
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
    // The reaper's: one key grows old and goes.
    let by_key = format!("idempotency_keys WHERE user_id = 1 AND idempotency_key = '{key}'");
    world
        .execute(&format!("UPDATE {by_key}").replace(
            " WHERE",
            " SET created_at = now() - interval '73 hours', last_run_at = now() - interval '73 hours' WHERE",
        ))
        .await;
    world.until_count(&by_key, 0).await;
    // The enqueuer's: both receipts.
    world.until_count(&format!("jobs WHERE staged_id > {staged}"), 2).await;

    // A backend reports its counters when it ends.
    world.stop().await.unwrap();
    let reaped = eventually("the counters", async || {
        let removed: i64 =
            world.get("SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'").await;
        world.query("SELECT pg_stat_clear_snapshot()", &[]).await;
        (removed == 1).then_some(removed)
    });
    reaped.await;
    for row in world.query("SELECT relname::text, seq_scan, seq_tup_read FROM pg_stat_user_tables", &[]).await {
        let (table, scans, read): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(table == "jobs" || scans == 0, "{table}: {scans} scans read {read} rows");
    }
    for row in world.query("SELECT indexrelname::text, idx_scan, idx_tup_read FROM pg_stat_user_indexes", &[]).await
    {
        let (index, scans, read): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert!(read <= scans * 10, "{index}: {scans} scans read {read} entries");
    }
}
