//! Two sessions and one key: whatever happens between a statement's read and its write, one of them is first, and the
//! other gets the result of that.
//!
//! One of them is a session that has written and not committed yet, so that each race has one outcome. What may happen
//! between a look-up and the take-over that follows is a case of [`batches`](crate::batches).

use std::time::Duration;

use atomic_phases::idempotency::Request;
use atomic_phases::idempotency::claim::RetryPolicy;
use atomic_phases::idempotency::open::Opened;
use atomic_phases::idempotency::settle::release;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::app::{TestApp, pool};
use crate::support::client::{Post, new_key};
use crate::support::keys::{GRACE, LOCK, ask, claim, finish, lease, request};
use crate::support::{cluster, eventually};

/// Opens a session that has written and not committed.
async fn session(app: &TestApp, sql: &str) -> Client {
    let session = cluster::connect(&app.database_config).await;
    session.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    session
}

/// Waits until a statement of the program waits for that session.
async fn until_it_waits(app: &TestApp) {
    let waiting = "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("a statement waits", async || (app.count(waiting).await > 0).then_some(())).await;
}

/// Returns the SQL of the same request's first use by another process.
fn insert(request: &Request<Value>) -> String {
    let (key, params) = (request.key.as_str(), &request.params);
    format!(
        "INSERT INTO idempotency_keys (operation, recovery_point, step, state, user_id, idempotency_key, request_method,
             request_path, request_params, origin_ip, lease_token, locked_at, next_attempt_at)
         VALUES ('plain', 'opened', 1, '{{}}', 1, '{key}', 'POST', '/plain', '{params}', '127.0.0.1', gen_random_uuid(),
             now(), now())"
    )
}

#[tokio::test]
async fn of_two_first_uses_the_second_is_told_of_the_first() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    for (end, won) in [("COMMIT", false), ("ROLLBACK", true)] {
        let request = request(&new_key());
        let first = session(&app, &insert(&request)).await;
        let (told, ()) = tokio::join!(ask(&database, &request), async {
            until_it_waits(&app).await;
            first.batch_execute(end).await.unwrap();
        });
        match told {
            Opened::Lease(_) => assert!(won),
            Opened::InProgress { .. } => assert!(!won),
            other => panic!("{other:?}"),
        }
        let key = request.key.as_str();
        assert_eq!(app.count(&format!("idempotency_keys WHERE idempotency_key = '{key}'")).await, 1);
    }
}

#[tokio::test]
async fn a_first_use_that_was_finished_meanwhile_is_replayed() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let key = request.key.as_str();
    let other = session(
        &app,
        &format!(
            "{}; UPDATE idempotency_keys SET recovery_point = 'finished', step = 32767, response_code = 402,
                 response_body = '{{\"by\": \"another\"}}', lease_token = NULL, locked_at = NULL
             WHERE idempotency_key = '{key}'",
            insert(&request)
        ),
    )
    .await;
    let (told, ()) = tokio::join!(ask(&database, &request), async {
        until_it_waits(&app).await;
        other.batch_execute("COMMIT").await.unwrap();
    });
    let Opened::Finished { response, .. } = told else { panic!("{told:?}") };
    assert_eq!((response.code, response.body.as_str()), (402, r#"{"by": "another"}"#));
}

/// The client gets the answer with its own status, and not an error.
#[tokio::test]
async fn an_answer_stored_just_before_the_take_over_is_what_the_client_gets() {
    let app = TestApp::start().await;
    let key = new_key();
    assert_eq!(app.post(Post::default().key(&key).raising()).await.status, 500);
    let finish = "UPDATE idempotency_keys SET recovery_point = 'finished', step = 32767, response_code = 402,
                      response_body = '{\"error\": \"declined\"}', last_error = NULL";
    let other = session(&app, finish).await;
    let (answer, ()) = tokio::join!(app.post(Post::default().key(&key)), async {
        until_it_waits(&app).await;
        other.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!((answer.status, answer.is_replay()), (402, true), "{answer:?}");
    assert_eq!(app.charges().await.len(), 0);
}

#[tokio::test]
async fn a_key_reaped_just_before_the_take_over_is_a_new_one() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let held = lease(&database, &request).await;
    release(&database, &held, "for a test").await.unwrap();
    let gone = "UPDATE idempotency_keys SET recovery_point = 'finished', step = 32767, response_code = 201,
                    response_body = '{}';
                DELETE FROM idempotency_keys";
    let reaper = session(&app, gone).await;
    let (told, ()) = tokio::join!(ask(&database, &request), async {
        until_it_waits(&app).await;
        reaper.batch_execute("COMMIT").await.unwrap();
    });
    let Opened::Lease(lease) = told else { panic!("{told:?}") };
    assert_eq!(lease.attempts, 1);
    assert_ne!(lease.foreign_call.key, held.foreign_call.key);
}

/// A client's take-over and the completer's claim of one key: only one of them gets the lease.
#[tokio::test]
async fn what_a_client_is_taking_over_the_completer_leaves_alone() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let held = lease(&database, &request(&new_key())).await;
    release(&database, &held, "for a test").await.unwrap();
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now() - interval '1 hour'").await;
    let take_over = "UPDATE idempotency_keys SET lease_token = gen_random_uuid(), locked_at = now()";
    let client = session(&app, take_over).await;
    let policy = RetryPolicy { lock_timeout: LOCK, retry_after: GRACE, max_attempts: 3 };
    let claims = claim(&database, 10, &policy).await.unwrap();
    assert!(claims.claimed.is_empty() && claims.parked.is_empty());
    client.batch_execute("COMMIT").await.unwrap();
    assert!(claim(&database, 10, &policy).await.unwrap().claimed.is_empty(), "the lease is respected");
}

/// An attempt that has lost its lease while its last statement was on its way writes nothing.
#[tokio::test]
async fn a_lease_lost_just_before_the_end_ends_nothing() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let held = lease(&database, &request(&new_key())).await;
    let take_over = "UPDATE idempotency_keys SET lease_token = gen_random_uuid(), locked_at = now(), attempts = 2";
    let other = session(&app, take_over).await;
    let response = atomic_phases::idempotency::Response::new(201, "{}");
    let (finished, ()) = tokio::join!(finish(&database, &held, &response, &[]), async {
        until_it_waits(&app).await;
        other.batch_execute("COMMIT").await.unwrap();
    });
    assert!(!finished.unwrap());
    assert_eq!(app.count("idempotency_keys WHERE attempts = 2 AND response_code IS NULL").await, 1);
}

/// Two processes get many requests with one key at once: there is one ride.
#[tokio::test]
async fn two_processes_and_one_key_make_one_ride() {
    let app = TestApp::start().await;
    let neighbour = app.neighbour(|_| {}).await;
    let key = new_key();
    let posts = (0..20).map(|n| {
        let process = if n % 2 == 0 { &app } else { &neighbour };
        let post = Post::default().key(&key);
        async move {
            eventually("an answer", async || {
                let answer = process.post(post.clone()).await;
                assert!(matches!(answer.status, 201 | 409), "{answer:?}");
                (answer.status == 201).then_some(())
            })
            .await;
        }
    });
    let deadline = Duration::from_secs(30);
    tokio::time::timeout(deadline, futures_util::future::join_all(posts)).await.expect("all are answered");
    app.assert_one_of_each().await;
}
