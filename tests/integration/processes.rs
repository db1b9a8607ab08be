//! Processes that know of each other: what one leaves behind when it dies goes on at another within seconds, and a verdict
//! that was mistaken harms nobody.
//!
//! Except for real kills, the tests move the times in the rows and wait for none to pass.

use std::time::{Duration, Instant};

use atomic_phases::database::Database;
use atomic_phases::idempotency::claim::RetryPolicy;
use atomic_phases::idempotency::settle::release;
use atomic_phases::processes::{self, HandedBack, Place, Process as Described, Settings, Verdict};
use atomic_phases::queue::BEFORE_FIRST;
use atomic_phases::queue::{outbox, work};
use atomic_phases::roles::heart::Heart;
use atomic_phases::roles::periodic::Periodic;
use hyper::Method;
use nix::sys::signal::Signal;
use rocket_rides_atomic::config::Config;
use serde_json::Value;
use uuid::Uuid;

use crate::support::app::{TempDir, TestApp, hold_the_heart, pool, stage};
use crate::support::client::{Post, new_key};
use crate::support::eventually;
use crate::support::keys::{LOCK, PlainState, claim, done, expect_lease, finish, lease, plain, request};
use crate::support::process::{Process, arguments};

const GRACE: Duration = Duration::from_secs(1);
const DEAD_AFTER: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);
const POLICY: RetryPolicy = RetryPolicy { lock_timeout: LOCK, retry_after: MINUTE, max_attempts: 30 };
const WHY: &str = "for a test";

/// A process that nobody can look at, so that its beats decide.
fn far_away() -> Described {
    Described { place: Place { host: "far away".to_owned(), ..Place::default() }, ..Described::new(None, "1") }
}

/// Puts a process that is far away into the table, and returns a pool with which leases are its own.
async fn other(database: &Database) -> (Described, Database) {
    let process = far_away();
    processes::beat(database, &process).await.unwrap();
    let its = database.of_process(process.id);
    (process, its)
}

/// Moves what a process has said so far into the past.
async fn silence(app: &TestApp, process: Uuid, seconds: f64) {
    let sql = "UPDATE processes SET last_beat_at = now() - make_interval(secs => $2) WHERE id = $1";
    app.query(sql, &[&process, &seconds]).await;
}

async fn holds_lease(app: &TestApp) -> bool {
    app.count("idempotency_keys WHERE lease_token IS NOT NULL").await > 0
}

async fn has_ended(app: &TestApp, process: Uuid) -> bool {
    let rows = app.query("SELECT ended_at IS NOT NULL FROM processes WHERE id = $1", &[&process]).await;
    rows[0].get(0)
}

fn verdict(process: Uuid, silent_for: Duration) -> Verdict<'static> {
    Verdict { process, silent_for, ended_after: Duration::ZERO, crash_grace: GRACE, why: WHY }
}

fn heart_of(database: &Database, process: Described) -> Heart {
    Heart::new(database, process, Settings::default(), GRACE)
}

/// The real program, without a sandbox of its own.
fn spawn(app: &TestApp, dir: &TempDir, more: &[&str]) -> Process {
    let sandbox = format!("stripe.api_base=http://{}", app.sandbox_address);
    let more = [&[sandbox.as_str(), "roles.stripe_sandbox=false"], more].concat();
    Process::spawn(&arguments(Some(&app.database_config), dir.path(), &more))
}

/// An app whose own heart says nothing, and looks after nobody, while a test lasts.
async fn quiet() -> TestApp {
    TestApp::with(hold_the_heart).await
}

/// Neither lease nor grace may be what makes these tests pass.
const LONG: [&str; 3] = ["idempotency.lock_timeout=1h", "completer.grace=1h", "reaper.retention=72h"];

fn long(config: &mut Config) {
    config.idempotency.lock_timeout = Duration::from_secs(3600);
    config.completer.grace = Duration::from_secs(3600);
}

#[tokio::test]
async fn what_a_killed_process_was_at_goes_on_at_another() {
    let app = TestApp::with(|config| {
        long(config);
        config.roles.completer = true;
    })
    .await;
    let dir = TempDir::new();
    let mut process = spawn(&app, &dir, &[&LONG[..], &["roles.completer=false"]].concat());
    let api = process.api().await;
    app.script(&["hold"]).await;
    let client = tokio::spawn(async move { api.try_post(Post::default()).await });
    app.until_held().await;
    process.signal(Signal::SIGKILL);
    process.exit().await;
    client.await.unwrap().unwrap_err();
    let killed = Instant::now();
    app.release_held().await;
    app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn a_client_that_comes_back_at_once_gets_its_ride() {
    let app = TestApp::with(|config| {
        long(config);
        config.roles.api = false;
    })
    .await;
    let dir = TempDir::new();
    let only_api = [&LONG[..], &["roles.completer=false"]].concat();
    let mut process = spawn(&app, &dir, &only_api);
    let (api, post, key) = (process.api().await, Post::default(), new_key());
    app.script(&["hold"]).await;
    let post = post.key(&key);
    let client = tokio::spawn(async move { api.try_post(post).await });
    app.until_held().await;
    process.signal(Signal::SIGKILL);
    process.exit().await;
    client.await.unwrap().unwrap_err();
    app.release_held().await;
    // Its successor is ready only when it has looked after the leases of whoever is gone.
    let process = spawn(&app, &dir, &only_api);
    let answer = process.api().await.post(Post::default().key(&key)).await;
    assert_eq!((answer.status, answer.is_replay()), (201, false), "{answer:?}");
    app.assert_one_of_each().await;
}

#[tokio::test]
async fn all_kinds_of_leases_go_back_and_no_one_elses() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let (dead, its) = other(&database).await;
    let (living, others) = other(&database).await;
    stage(&app, 4).await;
    let mut held = Vec::new();
    for database in [&its, &others, &database] {
        let one = lease(database, &request(&new_key())).await;
        let two = lease(database, &request(&new_key())).await;
        release(database, &two, "free").await.unwrap();
        app.execute("UPDATE idempotency_keys SET next_attempt_at = now() WHERE lease_token IS NULL").await;
        let claimed = claim(database, 1, &POLICY).await.unwrap().claimed.remove(0).lease;
        let staged = outbox::claim(database, BEFORE_FIRST, 1, MINUTE).await.unwrap();
        app.execute("INSERT INTO jobs SELECT count(*) + 100, 'n', '{}', now() FROM jobs").await;
        let queued = work::claim(database, 1, MINUTE, 9).await.unwrap();
        assert_eq!((staged.jobs.len(), queued.claimed.len()), (1, 1));
        held.push((one, claimed));
    }
    silence(&app, dead.id, 5.0).await;
    silence(&app, living.id, 4.0).await;
    const LEASES: &str = "SELECT coalesce(process_id::text, ''), count(*) FROM (
            SELECT process_id, lease_token FROM idempotency_keys
            UNION ALL SELECT process_id, lease_token FROM staged_jobs
            UNION ALL SELECT process_id, lease_token FROM jobs) l
        WHERE lease_token IS NOT NULL GROUP BY process_id";
    let leases = async |process: Option<Uuid>| {
        let rows = app.query(LEASES, &[]).await;
        let id = process.map_or_else(String::new, |id| id.to_string());
        rows.iter().find(|row| row.get::<_, String>(0) == id).map_or(0, |row| row.get::<_, i64>(1))
    };
    assert_eq!((leases(Some(dead.id)).await, leases(Some(living.id)).await, leases(None).await), (4, 4, 4));

    for process in [living.id, Uuid::new_v4()] {
        let back = processes::hand_back(&database, verdict(process, DEAD_AFTER)).await.unwrap();
        assert_eq!(back, HandedBack::default(), "it is alive, or nobody");
    }
    let back = processes::hand_back(&database, verdict(dead.id, DEAD_AFTER)).await.unwrap();
    assert_eq!(back, HandedBack { requests: 2, queued: 1, staged: 1, ended: true });
    assert_eq!((leases(Some(dead.id)).await, leases(Some(living.id)).await, leases(None).await), (0, 4, 4));
    let again = processes::hand_back(&database, verdict(dead.id, DEAD_AFTER)).await.unwrap();
    assert_eq!(again, HandedBack::default());

    // The jobs are due at once, and the attempt stays counted that may have killed the process.
    const JOBS: &str = "jobs WHERE lease_token IS NULL AND next_attempt_at <= now() AND attempts = 1 AND last_error = 'for a test'";
    assert_eq!(app.count(JOBS).await, 1);
    const STAGED: &str =
        "staged_jobs WHERE process_id IS NOT NULL AND lease_token IS NULL AND next_attempt_at <= now()";
    assert_eq!(app.count(STAGED).await, 1);
    const KEYS: &str =
        "idempotency_keys WHERE lease_token IS NULL AND locked_at IS NULL AND last_error = 'for a test'";
    assert_eq!(app.count(KEYS).await, 2);
    // What the dead process would write, if it woke, is refused.
    for (one, claimed) in &held[..1] {
        for lease in [one, claimed] {
            assert!(!finish(&its, lease, &done(), &[]).await.unwrap());
        }
    }
    for (mut one, claimed) in held.drain(1..) {
        assert!(plain(&database).advance(&mut one, &PlainState::HalfWay { of: 1 }, Value::Null).await.unwrap());
        assert!(finish(&database, &claimed, &done(), &[]).await.unwrap());
    }
}

#[tokio::test]
async fn a_request_that_outlives_its_process_is_left_alone_for_longer_each_time() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let (process, its) = other(&database).await;
    let held = lease(&its, &request(&new_key())).await;
    // Seconds since it was taken up, attempts of completers, seconds until it would be due; and then until it is.
    for (age, attempts, due_in, expected) in [
        (0, 0, 300, 10),
        (4, 0, 300, 6),
        (60, 0, 300, 0),
        (0, 1, 300, 20),
        (0, 3, 300, 80),
        (0, 5, 300, 300),
        (0, 30, 300, 300),
        (0, 3000, 300, 300),
        (0, 0, 5, 5),
        (60, 0, -30, -30),
    ] {
        let sql = format!(
            "UPDATE idempotency_keys SET lease_token = gen_random_uuid(), locked_at = now(), completer_attempts = {attempts},
                 last_run_at = now() - interval '{age} s', next_attempt_at = now() + interval '{due_in} s'"
        );
        app.execute(&sql).await;
        let (none, ten) = (Duration::ZERO, Duration::from_secs(10));
        assert_eq!(
            processes::hand_back(&database, Verdict { crash_grace: ten, ..verdict(process.id, none) })
                .await
                .unwrap()
                .requests,
            1
        );
        app.execute("UPDATE processes SET ended_at = NULL").await;
        let due: f64 =
            app.get("SELECT extract(epoch FROM next_attempt_at - now())::float8 FROM idempotency_keys").await;
        assert!((due - f64::from(expected)).abs() < 2.5, "{age} {attempts} {due_in}: {due}");
    }
    let free = expect_lease(plain(&database).open(&request_of(&app, held.key_id).await).await.unwrap());
    assert_eq!(free.key_id, held.key_id, "a client that comes back need not wait at all");
}

/// The plain request behind this key.
async fn request_of(app: &TestApp, key_id: i64) -> atomic_phases::idempotency::Request<Value> {
    let key: String = app.get(&format!("SELECT idempotency_key FROM idempotency_keys WHERE id = {key_id}")).await;
    request(&key)
}

#[tokio::test]
async fn a_row_that_another_session_has_locked_goes_back_later_and_holds_up_no_other() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let (process, its) = other(&database).await;
    stage(&app, 2).await;
    app.execute("INSERT INTO jobs SELECT n, 'n', '{}', now() FROM generate_series(1, 2) n").await;
    for _ in 0..2 {
        lease(&its, &request(&new_key())).await;
        assert_eq!(work::claim(&its, 1, MINUTE, 9).await.unwrap().claimed.len(), 1);
        assert_eq!(outbox::claim(&its, BEFORE_FIRST, 1, MINUTE).await.unwrap().jobs.len(), 1);
    }
    let mut locker = crate::support::cluster::connect(&app.database_config).await;
    let lock = locker.transaction().await.unwrap();
    for (table, id) in [("idempotency_keys", "id"), ("jobs", "staged_id"), ("staged_jobs", "id")] {
        let sql = format!("SELECT FROM {table} ORDER BY {id} LIMIT 1 FOR UPDATE");
        lock.query(&sql, &[]).await.unwrap();
    }
    let one_each = |ended| HandedBack { requests: 1, queued: 1, staged: 1, ended };
    let none = Duration::ZERO;
    assert_eq!(processes::hand_back(&database, verdict(process.id, none)).await.unwrap(), one_each(false));
    lock.rollback().await.unwrap();
    assert_eq!(processes::hand_back(&database, verdict(process.id, none)).await.unwrap(), one_each(true));

    // Two that find the same process dead: the second leaves it to the first.
    let (process, its) = other(&database).await;
    lease(&its, &request(&new_key())).await;
    let lock = locker.transaction().await.unwrap();
    lock.query("SELECT FROM processes WHERE id = $1 FOR UPDATE", &[&process.id]).await.unwrap();
    let left = processes::hand_back(&database, verdict(process.id, none)).await.unwrap();
    assert_eq!(left, HandedBack::default());
}

#[tokio::test]
async fn a_process_is_dead_once_it_has_missed_its_beats_and_one_more_look() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let heart = heart_of(&database, far_away());
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
    let heart = heart_of(&database, far_away());
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
    let mut locker = crate::support::cluster::connect(&app.database_config).await;
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

#[tokio::test]
async fn a_row_of_a_process_stays_for_an_hour_and_as_long_as_it_has_a_lease() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let hour = Duration::from_secs(3600);
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(other(&database).await);
    }
    stage(&app, 1).await;
    app.execute("INSERT INTO jobs VALUES (9, 'n', '{}', now())").await;
    lease(&all[0].1, &request(&new_key())).await;
    outbox::claim(&all[1].1, BEFORE_FIRST, 1, MINUTE).await.unwrap();
    work::claim(&all[2].1, 1, MINUTE, 9).await.unwrap();
    let ended = "UPDATE processes SET ended_at = now() - interval '59 min 50 s' WHERE host = 'far away'";
    app.execute(ended).await;
    assert_eq!(processes::remove(&database, hour, 10).await.unwrap(), 0, "too early");
    app.execute(&ended.replace("59 min 50 s", "60 min")).await;
    assert_eq!(
        processes::remove(&database, hour, 4).await.unwrap() + processes::remove(&database, hour, 4).await.unwrap(),
        2
    );
    let left = app.query("SELECT id FROM processes WHERE host = 'far away' ORDER BY id", &[]).await;
    let mut held: Vec<Uuid> = all[..3].iter().map(|(process, _)| process.id).collect();
    held.sort();
    assert_eq!(left.iter().map(|row| row.get::<_, Uuid>(0)).collect::<Vec<_>>(), held);
    assert_eq!(app.count("processes WHERE ended_at IS NULL").await, 1, "whoever has not ended stays");
    let metrics = app.api.call(Method::GET, "/metrics", "").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("\nrocket_rides_processes 1\n"), "{text}");
}
