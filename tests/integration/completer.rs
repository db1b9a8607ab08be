//! The completer: which keys it claims, which it leaves alone, and when it stops.

use std::time::Duration;

use rocket_rides_atomic::config::Config;

use crate::support::app::TestApp;
use crate::support::client::{DECLINED_USER, Post, new_key};
use crate::support::cluster;

fn completing(config: &mut Config) {
    config.roles.completer = true;
    config.completer.grace = Duration::from_millis(100);
    config.completer.retry_after = Duration::from_millis(10);
}

#[tokio::test]
async fn abandoned_requests_are_finished() {
    let app = TestApp::with(completing).await;
    for user in ["user@example.com", DECLINED_USER] {
        assert_eq!(app.post(Post::default().user(user).raising()).await.status, 500);
    }
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    app.until_count("idempotency_keys WHERE response_code = 402", 1).await;
    assert_eq!(app.charges().await.len(), 1);
}

#[tokio::test]
async fn a_client_that_returns_gets_the_completers_answer() {
    let app = TestApp::with(completing).await;
    let key = new_key();
    app.post(Post::default().key(&key).raising()).await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    let answer = app.post(Post::default().key(&key)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, true));
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn clients_within_their_grace_are_left_alone() {
    let app = TestApp::with(|config| {
        completing(config);
        config.completer.grace = Duration::from_secs(3600);
    })
    .await;
    app.post(Post::default().raising()).await;
    // The request past its grace is finished; by then the other has been seen and left.
    let key = new_key();
    app.post(Post::default().key(&key).raising()).await;
    app.execute(&format!("UPDATE idempotency_keys SET next_attempt_at = now() WHERE idempotency_key = '{key}'"))
        .await;
    app.until_count(&format!("idempotency_keys WHERE response_code = 201 AND idempotency_key = '{key}'"), 1).await;
    assert_eq!(app.count("idempotency_keys WHERE response_code IS NULL AND completer_attempts = 0").await, 1);
}

#[tokio::test]
async fn a_request_under_lease_is_left_alone() {
    let app = TestApp::with(completing).await;
    app.script(&["hold"]).await;
    let (held, ()) = tokio::join!(app.post(Post::default()), async {
        app.until_held().await;
        app.execute("UPDATE idempotency_keys SET next_attempt_at = now() - interval '1 hour'").await;
        // Another request is completed in the meantime, so the completer has looked.
        app.post(Post::default().raising()).await;
        app.until_count("idempotency_keys WHERE response_code = 201 AND completer_attempts = 1", 1).await;
        assert_eq!(app.count("idempotency_keys WHERE response_code IS NULL AND completer_attempts = 0").await, 1);
        app.release_held().await;
    });
    assert_eq!(held.status, 201);
    assert_eq!(app.charges().await.len(), 2);
}

#[tokio::test]
async fn a_hopeless_request_is_parked_and_can_be_tried_again() {
    let app = TestApp::with(|config| {
        completing(config);
        config.completer.max_attempts = 2;
        config.stripe_sandbox.faults.server_error = 1.0;
    })
    .await;
    let key = new_key();
    app.post(Post::default().key(&key).raising()).await;
    app.until_count("idempotency_keys WHERE parked_at IS NOT NULL AND completer_attempts = 2", 1).await;
    let parked = app.post(Post::default().key(&key)).await;
    assert_eq!((parked.status, parked.header("retry-after")), (503, Some("3600")), "{parked:?}");
    assert_eq!(app.count("idempotency_keys WHERE last_error LIKE '%status 500%'").await, 1);

    app.sandbox.call(hyper::Method::PUT, "/_sandbox/faults", "{}").await;
    let id: i64 = app.get("SELECT id FROM idempotency_keys").await;
    let database = crate::support::app::pool(&app.database_config).await;
    let retried = atomic_phases::idempotency::parked::retry(&database, &[id]).await.unwrap();
    assert_eq!(retried, [id]);
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn pauses_between_attempts_grow() {
    let app = TestApp::with(|config| {
        completing(config);
        config.completer.retry_after = Duration::from_secs(60);
        config.stripe_sandbox.faults.server_error = 1.0;
    })
    .await;
    app.post(Post::default().raising()).await;
    for (attempt, low, high) in [(1, 40, 76), (2, 85, 151), (3, 175, 301)] {
        let tried = format!("idempotency_keys WHERE completer_attempts = {attempt} AND lease_token IS NULL");
        app.until_count(&tried, 1).await;
        let pause: f64 =
            app.get("SELECT extract(epoch FROM next_attempt_at - last_run_at)::float8 FROM idempotency_keys").await;
        assert!((f64::from(low)..f64::from(high)).contains(&pause), "attempt {attempt}: {pause} s");
        app.execute("UPDATE idempotency_keys SET next_attempt_at = now()").await;
    }
}

#[tokio::test]
async fn two_completers_share_the_work() {
    let app = TestApp::start().await;
    for _ in 0..40 {
        app.post(Post::default().raising()).await;
    }
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now()").await;
    let completer = |config: &mut Config| {
        completing(config);
        config.roles.api = false;
        config.completer.concurrency = 4;
    };
    let (_one, _two) = tokio::join!(app.neighbour(completer), app.neighbour(completer));
    app.until_count("idempotency_keys WHERE response_code = 201", 40).await;
    assert_eq!(app.count("idempotency_keys WHERE completer_attempts = 1").await, 40);
    assert_eq!(app.charges().await.len(), 40);
}

#[tokio::test]
async fn a_row_that_another_session_has_locked_holds_up_no_other() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        assert_eq!(app.post(Post::default().raising()).await.status, 500);
    }
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now() - make_interval(secs => 100 - id)").await;
    let session = cluster::connect(&app.database_config).await;
    // The key that it would claim first.
    let lock = "SELECT FROM idempotency_keys ORDER BY next_attempt_at LIMIT 1 FOR UPDATE";
    session.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
    let _completer = app.neighbour(completing).await;
    app.until_count("idempotency_keys WHERE response_code = 201", 2).await;
    session.batch_execute("ROLLBACK").await.unwrap();
    app.until_count("idempotency_keys WHERE response_code = 201", 3).await;
    assert_eq!(app.charges().await.len(), 3);
}

/// Requests of a newer release wait for a process of that release, and delay no other request.
#[tokio::test]
async fn what_it_does_not_know_is_left_to_a_process_that_does() {
    let app = TestApp::start().await;
    let (known, newer) = (new_key(), new_key());
    for key in [&known, &newer] {
        assert_eq!(app.post(Post::default().key(key).raising()).await.status, 500);
    }
    // The newer release's key has been due for longer, and has used up its attempts.
    let unknown = format!("idempotency_keys WHERE idempotency_key = '{newer}'");
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now()").await;
    let change = "operation = 'newer', next_attempt_at = now() - interval '1 hour', completer_attempts = 1000";
    app.execute(&format!("UPDATE idempotency_keys SET {change} WHERE idempotency_key = '{newer}'")).await;
    let _completer = app
        .neighbour(|config| {
            completing(config);
            config.roles.api = false;
        })
        .await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    let left = "response_code IS NULL AND parked_at IS NULL AND completer_attempts = 1000";
    assert_eq!(app.count(&format!("{unknown} AND {left}")).await, 1);
    let answer = app.post(Post::default().key(&newer)).await;
    assert_eq!(answer.status, 409, "to this process it is another request: {answer:?}");
    let change = "operation = 'ride', completer_attempts = 0";
    app.execute(&format!("UPDATE idempotency_keys SET {change} WHERE idempotency_key = '{newer}'")).await;
    app.until_count("idempotency_keys WHERE response_code = 201", 2).await;
}
