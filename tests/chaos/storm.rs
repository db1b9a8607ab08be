//! Many clients at once, with one key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::kind::{Books, Kind};
use crate::say;
use crate::support::app::TestApp;
use crate::support::client::{Answer, Http, Post};

const CLIENTS: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_with_one_key_are_one_execution() {
    let app = TestApp::with(|config| config.roles.enqueuer = true).await;
    for kind in Kind::ALL {
        storm(&app, kind).await;
    }
    app.assert_sound().await;
}

async fn storm(app: &TestApp, kind: Kind) {
    let began = Instant::now();
    let (post, together) = (kind.request(app).await, Arc::new(Barrier::new(CLIENTS)));
    let before = Books::of(app).await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        // Each `Http` has its own connections.
        let (api, post) = (Http::new(app.api_address), post.clone());
        let together = Arc::clone(&together);
        clients.spawn(async move {
            assert_eq!(api.call(hyper::Method::GET, "/healthz", "").await.status, 200);
            together.wait().await;
            insist(&api, post).await
        });
    }
    let answers = clients.join_all().await;

    let retries: usize = answers.iter().map(|(_, retries)| retries).sum();
    let first_hand = answers.iter().filter(|(answer, _)| !answer.is_replay()).count();
    assert_eq!(first_hand, 1, "one execution");
    for (answer, _) in &answers {
        assert_eq!((answer.status, &answer.body), (201, &answers[0].0.body));
    }
    assert_eq!(app.count("idempotency_keys WHERE attempts > 1").await, 0);
    app.until_count("staged_jobs", 0).await;
    assert_eq!(Books::of(app).await, before + kind.leaves(true), "{kind:?}");
    say(&format!(
        "storm, {}: {CLIENTS} connections on one key, 1 execution, {} identical replays, {retries} times 409, no 5xx, \
         {:.1} s",
        kind.name(),
        CLIENTS - 1,
        began.elapsed().as_secs_f64()
    ));
}

/// Repeats the request while it is in progress; returns the final answer and the number of repetitions.
async fn insist(api: &Http, post: Post) -> (Answer, usize) {
    for retries in 0..1000 {
        let answer = api.post(post.clone()).await;
        if answer.status != 409 {
            return (answer, retries);
        }
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        let pause = rand::rng().random_range(10..100);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    panic!("in progress for ever");
}
