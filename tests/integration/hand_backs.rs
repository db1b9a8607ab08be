//! What a dead process's leases become: which go back, when they are due, and how long its row stays.
//!
//! The tests move the times in the rows and wait for none to pass.

use std::time::Duration;

use atomic_phases::idempotency::Request;
use atomic_phases::idempotency::claim::RetryPolicy;
use atomic_phases::idempotency::settle::release;
use atomic_phases::processes::{self, HandedBack, Verdict};
use atomic_phases::queue::{BEFORE_FIRST, outbox, work};
use hyper::Method;
use serde_json::Value;
use uuid::Uuid;

use crate::support::app::{TestApp, pool, stage};
use crate::support::client::new_key;
use crate::support::cluster;
use crate::support::keys::{LOCK, PlainState, claim, done, expect_lease, finish, lease, plain, request};
use crate::support::processes::{other, quiet, silence, verdict};

const DEAD_AFTER: Duration = Duration::from_secs(5);
const NONE: Duration = Duration::ZERO;
const MINUTE: Duration = Duration::from_secs(60);
const POLICY: RetryPolicy = RetryPolicy { lock_timeout: LOCK, retry_after: MINUTE, max_attempts: 30 };

/// Each table of leases, and what takes one there.
const TABLES: [(&str, &str); 3] = [
    ("idempotency_keys", "lease_token = gen_random_uuid(), locked_at = now()"),
    ("jobs", "lease_token = gen_random_uuid()"),
    ("staged_jobs", "lease_token = gen_random_uuid()"),
];

#[tokio::test]
async fn all_kinds_of_leases_go_back_and_no_one_elses() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let (dead, its) = other(&database).await;
    let (living, others) = other(&database).await;
    stage(&app, 4).await;
    let mut held = Vec::new();
    for database in [&its, &others, &database] {
        let one = lease(database, &request(&new_key())).await;
        let two = lease(database, &request(&new_key())).await;
        release(database, &two, "free").await.unwrap();
        app.execute("UPDATE idempotency_keys SET next_attempt_at = now() WHERE lease_token IS NULL").await;
        let claimed = claim(database, 1, &POLICY).await.unwrap().claimed.remove(0).lease;
        let staged = outbox::claim(database, BEFORE_FIRST, 1, MINUTE).await.unwrap();
        app.execute("INSERT INTO jobs SELECT count(*) + 100, 'n', '{}', now() FROM jobs").await;
        let queued = work::claim(database, 1, MINUTE, 9).await.unwrap();
        assert_eq!((staged.jobs.len(), queued.claimed.len()), (1, 1));
        held.push((one, claimed));
    }
    silence(&app, dead.id, 5.0).await;
    silence(&app, living.id, 4.0).await;
    const LEASES: &str = "SELECT coalesce(process_id::text, ''), count(*) FROM (
            SELECT process_id, lease_token FROM idempotency_keys
            UNION ALL SELECT process_id, lease_token FROM staged_jobs
            UNION ALL SELECT process_id, lease_token FROM jobs) l
        WHERE lease_token IS NOT NULL GROUP BY process_id";
    let leases = async |process: Option<Uuid>| {
        let rows = app.query(LEASES, &[]).await;
        let id = process.map_or_else(String::new, |id| id.to_string());
        rows.iter().find(|row| row.get::<_, String>(0) == id).map_or(0, |row| row.get::<_, i64>(1))
    };
    assert_eq!((leases(Some(dead.id)).await, leases(Some(living.id)).await, leases(None).await), (4, 4, 4));

    for process in [living.id, Uuid::new_v4()] {
        let back = processes::hand_back(&database, verdict(process, DEAD_AFTER)).await.unwrap();
        assert_eq!(back, HandedBack::default(), "it is alive, or nobody");
    }
    let back = processes::hand_back(&database, verdict(dead.id, DEAD_AFTER)).await.unwrap();
    assert_eq!(back, HandedBack { requests: 2, queued: 1, staged: 1, ended: true });
    assert_eq!((leases(Some(dead.id)).await, leases(Some(living.id)).await, leases(None).await), (0, 4, 4));
    let again = processes::hand_back(&database, verdict(dead.id, DEAD_AFTER)).await.unwrap();
    assert_eq!(again, HandedBack::default());

    // The jobs are due at once, and the attempt stays counted that may have killed the process.
    const JOBS: &str = "jobs WHERE lease_token IS NULL AND next_attempt_at <= now() AND attempts = 1 AND last_error = 'for a test'";
    assert_eq!(app.count(JOBS).await, 1);
    const STAGED: &str =
        "staged_jobs WHERE process_id IS NOT NULL AND lease_token IS NULL AND next_attempt_at <= now()";
    assert_eq!(app.count(STAGED).await, 1);
    const KEYS: &str =
        "idempotency_keys WHERE lease_token IS NULL AND locked_at IS NULL AND last_error = 'for a test'";
    assert_eq!(app.count(KEYS).await, 2);
    // What the dead process would write, if it woke, is refused.
    for (one, claimed) in &held[..1] {
        for lease in [one, claimed] {
            assert!(!finish(&its, lease, &done(), &[]).await.unwrap());
        }
    }
    for (mut one, claimed) in held.drain(1..) {
        assert!(plain(&database).advance(&mut one, &PlainState::HalfWay { of: 1 }, Value::Null).await.unwrap());
        assert!(finish(&database, &claimed, &done(), &[]).await.unwrap());
    }
}

#[tokio::test]
async fn a_request_that_outlives_its_process_is_left_alone_for_longer_each_time() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let (process, its) = other(&database).await;
    let held = lease(&its, &request(&new_key())).await;
    // Seconds since it was taken up, attempts of completers, seconds until it would be due; and then until it is.
    for (age, attempts, due_in, expected) in [
        (0, 0, 300, 10),
        (4, 0, 300, 6),
        (60, 0, 300, 0),
        (0, 1, 300, 20),
        (0, 3, 300, 80),
        (0, 5, 300, 300),
        (0, 30, 300, 300),
        (0, 3000, 300, 300),
        (0, 0, 5, 5),
        (60, 0, -30, -30),
    ] {
        let sql = format!(
            "UPDATE idempotency_keys SET lease_token = gen_random_uuid(), locked_at = now(), completer_attempts = {attempts},
                 last_run_at = now() - interval '{age} s', next_attempt_at = now() + interval '{due_in} s'"
        );
        app.execute(&sql).await;
        let verdict = Verdict { crash_grace: Duration::from_secs(10), ..verdict(process.id, NONE) };
        assert_eq!(processes::hand_back(&database, verdict).await.unwrap().requests, 1);
        app.execute("UPDATE processes SET ended_at = NULL").await;
        let due: f64 =
            app.get("SELECT extract(epoch FROM next_attempt_at - now())::float8 FROM idempotency_keys").await;
        assert!((due - f64::from(expected)).abs() < 2.5, "{age} {attempts} {due_in}: {due}");
    }
    let free = expect_lease(plain(&database).open(&request_of(&app, held.key_id).await).await.unwrap());
    assert_eq!(free.key_id, held.key_id, "a client that comes back need not wait at all");
}

/// The plain request behind this key.
async fn request_of(app: &TestApp, key_id: i64) -> Request<Value> {
    let key: String = app.get(&format!("SELECT idempotency_key FROM idempotency_keys WHERE id = {key_id}")).await;
    request(&key)
}

#[tokio::test]
async fn a_row_that_another_session_has_locked_goes_back_later_and_holds_up_no_other() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let (process, its) = other(&database).await;
    stage(&app, 2).await;
    app.execute("INSERT INTO jobs SELECT n, 'n', '{}', now() FROM generate_series(1, 2) n").await;
    for _ in 0..2 {
        lease(&its, &request(&new_key())).await;
        assert_eq!(work::claim(&its, 1, MINUTE, 9).await.unwrap().claimed.len(), 1);
        assert_eq!(outbox::claim(&its, BEFORE_FIRST, 1, MINUTE).await.unwrap().jobs.len(), 1);
    }
    let mut locker = cluster::connect(&app.database_config).await;
    let lock = locker.transaction().await.unwrap();
    for (table, id) in [("idempotency_keys", "id"), ("jobs", "staged_id"), ("staged_jobs", "id")] {
        let sql = format!("SELECT FROM {table} ORDER BY {id} LIMIT 1 FOR UPDATE");
        lock.query(&sql, &[]).await.unwrap();
    }
    let one_each = |ended| HandedBack { requests: 1, queued: 1, staged: 1, ended };
    assert_eq!(processes::hand_back(&database, verdict(process.id, NONE)).await.unwrap(), one_each(false));
    lock.rollback().await.unwrap();
    assert_eq!(processes::hand_back(&database, verdict(process.id, NONE)).await.unwrap(), one_each(true));

    // Each kind of lease by itself keeps the process from having ended.
    for (table, lease) in TABLES {
        app.execute(
            &format!("UPDATE {table} SET process_id = $, {lease}").replace('$', &format!("'{}'", process.id)),
        )
        .await;
        app.execute("UPDATE processes SET ended_at = NULL").await;
        let lock = locker.transaction().await.unwrap();
        lock.query(&format!("SELECT FROM {table} FOR UPDATE"), &[]).await.unwrap();
        let left = processes::hand_back(&database, verdict(process.id, NONE)).await.unwrap();
        assert_eq!(left, HandedBack::default(), "{table}");
        lock.rollback().await.unwrap();
        let back = processes::hand_back(&database, verdict(process.id, NONE)).await.unwrap();
        assert!(back.ended && back.total() == 2, "{table}: {back:?}");
    }

    // Two that find the same process dead: the second leaves it to the first.
    let (process, its) = other(&database).await;
    lease(&its, &request(&new_key())).await;
    let lock = locker.transaction().await.unwrap();
    lock.query("SELECT FROM processes WHERE id = $1 FOR UPDATE", &[&process.id]).await.unwrap();
    let left = processes::hand_back(&database, verdict(process.id, NONE)).await.unwrap();
    assert_eq!(left, HandedBack::default());
}

#[tokio::test]
async fn a_row_of_a_process_stays_for_an_hour_and_as_long_as_it_has_a_lease() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let hour = Duration::from_secs(3600);
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(other(&database).await);
    }
    stage(&app, 1).await;
    app.execute("INSERT INTO jobs VALUES (9, 'n', '{}', now())").await;
    lease(&all[0].1, &request(&new_key())).await;
    outbox::claim(&all[1].1, BEFORE_FIRST, 1, MINUTE).await.unwrap();
    work::claim(&all[2].1, 1, MINUTE, 9).await.unwrap();
    let ended = "UPDATE processes SET ended_at = now() - interval '59 min 50 s' WHERE host = 'far away'";
    app.execute(ended).await;
    assert_eq!(processes::remove(&database, hour, 10).await.unwrap(), 0, "too early");
    app.execute(&ended.replace("59 min 50 s", "60 min")).await;
    let mut locker = cluster::connect(&app.database_config).await;
    let lock = locker.transaction().await.unwrap();
    lock.query("SELECT FROM processes WHERE id = $1 FOR UPDATE", &[&all[4].0.id]).await.unwrap();
    assert_eq!(processes::remove(&database, hour, 10).await.unwrap(), 1, "a row that is locked is passed over");
    lock.rollback().await.unwrap();
    assert_eq!(processes::remove(&database, hour, 10).await.unwrap(), 1);
    let left = app.query("SELECT id FROM processes WHERE host = 'far away' ORDER BY id", &[]).await;
    let mut held: Vec<Uuid> = all[..3].iter().map(|(process, _)| process.id).collect();
    held.sort();
    assert_eq!(left.iter().map(|row| row.get::<_, Uuid>(0)).collect::<Vec<_>>(), held);
    assert_eq!(app.count("processes WHERE ended_at IS NULL").await, 1, "one that has not ended stays");
    let metrics = app.api.call(Method::GET, "/metrics", "").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("\nrocket_rides_processes 1\n"), "{text}");
}

#[tokio::test]
async fn the_list_says_how_old_and_how_silent_each_process_is() {
    let app = quiet().await;
    let database = pool(&app.database_config).await;
    let ((one, _), (two, _)) = (other(&database).await, other(&database).await);
    app.query("UPDATE processes SET started_at = now() - interval '1 hour' WHERE id = $1", &[&one.id]).await;
    silence(&app, one.id, 90.0).await;
    assert!(processes::hand_back(&database, verdict(one.id, DEAD_AFTER)).await.unwrap().ended);
    let listed = processes::list(&database, 10).await.unwrap();
    let near = |time: Duration, seconds: u64| (seconds..seconds + 5).contains(&time.as_secs());
    let first = &listed[0];
    assert!(first.id == one.id && first.ended && near(first.age, 3600) && near(first.silent, 90), "{listed:#?}");
    let other = listed.iter().find(|listed| listed.id == two.id).unwrap();
    assert!(!other.ended && near(other.age, 0) && near(other.silent, 0), "{listed:#?}");
    assert_eq!((other.host.as_str(), other.version.as_str(), other.pid), ("far away", "1", None));
    assert_eq!((listed.len(), processes::list(&database, 2).await.unwrap().len()), (3, 2));
}
