//! Many distinct keys at once: no conflict, no failure.

use crate::support::app::TestApp;
use crate::support::client::{Http, Post};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_distinct_keys_from_32_connections_are_ten_thousand_rides() {
    let app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        config.roles.completer = true;
    })
    .await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..32 {
        let api = Http::new(app.api_address);
        clients.spawn(async move {
            for _ in (client..10_000).step_by(32) {
                let answer = api.post(Post::default()).await;
                assert_eq!(answer.status, 201, "{answer:?}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    app.until_count("jobs", 10_000).await;
    assert_eq!(app.count("rides WHERE stripe_charge_id IS NOT NULL").await, 10_000);
    app.assert_sound().await;
}
