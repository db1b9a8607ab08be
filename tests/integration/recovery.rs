//! Recovery: a request is resumed from wherever it stopped, whatever the outcome of its charge.

use std::time::Duration;

use crate::support::app::TestApp;
use crate::support::client::{Post, new_key};
use crate::support::eventually;

/// Leaves a request as a process does that is killed during the call to Stripe: with a lease that no process uses, and
/// with a charge that no process knows of.
async fn stopped_at_its_charge(app: &TestApp, key: &str) {
    const ORPHANED: &str = "lease_token = gen_random_uuid(), locked_at = now() - interval '1 hour'";
    app.script(&["hold"]).await;
    let (api, post) = (app.api.clone(), Post::default().key(key));
    let client = tokio::spawn(async move { api.try_post(post).await });
    app.until_held().await;
    app.execute(&format!("UPDATE idempotency_keys SET {ORPHANED}")).await;
    app.release_held().await;
    // The fence refuses the attempt that lost its lease.
    let answer = client.await.unwrap().unwrap();
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(app.count("rides WHERE stripe_charge_id IS NOT NULL").await, 0);
}

#[tokio::test]
async fn a_client_resumes_where_the_last_attempt_stopped() {
    let app = TestApp::start().await;
    let key = new_key();
    stopped_at_its_charge(&app, &key).await;
    let answer = app.post(Post::default().key(&key)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    assert_eq!(app.count("idempotency_keys WHERE attempts = 2 AND lease_token IS NULL").await, 1);
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn so_does_the_completer() {
    let app = TestApp::start().await;
    stopped_at_its_charge(&app, &new_key()).await;
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now()").await;
    let _completer = app
        .neighbour(|config| {
            config.roles.api = false;
            config.roles.completer = true;
        })
        .await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    app.assert_one_of_each().await;
}

/// Faults after which only the retry decides whether the card is charged.
#[tokio::test]
async fn every_transient_outcome_at_stripe_is_retryable_and_charges_once() {
    let app = TestApp::with(|config| config.stripe.timeout = Duration::from_millis(300)).await;
    for (fault, charged) in [
        ("reset", false),
        ("server_error", false),
        ("rate_limited", false),
        ("bad_request", false),
        ("unauthorized", false),
        ("forbidden", false),
        ("charged_then_server_error", true),
        ("reply_lost", true),
        ("truncated", true),
        ("slow_reply", true),
        ("no_id", true),
    ] {
        let key = new_key();
        let before = app.charges().await.len();
        app.script(&[fault]).await;
        let failed = app.post(Post::default().key(&key)).await;
        assert_eq!((failed.status, failed.header("retry-after")), (503, Some("5")), "{fault}: {failed:?}");
        let released =
            "idempotency_keys WHERE response_code IS NULL AND lease_token IS NULL AND last_error IS NOT NULL";
        assert_eq!(app.count(released).await, 1, "{fault}");
        if charged {
            assert_eq!(app.charges().await.len(), before + 1, "{fault}");
        }
        // While a charge is in flight its key is in use, perhaps until the deadline of the repetition.
        eventually(fault, async || {
            let answer = app.post(Post::default().key(&key)).await;
            assert!(answer.status == 201 || answer.status == 503, "{fault}: {answer:?}");
            (answer.status == 201).then_some(())
        })
        .await;
        assert_eq!(app.charges().await.len(), before + 1, "{fault}: one charge");
    }
}

/// The sender of the first call may have died before its answer.
#[tokio::test]
async fn a_key_that_is_still_in_use_at_stripe_is_waited_for() {
    let app = TestApp::start().await;
    app.script(&["conflict", "conflict"]).await;
    let answer = app.post(Post::default()).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    app.assert_one_of_each().await;
    let ride_id = answer.ride_id();
    app.script(&["conflict", "conflict"]).await;
    assert_eq!(app.post(Post::refund(ride_id)).await.status, 201);
    assert_eq!(app.refunds().await.len(), 1);
}

#[tokio::test]
async fn a_stripe_that_cannot_be_reached_is_retryable() {
    let app = TestApp::start().await;
    let key = new_key();
    let unreachable = app.neighbour(|config| config.stripe.api_base = Some("http://127.0.0.1:9".into())).await;
    let failed = unreachable.post(Post::default().key(&key)).await;
    assert_eq!(failed.status, 503, "{failed:?}");
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_decline_by_the_bank_is_final() {
    let app = TestApp::start().await;
    app.script(&["declined"]).await;
    let key = new_key();
    assert_eq!(app.post(Post::default().key(&key)).await.status, 402);
    assert!(app.post(Post::default().key(&key)).await.is_replay());
    assert_eq!(app.charges().await.len(), 0);
}

#[tokio::test]
async fn a_charge_that_stripe_forgot_is_looked_up_and_adopted() {
    let app = TestApp::with(|config| config.stripe.key_retention = Duration::ZERO).await;
    let key = new_key();
    app.script(&["reply_lost"]).await;
    assert_eq!(app.post(Post::default().key(&key)).await.status, 503);
    app.forget().await;
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_charge_that_was_never_made_is_looked_up_and_made() {
    let app = TestApp::with(|config| config.stripe.key_retention = Duration::ZERO).await;
    let key = new_key();
    app.script(&["reset"]).await;
    assert_eq!(app.post(Post::default().key(&key)).await.status, 503);
    app.forget().await;
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn connections_that_closed_while_idle_fail_no_request() {
    let app = TestApp::start().await;
    let others = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for _ in 0..5 {
        // Side by side, so that the pool holds several connections.
        let posts = (0..8).map(|_| app.post(Post::default()));
        let answers = futures_util::future::join_all(posts).await;
        assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
        app.query(&format!("SELECT pg_terminate_backend(pid) FROM {others}"), &[]).await;
        app.until_count(others, 0).await;
    }
}

#[tokio::test]
async fn the_first_intent_is_kept() {
    let app = TestApp::start().await;
    let key = new_key();
    app.post(Post::default().key(&key).raising()).await;
    app.execute("UPDATE idempotency_keys SET foreign_call_intended_at = now() - interval '2 days'").await;
    app.script(&["reset"]).await;
    app.post(Post::default().key(&key)).await;
    assert_eq!(app.count("idempotency_keys WHERE foreign_call_intended_at < now() - interval '47 hours'").await, 1);
}

#[tokio::test]
async fn every_request_has_a_stripe_key_of_its_own() {
    let app = TestApp::start().await;
    for _ in 0..3 {
        assert_eq!(app.post(Post::default()).await.status, 201);
    }
    let keys = app.query("SELECT foreign_call_key::text FROM idempotency_keys", &[]).await;
    let keys: Vec<String> = keys.iter().map(|row| row.get(0)).collect();
    for charge in app.charges().await {
        let used = charge["metadata"]["idempotency_key"].as_str().unwrap();
        assert!(keys.iter().any(|key| key == used));
    }
}
