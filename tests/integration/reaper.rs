//! The reaper: old keys go, unfinished ones wait for a person, rides stay.

use std::time::Duration;

use rocket_rides_atomic::config::Config;
use rocket_rides_atomic::idempotency::parked;

use crate::support::client::{Post, new_key};
use crate::support::world::{World, insert_keys, pool};

const AGE: &str = "UPDATE idempotency_keys SET created_at = now() - interval '73 hours',
                   last_run_at = last_run_at - interval '73 hours'";

fn reaping(config: &mut Config) {
    config.roles.reaper = true;
}

#[tokio::test]
async fn old_finished_keys_go_and_their_rides_stay() {
    let world = World::with(reaping).await;
    assert_eq!(world.post(Post::default()).await.status, 201);
    world.execute(AGE).await;
    let young = new_key();
    assert_eq!(world.post(Post::default().key(&young)).await.status, 201);
    world.until_count("idempotency_keys", 1).await;
    assert!(world.post(Post::default().key(&young)).await.is_replay());
    assert_eq!(world.count("rides").await, 2);
    assert_eq!(world.count("rides WHERE idempotency_key_id NOT IN (SELECT id FROM idempotency_keys)").await, 1);
}

#[tokio::test]
async fn old_unfinished_keys_are_parked_and_never_removed() {
    let world = World::with(reaping).await;
    world.post(Post::default().raising()).await;
    world.execute(AGE).await;
    world.until_count("idempotency_keys WHERE parked_at IS NOT NULL AND parked_reason LIKE '%retention%'", 1).await;
    assert_eq!(world.count("rides JOIN idempotency_keys k ON k.id = idempotency_key_id").await, 1);
}

#[tokio::test]
async fn an_old_key_that_is_finished_late_keeps_its_answer() {
    let world = World::with(|config| {
        reaping(config);
        config.roles.completer = true;
    })
    .await;
    let key = new_key();
    world.post(Post::default().key(&key).raising()).await;
    world.execute(AGE).await;
    world.until_count("idempotency_keys WHERE parked_at IS NOT NULL", 1).await;
    let id: i64 = world.get("SELECT id FROM idempotency_keys").await;
    parked::retry(&pool(&world.database_config).await, &[id]).await.unwrap();
    world.until_count("idempotency_keys WHERE response_code = 201", 1).await;
    // Another old key is removed meanwhile, so the reaper has looked.
    assert_eq!(world.post(Post::default()).await.status, 201);
    world.execute(&format!("{AGE} WHERE completer_attempts = 0")).await;
    world.until_count("idempotency_keys", 1).await;
    assert!(world.post(Post::default().key(&key)).await.is_replay());
    assert_eq!(world.charges().await.len(), 2);
}

#[tokio::test]
async fn a_key_that_is_worked_on_is_left() {
    let world = World::with(reaping).await;
    world.script(&["hold"]).await;
    let (held, ()) = tokio::join!(world.post(Post::default()), async {
        world.until_held().await;
        world.execute(AGE).await;
        // Another old key is removed meanwhile, so the reaper has looked.
        assert_eq!(world.post(Post::default()).await.status, 201);
        world.execute(&format!("{AGE} WHERE response_code IS NOT NULL")).await;
        world.until_count("idempotency_keys", 1).await;
        assert_eq!(world.count("idempotency_keys WHERE lease_token IS NOT NULL AND parked_at IS NULL").await, 1);
        world.release_held().await;
    });
    assert_eq!(held.status, 201);
}

#[tokio::test]
async fn full_batches_follow_each_other_within_a_poll() {
    let world = World::start().await;
    insert_keys(&world, 1050, "72 hours").await;
    let _reaper = world
        .neighbour(|config| {
            config.roles.api = false;
            reaping(config);
            config.reaper.batch = 100;
            config.reaper.poll_interval = Duration::from_secs(3600);
        })
        .await;
    world.until_count("idempotency_keys", 0).await;
}
