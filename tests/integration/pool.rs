//! Connections that the pool must not keep.

use crate::support::app::TestApp;
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
