//! Processes that know of each other: what one leaves behind when it dies goes on at another within seconds, and a verdict
//! that was mistaken harms nobody.
//!
//! Except for real kills, the tests move the times in the rows and wait for none to pass.

use std::time::{Duration, Instant};

use atomic_phases::database::Database;
use atomic_phases::processes::{self, Settings};
use atomic_phases::roles::heart::Heart;
use atomic_phases::roles::periodic::Periodic;
use nix::sys::signal::Signal;
use rocket_rides_atomic::config::Config;
use uuid::Uuid;

use crate::support::app::{TempDir, TestApp, pool};
use crate::support::client::{Post, new_key};
use crate::support::keys::{lease, request};
use crate::support::process::{Process, arguments};
use crate::support::processes::{CRASH_GRACE, far_away, has_ended, other, quiet, silence, verdict};
use crate::support::{cluster, eventually};

async fn holds_lease(app: &TestApp) -> bool {
    app.count("idempotency_keys WHERE lease_token IS NOT NULL").await > 0
}

/// The heart of a process that is far away.
fn heart(database: &Database) -> Heart {
    Heart::new(database, far_away(), Settings::default(), CRASH_GRACE)
}

/// The real program, without a sandbox of its own.
fn spawn(app: &TestApp, dir: &TempDir, more: &[&str]) -> Process {
    let sandbox = format!("stripe.api_base=http://{}", app.sandbox_address);
    let more = [&[sandbox.as_str(), "roles.stripe_sandbox=false"], more].concat();
    Process::spawn(&arguments(Some(&app.database_config), dir.path(), &more))
}

/// Neither lease nor grace may be what makes these tests pass.
const LONG: [&str; 3] = ["idempotency.lock_timeout=1h", "completer.grace=1h", "reaper.retention=72h"];

fn long(config: &mut Config) {
    config.idempotency.lock_timeout = Duration::from_secs(3600);
    config.completer.grace = Duration::from_secs(3600);
}

/// Kills a process while Stripe is charging for its request with this key, which then succeeds there.
async fn killed_at_its_charge(app: &TestApp, key: &str) {
    let dir = TempDir::new();
    let mut process = spawn(app, &dir, &[&LONG[..], &["roles.completer=false"]].concat());
    let (api, post) = (process.api().await, Post::default().key(key));
    app.script(&["hold"]).await;
    let client = tokio::spawn(async move { api.try_post(post).await });
    app.until_held().await;
    process.signal(Signal::SIGKILL);
    process.exit().await;
    client.await.unwrap().expect_err("the client got no answer");
    app.release_held().await;
}

#[tokio::test]
async fn what_a_killed_process_was_at_goes_on_at_another() {
    let app = TestApp::with(|config| {
        long(config);
        config.roles.completer = true;
    })
    .await;
    killed_at_its_charge(&app, &new_key()).await;
    let killed = Instant::now();
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn what_a_killed_process_was_at_goes_on_at_its_successor() {
    let app = TestApp::with(|config| config.roles.api = false).await;
    let (key, dir) = (new_key(), TempDir::new());
    killed_at_its_charge(&app, &key).await;
    let process = spawn(&app, &dir, &LONG);
    process.api().await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    let answer = process.api().await.post(Post::default().key(&key)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, true));
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_client_that_comes_back_at_once_gets_its_ride() {
    let app = TestApp::with(|config| config.roles.api = false).await;
    let (key, dir) = (new_key(), TempDir::new());
    killed_at_its_charge(&app, &key).await;
    // The successor is ready only when it has handed back the leases of processes that are gone.
    let process = spawn(&app, &dir, &[&LONG[..], &["roles.completer=false"]].concat());
    let answer = process.api().await.post(Post::default().key(&key)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_process_is_dead_once_it_has_missed_its_beats_and_one_more_look() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let heart = heart(&database);
    let (process, its) = other(&database).await;
    lease(&its, &request(&new_key())).await;
    heart.run_once().await.unwrap();
    for (silent, beats) in [(4.9, false), (5.0, true), (5.0, false), (5.1, false)] {
        silence(&app, process.id, silent).await;
        if beats {
            processes::beat(&database, &process).await.unwrap();
        }
        heart.run_once().await.unwrap();
        assert!(holds_lease(&app).await, "{silent} s, or it has only just been seen like this");
    }
    heart.run_once().await.unwrap();
    assert!(!holds_lease(&app).await, "it has said nothing since the last look");

    // A statement that it had sent may still be carried out, and take a lease.
    lease(&its, &request(&new_key())).await;
    heart.run_once().await.unwrap();
    assert!(!holds_lease(&app).await && !has_ended(&app, process.id).await);
    for (silent, ended) in [(59.5, false), (60.0, true)] {
        silence(&app, process.id, silent).await;
        for _ in 0..2 {
            heart.run_once().await.unwrap();
        }
        assert_eq!(has_ended(&app, process.id).await, ended, "{silent} s");
    }
}

#[tokio::test]
async fn who_beats_learns_how_long_each_was_silent() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let ((me, _), (other, _), (gone, _)) = (other(&database).await, other(&database).await, other(&database).await);
    assert!(processes::hand_back(&database, verdict(gone.id, Duration::ZERO)).await.unwrap().ended);
    for (process, seconds) in [(me.id, 7.0), (other.id, 3.0)] {
        silence(&app, process, seconds).await;
    }
    // That it was taken for dead keeps nothing from it.
    app.query("UPDATE processes SET ended_at = now() WHERE id = $1", &[&me.id]).await;
    let beat = processes::beat(&database, &me).await.unwrap();
    let near = |silent: Duration, seconds: f64| (0.0..2.0).contains(&(silent.as_secs_f64() - seconds));
    assert!(near(beat.silent, 7.0), "{beat:?}");
    let seen = beat.others.iter().find(|seen| seen.id == other.id).unwrap();
    assert!(near(seen.silent, 3.0) && seen.name == other.name && seen.place == other.place, "{beat:?}");
    assert!(!beat.others.iter().any(|seen| seen.id == gone.id || seen.id == me.id), "{beat:?}");
    assert!(!has_ended(&app, me.id).await && has_ended(&app, gone.id).await);
    let beat = processes::beat(&database, &me).await.unwrap();
    assert!(near(beat.silent, 0.0), "{beat:?}");
    let first = processes::beat(&database, &far_away()).await.unwrap();
    assert_eq!(first.silent, Duration::ZERO);
}

#[tokio::test]
async fn when_the_database_comes_back_nobody_is_taken_for_dead() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let heart = heart(&database);
    let (process, its) = other(&database).await;
    lease(&its, &request(&new_key())).await;
    heart.run_once().await.unwrap();
    app.execute("UPDATE processes SET last_beat_at = now() - interval '1 hour'").await;
    heart.run_once().await.unwrap();
    processes::beat(&database, &process).await.unwrap();
    heart.run_once().await.unwrap();
    assert!(holds_lease(&app).await);
}

#[tokio::test]
async fn a_process_that_was_taken_for_dead_by_mistake_goes_on() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let key = new_key();
    app.script(&["hold"]).await;
    let (api, post) = (app.api.clone(), Post::default().key(&key));
    let client = tokio::spawn(async move { api.post(post).await });
    app.until_held().await;
    let process: Uuid = app.get("SELECT id FROM processes").await;
    assert!(processes::hand_back(&database, verdict(process, Duration::ZERO)).await.unwrap().ended);
    app.release_held().await;
    let answer = client.await.unwrap();
    assert_eq!(answer.status, 409, "the fence refuses the attempt that lost its lease: {answer:?}");
    let answer = app.post(Post::default().key(&key)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false));
    app.until_count("processes WHERE ended_at IS NULL", 1).await;
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_heart_beats_while_no_connection_is_free() {
    let app = TestApp::with(|config| {
        config.database.pool_size = 1;
        config.processes.beat = Duration::from_millis(50);
        config.processes.dead_after = Duration::from_millis(500);
    })
    .await;
    let mut locker = cluster::connect(&app.database_config).await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let api = app.api.clone();
    let client = tokio::spawn(async move { api.post(Post::default()).await });
    const WAITS: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the pool's connection waits", async || (app.get::<i64>(WAITS).await == 1).then_some(())).await;
    app.execute("UPDATE processes SET last_beat_at = now() - interval '1 hour'").await;
    app.until_count("processes WHERE last_beat_at > now() - interval '1 minute'", 1).await;
    assert_eq!(app.get::<i64>(WAITS).await, 1, "it still waits");
    lock.rollback().await.unwrap();
    assert_eq!(client.await.unwrap().status, 201);
}

#[tokio::test]
async fn a_shutdown_that_cut_nothing_off_leaves_nothing_to_look_after() {
    let mut app = TestApp::start().await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.stop().await.unwrap();
    assert_eq!(app.count("processes WHERE ended_at IS NOT NULL").await, 1);
}

#[tokio::test]
async fn a_shutdown_hands_back_what_it_cut_off() {
    let mut app = TestApp::with(|config| {
        long(config);
        config.shutdown.deadline = Duration::from_millis(300);
    })
    .await;
    let key = new_key();
    app.script(&["hold"]).await;
    let (api, post) = (app.api.clone(), Post::default().key(&key));
    let client = tokio::spawn(async move { api.try_post(post).await });
    app.until_held().await;
    app.stop().await.unwrap_err();
    assert_eq!(app.count("idempotency_keys WHERE lease_token IS NULL AND response_code IS NULL").await, 1);
    assert_eq!(
        app.count("processes WHERE ended_at IS NULL").await,
        1,
        "a statement of it may still be carried out"
    );
    client.abort();
    let app = app.restarted_after_stop(|config| config.roles.completer = true).await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    app.assert_one_of_each().await;
}
