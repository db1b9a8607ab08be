//! Shutdown: in order, within the deadline, without losing requests that are under way.

use std::time::{Duration, Instant};

use hyper::Method;
use rocket_rides_atomic::role::Role;
use rocket_rides_atomic::supervisor::RunError;

use crate::support::app::TestApp;
use crate::support::client::{Http, Post};
use crate::support::eventually;

#[tokio::test]
async fn with_nothing_under_way_it_is_gone_at_once() {
    let mut app = TestApp::with(|config| {
        config.roles.completer = true;
        config.roles.enqueuer = true;
        config.roles.reaper = true;
        config.roles.simulator = true;
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    let began = Instant::now();
    app.stop().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_charge_under_way_is_finished_first() {
    let mut app = TestApp::start().await;
    app.script(&["hold"]).await;
    let api = app.api.clone();
    let client = tokio::spawn(async move { api.post(Post::default()).await });
    app.until_held().await;
    app.begin_stop();
    let locker = Http::new(app.api_address);
    eventually("the listener to close", async || locker.try_post(Post::default()).await.is_err().then_some(()))
        .await;
    assert!(!app.has_ended());
    app.release_held().await;
    let answer = client.await.unwrap();
    assert_eq!((answer.status, answer.is_replay()), (201, false));
    app.stop().await.unwrap();
    let app = app.restarted_after_stop(|_| {}).await;
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn readiness_ends_before_the_listener_does() {
    let app = TestApp::with(|config| config.shutdown.notice = Duration::from_secs(3600)).await;
    assert_eq!(app.api.call(Method::GET, "/readyz", "").await.status, 200);
    app.begin_stop();
    eventually("not ready", async || {
        let answer = app.api.call(Method::GET, "/readyz", "").await;
        (answer.status == 503).then_some(())
    })
    .await;
    assert_eq!(app.api.call(Method::GET, "/healthz", "").await.status, 200);
    assert_eq!(app.post(Post::default()).await.status, 201);
}

#[tokio::test]
async fn a_late_role_is_named() {
    let mut app = TestApp::with(|config| config.shutdown.deadline = Duration::from_millis(300)).await;
    app.script(&["hold"]).await;
    let api = app.api.clone();
    let client = tokio::spawn(async move { api.try_post(Post::default()).await });
    app.until_held().await;
    let error = app.stop().await.expect_err("late");
    assert!(matches!(&error, RunError::DeadlinePassed { late, .. } if late.contains(&Role::Api)), "{error}");
    client.abort();
}
