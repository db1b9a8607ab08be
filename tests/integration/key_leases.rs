//! The lease on a key: what is renewed by each way to get one, how long it is respected, and which rows must stay as
//! they are.
//!
//! The tests move the times in the rows and wait for none to pass.

use std::time::{Duration, Instant, SystemTime};

use atomic_phases::database::Database;
use atomic_phases::idempotency::claim::{LONGEST_PAUSE, RetryPolicy};
use atomic_phases::idempotency::open::Opened;
use atomic_phases::idempotency::settle::{park, release};
use atomic_phases::idempotency::{Lease, Request, Response, parked};
use serde_json::Value;
use uuid::Uuid;

use crate::support::app::{TestApp, pool};
use crate::support::client::new_key;
use crate::support::keys::{GRACE, LOCK, ask, claim, finish, lease, request};

/// How many seconds it may take to move times and to read them.
const SLACK: f64 = 5.0;
const POLICY: RetryPolicy =
    RetryPolicy { lock_timeout: LOCK, retry_after: Duration::from_secs(60), max_attempts: 3000 };

/// A row's times as seconds from now, and the other columns that belong to a lease.
#[derive(Debug, PartialEq)]
struct Row {
    token: Option<Uuid>,
    locked: Option<f64>,
    last_run: f64,
    next_attempt: f64,
    created: f64,
    attempts: i32,
    completer_attempts: i32,
}

async fn row(app: &TestApp, key_id: i64) -> Row {
    let sql = "SELECT lease_token, extract(epoch FROM locked_at - now())::float8 AS locked,
                      extract(epoch FROM last_run_at - now())::float8 AS last_run,
                      extract(epoch FROM next_attempt_at - now())::float8 AS next_attempt,
                      extract(epoch FROM created_at - now())::float8 AS created, attempts, completer_attempts
               FROM idempotency_keys WHERE id = $1";
    let row = &app.query(sql, &[&key_id]).await[0];
    Row {
        token: row.get("lease_token"),
        locked: row.get("locked"),
        last_run: row.get("last_run"),
        next_attempt: row.get("next_attempt"),
        created: row.get("created"),
        attempts: row.get("attempts"),
        completer_attempts: row.get("completer_attempts"),
    }
}

fn near(seconds: f64, expected: f64) -> bool {
    (seconds - expected).abs() < SLACK
}

/// Moves all times of this key back by `time`.
async fn pass(app: &TestApp, key_id: i64, time: Duration) {
    let sql = "UPDATE idempotency_keys
               SET created_at = created_at - make_interval(secs => $2), locked_at = locked_at - make_interval(secs => $2),
                   last_run_at = last_run_at - make_interval(secs => $2),
                   next_attempt_at = next_attempt_at - make_interval(secs => $2),
                   foreign_call_intended_at = foreign_call_intended_at - make_interval(secs => $2)
               WHERE id = $1";
    app.query(sql, &[&key_id, &time.as_secs_f64()]).await;
}

/// Asserts that a lease that was returned to its holder agrees with the row.
async fn assert_told(app: &TestApp, lease: &Lease) {
    let sql = "SELECT lease_token, recovery_point, step, state::text AS state, attempts, foreign_call_key, foreign_call_intended_at
               FROM idempotency_keys WHERE id = $1";
    let row = &app.query(sql, &[&lease.key_id]).await[0];
    assert_eq!(row.get::<_, Uuid>("lease_token"), lease.token);
    assert_eq!(row.get::<_, &str>("recovery_point"), lease.recovery_point);
    assert_eq!(row.get::<_, i32>("attempts"), lease.attempts);
    assert_eq!(row.get::<_, Uuid>("foreign_call_key"), lease.foreign_call.key);
    assert_eq!(row.get::<_, SystemTime>("foreign_call_intended_at"), lease.foreign_call.intended_at);
    assert_eq!((row.get::<_, i16>("step"), row.get::<_, &str>("state")), (lease.step, lease.state.as_str()));
}

/// Asserts that the lease lasts for [`LOCK`] from a moment between `asked` and now.
fn assert_runs_out(lease: &Lease, asked: Instant) {
    let (least, most) = (asked + LOCK, Instant::now() + LOCK);
    assert!((least..=most).contains(&lease.runs_out));
}

/// Creates a key that is ten days old and free.
async fn old_and_free(app: &TestApp, database: &Database) -> (Request<Value>, Lease) {
    let request = request(&new_key());
    let held = lease(database, &request).await;
    release(database, &held, "for a test").await.unwrap();
    pass(app, held.key_id, Duration::from_secs(10 * 86_400)).await;
    (request, held)
}

#[tokio::test]
async fn a_new_key_begins_with_a_lease_and_a_grace() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let asked = Instant::now();
    let lease = lease(&database, &request(&new_key())).await;
    assert_runs_out(&lease, asked);
    assert_told(&app, &lease).await;
    let row = row(&app, lease.key_id).await;
    assert!(near(row.locked.unwrap(), 0.0) && near(row.last_run, 0.0) && near(row.created, 0.0), "{row:?}");
    assert!(near(row.next_attempt, GRACE.as_secs_f64()), "{row:?}");
    assert_eq!((row.attempts, row.completer_attempts, lease.foreign_call.age), (1, 0, Duration::ZERO));
}

#[tokio::test]
async fn a_take_over_renews_lease_and_grace() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let (request, former) = old_and_free(&app, &database).await;
    let asked = Instant::now();
    let lease = lease(&database, &request).await;
    assert_runs_out(&lease, asked);
    assert_told(&app, &lease).await;
    assert_eq!((lease.key_id, lease.foreign_call.key), (former.key_id, former.foreign_call.key));
    assert_ne!(lease.token, former.token);
    assert!(near(lease.foreign_call.age.as_secs_f64(), 10.0 * 86_400.0));
    let row = row(&app, lease.key_id).await;
    assert!(near(row.locked.unwrap(), 0.0) && near(row.last_run, 0.0), "{row:?}");
    assert!(near(row.next_attempt, GRACE.as_secs_f64()), "{row:?}");
    assert!(near(row.created, -10.0 * 86_400.0), "a key's age counts from its first use: {row:?}");
    assert_eq!((row.attempts, row.completer_attempts), (2, 0));
    // So a further repetition gets the answer that the request is in progress.
    assert!(matches!(ask(&database, &request).await, Opened::InProgress { .. }));
}

#[tokio::test]
async fn a_claim_renews_the_lease_and_schedules_the_next() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let (request, former) = old_and_free(&app, &database).await;
    let asked = Instant::now();
    let claims = claim(&database, 10, &POLICY).await.unwrap();
    let [claimed] = &claims.claimed[..] else { panic!("{claims:?}") };
    assert_runs_out(&claimed.lease, asked);
    assert_told(&app, &claimed.lease).await;
    assert_eq!((claimed.lease.key_id, claimed.lease.foreign_call.key), (former.key_id, former.foreign_call.key));
    assert_ne!(claimed.lease.token, former.token);
    assert!(near(claimed.lease.foreign_call.age.as_secs_f64(), 10.0 * 86_400.0));
    assert_eq!((claimed.user_id, &claimed.params), (request.user_id, &request.params));
    assert_eq!(claimed.origin_ip, request.origin_ip);
    let row = row(&app, former.key_id).await;
    assert!(near(row.locked.unwrap(), 0.0) && near(row.last_run, 0.0), "{row:?}");
    assert!((40.0..=76.0).contains(&row.next_attempt), "{row:?}");
    assert_eq!((row.attempts, row.completer_attempts), (2, 1));
    assert!(matches!(ask(&database, &request).await, Opened::InProgress { .. }));
    assert!(claim(&database, 10, &POLICY).await.unwrap().claimed.is_empty());
}

#[tokio::test]
async fn a_lease_is_respected_until_its_time_is_up() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let first = lease(&database, &request).await;
    // Due for the completer as well, for as long as this takes.
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now() - interval '1 hour'").await;
    pass(&app, first.key_id, LOCK - Duration::from_secs_f64(SLACK)).await;
    assert!(matches!(ask(&database, &request).await, Opened::InProgress { .. }));
    assert!(claim(&database, 10, &POLICY).await.unwrap().claimed.is_empty());
    pass(&app, first.key_id, Duration::from_secs_f64(SLACK)).await;
    let second = lease(&database, &request).await;
    assert_ne!(second.token, first.token);
    // It is a full lease again, and not the rest of the one before.
    assert!(near(row(&app, first.key_id).await.locked.unwrap(), 0.0));
    assert!(matches!(ask(&database, &request).await, Opened::InProgress { .. }));

    pass(&app, first.key_id, LOCK).await;
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now()").await;
    assert_eq!(claim(&database, 10, &POLICY).await.unwrap().claimed.len(), 1);
}

#[tokio::test]
async fn the_completer_waits_for_the_end_of_the_grace() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let held = lease(&database, &request(&new_key())).await;
    release(&database, &held, "for a test").await.unwrap();
    pass(&app, held.key_id, GRACE - Duration::from_secs_f64(SLACK)).await;
    assert!(claim(&database, 10, &POLICY).await.unwrap().claimed.is_empty());
    pass(&app, held.key_id, Duration::from_secs_f64(SLACK)).await;
    assert_eq!(claim(&database, 10, &POLICY).await.unwrap().claimed.len(), 1);
}

#[tokio::test]
async fn a_client_that_comes_back_has_the_whole_grace_again() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let held = lease(&database, &request).await;
    release(&database, &held, "for a test").await.unwrap();
    pass(&app, held.key_id, GRACE).await;
    let again = lease(&database, &request).await;
    release(&database, &again, "for a test").await.unwrap();
    assert!(claim(&database, 10, &POLICY).await.unwrap().claimed.is_empty());
}

#[tokio::test]
async fn pauses_double_up_to_an_hour() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let (_, free) = old_and_free(&app, &database).await;
    let hour = LONGEST_PAUSE.as_secs_f64();
    assert!(near(hour, 3600.0));
    for (attempts, pause) in
        [(0, 60.0), (1, 120.0), (5, 1920.0), (6, hour), (7, hour), (30, hour), (31, hour), (2000, hour)]
    {
        let due = "UPDATE idempotency_keys SET lease_token = NULL, locked_at = NULL, next_attempt_at = now(),
                       completer_attempts = $1";
        app.query(due, &[&attempts]).await;
        let claims = claim(&database, 10, &POLICY).await.unwrap();
        assert_eq!(claims.claimed.len(), 1, "{claims:?}");
        let next = row(&app, free.key_id).await.next_attempt;
        let (least, most) = (0.75 * pause - SLACK, 1.25 * pause);
        assert!((least..most).contains(&next), "after {attempts} attempts: {next} s");
    }
}

/// Requests that failed in the same outage are not all tried again at the same instant.
#[tokio::test]
async fn pauses_differ() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    for _ in 0..20 {
        let held = lease(&database, &request(&new_key())).await;
        release(&database, &held, "for a test").await.unwrap();
    }
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now()").await;
    assert_eq!(claim(&database, 20, &POLICY).await.unwrap().claimed.len(), 20);
    let spread: f64 = app
        .get("SELECT extract(epoch FROM max(next_attempt_at) - min(next_attempt_at))::float8 FROM idempotency_keys")
        .await;
    // 60 s ± a quarter: that twenty of them are within 3 s has a probability of one in a million million.
    assert!((3.0..=30.0).contains(&spread), "{spread} s");
}

#[tokio::test]
async fn the_last_attempt_is_made_and_none_after_it() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let policy = RetryPolicy { max_attempts: 3, ..POLICY };
    let (_, free) = old_and_free(&app, &database).await;
    app.execute("UPDATE idempotency_keys SET completer_attempts = 2").await;
    let claims = claim(&database, 10, &policy).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.parked.len()), (1, 0));
    pass(&app, free.key_id, Duration::from_secs(86_400)).await;
    // With the lease of the last attempt still on it, as after a crash.
    let claims = claim(&database, 10, &policy).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.parked), (0, vec![free.key_id]));
    let parked = "idempotency_keys WHERE parked_reason = 'gave up after 3 attempts' AND lease_token IS NULL
                  AND locked_at IS NULL AND parked_at > now() - interval '1 minute' AND attempts = 2";
    assert_eq!(app.count(parked).await, 1);
    assert!(claim(&database, 10, &policy).await.unwrap().parked.is_empty(), "parked once");
}

#[tokio::test]
async fn the_completer_takes_what_has_been_due_for_longest_and_no_more_than_it_can_do() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let mut due = Vec::new();
    for age in [20, 50, 10, 40, 30] {
        let held = lease(&database, &request(&new_key())).await;
        release(&database, &held, "for a test").await.unwrap();
        let sql = "UPDATE idempotency_keys SET next_attempt_at = now() - make_interval(secs => $2) WHERE id = $1";
        app.query(sql, &[&held.key_id, &f64::from(age)]).await;
        due.push((age, held.key_id));
    }
    due.sort_unstable();
    for expected in [vec![due[3].1, due[4].1], vec![due[1].1, due[2].1], vec![due[0].1], vec![]] {
        let claims = claim(&database, 2, &POLICY).await.unwrap();
        let mut claimed: Vec<i64> = claims.claimed.iter().map(|claimed| claimed.lease.key_id).collect();
        claimed.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(claimed, expected);
    }
}

/// Finished and parked keys are not taken up again, however overdue their rows are.
#[tokio::test]
async fn what_has_ended_is_not_taken_up_again() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let response = Response::new(201, "{}");
    let (finished, waiting) = (request(&new_key()), request(&new_key()));
    let held = lease(&database, &finished).await;
    assert!(finish(&database, &held, &response, &[]).await.unwrap());
    let held = lease(&database, &waiting).await;
    park(&database, &held, "for a test").await.unwrap();
    app.execute("UPDATE idempotency_keys SET next_attempt_at = now() - interval '1 day'").await;
    let claims = claim(&database, 10, &POLICY).await.unwrap();
    assert!(claims.claimed.is_empty() && claims.parked.is_empty(), "{claims:?}");
    assert!(matches!(ask(&database, &finished).await, Opened::Finished { .. }));
    assert!(matches!(ask(&database, &waiting).await, Opened::Parked { .. }));
}

/// Each way to end a lease clears all of its columns and stores what the next attempt needs.
#[tokio::test]
async fn each_end_of_a_lease_leaves_the_row_as_it_must_be() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let ended = async |key_id: i64, condition: &str| {
        let row = format!(
            "idempotency_keys WHERE id = {key_id} AND lease_token IS NULL AND locked_at IS NULL AND {condition}"
        );
        assert_eq!(app.count(&row).await, 1, "{condition}");
    };
    let held = lease(&database, &request(&new_key())).await;
    let other = lease(&database, &request(&new_key())).await;
    let before = row(&app, other.key_id).await.token;
    release(&database, &held, "this went wrong").await.unwrap();
    ended(held.key_id, "last_error = 'this went wrong' AND response_code IS NULL AND parked_at IS NULL").await;

    let held = lease(&database, &request(&new_key())).await;
    park(&database, &held, "a person must look").await.unwrap();
    ended(
        held.key_id,
        "last_error = 'a person must look' AND parked_reason = last_error
         AND parked_at > now() - interval '1 minute' AND response_code IS NULL",
    )
    .await;

    let again = request(&new_key());
    let held = lease(&database, &again).await;
    release(&database, &held, "this went wrong").await.unwrap();
    let held = lease(&database, &again).await;
    let response = Response::new(402, r#"{"a":  1}"#);
    assert!(finish(&database, &held, &response, &[]).await.unwrap());
    ended(
        held.key_id,
        r#"last_error IS NULL AND recovery_point = 'finished' AND response_code = 402
           AND response_body::text = '{"a":  1}' AND parked_at IS NULL"#,
    )
    .await;
    assert_eq!(row(&app, other.key_id).await.token, before, "another's lease is left alone");
}

#[tokio::test]
async fn a_parked_key_that_is_tried_again_is_as_good_as_new_to_the_completer() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let (request, free) = old_and_free(&app, &database).await;
        keys.push((request, free.key_id));
    }
    app.execute(
        "UPDATE idempotency_keys SET completer_attempts = 1000, next_attempt_at = now() + interval '1 hour'",
    )
    .await;
    for (_, key_id) in &keys[..2] {
        let sql = "UPDATE idempotency_keys SET parked_at = now(), parked_reason = 'for a test' WHERE id = $1";
        app.query(sql, &[key_id]).await;
    }
    // The third is not parked, and the second was not asked for.
    let asked = [keys[0].1, keys[2].1, -1];
    assert_eq!(parked::retry(&database, &asked).await.unwrap(), [keys[0].1]);
    let retried = row(&app, keys[0].1).await;
    assert!(near(retried.next_attempt, 0.0) && near(retried.last_run, 0.0), "{retried:?}");
    assert_eq!(retried.completer_attempts, 0);
    for (_, key_id) in &keys[1..] {
        let left = row(&app, *key_id).await;
        assert!(left.next_attempt > 3000.0 && left.last_run < -86_400.0 && left.completer_attempts == 1000);
    }
    assert_eq!(app.count("idempotency_keys WHERE parked_at IS NOT NULL AND parked_reason IS NOT NULL").await, 1);
    let claims = claim(&database, 10, &POLICY).await.unwrap();
    assert_eq!(claims.claimed.iter().map(|claimed| claimed.lease.key_id).collect::<Vec<_>>(), [keys[0].1]);
}
