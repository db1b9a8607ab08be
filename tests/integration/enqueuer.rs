//! The enqueuer: everything that is staged arrives, once.

use std::time::Duration;

use rocket_rides_atomic::config::Config;

use crate::support::client::Post;
use crate::support::cluster;
use crate::support::world::World;

fn enqueuing(config: &mut Config) {
    config.roles.enqueuer = true;
    config.enqueuer.batch = 100;
}

#[tokio::test]
async fn a_finished_ride_wakes_the_enqueuer() {
    let world = World::with(|config| {
        enqueuing(config);
        config.enqueuer.poll_interval = Duration::from_secs(3600);
    })
    .await;
    assert_eq!(world.post(Post::default()).await.status, 201);
    world.until_count("jobs WHERE job_name = 'send_ride_receipt'", 1).await;
    assert_eq!(world.count("staged_jobs").await, 0);
    let job: serde_json::Value = world.get("SELECT job_args FROM jobs").await;
    let ride: i64 = world.get("SELECT id FROM rides").await;
    assert_eq!(job["ride_id"], ride);
}

#[tokio::test]
async fn jobs_arrive_in_the_order_of_staging() {
    let world = World::with(enqueuing).await;
    world
        .execute(
            "INSERT INTO staged_jobs (job_name, job_args) SELECT 'n', to_jsonb(n) FROM generate_series(1, 2500) n",
        )
        .await;
    world.until_count("jobs", 2500).await;
    let misplaced = "(SELECT lag(staged_id) OVER (ORDER BY id) > staged_id AS back FROM jobs) j WHERE back";
    assert_eq!(world.count(misplaced).await, 0);
    assert_eq!(world.count("staged_jobs").await, 0);
}

#[tokio::test]
async fn two_enqueuers_and_late_commits_lose_and_double_nothing() {
    let world = World::with(enqueuing).await;
    let _other = world
        .neighbour(|config| {
            config.roles.api = false;
            enqueuing(config);
        })
        .await;
    // A low id that commits after everything else has been moved on.
    let late = cluster::connect(&world.database_config).await;
    late.batch_execute("BEGIN; INSERT INTO staged_jobs (job_name, job_args) VALUES ('late', '0')").await.unwrap();
    for _ in 0..20 {
        world
            .execute("INSERT INTO staged_jobs (job_name, job_args) SELECT 'n', to_jsonb(n) FROM generate_series(1, 500) n")
            .await;
    }
    world.until_count("jobs", 10_000).await;
    late.batch_execute("COMMIT").await.unwrap();
    world.until_count("jobs", 10_001).await;
    assert_eq!(world.count("jobs WHERE job_name = 'late'").await, 1);
    assert_eq!(world.count("(SELECT DISTINCT staged_id FROM jobs) j").await, 10_001);
}
