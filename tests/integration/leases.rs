//! The leases of outbox and queue: what is written to get, to keep and to end one, and which rows are left alone.
//!
//! Each test puts rows into every state that such a row can have and runs one statement. The expected result is written
//! as changes to the rows that the statement must find; all others must be as they were, byte for byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::queue::leases::Leases;
use atomic_phases::queue::outbox::{self, PushResults};
use atomic_phases::queue::work::{self, Failed, JobLease, RetryPolicy};
use atomic_phases::queue::{BEFORE_FIRST, dead};
use rocket_rides_atomic::config::Config;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::foreign::{FakeQueue, QueueBehavior, enqueue_to};
use crate::support::app::{TestApp, pool, stage};
use crate::support::receipts::{SentReceipt, finish};
use crate::support::{cluster, eventually};

const MINUTE: Duration = Duration::from_secs(60);
const POLICY: RetryPolicy = RetryPolicy { retry_after: MINUTE, max_attempts: 5 };
/// A lease of another enqueuer or worker.
const OTHERS: &str = "00000000-0000-0000-0000-000000000001";

/// Returns the rows of a table by their ids. `next_attempt_at` and `finished_at` are given as seconds from now, rounded
/// to ten, by the database's clock.
async fn rows(app: &TestApp, table: &str, id: &str) -> BTreeMap<i64, Value> {
    let sql = format!(
        "SELECT {id}, to_jsonb(r) || (SELECT jsonb_object_agg(key, round(extract(epoch FROM value::timestamptz - now()), -1))
             FROM jsonb_each_text(to_jsonb(r)) WHERE key IN ('next_attempt_at', 'finished_at') AND value IS NOT NULL)
         FROM {table} r"
    );
    app.query(&sql, &[]).await.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Asserts that `after` is `before`, except for these columns of the rows with these ids.
fn assert_changed(before: &BTreeMap<i64, Value>, after: &BTreeMap<i64, Value>, changes: &[(i64, Value)]) {
    let mut expected = before.clone();
    for (id, columns) in changes {
        let row = expected.get_mut(id).unwrap().as_object_mut().unwrap();
        row.extend(columns.as_object().unwrap().clone());
    }
    assert_eq!(after, &expected);
}

/// Jobs of the queue: 1 and 2 are due (2 because its lease has run out), 3 is in a backoff, 4 is leased, 5 is finished.
async fn queue(app: &TestApp) {
    let sql = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, lease_token, next_attempt_at, attempts,
                           last_error, finished_at)
         VALUES (1, 'n', '{{}}', now(), NULL, now(), 0, NULL, NULL),
                (2, 'n', '{{}}', now(), '{OTHERS}', now() - interval '1 second', 2, 'before', NULL),
                (3, 'n', '{{}}', now(), NULL, now() + interval '50 seconds', 1, 'before', NULL),
                (4, 'n', '{{}}', now(), '{OTHERS}', now() + interval '50 seconds', 1, NULL, NULL),
                (5, 'n', '{{}}', now(), NULL, now() - interval '100 seconds', 1, NULL, now() - interval '100 seconds')"
    );
    app.execute(&sql).await;
}

async fn claim_jobs(database: &Database, limit: i64) -> Vec<JobLease> {
    let claims = work::claim(database, limit, MINUTE, POLICY.max_attempts).await.unwrap();
    let mut leases: Vec<_> = claims.claimed.iter().map(|job| job.lease).collect();
    leases.sort();
    leases
}

#[tokio::test]
async fn a_worker_gets_what_is_due_for_as_long_as_its_lease_lasts() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app).await;
    let before = rows(&app, "jobs", "staged_id").await;
    let [first, second] = claim_jobs(&database, 10).await.try_into().unwrap();
    assert_ne!(first.token, second.token);
    let after = rows(&app, "jobs", "staged_id").await;
    let changes = [
        (1, json!({"lease_token": first.token.to_string(), "next_attempt_at": 60, "attempts": 1})),
        (2, json!({"lease_token": second.token.to_string(), "next_attempt_at": 60, "attempts": 3})),
    ];
    assert_changed(&before, &after, &changes);
    assert!(claim_jobs(&database, 10).await.is_empty());
}

#[tokio::test]
async fn a_worker_keeps_and_ends_its_own_leases_and_no_others() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app).await;
    let [first, second] = claim_jobs(&database, 10).await.try_into().unwrap();
    let theirs = JobLease { job_id: 4, token: Uuid::new_v4() };
    let unheld = JobLease { job_id: 3, token: Uuid::new_v4() };
    let (stale, jobs) = (JobLease { token: OTHERS.parse().unwrap(), ..second }, ("jobs", "staged_id"));

    let before = rows(&app, jobs.0, jobs.1).await;
    let held = [theirs, first, unheld, stale, second];
    let extended = work::extend(&database, &held, 2 * MINUTE).await.unwrap();
    assert_eq!((extended.kept, extended.skipped), ([first.token, second.token].into(), [].into()));
    let after = rows(&app, jobs.0, jobs.1).await;
    let renewed = json!({"next_attempt_at": 120});
    assert_changed(&before, &after, &[(1, renewed.clone()), (2, renewed)]);

    let before = after;
    for lost in [theirs, unheld, stale] {
        assert!(!finish(&database, lost, None).await.unwrap());
        let failed = work::fail(&database, lost, "late", true, &POLICY).await.unwrap();
        assert_eq!(failed, Failed::LeaseLost);
    }
    assert_changed(&before, &rows(&app, jobs.0, jobs.1).await, &[]);

    let sent = SentReceipt { ride_id: 7, message_id: "<7@x>".to_owned() };
    assert!(finish(&database, first, Some(sent)).await.unwrap());
    assert!(matches!(work::fail(&database, second, "no luck", false, &POLICY).await.unwrap(), Failed::Retried(_)));
    // The backoff is random: it is replaced by a known time, at which the job is due.
    app.execute("UPDATE jobs SET next_attempt_at = now() WHERE staged_id = 2").await;
    let after = rows(&app, jobs.0, jobs.1).await;
    let changes = [
        (1, json!({"lease_token": null, "finished_at": 0, "last_error": null})),
        (2, json!({"lease_token": null, "last_error": "no luck", "next_attempt_at": 0})),
    ];
    assert_changed(&before, &after, &changes);
    assert_eq!(app.count("receipts WHERE ride_id = 7 AND staged_id = 1 AND message_id = '<7@x>'").await, 1);

    let [again] = claim_jobs(&database, 10).await.try_into().unwrap();
    assert_eq!(work::fail(&database, again, "never", true, &POLICY).await.unwrap(), Failed::Buried);
    assert_eq!(app.count("dead_jobs WHERE staged_id = 2 AND attempts = 4 AND error = 'never'").await, 1);
    assert_eq!(app.count("jobs").await, 4);
}

/// Jobs of the outbox: 1 to 5 are due (5 because its lease has run out), 6 is in a backoff, 7 is leased.
async fn staged(app: &TestApp) {
    stage(app, 7).await;
    app.database
        .batch_execute(&format!(
            "UPDATE staged_jobs SET lease_token = '{OTHERS}', next_attempt_at = now() - interval '1 second',
                                    attempts = 2, last_error = 'before' WHERE id = 5;
             UPDATE staged_jobs SET next_attempt_at = now() + interval '50 seconds', attempts = 1 WHERE id = 6;
             UPDATE staged_jobs SET next_attempt_at = now() + interval '50 seconds', lease_token = '{OTHERS}'
             WHERE id = 7"
        ))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_enqueuer_gets_what_is_due_and_ends_its_own_leases_and_no_others() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    staged(&app).await;
    let before = rows(&app, "staged_jobs", "id").await;
    let batch = outbox::claim(&database, BEFORE_FIRST, 10, MINUTE).await.unwrap();
    assert_eq!(batch.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let token: Uuid = app.get("SELECT lease_token FROM staged_jobs WHERE id = 1").await;
    let after = rows(&app, "staged_jobs", "id").await;
    let taken = json!({"lease_token": token.to_string(), "next_attempt_at": 60});
    assert_changed(&before, &after, &[1, 2, 3, 4, 5].map(|id| (id, taken.clone())));
    assert!(outbox::claim(&database, BEFORE_FIRST, 10, MINUTE).await.unwrap().jobs.is_empty());

    // Another enqueuer takes job 5 in the meantime. The verdicts on 5, 6 and 7 must change nothing.
    app.execute(&format!("UPDATE staged_jobs SET lease_token = '{OTHERS}' WHERE id = 5")).await;
    let mut before = rows(&app, "staged_jobs", "id").await;
    let mut verdicts = PushResults { delivered: vec![1, 5], released: vec![4, 6, 7], ..PushResults::default() };
    for id in [2, 7] {
        verdicts.failed.push(id, "failed");
    }
    for id in [3, 5] {
        verdicts.dead.push(id, "dead");
    }
    let settled = outbox::settle(&database, &batch, &verdicts, MINUTE).await.unwrap();
    assert_eq!((settled.delivered, settled.failed, settled.dead), (1, 1, 1));
    let pause: f64 =
        app.get("SELECT extract(epoch FROM next_attempt_at - now())::float8 FROM staged_jobs WHERE id = 2").await;
    assert!((40.0..=75.0).contains(&pause), "{pause}");
    app.execute("UPDATE staged_jobs SET next_attempt_at = now() WHERE id = 2").await;
    let after = rows(&app, "staged_jobs", "id").await;
    before.retain(|id, _| ![1, 3].contains(id));
    let changes = [
        (2, json!({"lease_token": null, "next_attempt_at": 0, "attempts": 1, "last_error": "failed"})),
        (4, json!({"lease_token": null, "next_attempt_at": 0})),
    ];
    assert_changed(&before, &after, &changes);
    let dead = dead::list(&database, 10).await.unwrap();
    assert_eq!(
        dead.iter().map(|job| (job.id, job.attempts, job.error.as_str())).collect::<Vec<_>>(),
        [(3, 1, "dead")]
    );
}

/// Opens a session that locks these rows until it is dropped.
async fn hold(app: &TestApp, rows: &str) -> tokio_postgres::Client {
    let session = cluster::connect(&app.database_config).await;
    session.batch_execute(&format!("BEGIN; SELECT FROM {rows} FOR UPDATE")).await.unwrap();
    session
}

/// Starts a process beside the app, with this role alone.
async fn alone(app: &TestApp, change: impl FnOnce(&mut Config)) -> TestApp {
    app.neighbour(|config| {
        config.roles.api = false;
        change(config);
    })
    .await
}

#[tokio::test]
async fn a_row_that_is_held_keeps_no_other_job_from_the_table_jobs() {
    let app = TestApp::start().await;
    stage(&app, 3).await;
    let holder = hold(&app, "staged_jobs WHERE id = 1").await;
    let _enqueuer = alone(&app, |config| config.roles.enqueuer = true).await;
    app.until_count("jobs WHERE staged_id IN (2, 3)", 2).await;
    drop(holder);
    app.until_count("jobs", 3).await;
}

#[tokio::test]
async fn a_row_that_is_held_keeps_no_other_job_from_a_queue_elsewhere() {
    let app = TestApp::start().await;
    stage(&app, 3).await;
    let holder = hold(&app, "staged_jobs WHERE id = 1").await;
    let shelf = FakeQueue::new(QueueBehavior::Takes);
    let _enqueuer = enqueue_to(&shelf, &app, |_| {}).await;
    eventually("the others", async || (shelf.taken() == [2, 3]).then_some(())).await;
    app.until_count("staged_jobs", 1).await;
    drop(holder);
    eventually("all of them", async || (shelf.taken() == [2, 3, 1]).then_some(())).await;
}

#[tokio::test]
async fn a_row_that_is_held_keeps_no_other_job_from_being_worked() {
    let app = TestApp::start().await;
    queue(&app).await;
    let holder = hold(&app, "jobs WHERE staged_id = 2").await;
    let _worker = alone(&app, |config| config.roles.worker = true).await;
    // No worker knows these jobs.
    app.until_count("dead_jobs WHERE staged_id = 1", 1).await;
    drop(holder);
    app.until_count("dead_jobs", 2).await;
}

#[tokio::test]
async fn a_row_that_is_held_keeps_no_other_job_from_being_swept() {
    let app = TestApp::start().await;
    queue(&app).await;
    app.execute("UPDATE jobs SET finished_at = now() - interval '2 days', lease_token = NULL").await;
    let holder = hold(&app, "jobs WHERE staged_id = 2").await;
    let _reaper = alone(&app, |config| config.roles.reaper = true).await;
    app.until_count("jobs", 1).await;
    drop(holder);
    app.until_count("jobs", 0).await;
}

#[tokio::test]
async fn a_row_that_is_held_keeps_no_other_lease_from_being_extended() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app).await;
    let leases = claim_jobs(&database, 10).await;
    let [first, second] = leases.clone().try_into().unwrap();
    let _holder = hold(&app, "jobs WHERE staged_id = 1").await;
    let before = rows(&app, "jobs", "staged_id").await;
    let extended = work::extend(&database, &leases, 2 * MINUTE).await.unwrap();
    assert_eq!((extended.kept, extended.skipped), ([second.token].into(), [first.token].into()));
    let after = rows(&app, "jobs", "staged_id").await;
    assert_changed(&before, &after, &[(2, json!({"next_attempt_at": 120}))]);
}

/// The leases that a worker holds: one is extended again and again, one is lost to another worker, and in the end the
/// first runs out, because another session has locked its row.
#[tokio::test]
async fn a_held_lease_lasts_while_it_is_extended_and_is_given_up_when_it_is_lost() {
    const SHORT: Duration = Duration::from_millis(200);
    const LASTS: Duration = Duration::from_millis(900);
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app).await;
    let [kept, lost] = claim_jobs(&database, 10).await.try_into().unwrap();
    app.execute(&format!("UPDATE jobs SET lease_token = '{OTHERS}' WHERE staged_id = 2")).await;
    let leases = Arc::new(Leases::default());
    let began = Instant::now();
    let (kept, lost) = (leases.hold(kept, began + SHORT), leases.hold(lost, began + MINUTE));
    let beating = tokio::spawn(Arc::clone(&leases).beat(database, LASTS));

    timeout(MINUTE / 6, lost.lost()).await.expect("another worker has the job");
    let until = began + 2 * LASTS;
    timeout_at(until, kept.lost()).await.expect_err("it is extended");
    assert!(kept.outlasts(SHORT) && !kept.outlasts(LASTS));
    let _holder = hold(&app, "jobs WHERE staged_id = 1").await;
    timeout(MINUTE / 6, kept.lost()).await.expect("it has run out");
    beating.abort();
}
