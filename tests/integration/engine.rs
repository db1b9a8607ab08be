//! The engine by itself: what the database guarantees, statement by statement.

use std::time::Duration;

use rocket_rides_atomic::idempotency::acquire::{Acquired, acquire};
use rocket_rides_atomic::idempotency::settle::{finish, park, release};
use rocket_rides_atomic::idempotency::{Job, Request, Response};
use serde_json::json;

use crate::support::client::{Post, new_key};
use crate::support::keys::{GRACE, LOCK, ask, lease, request, take_over};
use crate::support::world::{World, pool};

async fn written(world: &World) -> String {
    world
        .get("SELECT json_agg(k ORDER BY id)::text || (SELECT count(*) FROM staged_jobs) FROM idempotency_keys k")
        .await
}

#[tokio::test]
async fn a_stale_lease_writes_nothing() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    let request = request(&new_key());
    let stale = lease(&database, &request).await;
    let fresh = take_over(&database, &request).await;
    assert_ne!(stale.token, fresh.token);
    let before = written(&world).await;
    let response = Response { code: 201, body: "{}".into() };
    let job = Job { name: "job", args: json!({}) };
    assert!(!finish(&database, &stale, "started", &response, Some(&job)).await.unwrap());
    release(&database, &stale, "stale").await.unwrap();
    park(&database, &stale, "stale").await.unwrap();
    assert_eq!(written(&world).await, before);
    assert!(finish(&database, &fresh, "started", &response, Some(&job)).await.unwrap());
    assert!(!finish(&database, &fresh, "started", &response, Some(&job)).await.unwrap(), "twice");
    assert_eq!(world.count("staged_jobs").await, 1);
}

#[tokio::test]
async fn a_recovery_point_that_has_moved_on_shuts_the_fence() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    let lease = lease(&database, &request(&new_key())).await;
    let response = Response { code: 201, body: "{}".into() };
    assert!(!finish(&database, &lease, "charge_created", &response, None).await.unwrap());
    assert!(finish(&database, &lease, "started", &response, None).await.unwrap());
}

#[tokio::test]
async fn only_what_can_be_repeated_is_committed_without_a_flush() {
    let world = World::start().await;
    world
        .database
        .batch_execute(
            "CREATE TABLE commits (recovery_point TEXT, flushed TEXT);
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO commits VALUES (NEW.recovery_point, current_setting('synchronous_commit'));
                 RETURN NEW;
             END $$;
             CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE ON idempotency_keys
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .await
        .unwrap();
    assert_eq!(world.post(Post::default()).await.status, 201);
    let commits = world.query("SELECT recovery_point, flushed FROM commits", &[]).await;
    let commits: Vec<(String, String)> = commits.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [("started", "off"), ("ride_created", "on"), ("charge_created", "off"), ("finished", "on")];
    assert_eq!(commits, expected.map(|(point, flushed)| (point.to_owned(), flushed.to_owned())));
}

#[tokio::test]
async fn a_replay_writes_nothing() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    let request = request(&new_key());
    let held = lease(&database, &request).await;
    let response = Response { code: 201, body: r#"{"b": 1,  "a":2}"#.into() };
    finish(&database, &held, "started", &response, None).await.unwrap();
    let row = "SELECT xmin::text || ctid::text || xmax::text FROM idempotency_keys";
    let before: String = world.get(row).await;
    for _ in 0..3 {
        let Acquired::Finished { response: again, .. } = ask(&database, &request).await else { panic!("finished") };
        assert_eq!(again, response, "byte for byte");
    }
    assert_eq!(world.get::<String>(row).await, before);
}

#[tokio::test]
async fn what_a_key_says_to_each_request() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    let request = request(&new_key());
    let other = Request { params: json!({"a": 2}), ..request.clone() };
    let held = lease(&database, &request).await;
    assert!(
        matches!(ask(&database, &request).await, Acquired::InProgress { key_id: Some(id) } if id == held.key_id)
    );
    assert!(matches!(ask(&database, &other).await, Acquired::Mismatch { .. }));
    park(&database, &held, "for a test").await.unwrap();
    assert!(matches!(ask(&database, &request).await, Acquired::Parked { .. }));
    assert!(matches!(ask(&database, &other).await, Acquired::Mismatch { .. }));
}

#[tokio::test]
async fn of_many_at_once_one_gets_the_lease() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    for lock_timeout in [LOCK, Duration::ZERO] {
        let request = request(&new_key());
        if lock_timeout.is_zero() {
            let held = lease(&database, &request).await;
            release(&database, &held, "again").await.unwrap();
        }
        let mut racers = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let (database, request) = (database.clone(), request.clone());
            racers.spawn(async move { acquire(&database, request.into(), LOCK, GRACE).await.unwrap() });
        }
        let leases = racers.join_all().await.into_iter().filter(|won| matches!(won, Acquired::Lease(_))).count();
        assert_eq!(leases, 1);
    }
}
