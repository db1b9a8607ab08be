//! Databases of this program, of another program, and of another version of this program.

use hyper::Method;
use rocket_rides_atomic::database::OpenError;
use rocket_rides_atomic::database::schema::{self, Older, SchemaError};
use rocket_rides_atomic::supervisor::{StartError, Supervisor};

use crate::support::app::{TempDir, TestApp, config, pool};
use crate::support::{client::Post, cluster};

async fn start_on(database: &tokio_postgres::Config) -> Result<Supervisor, StartError> {
    let dir = TempDir::new();
    Supervisor::start(config(database, dir.path())).await
}

#[tokio::test]
async fn a_foreign_database_is_refused_and_left_as_it_is() {
    let database = cluster::database().await;
    let client = cluster::connect(&database).await;
    client.batch_execute("CREATE TABLE orders (id INT)").await.unwrap();
    let error = start_on(&database).await.expect_err("not ours");
    let StartError::Schema(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("\"orders\""), "{error}");
    let tables = client.query_one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", &[]).await.unwrap();
    assert_eq!(tables.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_foreign_relation_that_holds_or_shows_rows_is_refused() {
    let server = "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;";
    for (what, name) in [
        ("CREATE TABLE b (id INT); CREATE TABLE a (id INT)".to_owned(), "a"),
        ("CREATE TABLE p (id INT) PARTITION BY RANGE (id)".to_owned(), "p"),
        ("CREATE VIEW v AS SELECT 1 AS one".to_owned(), "v"),
        ("CREATE MATERIALIZED VIEW m AS SELECT 1 AS one".to_owned(), "m"),
        (format!("{server} CREATE FOREIGN TABLE f (id INT) SERVER s"), "f"),
    ] {
        let database = cluster::database().await;
        cluster::connect(&database).await.batch_execute(&what).await.unwrap();
        let error = start_on(&database).await.expect_err(&what);
        let StartError::Schema(error) = error else { panic!("{error:?}") };
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
}

#[tokio::test]
async fn foreign_objects_without_data_are_accepted() {
    let database = cluster::database().await;
    let client = cluster::connect(&database).await;
    client.batch_execute("CREATE SEQUENCE numbers; CREATE EXTENSION pg_stat_statements").await.unwrap();
    start_on(&database).await.unwrap();
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_not_usable() {
    let app = TestApp::start().await;
    assert!(schema::is_usable(&pool(&app.database_config).await).await.unwrap());
    let read_only = "DO $$ BEGIN EXECUTE format(
        'ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$";
    app.execute(read_only).await;
    assert!(!schema::is_usable(&pool(&app.database_config).await).await.unwrap());
}

/// Two neighbouring releases serve one database: the newer one's schema says from which version on it may be used.
#[tokio::test]
async fn a_newer_schema_is_used_as_far_as_it_allows() {
    let mut app = TestApp::start().await;
    app.execute("UPDATE rocket_rides_schema SET version = version + 1, usable_from = version").await;
    assert_eq!(app.api.call(Method::GET, "/readyz", "").await.status, 200);
    app.stop().await.unwrap();
    for older in [Older::Refuse, Older::Migrate] {
        schema::ensure(&pool(&app.database_config).await, older).await.expect("usable");
    }
    assert!(schema::plan(&pool(&app.database_config).await).await.unwrap().is_empty());
    start_on(&app.database_config).await.expect("usable").run(std::future::ready(())).await.unwrap();

    app.execute("UPDATE rocket_rides_schema SET usable_from = version").await;
    assert!(!schema::is_usable(&pool(&app.database_config).await).await.unwrap());
    for older in [Older::Refuse, Older::Migrate] {
        let error = schema::ensure(&pool(&app.database_config).await, older).await.expect_err("newer");
        assert!(matches!(error, SchemaError::Version { found: 5 }), "{error:?}");
    }
    let error = start_on(&app.database_config).await.expect_err("newer");
    assert!(matches!(&error, StartError::Schema(error) if error.to_string().contains("version 5")), "{error:?}");
}

#[tokio::test]
async fn a_database_that_is_away_is_named() {
    let mut database = cluster::database().await;
    database.dbname("no_such_database");
    let error = start_on(&database).await.expect_err("no database");
    let StartError::Open(OpenError::Database(error)) = error else { panic!("{error:?}") };
    assert!(atomic_phases::errors::chain(&error).contains("no_such_database"), "{error:?}");
}

#[tokio::test]
async fn processes_that_start_at_once_agree() {
    let database = cluster::database().await;
    let (one, two, three) = tokio::join!(start_on(&database), start_on(&database), start_on(&database));
    // Each process has its own sandbox, so only one of them knows the users' customers; the schema and the users are
    // there once.
    for started in [one, two, three] {
        started.unwrap();
    }
    let users = cluster::connect(&database).await.query_one("SELECT count(*) FROM users", &[]).await.unwrap();
    assert_eq!(users.get::<_, i64>(0), 2);
}

#[tokio::test]
async fn users_that_this_stripe_does_not_know_get_new_customers() {
    let app = TestApp::start().await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    let elsewhere = TempDir::new();
    let ledger = elsewhere.path().join("another-ledger");
    let app = app.restarted(|config| config.stripe_sandbox.ledger = ledger).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
}

#[tokio::test]
async fn a_restart_finds_everything_there() {
    let app = TestApp::start().await;
    let key = crate::support::client::new_key();
    let first = app.post(Post::default().key(&key)).await;
    let app = app.restarted(|_| {}).await;
    let again = app.post(Post::default().key(&key)).await;
    assert_eq!(
        (again.status, again.body, true),
        (201, first.body, again.headers.contains_key("idempotent-replayed"))
    );
    assert_eq!(app.post(Post::default()).await.status, 201);
}
