//! The worker: every job is worked once if nothing breaks, and otherwise until it succeeds or becomes a dead letter.

use std::time::{Duration, Instant};

use atomic_phases::queue::work::{self, Failed, RetryPolicy};
use nix::sys::signal::Signal;
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::receipts::Transport;
use rocket_rides_atomic::role::Role;
use rocket_rides_atomic::supervisor::RunError;
use secrecy::SecretString;
use tokio::task::JoinSet;

use super::receipts::receipts;
use crate::support::app::{TempDir, TestApp, pool};
use crate::support::client::{Http, Post};
use crate::support::eventually;
use crate::support::process::{Process, arguments};
use crate::support::receipts::{SentReceipt, finish};
use crate::support::smtp::{At, MailServer, Reply};

const MINUTE: Duration = Duration::from_secs(60);

fn working(config: &mut Config) {
    config.roles.worker = true;
    config.worker.retry_after = Duration::from_millis(20);
}

fn working_alone(config: &mut Config) {
    working(config);
    config.roles.api = false;
    config.roles.stripe_sandbox = false;
}

/// Makes the worker send to this server.
fn mailing(config: &mut Config, server: &MailServer) {
    config.receipts.transport = Transport::Smtp;
    config.receipts.smtp_url = Some(SecretString::from(server.url()));
    config.receipts.from = "receipts@rides.test".to_owned();
}

/// Queues this many jobs that no worker knows.
pub(super) async fn queue(app: &TestApp, count: i64) {
    let sql = format!(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
         SELECT n, 'n', '{{}}', now() FROM generate_series(1, {count}) n"
    );
    app.execute(&sql).await;
}

/// Books this many rides, which are paid and stage their jobs.
async fn book(app: &TestApp, count: usize) {
    let mut clients = JoinSet::new();
    for client in 0..16 {
        let api = Http::new(app.api_address);
        clients.spawn(async move {
            for _ in (client..count).step_by(16) {
                let answer = api.post(Post::default()).await;
                assert_eq!(answer.status, 201, "{answer:?}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "how long it takes is of interest, and no machine's fault")]
async fn a_receipt_follows_its_ride_at_once() {
    let app = TestApp::with(|config| {
        working(config);
        config.roles.enqueuer = true;
        config.enqueuer.poll_interval = Duration::from_secs(3600);
        config.worker.poll_interval = Duration::from_secs(3600);
    })
    .await;
    for ride in 1..=5 {
        assert_eq!(app.post(Post::default()).await.status, 201);
        let booked = Instant::now();
        eventually("a receipt", async || (receipts(&app.config.receipts.dir).len() == ride).then_some(())).await;
        println!("a receipt {:?} after its 201", booked.elapsed());
    }
}

#[tokio::test]
async fn two_hundred_rides_have_two_hundred_receipts() {
    let app = TestApp::with(|config| {
        working(config);
        config.roles.enqueuer = true;
    })
    .await;
    book(&app, 200).await;
    app.until_count("jobs WHERE finished_at IS NOT NULL AND attempts = 1", 200).await;
    assert_eq!(receipts(&app.config.receipts.dir).len(), 200);
    assert_eq!(app.count("receipts").await, 200);
    app.assert_sound().await;
}

#[tokio::test]
async fn two_workers_share_the_work() {
    let app = TestApp::with(|config| config.roles.enqueuer = true).await;
    book(&app, 100).await;
    app.until_count("jobs", 100).await;
    let (dir, server) = (app.config.receipts.dir.clone(), MailServer::start().await);
    let worker = |config: &mut Config| {
        working_alone(config);
        config.roles.enqueuer = false;
        config.worker.concurrency = 3;
    };
    let (_one, _two) = tokio::join!(
        app.neighbour(worker),
        app.neighbour(|config| {
            worker(config);
            mailing(config, &server);
        })
    );
    app.until_count("jobs WHERE finished_at IS NOT NULL AND attempts = 1", 100).await;
    let (files, mails) = (receipts(&dir).len(), server.received().len());
    assert_eq!(files + mails, 100, "{files} files, {mails} mails");
    app.assert_sound().await;
}

#[tokio::test]
async fn jobs_that_make_no_sense_die_at_once() {
    let app = TestApp::with(working).await;
    queue(&app, 1).await;
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES
                 (2, 'send_ride_receipt', '[]', now()),
                 (3, 'send_ride_receipt', '{\"ride_id\": \"x\"}', now()),
                 (4, 'send_ride_receipt',
                  '{\"ride_id\": 99, \"user_id\": 1, \"amount\": 1, \"currency\": \"usd\"}', now())",
    )
    .await;
    app.until_count("dead_jobs WHERE died_in = 'queue' AND attempts = 1", 4).await;
    assert_eq!(app.count("jobs").await, 0);
    let errors: Vec<String> = app
        .query("SELECT error FROM dead_jobs ORDER BY staged_id", &[])
        .await
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(errors[0], "no worker knows the job \"n\"");
    assert!(errors[1..3].iter().all(|error| error.contains("the arguments make no sense")), "{errors:?}");
    assert!(errors[3].contains("there is no such ride"), "{errors:?}");
}

#[tokio::test]
async fn a_job_is_tried_again_and_is_a_dead_letter_in_the_end() {
    let app = TestApp::with(|config| {
        working(config);
        config.roles.enqueuer = true;
        config.worker.max_attempts = 4;
    })
    .await;
    std::fs::remove_dir(&app.config.receipts.dir).unwrap();
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("dead_jobs WHERE died_in = 'queue' AND attempts = 4", 1).await;
    assert_eq!(app.count("jobs").await + app.count("receipts").await, 0);
    app.assert_sound().await;

    // The directory is there again, and the job is moved back to the queue.
    std::fs::create_dir(&app.config.receipts.dir).unwrap();
    let id: i64 = app.get("SELECT staged_id FROM dead_jobs").await;
    let database = pool(&app.database_config).await;
    assert_eq!(atomic_phases::queue::dead::retry(&database, &[id]).await.unwrap(), [id]);
    app.until_count("receipts", 1).await;
    assert_eq!(receipts(&app.config.receipts.dir).len(), 1);
    app.assert_sound().await;
}

#[tokio::test]
async fn pauses_grow_to_six_hours() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app, 1).await;
    let policy = RetryPolicy { retry_after: Duration::from_secs(10), max_attempts: 30 };
    for attempt in 1..=30 {
        let [job] = work::claim(&database, 10, MINUTE, 30).await.unwrap().claimed.try_into().unwrap();
        assert_eq!(job.attempt, attempt);
        let failed = work::fail(&database, job.lease, "no luck", false, &policy).await.unwrap();
        let pause = match failed {
            Failed::Retried(pause) => pause.as_secs_f64(),
            Failed::Buried => {
                assert_eq!(attempt, 30);
                break;
            }
            Failed::LeaseLost => panic!("it was ours"),
        };
        let middle = (10.0 * 2_f64.powi(attempt - 1)).min(6.0 * 3600.0);
        assert!((middle * 0.75..middle * 1.25).contains(&pause), "attempt {attempt}: {pause} s");
        app.execute("UPDATE jobs SET next_attempt_at = now()").await;
    }
    assert_eq!(app.count("dead_jobs WHERE attempts = 30 AND error = 'no luck'").await, 1);
}

#[tokio::test]
async fn a_worker_that_outlived_its_lease_writes_nothing() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app, 1).await;
    let claim = async || {
        let [job] = work::claim(&database, 10, MINUTE, 2).await.unwrap().claimed.try_into().unwrap();
        job.lease
    };
    let expire = "UPDATE jobs SET next_attempt_at = now() - interval '1 second'";
    let late = claim().await;
    assert!(work::claim(&database, 10, MINUTE, 2).await.unwrap().claimed.is_empty(), "it is taken");
    app.execute(expire).await;
    // The lease has run out, but no other worker has the job yet: a heartbeat is enough to keep it.
    assert!(work::extend(&database, &[late], MINUTE).await.unwrap().kept.contains(&late.token));
    app.execute(expire).await;
    let successor = claim().await;
    assert_ne!(late.token, successor.token);

    let before: String = app.get("SELECT jobs::text FROM jobs").await;
    let policy = RetryPolicy { retry_after: MINUTE, max_attempts: 1 };
    let sent = SentReceipt { ride_id: 1, message_id: "<1@x>".to_owned() };
    let extended = work::extend(&database, &[late], MINUTE).await.unwrap();
    assert!(extended.kept.is_empty() && extended.skipped.is_empty(), "{extended:?}");
    assert!(!finish(&database, late, Some(sent.clone())).await.unwrap());
    assert_eq!(work::fail(&database, late, "late", true, &policy).await.unwrap(), Failed::LeaseLost);
    assert_eq!(app.get::<String>("SELECT jobs::text FROM jobs").await, before);
    assert_eq!(app.count("receipts").await + app.count("dead_jobs").await, 0);

    // Nor does a worker that has finished already.
    assert!(finish(&database, successor, Some(sent.clone())).await.unwrap());
    assert!(!finish(&database, successor, Some(sent)).await.unwrap());
    assert_eq!(work::fail(&database, successor, "late", true, &policy).await.unwrap(), Failed::LeaseLost);
    assert_eq!(app.count("receipts").await, 1);
    assert_eq!(app.count("jobs WHERE finished_at IS NOT NULL").await, 1);
}

#[tokio::test]
async fn a_job_that_kills_its_workers_is_a_dead_letter() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    queue(&app, 1).await;
    for _ in 0..2 {
        assert_eq!(work::claim(&database, 10, MINUTE, 2).await.unwrap().claimed.len(), 1);
        app.execute("UPDATE jobs SET next_attempt_at = now(), last_error = 'no room'").await;
    }
    let claims = work::claim(&database, 10, MINUTE, 2).await.unwrap();
    assert_eq!((claims.claimed.len(), claims.buried), (0, vec![1]));
    let dead = "dead_jobs WHERE attempts = 2 AND error = 'its worker never came back; an earlier attempt: no room'";
    assert_eq!((app.count(dead).await, app.count("jobs").await), (1, 0));
}

#[tokio::test]
async fn the_heartbeat_keeps_a_slow_job_and_breaks_off_a_lost_one() {
    let server = MailServer::start().await;
    server.script(&[(At::End, Reply::Hang)]);
    let mut app = TestApp::with(|config| {
        working(config);
        config.roles.enqueuer = true;
        mailing(config, &server);
        config.worker.lease = Duration::from_secs(3);
        config.receipts.timeout = Duration::from_millis(2500);
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE attempts = 1 AND lease_token IS NOT NULL", 1).await;
    let ends = "SELECT extract(epoch FROM next_attempt_at)::float8 FROM jobs";
    let first: f64 = app.get(ends).await;
    eventually("a heartbeat", async || (app.get::<f64>(ends).await > first).then_some(())).await;

    // Another process takes the job over, with a lease of an hour.
    app.execute(
        "UPDATE jobs SET lease_token = gen_random_uuid(), process_id = NULL, next_attempt_at = now() + interval '1 hour'",
    )
    .await;
    let token: uuid::Uuid = app.get("SELECT lease_token FROM jobs").await;
    // `stop` waits for jobs that are under way, so the late worker has done everything when it returns.
    app.stop().await.unwrap();
    assert_eq!(app.get::<uuid::Uuid>("SELECT lease_token FROM jobs").await, token);
    assert_eq!(app.count("jobs WHERE attempts = 1 AND last_error IS NULL AND finished_at IS NULL").await, 1);
    assert_eq!(app.count("receipts").await, 0);
}

#[tokio::test]
async fn shutdown_waits_for_a_job_under_way_and_takes_no_other() {
    let server = MailServer::start().await;
    let mut app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        working(config);
        mailing(config, &server);
        config.worker.concurrency = 1;
        config.receipts.timeout = Duration::from_secs(2);
    })
    .await;
    // The first is held until its deadline; the second waits for the slot.
    server.script(&[(At::End, Reply::Hang)]);
    book(&app, 2).await;
    app.until_count("jobs WHERE lease_token IS NOT NULL", 1).await;
    app.until_count("jobs", 2).await;
    app.stop().await.unwrap();
    assert_eq!(app.count("jobs WHERE attempts = 1 AND last_error LIKE '%not handed over within%'").await, 1);
    assert_eq!(app.count("jobs WHERE attempts = 0").await, 1);
    let app = app.restarted_after_stop(|_| {}).await;
    app.until_count("receipts", 2).await;
    app.assert_sound().await;
}

#[tokio::test]
async fn a_job_that_outlasts_the_shutdown_is_named() {
    let server = MailServer::start().await;
    server.script(&[(At::End, Reply::Hang)]);
    let mut app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        working(config);
        mailing(config, &server);
        config.shutdown.deadline = Duration::from_millis(300);
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE lease_token IS NOT NULL", 1).await;
    let error = app.stop().await.expect_err("late");
    assert!(matches!(&error, RunError::DeadlinePassed { late, .. } if *late == [Role::Worker]), "{error}");
}

#[tokio::test]
async fn finished_jobs_are_removed_after_a_while_and_their_receipts_stay() {
    let app = TestApp::with(|config| {
        working(config);
        config.roles.enqueuer = true;
        config.roles.reaper = true;
    })
    .await;
    book(&app, 3).await;
    app.until_count("jobs WHERE finished_at IS NOT NULL", 3).await;
    app.execute("UPDATE jobs SET finished_at = now() - interval '25 hours' WHERE staged_id < 3").await;
    app.until_count("jobs", 1).await;
    assert_eq!(app.count("receipts").await, 3);
    app.assert_sound().await;
}

#[tokio::test]
async fn killed_while_it_works_it_leaves_one_file_for_each_ride() {
    let app = TestApp::with(|config| config.roles.enqueuer = true).await;
    book(&app, 60).await;
    app.until_count("jobs", 60).await;
    let dir = TempDir::new();
    // A claim that was under way when its worker was killed may be executed late; such a lease runs out by itself.
    let settings = ["worker.concurrency=4", "worker.lease=10s", "receipts.timeout=5s"];
    let mut arguments = arguments(Some(&app.database_config), dir.path(), &settings);
    arguments.extend(["--only".to_owned(), "worker".to_owned()]);
    let receipted = dir.path().join("receipts");
    for done in [5, 20, 40] {
        let mut process = Process::spawn(&arguments);
        eventually("some receipts", async || (receipts(&receipted).len() >= done).then_some(())).await;
        process.signal(Signal::SIGKILL);
        process.exit().await;
        // The dead process's leases would run out by themselves; the test does not wait for that.
        app.execute("UPDATE jobs SET next_attempt_at = now() WHERE lease_token IS NOT NULL").await;
    }
    let _process = Process::spawn(&arguments);
    app.until_count("jobs WHERE finished_at IS NOT NULL", 60).await;
    assert_eq!(receipts(&receipted).len(), 60);
    app.assert_sound().await;
}
