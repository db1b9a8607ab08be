//! The cost of a role's poll when there is no work, in pages of the database, hits in its cache included.

use std::time::Duration;

use super::Bench;
use crate::servers::postgres::Database;
use crate::servers::process::Process;

/// A session adds its pages to Postgres' counters when a second has passed since it last did.
const SETTLE: Duration = Duration::from_millis(2500);
const WATCH: Duration = Duration::from_secs(4);

/// Returns pages per transaction while only this role, and nothing else, is at work in the database. Reads the server's
/// counters, because the statement itself is private to the service.
pub(super) async fn pages_per_look(bench: &Bench, role: &str, database: &Database) -> f64 {
    let interval = format!("{role}.poll_interval=20ms");
    let process = Process::start(role, database, bench.sandbox, &[&interval]).await;
    let client = database.connect().await;
    // The enqueuer must first move the rides' jobs. The vacuum then does what autovacuum would do at some later time.
    const IS_IDLE: &str = "SELECT NOT EXISTS (SELECT FROM staged_jobs)";
    while role == "enqueuer" && !client.query_one(IS_IDLE, &[]).await.expect("look at the outbox").get::<_, bool>(0)
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.batch_execute("VACUUM (ANALYZE)").await.expect("vacuum");
    // When a session ends, its own pages are counted at once, and not some seconds later.
    drop(client);
    tokio::time::sleep(SETTLE).await;
    let (pages, polls) = counted(bench, database).await;
    tokio::time::sleep(WATCH).await;
    let (pages_after, polls_after) = counted(bench, database).await;
    process.stop().await;
    (pages_after - pages) / (polls_after - polls)
}

/// Returns pages and transactions so far. The query runs in another database, so that it does not count itself.
async fn counted(bench: &Bench, database: &Database) -> (f64, f64) {
    const SQL: &str = "SELECT (blks_hit + blks_read)::float8, (xact_commit + xact_rollback)::float8
        FROM pg_stat_database WHERE datname = $1";
    let row = bench.postgres.admin.query_one(SQL, &[&database.name]).await.expect("read the counters");
    (row.get(0), row.get(1))
}
