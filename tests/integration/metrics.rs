//! What Prometheus reads, with and without a database.

use std::time::{Duration, Instant};

use hyper::Method;

use crate::support::app::{TestApp, stage};
use crate::support::client::{Post, new_key};
use crate::support::{cluster, eventually};

/// Waits until all of these lines are there: figures of the database may be a second old.
async fn until_told(app: &TestApp, lines: &[&str]) {
    eventually(&lines.join(", "), async || {
        let text = scrape(app).await;
        lines.iter().all(|line| text.contains(&format!("\nrocket_rides_{line}\n"))).then_some(())
    })
    .await;
}

async fn scrape(app: &TestApp) -> String {
    let answer = app.api.call(Method::GET, "/metrics", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    text
}

#[tokio::test]
async fn a_ride_is_counted_from_the_request_to_the_queue() {
    let app = TestApp::with(|config| config.roles.enqueuer = true).await;
    until_told(
        &app,
        &[
            "database_up 1",
            "queue_up{queue=\"postgres\"} 1",
            "keys_unfinished 0",
            "staged_jobs 0",
            "queued_jobs 0",
            "dead_jobs 0",
            "staged_jobs_oldest_age_seconds 0.0",
        ],
    )
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    assert_eq!(app.post(Post::default().raising()).await.status, 500);
    app.execute("UPDATE jobs SET enqueued_at = now() - interval '1 hour'").await;
    for (method, path) in [(Method::GET, "/made-up"), (Method::from_bytes(b"BREW").unwrap(), "/healthz")] {
        app.api.call(method, path, "").await;
    }
    until_told(
        &app,
        &[
            "http_requests_total{method=\"POST\",path=\"/rides\",status=\"201\"} 1",
            "http_requests_total{method=\"POST\",path=\"/rides\",status=\"500\"} 1",
            "http_requests_total{method=\"GET\",path=\"other\",status=\"404\"} 1",
            "http_requests_total{method=\"other\",path=\"/healthz\",status=\"405\"} 1",
            "http_request_duration_seconds_count{method=\"POST\",path=\"/rides\"} 2",
            "jobs_delivered_total{queue=\"postgres\"} 1",
            "keys_unfinished 1",
            "queued_jobs 1",
        ],
    )
    .await;
    let text = scrape(&app).await;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("rocket_rides_{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name} in {text}"))
    };
    assert!(value("process_start_time_seconds") > 1.7e9);
    assert!(value("database_connections_idle") + value("database_connections_in_use") >= 1.0);
    if cfg!(target_os = "linux") {
        assert!(value("process_resident_memory_bytes") > 1e6);
    }
    assert!(!text.contains("example.com"));
}

#[tokio::test]
async fn the_worker_is_counted_by_how_its_attempts_end() {
    let app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        config.roles.worker = true;
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    until_told(&app, &["jobs_worked_total{outcome=\"done\"} 1", "queued_jobs 0"]).await;
    app.execute("INSERT INTO staged_jobs (job_name, job_args) VALUES ('nobody_knows_it', '{}')").await;
    until_told(&app, &["jobs_worked_total{outcome=\"died\"} 1", "dead_jobs 1"]).await;
}

#[tokio::test]
async fn what_waits_is_told_with_its_age() {
    let app = TestApp::start().await;
    stage(&app, 5).await;
    app.execute("UPDATE staged_jobs SET created_at = now() - interval '1 hour' WHERE id = 1").await;
    app.execute(
        "INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
             VALUES (9, 'n', '0', now(), 'queue', 1, 'x')",
    )
    .await;
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, enqueued_at)
             VALUES (7, 'n', '0', now(), now() - interval '2 hours'), (8, 'n', '0', now(), now())",
    )
    .await;
    until_told(&app, &["staged_jobs 5", "dead_jobs 1", "queued_jobs 2"]).await;
    let text = scrape(&app).await;
    assert!(text.contains("rocket_rides_staged_jobs_oldest_age_seconds 360"), "{text}");
    assert!(text.contains("rocket_rides_queued_jobs_oldest_age_seconds 720"), "{text}");
    assert!(!text.contains("queue_up"), "this process delivers to no queue");
    let ready = app.api.call(Method::GET, "/readyz", "").await;
    assert_eq!(ready.body, r#"{"message":"ready"}"#);
}

#[tokio::test]
async fn without_the_database_it_tells_what_the_process_knows() {
    let app = TestApp::with(|config| config.roles.enqueuer = true).await;
    let ready = app.api.call(Method::GET, "/readyz", "").await;
    assert_eq!((ready.status, &ready.body[..]), (200, &br#"{"message":"ready","queue":"up"}"#[..]));
    let key = new_key();
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);

    let mut administrators = app.database_config.clone();
    administrators.dbname("postgres");
    let administrator = cluster::connect(&administrators).await;
    let name = app.database_config.get_dbname().unwrap();
    administrator.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
    // Only once that is committed: a session that begins before it would stay.
    let terminate = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1";
    eventually("no session is left", async || {
        administrator.query(terminate, &[&name]).await.unwrap().is_empty().then_some(())
    })
    .await;
    until_told(&app, &["database_up 0", "queue_up{queue=\"postgres\"} 0"]).await;
    let began = Instant::now();
    let text = scrape(&app).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(text.contains("http_requests_total{method=\"POST\",path=\"/rides\",status=\"201\"} 1\n"), "{text}");
    assert!(!text.contains("staged_jobs") && !text.contains("keys_unfinished"), "{text}");

    administrator.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.unwrap();
    until_told(&app, &["database_up 1"]).await;
    assert!(app.post(Post::default().key(&key)).await.is_replay());
}
