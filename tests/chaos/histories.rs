//! Random histories of charges whose outcome is unknown.
//!
//! Each key is repeated until its answer is final, while Stripe fails in every way that it has, workers lose their
//! leases at any moment (which, seen from the database and from Stripe, is a crash), and, for half of the keys, Stripe
//! forgets every idempotency key between two attempts, as it does a day later. In the end the books must agree.
//!
//! `CHAOS_HISTORIES` sets how many keys; `CHAOS_SEED` replays a run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::kind::ride;
use crate::support::app::TestApp;
use crate::support::books::AT_REST;
use crate::support::client::{Answer, Http, Post};
use crate::{number, say, seed};

/// Keys repeated side by side.
const BATCH: usize = 250;
/// A history that is not over after this many attempts never ends: about one attempt in three is final.
const ATTEMPTS: usize = 100;
/// The client's deadline at Stripe; a slow reply is slower.
const STRIPE_TIMEOUT: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_history_of_ambiguous_charges_doubles_or_orphans_one() {
    let (histories, seed) = (number("CHAOS_HISTORIES", 2000), seed());
    let began = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    // Keys that Stripe remembers, and keys that it may have forgotten: `older` looks every charge up before it makes
    // one.
    let younger = TestApp::with(|config| {
        config.stripe.timeout = STRIPE_TIMEOUT;
        config.roles.enqueuer = true;
    })
    .await;
    let older = younger
        .neighbour(|config| {
            config.stripe.key_retention = Duration::ZERO;
            // A look-up reads several pages, and hundreds of them run side by side.
            config.stripe.timeout = Duration::from_secs(5);
        })
        .await;
    misbehave(&younger, &mut rng).await;

    let (mut attempts, mut refunds) = (0, 0);
    for batch in 0..histories.div_ceil(BATCH) {
        let keys = BATCH.min(histories - batch * BATCH);
        let forgetful = batch % 2 == 1;
        let app = if forgetful { &older } else { &younger };
        let user = new_user(&younger, batch).await;
        let post = |n| Post::default().user(&user).key(&format!("history-{seed:020}-{batch}-{n}"));
        let posts = (0..keys).map(post).collect();
        let forgets = forgetful.then_some(&younger);
        let booked = run(app, posts, forgets, &mut rng).await;
        // Every second paid ride is refunded, under the same faults.
        let paid = booked.answers.iter().filter(|answer| answer.status == 201).step_by(2).map(ride);
        let refund = |ride| Post::refund(ride).user(&user);
        let posts: Vec<Post> = paid.map(refund).collect();
        refunds += posts.len();
        attempts += booked.attempts + run(app, posts, forgets, &mut rng).await.attempts;
    }
    younger.until_count("staged_jobs", 0).await;
    let report = younger.verify(AT_REST).await;
    assert!(report.violated().is_empty(), "seed {seed}: {report}");
    let (charged, declined) =
        (younger.charges().await.len(), younger.count("idempotency_keys WHERE response_code = 402").await);
    assert_eq!(charged + usize::try_from(declined).unwrap(), histories, "seed {seed}");
    assert_eq!(younger.refunds().await.len(), refunds, "seed {seed}");
    say(&format!(
        "histories: {histories} keys, {attempts} attempts, {charged} charged once, {declined} declined, \
         {refunds} refunded once, 0 double or orphan charges or refunds, seed {seed}, {:.1} s",
        began.elapsed().as_secs_f64()
    ));
}

/// Creates a user with its own customer: the list of one customer's charges must not grow too long.
async fn new_user(app: &TestApp, batch: usize) -> String {
    let email = format!("history-{batch}@example.com");
    let stripe = app.stripe();
    let customer = stripe.create_customer(&email, "tok_visa", Uuid::new_v4()).await.unwrap();
    let sql = format!("INSERT INTO users (email, stripe_customer_id) VALUES ('{email}', '{customer}')");
    app.execute(&sql).await;
    email
}

/// Turns on every fault of the sandbox; about one attempt in three goes well.
async fn misbehave(app: &TestApp, rng: &mut StdRng) {
    let faults = json!({
        "seed": rng.random::<u32>(), "slow_reply_delay": "400ms",
        "reset": 0.06, "server_error": 0.06, "rate_limited": 0.04, "conflict": 0.04, "bad_request": 0.03,
        "unauthorized": 0.03, "forbidden": 0.03, "declined": 0.08, "charged_then_server_error": 0.08,
        "reply_lost": 0.08, "truncated": 0.08, "slow_reply": 0.02, "no_id": 0.08,
    });
    let answer = app.sandbox.call(hyper::Method::PUT, "/_sandbox/faults", &faults.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The results of histories.
#[derive(Default)]
struct Ended {
    attempts: usize,
    answers: Vec<Answer>,
}

/// Repeats these requests, round by round, until each has its final answer. `forgetful` has the sandbox that forgets
/// its keys between the rounds.
async fn run(app: &TestApp, mut open: Vec<Post>, forgetful: Option<&TestApp>, rng: &mut StdRng) -> Ended {
    let mut ended = Ended::default();
    for _ in 0..ATTEMPTS {
        ended.attempts += open.len();
        let thief = steal_leases(app, rng.random_range(0.0..0.2));
        let round = async {
            let mut clients = JoinSet::new();
            for post in open {
                let api: Http = app.api.clone();
                clients.spawn(async move { (api.try_post(post.clone()).await.ok(), post) });
            }
            clients.join_all().await
        };
        let (answers, ()) = tokio::join!(round, thief);
        open = Vec::new();
        for (answer, post) in answers {
            match answer.filter(is_final) {
                Some(answer) => ended.answers.push(answer),
                None => open.push(post),
            }
        }
        if open.is_empty() {
            return ended;
        }
        // A lease with a stolen token is made to run out, as it would some time after a crash.
        app.execute(
            "UPDATE idempotency_keys SET locked_at = now() - interval '1 hour' WHERE locked_at IS NOT NULL",
        )
        .await;
        if let Some(sandbox) = forgetful {
            // No call is in flight here: Stripe forgets a key a day after its first use, not during a call.
            sandbox.forget().await;
        }
    }
    panic!("{} of the histories do not end", open.len());
}

/// Returns whether the history is over. A request without an answer is repeated, too: an idle connection may end just
/// when the next request is on its way.
fn is_final(answer: &Answer) -> bool {
    assert!(matches!(answer.status, 201 | 402 | 409 | 503), "{answer:?}");
    matches!(answer.status, 201 | 402)
}

/// Replaces the token of this share of all leases, at whatever step their holders are.
async fn steal_leases(app: &TestApp, share: f64) {
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let sql = format!(
            "UPDATE idempotency_keys SET lease_token = gen_random_uuid()
             WHERE id IN (SELECT id FROM idempotency_keys
                          WHERE response_code IS NULL AND lease_token IS NOT NULL AND random() < {share}
                          FOR UPDATE SKIP LOCKED)"
        );
        app.execute(&sql).await;
    }
}
