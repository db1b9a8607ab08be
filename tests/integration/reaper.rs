//! The reaper: old keys are removed, unfinished ones are parked for a person, rides stay.

use std::time::Duration;

use atomic_phases::idempotency::parked;
use atomic_phases::idempotency::reap::reap;
use atomic_phases::idempotency::settle::release;
use rocket_rides_atomic::config::Config;

use crate::support::app::{TestApp, insert_keys, pool};
use crate::support::client::{Post, new_key};
use crate::support::cluster;
use crate::support::keys::{LOCK, lease, request};

const RETENTION: Duration = Duration::from_secs(72 * 3600);
/// How long it may take to move times and to read them.
const SLACK: Duration = Duration::from_secs(5);

const AGE: &str = "UPDATE idempotency_keys SET created_at = now() - interval '73 hours',
                   last_run_at = last_run_at - interval '73 hours'";

fn reaping(config: &mut Config) {
    config.roles.reaper = true;
}

#[tokio::test]
async fn old_finished_keys_go_and_their_rides_stay() {
    let app = TestApp::with(reaping).await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    app.execute(AGE).await;
    let young = new_key();
    assert_eq!(app.post(Post::default().key(&young)).await.status, 201);
    app.until_count("idempotency_keys", 1).await;
    assert!(app.post(Post::default().key(&young)).await.is_replay());
    assert_eq!(app.count("rides").await, 2);
    assert_eq!(app.count("rides WHERE idempotency_key_id NOT IN (SELECT id FROM idempotency_keys)").await, 1);
}

#[tokio::test]
async fn old_unfinished_keys_are_parked_and_never_removed() {
    let app = TestApp::with(reaping).await;
    app.post(Post::default().raising()).await;
    app.execute(AGE).await;
    app.until_count("idempotency_keys WHERE parked_at IS NOT NULL AND parked_reason LIKE '%retention%'", 1).await;
    assert_eq!(app.count("rides JOIN idempotency_keys k ON k.id = idempotency_key_id").await, 1);
}

#[tokio::test]
async fn a_key_that_is_worked_on_is_left() {
    let app = TestApp::with(reaping).await;
    app.script(&["hold"]).await;
    let (held, ()) = tokio::join!(app.post(Post::default()), async {
        app.until_held().await;
        app.execute(AGE).await;
        // Another old key is removed meanwhile, so the reaper has looked.
        assert_eq!(app.post(Post::default()).await.status, 201);
        app.execute(&format!("{AGE} WHERE response_code IS NOT NULL")).await;
        app.until_count("idempotency_keys", 1).await;
        assert_eq!(app.count("idempotency_keys WHERE lease_token IS NOT NULL AND parked_at IS NULL").await, 1);
        app.release_held().await;
    });
    assert_eq!(held.status, 201);
}

#[tokio::test]
async fn full_batches_follow_each_other_within_a_poll() {
    let app = TestApp::start().await;
    insert_keys(&app, 1050, "72 hours").await;
    let _reaper = app
        .neighbour(|config| {
            config.roles.api = false;
            reaping(config);
            config.reaper.batch = 100;
            config.reaper.poll_interval = Duration::from_secs(3600);
        })
        .await;
    app.until_count("idempotency_keys", 0).await;
}

/// Runs the reaper once, with a retention of three days. Returns how many keys it removed, and how many it parked.
async fn reap_once(app: &TestApp) -> (i64, i64) {
    let reaped = reap(&pool(&app.database_config).await, RETENTION, LOCK, 100).await.unwrap();
    (reaped.removed, reaped.parked)
}

/// Sets these times of all keys to this long ago.
async fn set_ages(app: &TestApp, columns: &[&str], age: Duration) {
    for column in columns {
        let sql = format!("UPDATE idempotency_keys SET {column} = now() - make_interval(secs => $1)");
        app.query(&sql, &[&age.as_secs_f64()]).await;
    }
}

#[tokio::test]
async fn a_key_is_kept_for_its_retention_and_no_longer() {
    let app = TestApp::start().await;
    assert_eq!(app.post(Post::default()).await.status, 201);
    let (short, over) = (RETENTION - SLACK, RETENTION);
    for (created, last_run, reaped) in [(short, short, 0), (over, short, 0), (short, over, 0), (over, over, 1)] {
        set_ages(&app, &["created_at"], created).await;
        set_ages(&app, &["last_run_at"], last_run).await;
        assert_eq!(reap_once(&app).await, (reaped, 0), "created {created:?}, taken up {last_run:?} ago");
    }
}

#[tokio::test]
async fn a_lease_keeps_an_old_key_until_it_has_run_out() {
    let app = TestApp::start().await;
    lease(&pool(&app.database_config).await, &request(&new_key())).await;
    set_ages(&app, &["created_at", "last_run_at"], RETENTION).await;
    set_ages(&app, &["locked_at"], LOCK - SLACK).await;
    assert_eq!(reap_once(&app).await, (0, 0));
    set_ages(&app, &["locked_at"], LOCK).await;
    assert_eq!(reap_once(&app).await, (0, 1));
    let parked = "idempotency_keys WHERE lease_token IS NULL AND locked_at IS NULL
                  AND parked_at > now() - interval '1 minute'
                  AND parked_reason = 'unfinished when its retention ended'";
    assert_eq!(app.count(parked).await, 1);
    assert_eq!(reap_once(&app).await, (0, 0), "parked once");
}

/// Its client has no answer, so an operator must find it.
#[tokio::test]
async fn an_unfinished_key_is_parked_and_not_removed() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let held = lease(&database, &request(&new_key())).await;
    release(&database, &held, "for a test").await.unwrap();
    set_ages(&app, &["created_at", "last_run_at"], RETENTION).await;
    assert_eq!(reap_once(&app).await, (0, 1));
    let listed = parked::list(&database, 10).await.unwrap();
    assert_eq!(listed.iter().map(|parked| parked.key_id).collect::<Vec<_>>(), [held.key_id]);
}

#[tokio::test]
async fn the_oldest_keys_go_first_and_no_more_than_a_batch_at_once() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    for hours in [80, 100, 90, 110] {
        insert_keys(&app, 1, &format!("{hours} hours")).await;
    }
    for left in [[80, 90].as_slice(), &[]] {
        assert_eq!(reap(&database, RETENTION, LOCK, 2).await.unwrap().removed, 2);
        let ages = app
            .query(
                "SELECT round(extract(epoch FROM now() - created_at) / 3600)::int FROM idempotency_keys ORDER BY 1",
                &[],
            )
            .await;
        assert_eq!(ages.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), left);
    }
}

/// A client that returns after three days, the completer or a person may finish an old key late. Its answer is kept for
/// a whole retention from then on; otherwise the next repetition would book and charge a second ride.
#[tokio::test]
async fn an_answer_that_came_late_is_kept_as_long_as_any() {
    for late in [Late::Client, Late::Completer, Late::Person] {
        let app = TestApp::start().await;
        let key = new_key();
        assert_eq!(app.post(Post::default().key(&key).raising()).await.status, 500, "{late:?}");
        set_ages(&app, &["created_at", "last_run_at", "next_attempt_at"], 2 * RETENTION).await;
        match late {
            Late::Client => {}
            Late::Completer => {
                let completed = app.neighbour(|config| config.roles.completer = true).await;
                app.until_count("idempotency_keys WHERE response_code = 201", 1).await;
                drop(completed);
            }
            Late::Person => {
                assert_eq!(reap_once(&app).await, (0, 1), "{late:?}");
                let id: i64 = app.get("SELECT id FROM idempotency_keys").await;
                parked::retry(&pool(&app.database_config).await, &[id]).await.unwrap();
                assert_eq!(reap_once(&app).await, (0, 0), "{late:?}: it is to be tried first");
            }
        }
        assert_eq!(app.post(Post::default().key(&key)).await.status, 201, "{late:?}");
        assert_eq!(reap_once(&app).await, (0, 0), "{late:?}");
        assert!(app.post(Post::default().key(&key)).await.is_replay(), "{late:?}");
        assert_eq!(app.charges().await.len(), 1, "{late:?}");
        set_ages(&app, &["last_run_at"], RETENTION).await;
        assert_eq!(reap_once(&app).await, (1, 0), "{late:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Late {
    Client,
    Completer,
    Person,
}

#[tokio::test]
async fn a_row_that_another_session_has_locked_holds_up_no_other() {
    let app = TestApp::start().await;
    insert_keys(&app, 5, "80 hours").await;
    let session = cluster::connect(&app.database_config).await;
    // The key that it would reach first.
    let lock = "SELECT FROM idempotency_keys ORDER BY created_at, id LIMIT 1 FOR UPDATE";
    session.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
    let _reaper = app.neighbour(reaping).await;
    app.until_count("idempotency_keys", 1).await;
    session.batch_execute("ROLLBACK").await.unwrap();
    app.until_count("idempotency_keys", 0).await;
}

#[tokio::test]
async fn two_reapers_share_the_work() {
    let app = TestApp::start().await;
    insert_keys(&app, 400, "80 hours").await;
    let reaper = |config: &mut Config| {
        reaping(config);
        config.roles.api = false;
        config.reaper.batch = 10;
    };
    let (_one, _two) = tokio::join!(app.neighbour(reaper), app.neighbour(reaper));
    app.until_count("idempotency_keys", 0).await;
}
