//! A connection that swallows a statement: the network behind it has failed, and no error is reported.

use std::time::{Duration, Instant};

use atomic_phases::database::{Database, DatabaseError, PoolSettings, tls};
use rocket_rides_atomic::config;

use super::lane::Route;
use super::proxy::{Fault, Strike};
use crate::support::app::TestApp;

#[tokio::test]
async fn a_connection_that_hangs_costs_one_statement_its_time_and_no_other() {
    let app = TestApp::start().await;
    let route = Route::new(&app).await;
    let (postgres, _) = tls::parse(&route.database_url()).unwrap();
    let statement_timeout = Duration::from_millis(300);
    let settings = PoolSettings {
        size: 1,
        checkout_timeout: Duration::from_secs(30),
        statement_timeout,
        ..config::Database::default().pool_settings()
    };
    let database = Database::connect(postgres, tls::none(), settings).await.unwrap();
    assert_eq!(database.query("SELECT 1", &[]).await.unwrap().len(), 1);

    route.script.arm(vec![Strike::at(1, Fault::Hold)]);
    let began = Instant::now();
    let swallowed = database.query("SELECT 1", &[]).await;
    assert!(matches!(swallowed, Err(DatabaseError::Lost(None))), "{swallowed:?}");
    assert!(began.elapsed() >= statement_timeout);
    assert_eq!(database.query("SELECT 1", &[]).await.unwrap().len(), 1, "by another connection");
    route.script.release();
}
