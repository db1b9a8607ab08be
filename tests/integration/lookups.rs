//! Charges whose keys Stripe may have forgotten: each is looked up before it is made, among any number of charges of
//! any age and order, and made only if the lease leaves time for the call.

use std::time::Duration;

use atomic_phases::clock::Clock;
use atomic_phases::database::Database;
use atomic_phases::idempotency::claim::RetryPolicy;
use atomic_phases::idempotency::{Answer, Engine, Executor, Lease, Request, Stop, parked};
use rocket_rides_atomic::rides::{PRICE, RideParams, Rides};
use rocket_rides_atomic::stripe::{self, ChargeOutcome, ChargeRequest};
use rocket_rides_atomic::users;
use uuid::Uuid;

use crate::support::app::{TestApp, pool};
use crate::support::books::LIVE;
use crate::support::client::{self, GOOD_USER, Post, new_key};
use crate::support::keys::{claim, engine, expect_lease, ride_request, rides};

/// Longer than a test.
const HOUR: Duration = Duration::from_secs(3600);
/// Hours after which Stripe has forgotten the key of any charge.
const FORGOTTEN: u32 = 26;
/// How far a look-up reaches back beyond the intent, in seconds: Stripe's clock is not the database's.
const MARGIN: i64 = 600;

/// Pays for a ride but loses Stripe's reply, and returns the client's key.
async fn unheard(app: &TestApp, email: &str) -> String {
    let key = new_key();
    app.script(&["reply_lost"]).await;
    let answer = app.post(Post::default().user(email).key(&key)).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    key
}

/// Moves the times of charges back by this many hours, both at Stripe and in the database.
async fn hours_pass(app: &TestApp, hours: u32) {
    app.age_stripe(&format!("{hours}h")).await;
    let sql = format!(
        "UPDATE idempotency_keys SET foreign_call_intended_at = foreign_call_intended_at - interval '{hours} hours'"
    );
    app.execute(&sql).await;
}

async fn again(app: &TestApp, key: &str) -> client::Answer {
    app.post(Post::default().key(key)).await
}

/// Asserts that this many rides are paid, each by its own charge, and that nothing else was charged.
async fn assert_each_paid_once(app: &TestApp, rides: usize) {
    let charges = app.charges().await;
    let paid = app.query("SELECT id, stripe_charge_id FROM rides WHERE stripe_charge_id IS NOT NULL", &[]).await;
    assert_eq!((paid.len(), charges.len()), (rides, rides));
    for ride in paid {
        let (ride_id, charge_id): (i64, &str) = (ride.get(0), ride.get(1));
        let charge = charges.iter().find(|charge| charge["id"] == charge_id).unwrap();
        assert_eq!(charge["metadata"]["ride_id"], ride_id.to_string());
    }
    let report = app.verify(LIVE).await;
    assert!(report.violated().is_empty(), "{report}");
}

/// Makes charges of the good user that belong to no ride.
async fn unrelated_charges(app: &TestApp, count: usize) {
    let user = users::find_by_email(&pool(&app.database_config).await, GOOD_USER).await.unwrap().unwrap();
    let stripe = app.stripe();
    for _ in 0..count {
        let charge = ChargeRequest {
            amount: 100,
            currency: "usd".into(),
            customer: user.stripe_customer_id.clone(),
            description: "Something else".into(),
            ride_id: 0,
            idempotency_key: Uuid::new_v4(),
        };
        assert!(matches!(stripe.charge(&charge).await, ChargeOutcome::Charged { .. }));
    }
}

/// Asserts that the request with this key is parked, and that its answer says so.
async fn assert_parks(app: &TestApp, key: &str) {
    let answer = again(app, key).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("3600")), "{answer:?}");
    let waits = format!("idempotency_keys WHERE idempotency_key = '{key}' AND parked_at IS NOT NULL");
    assert_eq!(app.count(&waits).await, 1);
}

async fn retry_parked(app: &TestApp) {
    let database = pool(&app.database_config).await;
    let keys: Vec<i64> = parked::list(&database, 10).await.unwrap().iter().map(|parked| parked.key_id).collect();
    assert_eq!(parked::retry(&database, &keys).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_charge_of_days_ago_is_adopted() {
    let app = TestApp::start().await;
    for (count, hours) in [24, 47, 71].into_iter().enumerate() {
        let key = unheard(&app, GOOD_USER).await;
        hours_pass(&app, hours).await;
        let answer = again(&app, &key).await;
        assert_eq!((answer.status, answer.is_replay()), (201, false), "after {hours} h: {answer:?}");
        assert_each_paid_once(&app, count + 1).await;
    }
}

#[tokio::test]
async fn a_charge_of_days_ago_that_was_never_made_is_made_once() {
    let app = TestApp::start().await;
    let key = new_key();
    app.script(&["reset"]).await;
    assert_eq!(again(&app, &key).await.status, 503);
    hours_pass(&app, FORGOTTEN).await;
    unrelated_charges(&app, 3).await;
    hours_pass(&app, FORGOTTEN).await;
    assert_eq!(again(&app, &key).await.status, 201);
    let charges = app.charges().await;
    assert_eq!(charges.iter().filter(|charge| charge["metadata"]["ride_id"] != "0").count(), 1);
}

#[tokio::test]
async fn a_look_up_reaches_ten_minutes_behind_the_intent_and_no_further() {
    for (late, charges) in [(MARGIN, 1), (MARGIN + 1, 2)] {
        let app = TestApp::start().await;
        let key = unheard(&app, GOOD_USER).await;
        hours_pass(&app, FORGOTTEN).await;
        // Stripe counts whole seconds, so this is exact: the intent is `late` seconds after the charge.
        let made = app.charges().await[0]["created"].as_i64().unwrap();
        let late = format!("foreign_call_intended_at = to_timestamp({made} + {late})");
        app.execute(&format!("UPDATE idempotency_keys SET {late}")).await;
        assert_eq!(again(&app, &key).await.status, 201);
        assert_eq!(app.charges().await.len(), charges, "{late}");
    }
}

#[tokio::test]
async fn a_charge_is_looked_up_once_stripe_may_have_forgotten_its_key_and_not_before() {
    let app = TestApp::start().await;
    for (seconds, looks) in [(-10, false), (0, true)] {
        let key = unheard(&app, GOOD_USER).await;
        let age = format!("now() - interval '23 hours {seconds} seconds'");
        let sql =
            format!("UPDATE idempotency_keys SET foreign_call_intended_at = {age} WHERE response_code IS NULL");
        app.execute(&sql).await;
        // The list fails; Stripe still knows the key.
        app.script_lists(&["server_error"]).await;
        assert_eq!(again(&app, &key).await.status, if looks { 503 } else { 201 }, "at {seconds} s");
    }
}

#[tokio::test]
async fn fifty_pages_are_searched_and_a_longer_list_is_for_a_person() {
    let app = TestApp::start().await;
    for (newer, adopted) in [(49, true), (50, false)] {
        let key = unheard(&app, GOOD_USER).await;
        unrelated_charges(&app, newer).await;
        hours_pass(&app, FORGOTTEN).await;
        app.list_by(1).await;
        if adopted {
            assert_eq!(again(&app, &key).await.status, 201);
        } else {
            assert_parks(&app, &key).await;
        }
        app.list_by(100).await;
    }
    assert_eq!(app.count("rides WHERE stripe_charge_id IS NOT NULL").await, 1);
    assert_eq!(app.charges().await.len(), 49 + 50 + 2);
}

#[tokio::test]
async fn an_empty_page_that_is_not_the_last_decides_nothing() {
    let app = TestApp::start().await;
    app.list_by(1).await;
    for script in [&["empty_page"][..], &["none", "empty_page"]] {
        let key = unheard(&app, GOOD_USER).await;
        unrelated_charges(&app, 1).await;
        hours_pass(&app, FORGOTTEN).await;
        let before = app.charges().await.len();
        app.script_lists(script).await;
        assert_parks(&app, &key).await;
        retry_parked(&app).await;
        assert_eq!(again(&app, &key).await.status, 201, "once the list is whole");
        assert_eq!(app.charges().await.len(), before);
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_had_is_asked_for_again() {
    let app = TestApp::with(|config| config.stripe.timeout = Duration::from_millis(500)).await;
    for (count, fault) in ["reset", "server_error", "rate_limited", "hold"].into_iter().enumerate() {
        let key = unheard(&app, GOOD_USER).await;
        hours_pass(&app, FORGOTTEN).await;
        app.script_lists(&[fault]).await;
        let answer = again(&app, &key).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{fault}: {answer:?}");
        let released = "idempotency_keys WHERE response_code IS NULL AND lease_token IS NULL AND parked_at IS NULL";
        assert_eq!(app.count(released).await, 1, "{fault}");
        assert_eq!(app.charges().await.len(), count + 1, "{fault}: nothing is charged meanwhile");
        app.release_held().await;
        assert_eq!(again(&app, &key).await.status, 201, "{fault}");
        assert_each_paid_once(&app, count + 1).await;
    }
}

#[tokio::test]
async fn two_customers_and_one_second_are_told_apart() {
    const OTHER: &str = "other@example.com";
    let app = TestApp::start().await;
    let customer = app.stripe().create_customer(OTHER, "tok_visa", Uuid::new_v4()).await.unwrap();
    let sql = format!("INSERT INTO users (email, stripe_customer_id) VALUES ('{OTHER}', '{customer}')");
    app.execute(&sql).await;
    // Repeats until two charges of each customer are in the same second.
    let mut keys = Vec::new();
    loop {
        for email in [GOOD_USER, OTHER, GOOD_USER, OTHER] {
            keys.push((email, unheard(&app, email).await));
        }
        let charges = app.charges().await;
        if charges[..4].iter().all(|charge| charge["created"] == charges[0]["created"]) {
            break;
        }
    }
    hours_pass(&app, FORGOTTEN).await;
    app.list_by(1).await;
    for (email, key) in &keys {
        assert_eq!(app.post(Post::default().user(email).key(key)).await.status, 201);
    }
    assert_each_paid_once(&app, keys.len()).await;
}

#[tokio::test]
async fn a_pending_charge_waits_for_a_person_and_then_for_what_became_of_it() {
    for (status, charges) in [("succeeded", 1), ("failed", 0)] {
        let app = TestApp::start().await;
        let key = new_key();
        app.script(&["pending"]).await;
        for attempt in 1..=2 {
            let answer = again(&app, &key).await;
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{attempt}: {answer:?}");
        }
        hours_pass(&app, FORGOTTEN).await;
        assert_parks(&app, &key).await;
        app.settle_charges(status).await;
        assert_eq!(app.charges().await.len(), charges);
        retry_parked(&app).await;
        assert_eq!(again(&app, &key).await.status, 201, "{status}");
        assert_each_paid_once(&app, 1).await;
    }
}

/// A way to get a lease.
#[derive(Debug, Clone, Copy)]
enum Way {
    New,
    TakenOver,
    Claimed,
}

/// A ride's request that has not been made yet.
struct Asked {
    database: Database,
    stripe: stripe::Client,
    clock: Clock,
    request: Request<RideParams>,
}

impl Asked {
    async fn new(app: &TestApp) -> Self {
        let (database, request) = (pool(&app.database_config).await, ride_request(&new_key()));
        Self { database, stripe: app.stripe(), clock: Clock::default(), request }
    }

    /// Returns an executor that books it, with leases that last this long.
    fn rides(&self, lasts: Duration) -> Executor<Rides> {
        let engine = Engine { clock: self.clock.clone(), grace: HOUR, ..engine(&self.database, lasts) };
        rides(engine, self.stripe.clone(), HOUR)
    }

    /// Gets a lease on it that lasts this long.
    async fn lease(&self, app: &TestApp, way: Way, lasts: Duration) -> Lease {
        let abandon = format!(
            "UPDATE idempotency_keys SET locked_at = now() - interval '1 hour', next_attempt_at = now()
             WHERE idempotency_key = '{}'",
            self.request.key.as_str()
        );
        let opened = async |lasts| expect_lease(self.rides(lasts).open(&self.request).await.unwrap());
        match way {
            Way::New => opened(lasts).await,
            Way::TakenOver => {
                opened(HOUR).await;
                app.execute(&abandon).await;
                opened(lasts).await
            }
            Way::Claimed => {
                opened(HOUR).await;
                app.execute(&abandon).await;
                let policy = RetryPolicy { lock_timeout: lasts, retry_after: HOUR, max_attempts: 10 };
                let [claimed] = claim(&self.database, 10, &policy).await.unwrap().claimed.try_into().unwrap();
                claimed.lease
            }
        }
    }

    /// Resumes the request under this lease.
    async fn resume(&self, lease: Lease) -> Answer {
        let params = serde_json::to_value(self.request.params).unwrap();
        self.rides(HOUR).resume(lease, self.request.user_id, &params, self.request.origin_ip).await.answer
    }
}

#[tokio::test]
async fn however_a_lease_was_got_a_call_is_made_only_if_it_fits_into_it() {
    let app = TestApp::start().await;
    let mut made = 0;
    for way in [Way::New, Way::TakenOver, Way::Claimed] {
        for fits in [false, true] {
            let asked = Asked::new(&app).await;
            let call = app.stripe().timeout();
            let lease = asked.lease(&app, way, if fits { 3 * call } else { call }).await;
            let answer = asked.resume(lease).await;
            assert_eq!(matches!(answer, Answer::Done { .. }), fits, "{way:?}: {answer:?}");
            assert!(fits || matches!(answer, Answer::Stopped(Stop::LeaseLost)), "{way:?}: {answer:?}");
            made += usize::from(fits);
            assert_eq!(app.charges().await.len(), made, "{way:?}");
        }
    }
}

#[tokio::test]
async fn a_look_up_that_uses_the_lease_up_is_followed_by_no_charge() {
    let app = TestApp::start().await;
    let asked = Asked::new(&app).await;
    // The outcome of this charge is unknown; in truth it was not made.
    app.script(&["reset"]).await;
    let lease = asked.lease(&app, Way::New, HOUR).await;
    let answer = asked.resume(lease).await;
    assert!(matches!(answer, Answer::Stopped(Stop::Retry(_))), "{answer:?}");
    hours_pass(&app, FORGOTTEN).await;

    // When the look-up begins there is time for the call, and when it ends there is not.
    app.script_lists(&["hold"]).await;
    let lease = asked.lease(&app, Way::New, HOUR).await;
    let (answer, ()) = tokio::join!(asked.resume(lease), async {
        app.until_held().await;
        asked.clock.advance(HOUR);
        app.release_held().await;
    });
    assert!(matches!(answer, Answer::Stopped(Stop::LeaseLost)), "{answer:?}");
    assert_eq!(app.charges().await.len(), 0);
}

/// What is sent to Stripe is stored with the ride: a new price, another customer of the user and another wording affect
/// new rides only. Otherwise Stripe would refuse the repetition, or charge a second customer.
#[tokio::test]
async fn what_is_sent_is_the_same_in_every_attempt() {
    for forgotten in [false, true] {
        let app = TestApp::start().await;
        let asked = Asked::new(&app).await;
        app.script(&["reply_lost"]).await;
        let lease = asked.lease(&app, Way::New, HOUR).await;
        let answer = asked.resume(lease).await;
        assert!(matches!(answer, Answer::Stopped(Stop::Retry(_))), "{answer:?}");

        let customer = app.stripe().create_customer(GOOD_USER, "tok_visa", Uuid::new_v4()).await.unwrap();
        app.execute(&format!("UPDATE users SET stripe_customer_id = '{customer}' WHERE id = 1")).await;
        if forgotten {
            hours_pass(&app, FORGOTTEN).await;
            app.forget().await;
        }
        let engine = engine(&asked.database, HOUR);
        let dearer = Rides { stripe: app.stripe(), key_retention: HOUR, price: PRICE + 500 };
        let dearer = Executor::new(engine, dearer);
        let answer = dearer.execute(asked.request.clone()).await.answer;
        assert!(matches!(answer, Answer::Done { ref response, .. } if response.code == 201), "{answer:?}");
        let charges = app.charges().await;
        assert_eq!((charges.len(), charges[0]["amount"].as_i64()), (1, Some(PRICE.into())));
        assert_ne!(charges[0]["customer"], customer);
        let receipts = "staged_jobs WHERE job_args ->> 'amount' = '2000' AND job_args ->> 'currency' = 'usd'";
        assert_eq!(app.count(receipts).await, 1, "the receipt says what was charged");

        let answer = dearer.execute(ride_request(&new_key())).await.answer;
        assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        let newest = &app.charges().await[0];
        assert_eq!(
            (newest["amount"].as_i64(), &newest["customer"]),
            (Some((PRICE + 500).into()), &customer.into())
        );
    }
}
