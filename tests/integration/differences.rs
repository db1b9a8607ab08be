//! The faults that were observed in the Ruby original, each with a test that this program does not have it.
//!
//! | the original | here |
//! |---|---|
//! | its enqueuer deletes jobs that it never enqueued (2,500 staged, 1,000 enqueued, 0 left) | `enqueuer::jobs_arrive_in_the_order_of_staging` |
//! | any error at Stripe becomes a final 503, though the card may be charged | `recovery::every_transient_outcome_at_stripe_is_retryable_and_charges_once` |
//! | a worker that outlives its lock repeats side effects | [`a_worker_that_outlives_its_lease_sends_no_second_receipt`] |
//! | unlocking does not check who holds the lock | `engine::a_stale_lease_writes_nothing` |
//! | a key of more than 100 characters is answered 500 for ever | `contract::keys_have_20_to_100_characters` |
//! | the reaper deletes unfinished and locked keys, and orphans their rides | `reaper::old_unfinished_keys_are_parked_and_never_removed`, `reaper::a_key_that_is_worked_on_is_left` |
//! | the completer picks hopeless keys again in every pass | `completer::pauses_between_attempts_grow`, `completer::a_hopeless_request_is_parked_and_can_be_tried_again` |
//! | the completer records itself as the origin | [`the_completer_records_the_clients_address`] |
//! | the call to Stripe holds a database transaction | [`charges_under_way_hold_no_connection`] |
//! | distinct keys get 409 under load | `load::ten_thousand_distinct_keys_from_32_connections_are_ten_thousand_rides` |

use std::net::IpAddr;

use crate::support::app::TestApp;
use crate::support::client::{Post, new_key};

#[tokio::test]
async fn a_worker_that_outlives_its_lease_sends_no_second_receipt() {
    let app = TestApp::start().await;
    let key = new_key();
    app.script(&["hold"]).await;
    let (api, post) = (app.api.clone(), Post::default().key(&key));
    let slow = tokio::spawn(async move { api.post(post).await });
    app.until_held().await;
    // Its lease runs out, and another worker takes the request up while Stripe still works on the first call.
    app.execute("UPDATE idempotency_keys SET locked_at = now() - interval '1 hour'").await;
    let in_use = app.post(Post::default().key(&key)).await;
    assert_eq!(in_use.status, 503, "Stripe still works on the first call: {in_use:?}");
    app.release_held().await;
    let slow = slow.await.unwrap();
    assert_eq!(slow.status, 409, "its fence is shut: {slow:?}");
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn the_completer_records_the_clients_address() {
    let app = TestApp::start().await;
    // A request that its client abandoned, from elsewhere.
    app.post(Post::default().raising()).await;
    app.execute("UPDATE audit_records SET origin_ip = '203.0.113.7'").await;
    app.execute("UPDATE idempotency_keys SET origin_ip = '203.0.113.7', next_attempt_at = now()").await;
    let _completer = app
        .neighbour(|config| {
            config.roles.api = false;
            config.roles.completer = true;
        })
        .await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    assert_eq!(app.get::<IpAddr>("SELECT origin_ip FROM audit_records").await, IpAddr::from([203, 0, 113, 7]));
}

#[tokio::test]
async fn charges_under_way_hold_no_connection() {
    let app = TestApp::with(|config| config.database.pool_size = 1).await;
    app.script(&["hold"; 8]).await;
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let api = app.api.clone();
        held.spawn(async move { api.post(Post::default()).await.status });
    }
    app.until_count("idempotency_keys WHERE recovery_point = 'ride_created'", 8).await;
    let open = "pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()";
    assert_eq!(app.count(open).await, 0, "open transactions");
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.release_held().await;
    assert!(held.join_all().await.iter().all(|status| *status == 201));
}
