//! What a role's look for work costs when there is none, in pages of the database, hits in its cache included.

use std::time::Duration;

use super::Bench;
use crate::servers::postgres::Database;
use crate::servers::process::Process;

/// Postgres counts a session's pages when a second has passed since it last did.
const SETTLE: Duration = Duration::from_millis(2500);
const WATCH: Duration = Duration::from_secs(4);

/// Pages per transaction while only this role, and nothing else, is at work in the database. The statement itself is
/// the service's own affair, so the server's counters are asked, and it stays private.
pub(super) async fn pages_per_look(bench: &Bench, role: &str, database: &Database) -> f64 {
    let interval = format!("{role}.poll_interval=20ms");
    let process = Process::start(role, database, bench.sandbox, &[&interval]).await;
    let client = database.connect().await;
    // The enqueuer has rides' jobs to move first. Then what autovacuum would clear away some time.
    const IS_IDLE: &str = "SELECT NOT EXISTS (SELECT FROM staged_jobs)";
    while role == "enqueuer" && !client.query_one(IS_IDLE, &[]).await.expect("look at the outbox").get::<_, bool>(0)
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.batch_execute("VACUUM (ANALYZE)").await.expect("vacuum");
    // The session's end has its own pages counted now, and not some seconds later.
    drop(client);
    tokio::time::sleep(SETTLE).await;
    let (pages, polls) = counted(bench, database).await;
    tokio::time::sleep(WATCH).await;
    let (pages_after, polls_after) = counted(bench, database).await;
    process.stop().await;
    (pages_after - pages) / (polls_after - polls)
}

/// Pages and transactions so far. Asked from another database, so as not to count itself.
async fn counted(bench: &Bench, database: &Database) -> (f64, f64) {
    const SQL: &str = "SELECT (blks_hit + blks_read)::float8, (xact_commit + xact_rollback)::float8
        FROM pg_stat_database WHERE datname = $1";
    let row = bench.postgres.admin.query_one(SQL, &[&database.name]).await.expect("read the counters");
    (row.get(0), row.get(1))
}
