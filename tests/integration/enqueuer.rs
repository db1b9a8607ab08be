//! The enqueuer: every staged job arrives, once.

use std::time::Duration;

use atomic_phases::queue::Relay;
use atomic_phases::queue::postgres::PostgresRelay;
use rocket_rides_atomic::config::Config;

use crate::support::app::{TestApp, pool, stage};
use crate::support::client::Post;
use crate::support::cluster;

/// Jobs that are stored out of the order of staging.
const MISPLACED: &str = "(SELECT lag(staged_id) OVER (ORDER BY ctid) > staged_id AS back FROM jobs) j WHERE back";

fn enqueuing(config: &mut Config) {
    config.roles.enqueuer = true;
    config.enqueuer.batch = 100;
}

#[tokio::test]
async fn a_finished_ride_wakes_the_enqueuer() {
    let app = TestApp::with(|config| {
        enqueuing(config);
        config.enqueuer.poll_interval = Duration::from_secs(3600);
    })
    .await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.until_count("jobs WHERE job_name = 'send_ride_receipt'", 1).await;
    assert_eq!(app.count("staged_jobs").await, 0);
    let job: serde_json::Value = app.get("SELECT job_args FROM jobs").await;
    let ride: i64 = app.get("SELECT id FROM rides").await;
    assert_eq!(job["ride_id"], ride);
}

#[tokio::test]
async fn jobs_arrive_in_the_order_of_staging() {
    let app = TestApp::with(enqueuing).await;
    stage(&app, 2500).await;
    app.until_count("jobs", 2500).await;
    assert_eq!(app.count(MISPLACED).await, 0);
    assert_eq!(app.count("staged_jobs").await, 0);
}

#[tokio::test]
async fn a_hundred_thousand_staged_jobs_all_arrive_in_order() {
    let app = TestApp::with(|config| {
        config.roles.enqueuer = true;
        config.enqueuer.poll_interval = Duration::from_secs(1);
    })
    .await;
    stage(&app, 100_000).await;
    app.until_count("jobs", 100_000).await;
    assert_eq!(app.count(MISPLACED).await, 0);
    assert_eq!(app.count("staged_jobs").await, 0);
}

/// A round goes on while statements move as many jobs as they may, and says whether more may be due.
#[tokio::test]
async fn a_round_goes_on_while_batches_are_full() {
    let app = TestApp::start().await;
    let relay = PostgresRelay { database: pool(&app.database_config).await, batch: 10 };
    for (staged, delivered, dead, more) in
        [(9, 9, 0, false), (20, 20, 0, true), (25, 25, 0, true), (15, 14, 1, true)]
    {
        if dead > 0 {
            app.execute("ALTER TABLE jobs ADD CONSTRAINT no_13 CHECK (job_args <> '13') NOT VALID").await;
        }
        stage(&app, staged).await;
        let relayed = relay.relay().await.unwrap();
        let found = (relayed.delivered, relayed.dead, relayed.more);
        assert_eq!(found, (delivered, dead, more), "{staged} staged");
    }
}

/// Only what is wrong with a job makes it a dead letter, also while a refused job is being looked for.
#[tokio::test]
async fn a_failure_that_is_no_jobs_fault_buries_none() {
    let app = TestApp::start().await;
    app.database
        .batch_execute(
            "ALTER TABLE jobs ADD CONSTRAINT no_3 CHECK (job_args <> '3');
             CREATE FUNCTION out_of_memory() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = 'out_of_memory'; END $$;
             CREATE TRIGGER breaks BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.job_args = '4')
             EXECUTE FUNCTION out_of_memory()",
        )
        .await
        .unwrap();
    stage(&app, 5).await;
    let relay = PostgresRelay { database: pool(&app.database_config).await, batch: 10 };
    let failed = relay.relay().await.expect_err("the fourth job breaks the statement");
    assert!(failed.is_transient(), "{failed:?}");
    assert_eq!((app.count("dead_jobs").await, app.count("jobs").await, app.count("staged_jobs").await), (1, 2, 2));
}

#[tokio::test]
async fn a_job_that_the_queue_refuses_is_buried_and_its_neighbours_are_delivered() {
    let app = TestApp::start().await;
    app.execute("ALTER TABLE jobs ADD CONSTRAINT no_unlucky CHECK (job_args NOT IN ('13', '500', '501'))").await;
    stage(&app, 1000).await;
    // A job that is in the queue already, with the id of a staged one.
    app.execute("INSERT INTO jobs (staged_id, job_name, job_args, staged_at) VALUES (77, 'n', '0', now())").await;
    let app = app.restarted(enqueuing).await;
    app.until_count("staged_jobs", 0).await;
    assert_eq!(app.count("jobs").await, 997);
    assert_eq!(app.count(&MISPLACED.replace("jobs)", "jobs WHERE staged_id <> 77)")).await, 0);
    let dead = app.query("SELECT staged_id, error, attempts FROM dead_jobs ORDER BY staged_id", &[]).await;
    let ids: Vec<i64> = dead.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, [13, 77, 500, 501]);
    for (row, said) in dead.iter().zip(["no_unlucky", "jobs_pkey", "no_unlucky", "no_unlucky"]) {
        let (error, attempts): (String, i32) = (row.get(1), row.get(2));
        assert!(error.contains(said) && attempts == 1, "{error}");
    }
    assert_eq!(app.count("dead_jobs WHERE died_in = 'outbox' AND job_args::text = staged_id::text").await, 4);
}

#[tokio::test]
async fn two_enqueuers_and_late_commits_lose_and_double_nothing() {
    let app = TestApp::with(enqueuing).await;
    let _other = app
        .neighbour(|config| {
            config.roles.api = false;
            enqueuing(config);
        })
        .await;
    // A job with a low id, whose transaction commits after all other jobs have been delivered.
    let late = cluster::connect(&app.database_config).await;
    late.batch_execute("BEGIN; INSERT INTO staged_jobs (job_name, job_args) VALUES ('late', '0')").await.unwrap();
    for _ in 0..20 {
        stage(&app, 500).await;
    }
    app.until_count("jobs", 10_000).await;
    late.batch_execute("COMMIT").await.unwrap();
    app.until_count("jobs", 10_001).await;
    assert_eq!(app.count("jobs WHERE job_name = 'late'").await, 1);
    assert_eq!(app.count("(SELECT DISTINCT staged_id FROM jobs) j").await, 10_001);
}
