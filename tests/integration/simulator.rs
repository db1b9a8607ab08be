//! The simulator: it makes real traffic, and in the end every rule holds.

use std::time::Duration;

use crate::support::app::TestApp;

#[tokio::test]
async fn its_rides_end_well_whatever_it_does() {
    let mut app = TestApp::with(|config| {
        config.roles.simulator = true;
        config.roles.completer = true;
        config.roles.enqueuer = true;
        config.completer.grace = Duration::from_millis(500);
        config.completer.retry_after = Duration::from_millis(100);
        config.stripe.timeout = Duration::from_millis(500);
        config.simulator.rate = 100.0;
        config.simulator.raise_error = 0.2;
        config.simulator.declined = 0.2;
        config.simulator.duplicate = 0.2;
        config.simulator.hang_up = 0.2;
        config.simulator.replay = 0.2;
        config.simulator.refund = 0.3;
        config.stripe_sandbox.faults.reply_lost = 0.1;
        config.stripe_sandbox.faults.server_error = 0.1;
        config.stripe_sandbox.faults.truncated = 0.1;
        config.completer.max_attempts = 100;
    })
    .await;
    for code in [201, 402] {
        app.until_count(&format!("(SELECT FROM idempotency_keys WHERE response_code = {code} LIMIT 20) k"), 20)
            .await;
    }
    app.until_count(
        "(SELECT FROM idempotency_keys WHERE response_code = 201 AND completer_attempts > 0 LIMIT 5) k",
        5,
    )
    .await;
    app.until_count("(SELECT FROM refunds WHERE stripe_refund_id IS NOT NULL LIMIT 5) r", 5).await;
    app.stop().await.unwrap();

    let app = app.restarted_after_stop(|config| config.roles.simulator = false).await;
    app.until_count("idempotency_keys WHERE response_code IS NULL", 0).await;
    app.until_count("staged_jobs", 0).await;
    let done = async |operation| {
        app.count(&format!("idempotency_keys WHERE response_code = 201 AND operation = '{operation}'")).await
    };
    let (paid, refunded) = (done("ride").await, done("refund").await);
    assert_eq!(app.count("rides WHERE stripe_charge_id IS NOT NULL").await, paid);
    assert_eq!(app.count("jobs").await, paid + refunded);
    assert_eq!(i64::try_from(app.refunds().await.len()).unwrap(), refunded);
    assert_eq!(i64::try_from(app.charges().await.len()).unwrap(), paid);
    app.assert_sound().await;
}
