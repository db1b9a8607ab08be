//! Many callers, few statements: what goes together must not harm each other.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rocket_rides_atomic::database::{Batched, Database, DatabaseError, column};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::eventually;
use crate::support::world::{World, pool};

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
    let world = World::start().await;
    let database = pool(&world.database_config).await;
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
    assert!(statements < 500, "{statements} statements for 1,000 callers, of whom 20 are halved down to");
}

#[tokio::test]
async fn who_stops_waiting_takes_nobody_along() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
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
        impatient.iter().for_each(tokio::task::JoinHandle::abort);
        for (by, quotient) in callers.join_all().await {
            assert_eq!(quotient, 100 / by);
        }
    }
}

/// Panics if told so, and otherwise waits until it may go on.
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

#[tokio::test]
async fn those_who_come_meanwhile_go_together_even_after_a_panic() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let call = |panics| {
        let (database, begun, gate) = (database.clone(), Arc::clone(&begun), Arc::clone(&gate));
        tokio::spawn(async move { database.batched(Fragile { panics, begun, gate }).await })
    };
    let under_way = async |n| {
        eventually("a batch begins", async || (begun.load(Relaxed) == n).then_some(())).await;
    };
    let alone = call(false);
    under_way(1).await;
    let doomed = call(true);
    under_way(2).await;
    // Both places are taken: these wait, and one of them takes its batch along, but not the next.
    let doomed_together: Vec<_> = (0..128).map(|n| call(n == 7)).collect();
    tokio::task::yield_now().await;
    let together: Vec<_> = (0..10).map(|_| call(false)).collect();
    tokio::task::yield_now().await;
    gate.add_permits(1);
    assert_eq!(alone.await.unwrap().unwrap(), 1);
    assert!(doomed.await.unwrap_err().is_panic(), "a statement of one's own panics in its caller");
    for call in doomed_together {
        assert!(matches!(call.await.unwrap(), Err(DatabaseError::Lost(None))));
    }
    for call in together {
        assert_eq!(call.await.unwrap().unwrap(), 10);
    }
    assert_eq!(begun.load(Relaxed), 4);
}

#[tokio::test]
async fn whoever_leaves_in_the_middle_lets_the_next_go_on() {
    let world = World::start().await;
    let database = pool(&world.database_config).await;
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let call = || {
        let (database, begun, gate) = (database.clone(), Arc::clone(&begun), Arc::clone(&gate));
        tokio::spawn(async move { database.batched(Fragile { panics: false, begun, gate }).await })
    };
    let first = [call(), call()];
    eventually("two statements", async || (begun.load(Relaxed) == 2).then_some(())).await;
    let together: Vec<_> = (0..10).map(|_| call()).collect();
    tokio::task::yield_now().await;
    first.iter().for_each(tokio::task::JoinHandle::abort);
    gate.add_permits(1);
    for call in together {
        assert_eq!(call.await.unwrap().unwrap(), 10);
    }
}
