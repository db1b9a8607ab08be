//! Limits in time, each tested from both sides: backoffs with their doubling, spread and cap, ages, deadlines of
//! clients. Times that are stored in a row are moved there, so that no test waits for them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use atomic_phases::queue::BEFORE_FIRST;
use atomic_phases::queue::outbox::{self, PushResults};
use atomic_phases::queue::work::{self, Failed, JobLease, RetryPolicy};
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::receipts::file::Directory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::app::{TempDir, TestApp, pool};
use crate::support::client::{FORM, GOOD_USER, Post, RIDE, new_key};
use crate::support::eventually;

/// Draws for each backoff. That all of them miss an end of the range is less likely than a fault of the machine.
const DRAWS: usize = 200;

/// Asserts that the backoffs spread over the whole of `middle` ± a quarter, and not beyond.
fn assert_spread(what: &str, middle: f64, pauses: &[f64]) {
    assert_eq!(pauses.len(), DRAWS, "{what}");
    let shares = || pauses.iter().map(|pause| pause / middle);
    let (least, most) = (shares().fold(f64::MAX, f64::min), shares().fold(f64::MIN, f64::max));
    assert!((0.7499..0.80).contains(&least), "{what}: the shortest is {least} of {middle} s");
    assert!((1.20..1.2501).contains(&most), "{what}: the longest is {most} of {middle} s");
}

#[tokio::test]
async fn a_refused_job_is_pushed_again_after_pauses_that_double_up_to_an_hour() {
    const HOUR: f64 = 3600.0;
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    // By the number of attempts before: 5 s, then twice as long with each, and from 10 on the cap.
    let middles: BTreeMap<i32, f64> =
        [(0, 5.0), (1, 10.0), (2, 20.0), (9, 2560.0), (10, HOUR), (30, HOUR), (31, HOUR), (2000, HOUR)].into();
    app.database
        .batch_execute(
            "CREATE TABLE pauses (attempts INT, pause FLOAT8);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO pauses VALUES (OLD.attempts, extract(epoch FROM NEW.next_attempt_at - now()));
                 RETURN NULL;
             END $$;
             CREATE TRIGGER note AFTER UPDATE ON staged_jobs FOR EACH ROW
                 WHEN (NEW.attempts > OLD.attempts) EXECUTE FUNCTION note()",
        )
        .await
        .unwrap();
    for attempts in middles.keys() {
        let sql = format!(
            "INSERT INTO staged_jobs (job_name, job_args, attempts)
             SELECT 'n', '{{}}', {attempts} FROM generate_series(1, {DRAWS})"
        );
        app.execute(&sql).await;
    }
    let batch = outbox::claim(&database, BEFORE_FIRST, 10_000, Duration::from_secs(60)).await.unwrap();
    let mut verdicts = PushResults::default();
    batch.jobs.iter().for_each(|job| verdicts.failed.push(job.id, "no"));
    outbox::settle(&database, &batch, &verdicts, Duration::from_secs(5)).await.unwrap();
    for (attempts, middle) in middles {
        let pauses = app.query("SELECT pause FROM pauses WHERE attempts = $1", &[&attempts]).await;
        let pauses: Vec<f64> = pauses.iter().map(|row| row.get(0)).collect();
        assert_spread(&format!("after {attempts} attempts"), middle, &pauses);
    }
}

#[tokio::test]
async fn a_failed_job_is_worked_again_after_pauses_that_double_up_to_six_hours() {
    const SIX_HOURS: f64 = 6.0 * 3600.0;
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let policy = RetryPolicy { retry_after: Duration::from_secs(10), max_attempts: 3000 };
    // By the number of attempts, the failed one included.
    for (attempts, middle) in
        [(1, 10.0), (2, 20.0), (12, 20_480.0), (13, SIX_HOURS), (31, SIX_HOURS), (32, SIX_HOURS), (2000, SIX_HOURS)]
    {
        let sql = format!(
            "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, lease_token, attempts)
             SELECT {attempts} * 1000 + n, 'n', '{{}}', now(), gen_random_uuid(), {attempts}
             FROM generate_series(1, {DRAWS}) n RETURNING staged_id, lease_token"
        );
        let held = app.query(&sql, &[]).await;
        let failed = held.iter().map(|row| {
            let lease = JobLease { job_id: row.get(0), token: row.get::<_, Uuid>(1) };
            work::fail(&database, lease, "no luck", false, &policy)
        });
        let pauses: Vec<f64> = futures_util::future::join_all(failed)
            .await
            .into_iter()
            .map(|failed| match failed.unwrap() {
                Failed::Retried(pause) => pause.as_secs_f64(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_spread(&format!("after {attempts} attempts"), middle, &pauses);
    }
}

#[tokio::test]
async fn a_job_dies_of_its_last_attempt_and_not_before() {
    const MOST: i32 = 4;
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let policy = RetryPolicy { retry_after: Duration::from_secs(10), max_attempts: MOST };
    // Jobs 1 and 2 are leased by attempts that fail; the workers of jobs 3 and 4 have died.
    app.execute(&format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, lease_token, attempts, next_attempt_at)
             SELECT n, 'n', '{{}}', now(), gen_random_uuid(), {MOST} - n % 2,
                    now() + CASE WHEN n < 3 THEN interval '1 minute' ELSE interval '0' END
             FROM generate_series(1, 4) n"
    ))
    .await;
    let mut ends = Vec::new();
    for job_id in 1..=2 {
        let token = app.get(&format!("SELECT lease_token FROM jobs WHERE staged_id = {job_id}")).await;
        let failed = work::fail(&database, JobLease { job_id, token }, "no luck", false, &policy).await.unwrap();
        ends.push(failed == Failed::Buried);
    }
    assert_eq!(ends, [false, true]);
    let claims = work::claim(&database, 10, Duration::from_secs(60), MOST).await.unwrap();
    assert_eq!(claims.claimed.iter().map(|job| (job.lease.job_id, job.attempt)).collect::<Vec<_>>(), [(3, MOST)]);
    assert_eq!(claims.buried, [4]);
}

#[tokio::test]
async fn a_finished_job_is_kept_for_a_day_and_no_longer() {
    let app = TestApp::with(|config| config.roles.reaper = true).await;
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at) VALUES
                 (1, 'n', '{}', now(), now() - interval '23 hours 59 minutes 50 seconds'),
                 (2, 'n', '{}', now(), now() - interval '24 hours')",
    )
    .await;
    app.until_count("jobs WHERE staged_id = 2", 0).await;
    assert_eq!(app.count("jobs WHERE staged_id = 1").await, 1);
}

#[tokio::test]
async fn an_unfinished_receipt_is_cleaned_up_after_an_hour_and_not_before() {
    let dir = TempDir::new();
    let [young, old] = [(".unfinished-a", 3590), (".unfinished-b", 3610)].map(|(name, age)| {
        let path = dir.path().join(name);
        let written = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::create(&path).unwrap().set_modified(written).unwrap();
        path
    });
    Directory::open(dir.path()).unwrap();
    assert_eq!((young.exists(), old.exists()), (true, false));
}

#[tokio::test]
async fn a_user_who_is_removed_or_pays_otherwise_is_so_within_moments() {
    const LEAVING: &str = "leaving@example.com";
    let app = TestApp::start().await;
    let customer = app.stripe().create_customer(LEAVING, "tok_visa", Uuid::new_v4()).await.unwrap();
    let sql = format!("INSERT INTO users (email, stripe_customer_id) VALUES ('{LEAVING}', 'cus_1')");
    app.execute(&sql).await;
    // The API knows the user now, but refuses the request because it has no key. So no ride keeps the user's row.
    let keyless = Post::default().user(LEAVING).without("idempotency-key");
    assert_eq!(app.post(keyless.clone()).await.status, 400);
    assert_eq!(app.post(Post::default()).await.status, 201);

    app.execute(&format!("DELETE FROM users WHERE email = '{LEAVING}'")).await;
    let sql = format!("UPDATE users SET stripe_customer_id = '{customer}' WHERE email = '{GOOD_USER}'");
    app.execute(&sql).await;
    eventually("the user is unknown", async || (app.post(keyless.clone()).await.status == 401).then_some(())).await;
    eventually("the new customer pays", async || {
        assert_eq!(app.post(Post::default()).await.status, 201);
        (app.charges().await[0]["customer"] == customer).then_some(())
    })
    .await;
}

/// The short deadline of clients, in tests that let it pass.
const PATIENCE: Duration = Duration::from_millis(400);

fn impatient(config: &mut Config) {
    config.api.head_timeout = PATIENCE;
    config.api.body_timeout = PATIENCE;
}

/// Sends these parts with a pause between them, and returns what the server sent until it closed the connection.
async fn converse(app: &TestApp, parts: &[&str], pause: Duration) -> String {
    let mut stream = TcpStream::connect(app.api_address).await.unwrap();
    for (n, part) in parts.iter().enumerate() {
        if n > 0 {
            tokio::time::sleep(pause).await;
        }
        stream.write_all(part.as_bytes()).await.unwrap();
    }
    let mut answer = String::new();
    let read = tokio::time::timeout(20 * PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("an end").unwrap();
    answer
}

#[tokio::test]
async fn a_request_that_comes_too_slowly_is_given_up_and_one_that_comes_in_time_is_not() {
    let app = TestApp::with(impatient).await;
    let head = format!(
        "POST /rides HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {GOOD_USER}\r\n\
         idempotency-key: {}\r\ncontent-type: {FORM}\r\ncontent-length: {}\r\n\r\n",
        new_key(),
        RIDE.len()
    );
    let (half_head, half_body) = (&head[..40], &RIDE[..20]);
    let began = Instant::now();
    assert_eq!(converse(&app, &[half_head], Duration::ZERO).await, "", "closes the connection without an answer");
    assert!(began.elapsed() >= PATIENCE);
    let began = Instant::now();
    let late = converse(&app, &[&head, half_body], Duration::ZERO).await;
    assert!(late.starts_with("HTTP/1.1 408 "), "{late}");
    assert!(began.elapsed() >= PATIENCE);
    assert_eq!(app.count("idempotency_keys").await, 0);

    let parts = [half_head, &head[40..], half_body, &RIDE[20..]];
    let answer = converse(&app, &parts, PATIENCE / 4).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}
