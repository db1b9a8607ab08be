//! Many callers, few statements: callers that share a statement must not harm each other.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use atomic_phases::database::{Batched, Database, DatabaseError, column};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::app::{TestApp, insert_keys, pool};
use crate::support::eventually;

/// Divides 100 by a number in the database, which refuses to divide by zero.
struct Divide {
    by: i32,
    statements: Arc<AtomicUsize>,
}

impl Batched for Divide {
    type Output = i32;

    fn order(&self, other: &Self) -> Ordering {
        self.by.cmp(&other.by)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<i32>, DatabaseError> {
        const SQL: &str = "SELECT 100 / n FROM unnest($1::int[]) WITH ORDINALITY AS i (n, place) ORDER BY place";
        assert!(items.is_sorted_by_key(|item| item.by), "sorted");
        items[0].statements.fetch_add(1, Relaxed);
        let rows = database.query(SQL, &[&column(items, |item| item.by)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

#[tokio::test]
async fn each_gets_its_own_and_a_bad_row_fails_alone() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let statements = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for n in 0..1000 {
        let (database, statements) = (database.clone(), Arc::clone(&statements));
        callers.spawn(async move {
            let by = n % 50;
            (by, database.batched(Divide { by, statements }).await)
        });
    }
    for (by, answer) in callers.join_all().await {
        match answer {
            Ok(quotient) => assert_eq!(quotient, 100 / by),
            Err(DatabaseError::Refused(error)) => {
                assert_eq!((by, error.code().unwrap().code()), (0, "22012"));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let statements = statements.load(Relaxed);
    assert!(statements < 500, "{statements} statements for 1,000 callers, 20 of which have a bad row");
}

#[tokio::test]
async fn a_caller_that_stops_waiting_stops_no_other() {
    let app = TestApp::start().await;
    let database = pool(&app.database_config).await;
    let statements = Arc::new(AtomicUsize::new(0));
    for _ in 0..20 {
        let mut callers = JoinSet::new();
        let mut impatient = Vec::new();
        for by in 1..=100 {
            let (database, statements) = (database.clone(), Arc::clone(&statements));
            let call = async move { (by, database.batched(Divide { by, statements }).await.unwrap()) };
            if by % 2 == 0 {
                callers.spawn(call);
            } else {
                impatient.push(tokio::spawn(call));
            }
        }
        tokio::task::yield_now().await;
        impatient.iter().for_each(JoinHandle::abort);
        for (by, quotient) in callers.join_all().await {
            assert_eq!(quotient, 100 / by);
        }
    }
}

/// Waits until it may go on, and then panics if it is told to.
struct Fragile {
    panics: bool,
    begun: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Batched for Fragile {
    type Output = usize;

    fn order(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }

    async fn run(_: &Database, items: &[Self]) -> Result<Vec<usize>, DatabaseError> {
        items[0].begun.fetch_add(1, Relaxed);
        let _pass = items[0].gate.acquire().await.unwrap();
        assert!(!items.iter().any(|item| item.panics), "as asked");
        Ok(vec![items.len(); items.len()])
    }
}

/// Calls that wait at a gate, and how many statements have begun.
struct Gate {
    database: Database,
    gate: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
}

impl Gate {
    async fn over(app: &TestApp) -> Self {
        let database = pool(&app.database_config).await;
        Self { database, gate: Arc::new(Semaphore::new(0)), begun: Arc::default() }
    }

    fn call(&self, panics: bool) -> JoinHandle<Result<usize, DatabaseError>> {
        let (database, begun, gate) = (self.database.clone(), Arc::clone(&self.begun), Arc::clone(&self.gate));
        tokio::spawn(async move { database.batched(Fragile { panics, begun, gate }).await })
    }

    async fn until_begun(&self, statements: usize) {
        eventually("a statement", async || (self.begun.load(Relaxed) == statements).then_some(())).await;
    }
}

#[tokio::test]
async fn calls_made_meanwhile_go_together_even_after_a_panic() {
    let app = TestApp::start().await;
    let gate = Gate::over(&app).await;
    let alone = gate.call(false);
    gate.until_begun(1).await;
    // A full batch waits for no other. One of its callers panics, which fails the others of the batch, but no later
    // caller.
    let doomed: Vec<_> = (0..128).map(|n| gate.call(n == 7)).collect();
    gate.until_begun(2).await;
    let together: Vec<_> = (0..10).map(|_| gate.call(false)).collect();
    tokio::task::yield_now().await;
    gate.gate.add_permits(1);
    assert_eq!(alone.await.unwrap().unwrap(), 1);
    for call in doomed {
        assert!(matches!(call.await.unwrap(), Err(DatabaseError::Lost(None))));
    }
    for call in together {
        assert_eq!(call.await.unwrap().unwrap(), 10);
    }
    assert_eq!(gate.begun.load(Relaxed), 3);
}

#[tokio::test]
async fn a_caller_that_ends_early_lets_the_next_go_on() {
    let app = TestApp::start().await;
    let gate = Gate::over(&app).await;
    let impatient = gate.call(false);
    gate.until_begun(1).await;
    let together: Vec<_> = (0..10).map(|_| gate.call(false)).collect();
    tokio::task::yield_now().await;
    impatient.abort();
    gate.gate.add_permits(1);
    for call in together {
        assert_eq!(call.await.unwrap().unwrap(), 10);
    }
    assert!(gate.call(true).await.unwrap_err().is_panic(), "a single caller's statement panics in that caller");
    assert_eq!(gate.call(false).await.unwrap().unwrap(), 1);
}

/// Updates a key's row, which another session may have locked.
struct Touch(i64);

impl Batched for Touch {
    type Output = ();

    fn order(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<()>, DatabaseError> {
        const SQL: &str = "UPDATE idempotency_keys k SET last_run_at = now() FROM unnest($1::bigint[]) AS i (id)
            WHERE k.id = i.id";
        database.query(SQL, &[&column(items, |item| item.0)]).await?;
        Ok(vec![(); items.len()])
    }
}

#[tokio::test]
async fn a_row_that_another_session_has_locked_delays_no_other() {
    let app = TestApp::start().await;
    insert_keys(&app, 50, "1 hour").await;
    let database = pool(&app.database_config).await;
    let first: i64 = app.get("SELECT min(id) FROM idempotency_keys").await;
    app.execute("BEGIN").await;
    app.query("SELECT FROM idempotency_keys WHERE id = $1 FOR UPDATE", &[&first]).await;

    let touch = |id| {
        let database = database.clone();
        tokio::spawn(async move { database.batched(Touch(id)).await })
    };
    let held = touch(first);
    tokio::task::yield_now().await;
    // This call waits for the one that hangs, until a call that comes a moment later takes it along in its batch.
    let mut others = vec![touch(first + 1)];
    tokio::time::sleep(Duration::from_millis(150)).await;
    others.extend((2..50).map(|n| touch(first + n)));
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert!(!held.is_finished(), "no other call waited for it");
    let error = held.await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    app.execute("ROLLBACK").await;
}

/// Fails with a deadlock at the first attempt.
struct Unlucky(Arc<AtomicUsize>);

impl Batched for Unlucky {
    type Output = ();

    fn order(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<()>, DatabaseError> {
        if items[0].0.fetch_add(1, Relaxed) == 0 {
            database.query("SELECT deadlock()", &[]).await?;
        }
        Ok(vec![(); items.len()])
    }
}

#[tokio::test]
async fn what_a_deadlock_undid_is_done_again() {
    let app = TestApp::start().await;
    let function = "CREATE FUNCTION deadlock() RETURNS int LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'met' USING ERRCODE = 'deadlock_detected'; END $$";
    app.execute(function).await;
    let database = pool(&app.database_config).await;
    let tries = Arc::new(AtomicUsize::new(0));
    database.batched(Unlucky(Arc::clone(&tries))).await.unwrap();
    assert_eq!(tries.load(Relaxed), 2);
}
