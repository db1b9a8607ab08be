//! What `verify` says of a job's life: nothing while all is well, and which invariant is broken when one is.

use std::time::Duration;

use rocket_rides_atomic::invariants::{self, Invariant, Queue, Report, Traffic};

use crate::support::client::Post;
use crate::support::world::{World, pool};

/// One ride, paid, its receipt sent, and what the tables say of that kept aside.
async fn receipted() -> World {
    let world = World::with(|config| {
        config.roles.enqueuer = true;
        config.roles.worker = true;
    })
    .await;
    assert_eq!(world.post(Post::default()).await.status, 201);
    world.until_count("receipts", 1).await;
    world
        .database
        .batch_execute("CREATE TABLE kept_jobs AS TABLE jobs; CREATE TABLE kept_receipts AS TABLE receipts")
        .await
        .unwrap();
    world
}

async fn verify(world: &World, queue: Queue) -> Report {
    let database = pool(&world.database_config).await;
    invariants::verify(&database, &world.stripe(), Traffic::Quiet, queue).await.unwrap()
}

const RESTORE: &str = "
    DELETE FROM jobs; DELETE FROM receipts; DELETE FROM dead_jobs; DELETE FROM purged_jobs;
    DELETE FROM staged_jobs;
    INSERT INTO jobs TABLE kept_jobs; INSERT INTO receipts TABLE kept_receipts";

#[tokio::test]
async fn each_stage_of_a_jobs_life_is_in_order() {
    const DIE: &str = "
        DELETE FROM receipts; DELETE FROM jobs;
        INSERT INTO dead_jobs SELECT staged_id, job_name, job_args, staged_at, now(), 'queue', 30, 'x' FROM kept_jobs";
    const NONSENSE: &str = "
        INSERT INTO dead_jobs
        VALUES (99, 'send_ride_receipt', '{\"ride_id\": \"x\"}', now(), now(), 'queue', 1, 'x')";
    const GIVE_UP: &str = "
        DELETE FROM receipts; DELETE FROM jobs;
        INSERT INTO purged_jobs SELECT staged_id, job_name, job_args, now(), 'x' FROM kept_jobs";
    let world = receipted().await;
    for change in ["", "DELETE FROM jobs", DIE, GIVE_UP, NONSENSE] {
        world.database.batch_execute(RESTORE).await.unwrap();
        world.database.batch_execute(change).await.unwrap();
        let report = verify(&world, Queue::InDatabase).await;
        assert!(report.violated().is_empty(), "{change}: {report}");
    }
}

#[tokio::test]
async fn each_wrong_turn_in_a_jobs_life_is_found() {
    use Invariant as I;
    let world = receipted().await;
    for (what, change, invariants) in [
        (
            "a receipt of no ride",
            "INSERT INTO receipts VALUES (99, 99, 'x')",
            &[I::BookedIsChargedAndReceipted][..],
        ),
        ("finished without a receipt", "DELETE FROM receipts", &[I::StagedIsDelivered]),
        ("lost", "DELETE FROM receipts; DELETE FROM jobs", &[I::BookedIsChargedAndReceipted]),
        (
            "two jobs for a ride",
            "INSERT INTO jobs (staged_id, job_name, job_args, staged_at, finished_at)
             SELECT 99, job_name, job_args, staged_at, finished_at FROM jobs",
            &[I::BookedIsChargedAndReceipted],
        ),
        (
            "in two tables",
            "INSERT INTO staged_jobs (id, job_name, job_args) OVERRIDING SYSTEM VALUE
             SELECT staged_id, job_name, job_args FROM jobs",
            &[I::StagedIsDelivered],
        ),
        (
            "sent, and to be sent again",
            "UPDATE jobs SET finished_at = NULL, next_attempt_at = 'infinity'",
            &[I::StagedIsDelivered],
        ),
        (
            "not worked",
            "DELETE FROM receipts; UPDATE jobs SET finished_at = NULL, next_attempt_at = 'infinity'",
            &[I::StagedIsDelivered],
        ),
    ] {
        world.database.batch_execute(RESTORE).await.unwrap();
        world.database.batch_execute(change).await.unwrap();
        let report = verify(&world, Queue::InDatabase).await;
        assert_eq!(report.violated(), invariants, "{what}: {report}");
    }
}

#[tokio::test]
async fn jobs_that_left_for_another_queue_are_not_missed() {
    let world = receipted().await;
    world.database.batch_execute("DELETE FROM jobs; DELETE FROM receipts").await.unwrap();
    let report = verify(&world, Queue::Elsewhere).await;
    assert!(report.violated().is_empty(), "{report}");
    assert!(report.to_string().contains("(jobs leave this database for their queue"), "{report}");
    let twice = "INSERT INTO staged_jobs (job_name, job_args) SELECT job_name, job_args FROM kept_jobs";
    for _ in 0..2 {
        world.execute(twice).await;
    }
    assert_eq!(
        invariants::verify(&pool(&world.database_config).await, &world.stripe(), Traffic::Live, Queue::Elsewhere)
            .await
            .unwrap()
            .violated(),
        [Invariant::BookedIsChargedAndReceipted]
    );
}

#[tokio::test]
async fn a_live_system_is_sound_at_every_moment() {
    let world = World::with(|config| {
        config.roles.enqueuer = true;
        config.roles.worker = true;
        config.roles.reaper = true;
        config.worker.keep_finished = Duration::from_millis(30);
    })
    .await;
    let traffic = async {
        for _ in 0..60 {
            assert_eq!(world.post(Post::default()).await.status, 201);
        }
    };
    let look = async {
        loop {
            let report = world.verify(Traffic::Live).await;
            assert!(report.violated().is_empty(), "{report}");
        }
    };
    tokio::select! {
        () = traffic => {}
        () = look => {}
    }
    world.until_count("jobs", 0).await;
    assert_eq!(world.count("receipts").await, 60);
    world.assert_sound().await;
}
