//! Statements that lock rows lock them in one order, whatever the order of their callers, so that two batches never
//! deadlock.

use atomic_phases::idempotency::open::Opened;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::gate::{Gate, LANES, hold, waiting};
use super::{Case, Stage, WaitsFor, jobs, keys, rides, spawn};
use crate::support::client::new_key;
use crate::support::keys::{ask, request};
use crate::support::{cluster, eventually};

/// Rows in a batch.
const WIDTH: usize = 5;

/// Asserts that a batch whose last row is locked by another session has locked all rows before that one.
async fn locks_in_order<C: Case>() {
    let stage = Stage::new().await;
    let WaitsFor::Row(table, column) = C::WAITS_FOR else { panic!("it locks rows") };
    let mut callers = stage.plain_callers::<C>(WIDTH).await;
    callers.sort_by_key(C::locks);
    let rows: Vec<i64> = callers.iter().map(C::locks).collect();
    let (last, before) = rows.split_last().unwrap();
    let gate = Gate::shut::<C>(&stage).await;
    let session = cluster::connect(&stage.app.database_config).await;
    hold(&session, C::WAITS_FOR, &[*last]).await;
    // They arrive in the opposite order.
    let calls: Vec<_> = callers.into_iter().rev().map(|caller| spawn(caller, &stage.database)).collect();
    gate.until_all_wait(&stage).await;
    gate.open().await;

    eventually("the batch waits for the last row", async || (waiting(&stage.app).await == 1).then_some(())).await;
    let free = format!("SELECT {column} FROM {table} WHERE {column} = ANY($1) FOR UPDATE SKIP LOCKED");
    let free = stage.app.query(&free, &[&before]).await;
    assert!(free.is_empty(), "{}: {} rows before the last are not locked yet", C::COVERS, free.len());
    session.batch_execute("ROLLBACK").await.unwrap();
    for call in calls {
        let (caller, told) = call.await.unwrap();
        assert_eq!(told, caller.expected());
    }
}

#[tokio::test]
async fn of_take_overs() {
    locks_in_order::<keys::TakesOver>().await;
}

#[tokio::test]
async fn of_answers() {
    locks_in_order::<keys::Finishes>().await;
}

#[tokio::test]
async fn of_releases() {
    locks_in_order::<keys::Releases>().await;
}

#[tokio::test]
async fn of_next_calls() {
    locks_in_order::<keys::Advances>().await;
}

#[tokio::test]
async fn of_rides_paid() {
    locks_in_order::<rides::Pays>().await;
}

#[tokio::test]
async fn of_jobs_finished() {
    locks_in_order::<jobs::Finishes>().await;
}

/// New keys have no rows to lock yet: a caller waits for another session that inserts the same key.
#[tokio::test]
async fn of_new_keys() {
    let stage = Stage::new().await;
    let callers = stage.plain_callers::<keys::Asks>(2 * LANES).await;
    let holder = cluster::connect(&stage.app.database_config).await;
    holder.batch_execute("BEGIN").await.unwrap();
    for caller in &callers {
        insert(&holder, caller.request.key.as_str()).await.unwrap();
    }
    let gate = Gate::fill(&stage, holder, callers).await;

    let mut texts: Vec<String> = (0..WIDTH).map(|_| new_key()).collect();
    texts.sort();
    let (last, before) = texts.split_last().unwrap();
    let session = cluster::connect(&stage.app.database_config).await;
    session.batch_execute("BEGIN").await.unwrap();
    insert(&session, last).await.unwrap();
    let calls: Vec<_> = texts
        .iter()
        .rev()
        .map(|text| {
            let (database, request) = (stage.database.clone(), request(text));
            tokio::spawn(async move { ask(&database, &request).await })
        })
        .collect();
    gate.until_all_wait(&stage).await;
    gate.open().await;

    eventually("the batch waits for the last key", async || (waiting(&stage.app).await == 1).then_some(())).await;
    stage.app.execute("SET lock_timeout = '50ms'").await;
    for text in before {
        let taken = insert(&stage.app.database, text).await.unwrap_err();
        assert_eq!(taken.code(), Some(&SqlState::LOCK_NOT_AVAILABLE), "a key before the last is not inserted yet");
    }
    session.batch_execute("ROLLBACK").await.unwrap();
    for call in calls {
        assert!(matches!(call.await.unwrap(), Opened::Lease(_)));
    }
}

async fn insert(session: &Client, key: &str) -> Result<u64, tokio_postgres::Error> {
    const SQL: &str =
        "INSERT INTO idempotency_keys (operation, recovery_point, step, state, user_id, idempotency_key,
                           request_method, request_path, request_params, origin_ip, next_attempt_at)
                       VALUES ('plain', 'opened', 1, '{}', 1, $1, 'POST', '/plain', '{}', '127.0.0.1', now())";
    session.execute(SQL, &[&key]).await
}
