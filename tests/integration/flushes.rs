//! Which commits wait for the disk: a table of every statement that writes, and a database that records how each
//! committed.
//!
//! A commit that waits without need costs a flush. One that does not wait when it must is worse: a crash of Postgres
//! undoes an answer that a client has, or a row that a charge relied on. So a statement that is not in the table fails
//! the test, and so does one whose write the test did not see.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::idempotency::claim::RetryPolicy;
use atomic_phases::idempotency::{parked, reap, settle};
use atomic_phases::processes::{self, Process, Verdict};
use atomic_phases::queue::outbox::{self, PushResults};
use atomic_phases::queue::postgres::PostgresRelay;
use atomic_phases::queue::work;
use atomic_phases::queue::{BEFORE_FIRST, Relay, dead};
use rocket_rides_atomic::demo::seed;
use serde_json::Value;
use uuid::Uuid;

use crate::support::app::{TestApp, pool, stage};
use crate::support::client::{Post, new_key};
use crate::support::keys::{PlainState, claim, lease, plain, request, take_over};
use crate::support::receipts::{SentReceipt, finish};
use crate::support::sources::code;

/// Whether the commit waits until it is on disk, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Commit {
    Flushed,
    Later,
}
use Commit::{Flushed, Later};

const COMMITS: [(&str, Commit); 21] = [
    // A foreign call follows: a crash must not undo the row of a call that was paid for.
    ("idempotency/open.sql", Flushed),
    ("idempotency/advance.sql", Flushed),
    // Otherwise the former token would be valid again after a crash, and its holder might charge.
    ("idempotency/open_take_over.sql", Flushed),
    ("idempotency/claim.sql", Flushed),
    // A key that was removed or parked for its age is still old enough after a crash.
    ("idempotency/reap.sql", Later),
    // A person gets the result.
    ("idempotency/parked_retry.sql", Flushed),
    // A client gets the result.
    ("idempotency/close.sql", Flushed),
    ("idempotency/settle_park.sql", Flushed),
    // A lease whose release is undone runs out.
    ("idempotency/settle_release.sql", Later),
    // The next beat is a second away, nobody has the leases of a dead process, and its row is removed again.
    ("processes/beat.sql", Later),
    ("processes/hand_back.sql", Later),
    ("processes/remove.sql", Later),
    // If this is undone, a job is pushed again under the same id, and the queue drops the repetition.
    ("queue/outbox_claim.sql", Later),
    ("queue/outbox_settle.sql", Later),
    // The job moves from one table to the other; its work follows, and must not be done twice.
    ("queue/postgres_deliver.sql", Flushed),
    ("queue/work_claim.sql", Flushed),
    ("queue/work_extend.sql", Flushed),
    ("queue/work_finish.sql", Flushed),
    ("queue/work_fail.sql", Flushed),
    ("queue/work_sweep.sql", Flushed),
    ("queue/dead_bury.sql", Flushed),
];
/// Statements that a person or a start-up runs: rare, and reported as done.
const BY_HAND: [&str; 3] = ["queue/dead_retry.sql", "queue/dead_purge.sql", "demo/seed_store.sql"];

fn table() -> BTreeMap<&'static str, Commit> {
    COMMITS.into_iter().chain(BY_HAND.map(|file| (file, Flushed))).collect()
}

/// Returns the statement in a form for comparison: white space does not matter.
fn normal(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn writes(sql: &str) -> bool {
    let words: Vec<&str> = sql.split_whitespace().collect();
    words.windows(2).any(|pair| {
        matches!(pair, ["INSERT", "INTO"] | ["DELETE", "FROM"])
            || matches!(pair, ["UPDATE", table] if table.starts_with(|c: char| c.is_ascii_lowercase()))
    })
}

/// Returns the program's statements that write, by file.
fn statements() -> BTreeMap<String, String> {
    for (name, file) in code("rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        // Unit tests may write anything.
        if file.ends_with("tests.rs") {
            continue;
        }
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ");
        assert!(!writes(&code), "{name}: a statement that writes belongs into a file of its own");
    }
    code("sql")
        .into_iter()
        .map(|(name, file)| (name, normal(&std::fs::read_to_string(file).unwrap())))
        // A migration's step that a crash has undone is run again.
        .filter(|(name, _)| !name.starts_with("database/schema/"))
        // A file that begins with a comma is an operation's or a handler's part of another statement.
        .filter(|(_, sql)| writes(sql) && !sql.starts_with(','))
        .collect()
}

/// Returns whether a session has sent this statement, with any text in its places for parts of operations and handlers.
/// There may be another text before the statement.
fn is(sent: &str, statement: &str) -> bool {
    let places = statement.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, rest)| rest));
    let mut parts = places.map(str::trim);
    let Some((_, mut rest)) = parts.next().and_then(|first| sent.rsplit_once(first)) else { return false };
    parts.all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    }) && rest.is_empty()
}

#[test]
fn every_statement_that_writes_is_in_the_table() {
    let written: BTreeSet<String> = statements().into_keys().collect();
    let listed: BTreeSet<String> = table().into_keys().map(str::to_owned).collect();
    assert_eq!(written, listed);
}

/// Records every row that is inserted, updated or deleted, with the statement and how it commits.
const NOTE_COMMITS: &str = "
    CREATE TABLE commits (statement TEXT NOT NULL, setting TEXT NOT NULL);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF current_setting('application_name') = 'rocket-rides-atomic' THEN
            INSERT INTO commits VALUES (current_query(), current_setting('synchronous_commit'));
        END IF;
        RETURN NULL;
    END $$;
    DO $$ DECLARE t regclass; BEGIN
        FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
                 AND relname <> 'commits' LOOP
            EXECUTE format('CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON %s
                            FOR EACH ROW EXECUTE FUNCTION note()', t);
        END LOOP;
    END $$";

#[tokio::test]
async fn what_must_be_on_disk_is_waited_for_and_nothing_else() {
    let app = TestApp::start().await;
    // The program's sessions set this themselves, even in a database whose default is to commit without a flush.
    let careless =
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$";
    app.database.batch_execute(careless).await.unwrap();
    app.database.batch_execute(NOTE_COMMITS).await.unwrap();
    // The sessions of `app` were opened before that, so a second supervisor is started.
    let neighbour = app.neighbour(|_| {}).await;
    let database = pool(&app.database_config).await;
    run_keys(&neighbour, &database).await;
    run_jobs(&app, &database).await;
    run_processes(&database).await;
    app.execute("DELETE FROM users WHERE id NOT IN (SELECT user_id FROM rides)").await;
    seed::seed(&database, Uuid::new_v4(), &app.stripe()).await.unwrap();

    let commits = app.query("SELECT DISTINCT statement, setting FROM commits", &[]).await;
    let commits: Vec<(String, String)> = commits.iter().map(|row| (normal(row.get(0)), row.get(1))).collect();
    let statements = statements();
    for (sql, _) in &commits {
        assert!(statements.values().any(|known| is(sql, known)), "not in the table: {sql}");
    }
    for (file, expected) in table() {
        let known = statements[file].as_str();
        let settings: BTreeSet<&str> =
            commits.iter().filter(|(sql, _)| is(sql, known)).map(|(_, setting)| setting.as_str()).collect();
        let setting = if expected == Flushed { "on" } else { "off" };
        assert_eq!(settings, [setting].into(), "{file}");
    }
}

/// Runs each statement of the engine and of rides.
async fn run_keys(app: &TestApp, database: &Database) {
    let policy = RetryPolicy { lock_timeout: Duration::ZERO, retry_after: Duration::ZERO, max_attempts: 10 };
    assert_eq!(app.post(Post::default()).await.status, 201);
    assert_eq!(app.post(Post::default().raising()).await.status, 500);
    let request = request(&new_key());
    lease(database, &request).await;
    let mut lease = take_over(database, &request).await;
    assert!(plain(database).advance(&mut lease, &PlainState::HalfWay { of: 1 }, Value::Null).await.unwrap());
    settle::park(database, &lease, "for a test").await.unwrap();
    assert_eq!(parked::retry(database, &[lease.key_id]).await.unwrap().len(), 1);
    assert_eq!(claim(database, 1, &policy).await.unwrap().claimed.len(), 1);
    assert_eq!(reap::reap(database, Duration::ZERO, Duration::ZERO, 1).await.unwrap().removed, 1);
}

/// Runs each statement of processes.
async fn run_processes(database: &Database) {
    let (process, now) = (Process::new(None, "1"), Duration::ZERO);
    processes::beat(database, &process).await.unwrap();
    let its = database.of_process(process.id);
    lease(&its, &request(&new_key())).await;
    let (process, why) = (process.id, "for a test");
    let verdict = Verdict { process, silent_for: now, ended_after: now, crash_grace: now, why };
    let back = processes::hand_back(database, verdict).await.unwrap();
    assert_eq!((back.requests, back.ended), (1, true));
    assert_eq!(processes::remove(database, now, 1).await.unwrap(), 1);
}

/// Runs each statement of outbox, queue and dead letters.
async fn run_jobs(app: &TestApp, database: &Database) {
    let minute = Duration::from_secs(60);
    stage(app, 1).await;
    let batch = outbox::claim(database, BEFORE_FIRST, 1, minute).await.unwrap();
    let verdicts = PushResults { released: vec![batch.jobs[0].id], ..PushResults::default() };
    outbox::settle(database, &batch, &verdicts, minute).await.unwrap();
    let relay = PostgresRelay { database: database.clone(), batch: 10 };
    assert_eq!(relay.relay().await.unwrap().delivered, 2);
    app.execute("ALTER TABLE jobs ADD CONSTRAINT unlucky CHECK (job_args <> '2')").await;
    stage(app, 2).await;
    relay.relay().await.unwrap();
    let dead = dead::ids(database, 0, 10).await.unwrap();
    assert_eq!(dead.len(), 1, "buried alone");
    assert_eq!(dead::retry(database, &dead).await.unwrap(), dead);

    let claims = work::claim(database, 2, minute, 5).await.unwrap();
    let leases: Vec<_> = claims.claimed.iter().map(|job| job.lease).collect();
    work::extend(database, &leases, minute).await.unwrap();
    let sent = SentReceipt { ride_id: 1, message_id: "<x@y>".to_owned() };
    assert!(finish(database, leases[0], Some(sent)).await.unwrap());
    assert_eq!(work::sweep(database, Duration::ZERO, 10).await.unwrap(), 1);
    let policy = work::RetryPolicy { retry_after: minute, max_attempts: 5 };
    assert_eq!(work::fail(database, leases[1], "x", true, &policy).await.unwrap(), work::Failed::Buried);
    let dead = dead::ids(database, 0, 10).await.unwrap();
    assert_eq!(dead::purge(database, &dead).await.unwrap(), dead);
}
