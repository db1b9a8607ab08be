//! The engine by itself: what the database guarantees, statement by statement.

use std::time::Duration;

use atomic_phases::idempotency::open::Opened;
use atomic_phases::idempotency::settle::{park, release};
use atomic_phases::idempotency::{Answer, Job, Request, Response, Stop};
use serde_json::{Value, json};

use crate::support::app::{TestApp, pool};
use crate::support::client::{Post, new_key};
use crate::support::keys::{LOCK, PlainState, ask, done, finish, lease, plain, request, take_over};

async fn written(app: &TestApp) -> String {
    app.get("SELECT json_agg(k ORDER BY id)::text || (SELECT count(*) FROM staged_jobs) FROM idempotency_keys k")
        .await
}

#[tokio::test]
async fn a_stale_lease_writes_nothing() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let stale = lease(&database, &request).await;
    let fresh = take_over(&database, &request).await;
    assert_ne!(stale.token, fresh.token);
    let before = written(&app).await;
    let response = Response::new(201, "{}");
    let job = Job { name: "job", args: json!({}) };
    assert!(!finish(&database, &stale, &response, std::slice::from_ref(&job)).await.unwrap());
    release(&database, &stale, "stale").await.unwrap();
    park(&database, &stale, "stale").await.unwrap();
    assert_eq!(written(&app).await, before);
    assert!(finish(&database, &fresh, &response, std::slice::from_ref(&job)).await.unwrap());
    assert!(!finish(&database, &fresh, &response, std::slice::from_ref(&job)).await.unwrap(), "twice");
    assert_eq!(app.count("staged_jobs").await, 1);
}

#[tokio::test]
async fn a_recovery_point_that_has_moved_on_shuts_the_fence() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let lease = lease(&database, &request(&new_key())).await;
    let response = Response::new(201, "{}");
    let mut moved_on = lease.clone();
    let half_way = PlainState::HalfWay { of: 7 };
    assert!(plain(&database).advance(&mut moved_on, &half_way, Value::Null).await.unwrap());
    assert_ne!(moved_on.foreign_call.key, lease.foreign_call.key, "the next call has a key of its own");
    assert!(moved_on.foreign_call.intended_at > lease.foreign_call.intended_at, "and is intended now");
    assert_eq!(app.get::<Value>("SELECT state FROM idempotency_keys").await, json!({"of": 7}));
    let (mut stale, before) = (lease.clone(), written(&app).await);
    assert!(!plain(&database).advance(&mut stale, &half_way, Value::Null).await.unwrap());
    assert_eq!((stale.step, stale.foreign_call), (lease.step, lease.foreign_call));
    assert!(!finish(&database, &lease, &response, &[]).await.unwrap());
    assert_eq!(written(&app).await, before);
    assert!(finish(&database, &moved_on, &response, &[]).await.unwrap());
}

#[tokio::test]
async fn both_statements_of_a_ride_wait_for_the_disk() {
    let app = TestApp::start().await;
    app.database
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
    assert_eq!(app.post(Post::default()).await.status, 201);
    let commits = app.query("SELECT recovery_point, flushed FROM commits", &[]).await;
    let commits: Vec<(String, String)> = commits.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [("ride_created", "on"), ("finished", "on")];
    assert_eq!(commits, expected.map(|(point, flushed)| (point.to_owned(), flushed.to_owned())));
}

#[tokio::test]
async fn a_replay_writes_nothing() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let held = lease(&database, &request).await;
    let response = Response::new(201, r#"{"b": 1,  "a":2}"#);
    finish(&database, &held, &response, &[]).await.unwrap();
    let row = "SELECT xmin::text || ctid::text || xmax::text FROM idempotency_keys";
    let before: String = app.get(row).await;
    for _ in 0..3 {
        let Opened::Finished { response: again, .. } = ask(&database, &request).await else { panic!("finished") };
        assert_eq!(again, response, "byte for byte");
    }
    assert_eq!(app.get::<String>(row).await, before);
}

#[tokio::test]
async fn what_a_key_says_to_each_request() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let others = [
        Request { params: json!({"a": 2}), ..request.clone() },
        Request { method: "PUT".into(), ..request.clone() },
        Request { path: "/plain/2".into(), ..request.clone() },
    ];
    let held = lease(&database, &request).await;
    assert!(matches!(ask(&database, &request).await, Opened::InProgress { key_id: Some(id) } if id == held.key_id));
    for other in &others {
        assert!(matches!(ask(&database, other).await, Opened::Mismatch { .. }), "{other:?}");
    }
    park(&database, &held, "for a test").await.unwrap();
    assert!(matches!(ask(&database, &request).await, Opened::Parked { .. }));
    for other in &others {
        assert!(matches!(ask(&database, other).await, Opened::Mismatch { .. }), "{other:?}");
    }
}

#[tokio::test]
async fn of_many_at_once_one_gets_the_lease() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    for lock_timeout in [LOCK, Duration::ZERO] {
        let request = request(&new_key());
        if lock_timeout.is_zero() {
            let held = lease(&database, &request).await;
            release(&database, &held, "again").await.unwrap();
        }
        let mut racers = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let (database, request) = (database.clone(), request.clone());
            racers.spawn(async move { ask(&database, &request).await });
        }
        let leases = racers.join_all().await.into_iter().filter(|won| matches!(won, Opened::Lease(_))).count();
        assert_eq!(leases, 1);
    }
}

/// A key is for one request of one operation, even where method, path and parameters are alike.
#[tokio::test]
async fn two_operations_with_one_key_are_a_mismatch() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let held = lease(&database, &request).await;
    app.execute("UPDATE idempotency_keys SET operation = 'another'").await;
    assert!(matches!(ask(&database, &request).await, Opened::Mismatch { key_id } if key_id == held.key_id));
    assert_eq!(app.count("idempotency_keys").await, 1);
}

/// An operation's SQL may refuse a request; then nothing is written, not even its key.
#[tokio::test]
async fn a_request_that_is_not_admitted_leaves_nothing_behind() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = Request { params: json!({"refusal": "full"}), ..request(&new_key()) };
    for _ in 0..2 {
        let told = ask(&database, &request).await;
        assert!(matches!(&told, Opened::Refused { refusal } if refusal == "full"), "{told:?}");
    }
    assert_eq!(app.count("idempotency_keys").await, 0);
    let admitted = Request { params: json!({}), ..request };
    lease(&database, &admitted).await;
}

/// Executes a whole operation with two foreign calls.
#[tokio::test]
async fn a_request_goes_through_every_recovery_point_to_its_answer() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let request = request(&new_key());
    let executed = plain(&database).execute(request.clone()).await;
    assert!(
        matches!(&executed.answer, Answer::Done { response, replayed: false } if *response == done()),
        "{executed:?}"
    );
    assert_eq!((executed.attempt, executed.reached.as_deref()), (Some(1), Some("finished")));
    let again = plain(&database).execute(request).await;
    assert!(matches!(&again.answer, Answer::Done { response, replayed: true } if *response == done()), "{again:?}");
    assert_eq!((again.key_id, again.attempt), (executed.key_id, None));
}

/// A stored state that this program cannot read is parked for a person.
#[tokio::test]
async fn a_state_that_cannot_be_read_is_parked() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    for change in ["recovery_point = 'elsewhere', step = 2", "state = '7'"] {
        let request = request(&new_key());
        let held = lease(&database, &request).await;
        release(&database, &held, "for a test").await.unwrap();
        app.query(&format!("UPDATE idempotency_keys SET {change} WHERE id = $1"), &[&held.key_id]).await;
        let executed = plain(&database).execute(request.clone()).await;
        assert!(matches!(&executed.answer, Answer::Stopped(Stop::Park(_))), "{change}: {executed:?}");
        assert!(matches!(ask(&database, &request).await, Opened::Parked { .. }), "{change}");
    }
}
