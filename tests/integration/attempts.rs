//! One attempt at a job: what is checked before it does anything that cannot be undone, and how its end is recorded.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atomic_phases::queue::foreign::{ExternalRelay, PushPolicy};
use atomic_phases::queue::health::QueueHealth;
use atomic_phases::queue::{Relay, Relayed};
use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::receipts::Transport;
use rocket_rides_atomic::receipts::file::Directory;
use secrecy::SecretString;

use super::foreign::{FakeQueue, QueueBehavior};
use super::receipts::receipts;
use crate::support::app::{TempDir, TestApp, pool, stage};
use crate::support::client::Post;
use crate::support::smtp::MailServer;

fn mailing(config: &mut Config, server: &MailServer) {
    config.roles.enqueuer = true;
    config.roles.worker = true;
    config.receipts.transport = Transport::Smtp;
    config.receipts.smtp_url = Some(SecretString::from(server.url()));
    config.receipts.from = "receipts@rides.test".to_owned();
}

#[tokio::test]
async fn a_mail_that_does_not_fit_into_the_lease_is_not_begun() {
    let server = MailServer::start().await;
    let app = TestApp::with(|config| {
        mailing(config, &server);
        config.worker.lease = Duration::from_millis(300);
        config.receipts.timeout = Duration::from_millis(300);
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    // Two leases have run out, so the first attempt is over for good.
    app.until_count("jobs WHERE attempts >= 3 OR finished_at IS NOT NULL", 1).await;
    assert_eq!((server.connections(), app.count("receipts").await), (0, 0));
    let app = app.restarted(|config| config.worker.lease = Duration::from_secs(30)).await;
    app.until_count("receipts", 1).await;
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn a_push_that_does_not_fit_into_the_lease_is_not_begun() {
    let app = TestApp::start().await;
    let shelf = FakeQueue::new(QueueBehavior::Takes);
    stage(&app, 3).await;
    let timeout = Duration::from_secs(10);
    for (lease, pushes) in [(timeout, 0), (3 * timeout, 1)] {
        let relay = ExternalRelay {
            database: pool(&app.database_config).await,
            queue: shelf.clone(),
            policy: PushPolicy { batch: 100, timeout, lease, retry_after: timeout, max_attempts: 3 },
            health: Arc::new(QueueHealth::new("shelf")),
        };
        let relayed = relay.relay().await.unwrap();
        assert_eq!(shelf.pushes(), pushes, "a push may take {timeout:?} and the lease lasts {lease:?}");
        if pushes == 0 {
            assert_eq!(relayed, Relayed::default());
            let released = "staged_jobs WHERE lease_token IS NULL AND next_attempt_at <= now() AND attempts = 0";
            assert_eq!(app.count(released).await, 3);
        }
    }
    assert_eq!(shelf.taken(), [1, 2, 3]);
}

/// Ends the sessions of the first `count` statements that finish a job, before they commit.
async fn break_finishes(app: &TestApp, count: u32) {
    let sql = format!(
        "CREATE SEQUENCE broken;
         CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('broken') <= {count} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER break BEFORE UPDATE ON jobs FOR EACH ROW
             WHEN (OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL) EXECUTE FUNCTION break()"
    );
    app.database.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_when_a_job_ends_repeats_no_mail() {
    let server = MailServer::start().await;
    let app = TestApp::with(|config| mailing(config, &server)).await;
    break_finishes(&app, 1).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("receipts", 1).await;
    assert_eq!(app.get::<i64>("SELECT last_value FROM broken").await, 2);
    assert_eq!(server.received().len(), 1);
    assert_eq!(app.count("jobs WHERE attempts = 1 AND finished_at IS NOT NULL").await, 1);
    app.assert_sound().await;
}

#[tokio::test]
async fn a_receipt_is_for_the_user_of_its_ride_alone() {
    let app = TestApp::with(|config| config.roles.worker = true).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    // As a program that confuses two users would stage it.
    app.execute(
        "INSERT INTO jobs (staged_id, job_name, job_args, staged_at)
             SELECT id, job_name, job_args || '{\"user_id\": 2}', created_at FROM staged_jobs",
    )
    .await;
    app.until_count("jobs WHERE finished_at IS NULL", 0).await;
    assert_eq!(app.count("dead_jobs WHERE attempts = 1 AND error LIKE '%another user%'").await, 1);
    assert_eq!(app.count("receipts").await, 0);
    assert!(receipts(&app.config.receipts.dir).is_empty());
}

/// Looks at the file all the time until `done`, and returns the sizes that it has had.
fn watch(path: &Path, done: &Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<u64>> {
    let (path, done) = (path.to_owned(), Arc::clone(done));
    std::thread::spawn(move || {
        let mut sizes = Vec::new();
        while !done.load(Ordering::SeqCst) {
            if let Ok(file) = std::fs::metadata(&path)
                && sizes.last() != Some(&file.len())
            {
                sizes.push(file.len());
            }
        }
        sizes
    })
}

#[tokio::test]
async fn a_receipt_is_there_whole_or_not_at_all() {
    let dir = TempDir::new();
    let directory = Directory::open(dir.path()).unwrap();
    let (long, path) = (vec![b'x'; 8 << 20], dir.path().join("receipt.eml"));
    let done = Arc::new(AtomicBool::new(false));
    let watcher = watch(&path, &done);
    directory.put("receipt.eml", &long).await.unwrap();
    // A reader that has the file open goes on reading what it opened.
    let mut opened = std::fs::File::open(&path).unwrap();
    directory.put("receipt.eml", &long[..1 << 20]).await.unwrap();
    assert_eq!(opened.metadata().unwrap().len(), 8 << 20);
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut opened, &mut read).unwrap();
    assert!(read == long);
    done.store(true, Ordering::SeqCst);
    let sizes = watcher.join().unwrap();
    assert!(sizes.iter().all(|size| [8 << 20, 1 << 20].contains(size)), "{sizes:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing unfinished stays");
}
