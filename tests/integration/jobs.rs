//! Dead letters: listed, moved back to where they came from, and purged, by the commands that a person uses.

use atomic_phases::idempotency::parked;
use atomic_phases::queue::postgres::PostgresRelay;
use atomic_phases::queue::{Relay, dead};

use crate::support::app::{TempDir, TestApp, pool, stage};
use crate::support::client::Post;
use crate::support::process::{Process, arguments};

/// Returns what `jobs …` prints, line by line.
async fn jobs(app: &TestApp, command: &[&str]) -> Vec<String> {
    let dir = TempDir::new();
    let mut words = arguments(Some(&app.database_config), dir.path(), &[]);
    words.extend(["jobs"].iter().chain(command).map(|word| (*word).to_owned()));
    let mut process = Process::spawn(&words);
    assert_eq!(process.exit().await.code(), Some(0), "{:#?}", process.log());
    process.all_said().await
}

async fn dead_in_queue(app: &TestApp, ids: std::ops::RangeInclusive<i64>) {
    let sql = format!(
        "INSERT INTO dead_jobs (staged_id, job_name, job_args, staged_at, died_in, attempts, error)
         SELECT n, 'q', '{{\"ride_id\":7}}', now() - interval '1 hour', 'queue', 9, 'no such ride'
         FROM generate_series({}, {}) n",
        ids.start(),
        ids.end()
    );
    app.execute(&sql).await;
}

#[tokio::test]
async fn dead_letters_go_back_to_where_they_died() {
    let app = TestApp::with(|config| config.roles.enqueuer = true).await;
    app.execute("ALTER TABLE jobs ADD CONSTRAINT unlucky CHECK (job_args <> '2')").await;
    stage(&app, 3).await;
    app.until_count("dead_jobs", 1).await;
    let staged_at: std::time::SystemTime = app.get("SELECT staged_at FROM dead_jobs").await;
    dead_in_queue(&app, 900..=901).await;

    let listed = jobs(&app, &["list"]).await;
    assert_eq!(listed[0], "3 dead");
    assert!(listed[1].starts_with("2  n  died in the outbox after 1 attempts, "), "{listed:?}");
    assert!(listed[1].contains("unlucky"), "{listed:?}");
    assert!(listed[2].starts_with("900  q  died in the queue after 9 attempts, "), "{listed:?}");
    assert_eq!(jobs(&app, &["list", "--limit", "1"]).await.len(), 2);

    // The queue still refuses the first, which becomes a dead letter again; the second is in the queue, as if never
    // tried.
    let retried = jobs(&app, &["retry", "2", "900", "5"]).await;
    assert_eq!(retried, ["2  will be tried again", "900  will be tried again", "5  is not dead"]);
    app.until_count("dead_jobs", 2).await;
    let again = "jobs WHERE staged_id = 900 AND attempts = 0 AND finished_at IS NULL AND last_error IS NULL
                 AND job_args = '{\"ride_id\":7}' AND staged_at < now() - interval '59 minutes'";
    assert_eq!(app.count(again).await, 1);

    app.execute("ALTER TABLE jobs DROP CONSTRAINT unlucky").await;
    jobs(&app, &["retry", "2"]).await;
    app.until_count("jobs WHERE staged_id = 2", 1).await;
    let delivered: std::time::SystemTime = app.get("SELECT staged_at FROM jobs WHERE staged_id = 2").await;
    assert_eq!(delivered, staged_at);

    assert_eq!(jobs(&app, &["purge", "2", "901"]).await, ["2  is not dead", "901  is gone"]);
    assert_eq!(jobs(&app, &["list"]).await, ["0 dead"]);
    // Newly staged jobs have new ids.
    stage(&app, 1).await;
    app.until_count("jobs WHERE staged_id = 4", 1).await;
}

#[tokio::test]
async fn all_of_them_at_once() {
    let app = TestApp::start().await;
    dead_in_queue(&app, 1..=2500).await;
    assert_eq!(jobs(&app, &["retry", "--all"]).await.len(), 2500);
    assert_eq!((app.count("dead_jobs").await, app.count("jobs").await), (0, 2500));
    dead_in_queue(&app, 3001..=3003).await;
    assert_eq!(jobs(&app, &["purge", "--all"]).await, ["3001  is gone", "3002  is gone", "3003  is gone"]);
    assert_eq!(app.count("dead_jobs").await, 0);
    let mut both = Process::spawn(&["jobs", "purge", "--all", "1"].map(str::to_owned));
    assert_eq!(both.exit().await.code(), Some(2));
}

/// The ages are by the database's clock, which may have been set back since.
#[tokio::test]
async fn a_list_says_for_how_long_each_has_waited() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    dead_in_queue(&app, 1..=3).await;
    app.execute("UPDATE dead_jobs SET died_at = now() - interval '100 s' WHERE staged_id = 1").await;
    app.execute("UPDATE dead_jobs SET died_at = now() + interval '1 hour' WHERE staged_id = 2").await;
    let dead: Vec<u64> = dead::list(&database, 2).await.unwrap().iter().map(|job| job.dead_for.as_secs()).collect();
    assert!((100..130).contains(&dead[0]) && dead[1] == 0 && dead.len() == 2, "{dead:?}");

    for age in [50, 200, 100] {
        assert_eq!(app.post(Post::default().raising()).await.status, 500);
        let parked = format!("parked_at = now() - interval '{age} s', parked_reason = 'for a test'");
        app.execute(&format!("UPDATE idempotency_keys SET {parked} WHERE parked_at IS NULL")).await;
    }
    let parked = parked::list(&database, 10).await.unwrap();
    let waiting: Vec<u64> = parked.iter().map(|key| key.waiting.as_secs()).collect();
    let near = |at: usize, age: u64| (age..age + 30).contains(&waiting[at]);
    assert!(near(0, 200) && near(1, 100) && near(2, 50), "those first that have waited for longest: {waiting:?}");
}

#[tokio::test]
async fn ids_of_dead_letters_come_in_order_from_behind_the_last() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    for id in [5, 2, 9, 1] {
        dead_in_queue(&app, id..=id).await;
    }
    assert_eq!(dead::ids(&database, i64::MIN, 10).await.unwrap(), [1, 2, 5, 9]);
    assert_eq!(dead::ids(&database, 2, 1).await.unwrap(), [5]);
}

/// A job that the queue refuses, and that another enqueuer is just about to try, is left to that one.
#[tokio::test]
async fn a_refused_job_is_buried_with_its_attempts_unless_it_is_not_due() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    app.execute("ALTER TABLE jobs ADD CONSTRAINT unlucky CHECK (false)").await;
    app.execute(
        "INSERT INTO staged_jobs (job_name, job_args, attempts, next_attempt_at)
             VALUES ('n', '1', 0, now() + interval '1 hour'), ('n', '2', 3, now())",
    )
    .await;
    let relay = PostgresRelay { database: database.clone(), batch: 1 };
    assert_eq!(relay.relay().await.unwrap().dead, 1);
    let dead = dead::list(&database, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].id, dead[0].attempts), (1, 2, 4));
    assert_eq!(app.count("staged_jobs").await, 1);
}
