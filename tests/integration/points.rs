//! A release that does not know the recovery points of unfinished requests does not start: it could only park them.

use rocket_rides_atomic::supervisor::{StartError, Supervisor};

use crate::support::app::TestApp;
use crate::support::client::Post;

/// Returns an app with a request that stopped half-way.
async fn half_way() -> TestApp {
    let app = TestApp::start().await;
    assert_eq!(app.post(Post::default().raising()).await.status, 500);
    app
}

#[tokio::test]
async fn a_recovery_point_that_this_release_does_not_have_is_refused_at_the_start() {
    let app = half_way().await;
    for (change, parked) in [
        ("recovery_point = 'ride_booked'", "NULL"),
        ("step = 2", "NULL"),
        ("recovery_point = 'ride_booked'", "now()"),
        ("step = 300", "now()"),
    ] {
        let reason = if parked == "NULL" { "NULL" } else { "'for a test'" };
        let set = format!("SET {change}, parked_at = {parked}, parked_reason = {reason}");
        app.tamper(&format!("UPDATE idempotency_keys {set}")).await;
        let mut config = app.config.clone();
        config.roles.stripe_sandbox = false;
        config.stripe.api_base = Some(format!("http://{}", app.sandbox_address));
        let error = Supervisor::start(config).await.expect_err(change);
        assert!(matches!(error, StartError::Points(_)), "{change}: {error:?}");
        let said = atomic_phases::errors::chain(&error);
        assert!(said.contains("1 unfinished requests of the operation \"ride\" (key 1 is one)"), "{said}");
        app.tamper("UPDATE idempotency_keys SET recovery_point = 'ride_created', step = 1").await;
    }
    app.restarted(|_| {}).await;
}

#[tokio::test]
async fn what_is_finished_or_of_another_operation_is_no_matter() {
    let app = half_way().await;
    app.tamper("UPDATE idempotency_keys SET operation = 'of the next release', recovery_point = 'x', step = 7")
        .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    let app = app.restarted(|_| {}).await;
    assert_eq!(app.count("idempotency_keys").await, 2);
}
