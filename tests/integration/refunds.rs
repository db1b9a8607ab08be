//! `POST /rides/{id}/refund`: a paid ride is refunded once, whatever happens on the way.

use std::time::Duration;

use uuid::Uuid;

use super::receipts::receipts;
use crate::support::app::TestApp;
use crate::support::books::LIVE;
use crate::support::client::{DECLINED_USER, GOOD_USER, Post, new_key};

/// Books a ride that is paid, and returns its id.
async fn paid_ride(app: &TestApp) -> i64 {
    app.post(Post::default()).await.ride_id()
}

/// Asserts that the ride is refunded once, at Stripe and in the books.
async fn assert_refunded_once(app: &TestApp, ride_id: i64) {
    let (refunds, id) = (app.refunds().await, ride_id.to_string());
    let ours: Vec<_> = refunds.iter().filter(|refund| refund["metadata"]["ride_id"] == id.as_str()).collect();
    assert_eq!(ours.len(), 1, "{refunds:?}");
    let sql = "SELECT stripe_refund_id FROM refunds WHERE ride_id = $1";
    let rows = app.query(sql, &[&ride_id]).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(ours[0]["id"], rows[0].get::<_, &str>(0));
    let job =
        format!("staged_jobs WHERE job_name = 'send_refund_receipt' AND job_args ->> 'ride_id' = '{ride_id}'");
    assert_eq!(app.count(&job).await, 1);
    let report = app.verify(LIVE).await;
    assert!(report.violated().is_empty(), "{report}");
}

#[tokio::test]
async fn a_paid_ride_is_refunded_once_and_every_repetition_is_told_so() {
    let app = TestApp::start().await;
    let booked = Post::default();
    let answer = app.post(booked.clone()).await;
    let ride_id = answer.ride_id();
    assert_eq!(app.post(booked).await.ride_id(), ride_id, "a replay says where the ride is, too");

    let refund = Post::refund(ride_id);
    let first = app.post(refund.clone()).await;
    assert_eq!((first.status, first.is_replay()), (201, false), "{first:?}");
    let again = app.post(refund).await;
    assert_eq!((again.status, again.is_replay(), &again.body), (201, true, &first.body));
    assert_refunded_once(&app, ride_id).await;

    let other = app.post(Post::refund(ride_id)).await;
    assert_eq!((other.status, other.header("retry-after")), (409, None), "{other:?}");
    assert!(other.error().contains("refunded already"), "{other:?}");
    assert_refunded_once(&app, ride_id).await;
}

#[tokio::test]
async fn what_cannot_be_refunded_is_refused_and_leaves_nothing_behind() {
    let app = TestApp::start().await;
    let ride_id = paid_ride(&app).await;
    assert_eq!(app.post(Post::default().user(DECLINED_USER)).await.status, 402);
    let declined: i64 = app.get("SELECT id FROM rides WHERE stripe_charge_id IS NULL").await;
    let keys = app.count("idempotency_keys").await;
    for (post, status) in [
        (Post::refund(ride_id).user(DECLINED_USER), 404),
        (Post::refund(ride_id + 1000), 404),
        (Post::refund(declined).user(DECLINED_USER), 409),
        (Post::refund(ride_id).without("idempotency-key"), 400),
        (Post::refund(ride_id).without("authorization"), 401),
        (Post { path: "/rides/x/refund".into(), ..Post::refund(1) }, 404),
        (Post { path: "/rides/01/refund".into(), ..Post::refund(1) }, 404),
    ] {
        let answer = app.post(post).await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let other = app.post(Post::refund(ride_id).user(DECLINED_USER)).await;
    let none = app.post(Post::refund(ride_id + 1000)).await;
    assert_eq!(other.body, none.body, "the answer does not show that another user has this ride");
    assert_eq!(app.count("idempotency_keys").await, keys);
    assert_eq!((app.refunds().await.len(), app.count("refunds").await), (0, 0));
}

#[tokio::test]
async fn one_key_is_good_for_one_request_of_one_operation() {
    let app = TestApp::start().await;
    let (one, other) = (paid_ride(&app).await, paid_ride(&app).await);
    let key = new_key();
    assert_eq!(app.post(Post::refund(one).key(&key)).await.status, 201);
    for post in [Post::refund(other).key(&key), Post::default().key(&key)] {
        let answer = app.post(post).await;
        assert_eq!((answer.status, answer.header("retry-after")), (409, None), "{answer:?}");
        assert!(answer.error().contains("other parameters"), "{answer:?}");
    }
    assert_eq!((app.count("refunds").await, app.count("rides").await), (1, 2));
}

/// While the ride's own request is unfinished there is nothing to refund yet; afterwards the same request refunds it.
#[tokio::test]
async fn a_ride_that_is_being_paid_is_not_refunded_yet() {
    let app = TestApp::start().await;
    let (key, refund_key) = (new_key(), new_key());
    app.script(&["reply_lost"]).await;
    assert_eq!(app.post(Post::default().key(&key)).await.status, 503);
    let ride_id: i64 = app.get("SELECT id FROM rides").await;
    let early = app.post(Post::refund(ride_id).key(&refund_key)).await;
    assert_eq!(early.status, 409, "{early:?}");
    assert!(early.error().contains("not paid"), "{early:?}");
    assert_eq!(app.post(Post::default().key(&key)).await.status, 201);
    assert_eq!(app.post(Post::refund(ride_id).key(&refund_key)).await.status, 201);
    assert_refunded_once(&app, ride_id).await;
}

#[tokio::test]
async fn of_many_keys_at_once_one_refunds_the_ride() {
    let app = TestApp::start().await;
    let ride_id = paid_ride(&app).await;
    let posts = (0..20).map(|_| app.post(Post::refund(ride_id)));
    let answers = futures_util::future::join_all(posts).await;
    let with = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((with(201), with(409)), (1, 19), "{answers:?}");
    let told =
        answers.iter().filter(|answer| answer.status == 409 && answer.header("retry-after").is_none()).count();
    assert_eq!(told, 19, "to try again would not help: {answers:?}");
    assert_refunded_once(&app, ride_id).await;
}

/// Faults after which only the retry decides whether the charge is refunded.
#[tokio::test]
async fn every_transient_outcome_at_stripe_is_retryable_and_refunds_once() {
    let app = TestApp::with(|config| config.stripe.timeout = Duration::from_millis(300)).await;
    for fault in [
        "reset",
        "server_error",
        "rate_limited",
        "bad_request",
        "unauthorized",
        "forbidden",
        "charged_then_server_error",
        "reply_lost",
        "truncated",
        "slow_reply",
        "no_id",
    ] {
        let ride_id = paid_ride(&app).await;
        let key = new_key();
        app.script(&[fault]).await;
        let failed = app.post(Post::refund(ride_id).key(&key)).await;
        assert_eq!((failed.status, failed.header("retry-after")), (503, Some("5")), "{fault}: {failed:?}");
        crate::support::eventually(fault, async || {
            let answer = app.post(Post::refund(ride_id).key(&key)).await;
            assert!(answer.status == 201 || answer.status == 503, "{fault}: {answer:?}");
            (answer.status == 201).then_some(())
        })
        .await;
        assert_refunded_once(&app, ride_id).await;
    }
}

/// Stripe has forgotten the key, or a person has refunded the charge: in both cases there is one refund, and it is
/// recorded.
#[tokio::test]
async fn a_refund_that_stripe_has_already_is_adopted() {
    let app = TestApp::start().await;
    for days in [false, true] {
        let ride_id = paid_ride(&app).await;
        let key = new_key();
        app.script(&["reply_lost"]).await;
        assert_eq!(app.post(Post::refund(ride_id).key(&key)).await.status, 503);
        app.forget().await;
        if days {
            app.execute("UPDATE idempotency_keys SET foreign_call_intended_at = now() - interval '2 days'").await;
        }
        assert_eq!(app.post(Post::refund(ride_id).key(&key)).await.status, 201);
        assert_refunded_once(&app, ride_id).await;
    }
}

#[tokio::test]
async fn a_pending_refund_waits_for_a_person_and_then_for_what_became_of_it() {
    let app = TestApp::start().await;
    let ride_id = paid_ride(&app).await;
    let key = new_key();
    app.script(&["pending"]).await;
    assert_eq!(app.post(Post::refund(ride_id).key(&key)).await.status, 503);
    app.execute("UPDATE idempotency_keys SET foreign_call_intended_at = now() - interval '2 days'").await;
    let parked = app.post(Post::refund(ride_id).key(&key)).await;
    assert_eq!((parked.status, parked.header("retry-after")), (503, Some("3600")), "{parked:?}");
    assert_eq!(app.count("idempotency_keys WHERE parked_at IS NOT NULL AND operation = 'refund'").await, 1);
    app.settle_charges("succeeded").await;
    app.execute("UPDATE idempotency_keys SET parked_at = NULL, parked_reason = NULL WHERE parked_at IS NOT NULL")
        .await;
    assert_eq!(app.post(Post::refund(ride_id).key(&key)).await.status, 201);
    assert_refunded_once(&app, ride_id).await;
}

/// Stripe may give a refund up days later. The money has not gone back, so it is sent again.
#[tokio::test]
async fn a_refund_that_failed_in_the_end_is_made_again() {
    let app = TestApp::start().await;
    let ride_id = paid_ride(&app).await;
    let refund = Post::refund(ride_id);
    // The third attempt finds both that failed, on a page each.
    app.list_by(1).await;
    for _ in 0..2 {
        app.script(&["pending"]).await;
        assert_eq!(app.post(refund.clone()).await.status, 503);
        app.execute("UPDATE idempotency_keys SET foreign_call_intended_at = now() - interval '2 days'").await;
        app.settle_charges("failed").await;
        app.forget().await;
    }
    assert_eq!(app.refunds().await.len(), 0);
    assert_eq!(app.post(refund).await.status, 201);
    assert_refunded_once(&app, ride_id).await;
}

#[tokio::test]
async fn the_completer_finishes_an_abandoned_refund_and_the_worker_sends_its_receipt() {
    let app = TestApp::with(|config| {
        config.roles.completer = true;
        config.completer.grace = Duration::from_millis(100);
        config.roles.enqueuer = true;
        config.roles.worker = true;
    })
    .await;
    let ride_id = paid_ride(&app).await;
    assert_eq!(app.post(Post::refund(ride_id).raising()).await.status, 500);
    app.until_count("idempotency_keys WHERE operation = 'refund' AND response_code = 201", 1).await;
    app.until_count("refund_receipts", 1).await;
    app.until_count("receipts", 1).await;
    let mails: Vec<String> =
        receipts(&app.config.receipts.dir).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let refund =
        mails.iter().find(|mail| mail.contains("Your refund for rocket ride")).expect("a mail of the refund");
    assert!(refund.contains("20.00 USD"), "{refund}");
    app.assert_sound().await;
}

#[tokio::test]
async fn each_refund_has_a_receipt_for_its_user() {
    let app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        config.roles.worker = true;
    })
    .await;
    let users = ["another@example.com", GOOD_USER];
    let customer = app.stripe().create_customer(users[0], "tok_visa", Uuid::new_v4()).await.unwrap();
    app.query("INSERT INTO users (email, stripe_customer_id) VALUES ($1, $2)", &[&users[0], &customer]).await;
    for (count, user) in (1..).zip(users) {
        let ride_id = app.post(Post::default().user(user)).await.ride_id();
        assert_eq!(app.post(Post::refund(ride_id).user(user)).await.status, 201);
        app.until_count("refund_receipts", count).await;
    }
    app.until_count("receipts", 2).await;
    let mails = receipts(&app.config.receipts.dir).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    let mails: Vec<String> = mails.collect();
    for (user, subject) in
        users.iter().flat_map(|user| [(user, "Your receipt for rocket"), (user, "Your refund for rocket")])
    {
        let to = format!("To: {user}");
        let theirs = mails.iter().filter(|mail| mail.contains(&to) && mail.contains(subject));
        assert_eq!(theirs.count(), 1, "{subject:?} to {user}: {mails:?}");
    }

    // What is recorded is not sent again.
    app.execute("INSERT INTO staged_jobs (job_name, job_args) SELECT job_name, job_args FROM jobs").await;
    app.until_count("jobs WHERE finished_at IS NOT NULL AND attempts = 1", 8).await;
    assert_eq!((app.count("refund_receipts").await, app.count("dead_jobs").await), (2, 0));
}

#[tokio::test]
async fn an_old_refund_is_reaped_like_any_request() {
    let app = TestApp::with(|config| config.roles.reaper = true).await;
    let ride_id = paid_ride(&app).await;
    assert_eq!(app.post(Post::refund(ride_id)).await.status, 201);
    app
        .execute("UPDATE idempotency_keys SET created_at = now() - interval '4 days', last_run_at = now() - interval '4 days'")
        .await;
    let app = app.restarted(|_| {}).await;
    app.until_count("idempotency_keys", 0).await;
    assert_eq!(app.post(Post::refund(ride_id)).await.status, 409, "the ride stays refunded");
    assert_eq!(app.refunds().await.len(), 1);
}

#[tokio::test]
async fn a_refund_of_a_charge_that_stripe_does_not_know_waits_for_a_person() {
    let app = TestApp::start().await;
    let ride_id = paid_ride(&app).await;
    let charge: String = app.get("SELECT stripe_charge_id FROM rides").await;
    app.execute("UPDATE rides SET stripe_charge_id = 'ch_forgotten'").await;
    let refund = Post::refund(ride_id);
    assert_eq!(app.post(refund.clone()).await.status, 503);
    let _completer = app
        .neighbour(|config| {
            config.roles.api = false;
            config.roles.completer = true;
            config.completer.max_attempts = 1;
            config.completer.retry_after = Duration::from_millis(10);
        })
        .await;
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now() WHERE response_code IS NULL").await;
    app.until_count("idempotency_keys WHERE operation = 'refund' AND parked_at IS NOT NULL", 1).await;
    assert_eq!(app.post(refund).await.status, 503);
    let error: String = app.get("SELECT last_error FROM idempotency_keys WHERE operation = 'refund'").await;
    assert!(error.contains("Stripe refused the refund") && error.contains("ch_forgotten"), "{error}");
    assert_eq!(app.refunds().await.len(), 0);
    app.execute(&format!("UPDATE rides SET stripe_charge_id = '{charge}'")).await;
    let report = app.verify(LIVE).await;
    assert!(report.violated().is_empty(), "{report}");
}
