//! Connections that the pool must not keep.

use std::time::{Duration, Instant};

use crate::support::app::{TestApp, pool};
use crate::support::client::Post;
use crate::support::cluster;

#[tokio::test]
async fn a_connection_to_what_has_become_a_replica_is_given_up() {
    let app = TestApp::with(|config| config.database.pool_size = 1).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    let administrator = cluster::connect(&app.database_config).await;
    let name = app.database_config.get_dbname().unwrap();
    let read_only = async |whether| {
        let sql = format!("ALTER DATABASE {name} SET default_transaction_read_only = {whether}");
        administrator.batch_execute(&format!("SET default_transaction_read_only = off; {sql}")).await.unwrap();
    };
    // After a failover all connections are new, and some may lead to the former primary.
    read_only("on").await;
    let others = "pg_stat_activity WHERE datname = current_database() AND application_name = 'rocket-rides-atomic'";
    app.query(&format!("SELECT pg_terminate_backend(pid) FROM {others}"), &[]).await;
    app.until_count(others, 0).await;
    let answer = app.post(Post::default()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{answer:?}");
    read_only("off").await;
    let answer = app.post(Post::default()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// The program decides which commits wait for the disk, unless the database is set to wait for more.
#[tokio::test]
async fn commits_wait_for_the_disk_or_for_more() {
    let app = TestApp::start().await;
    let name = app.database_config.get_dbname().unwrap();
    for (set, used) in [("off", "on"), ("on", "on"), ("remote_write", "remote_write"), ("local", "local")] {
        app.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = {set}")).await;
        let database = pool(&app.database_config).await;
        let row = database.query_opt("SELECT current_setting('synchronous_commit')", &[]).await.unwrap().unwrap();
        assert_eq!(row.get::<_, &str>(0), used, "set to {set}");
    }
}

#[tokio::test]
async fn a_statement_waits_for_a_locked_row_for_some_seconds_only() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    app.database.batch_execute("BEGIN; SELECT FROM users WHERE id = 1 FOR UPDATE").await.unwrap();
    let began = Instant::now();
    let error = database.query("UPDATE users SET email = email WHERE id = 1", &[]).await.expect_err("locked");
    assert!(
        error.is_contention() && began.elapsed() < Duration::from_secs(8),
        "{error} after {:?}",
        began.elapsed()
    );
    app.database.batch_execute("ROLLBACK").await.unwrap();
}
