//! Makes callers wait for each other, so that they go together in one statement.
//!
//! Only [`LANES`] batches of one kind are under way at once. When all of these slots are taken by statements that wait
//! for another session, all later callers queue; when that session rolls back, the slot that is free first takes the
//! queue.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::{Case, Stage, WaitsFor, spawn};
use crate::support::app::TestApp;
use crate::support::{cluster, eventually_mut};

/// Batches of one kind that may be under way at once.
pub(super) const LANES: usize = 4;
/// A batch that has been under way for 100 ms no longer keeps a later caller from starting another.
const PACE: Duration = Duration::from_millis(110);
/// Successive looks that find no connections in use except those that wait at the gate.
const STILL: usize = 5;

pub(super) struct Gate {
    holder: Client,
    ahead: JoinSet<()>,
}

impl Gate {
    /// Fills all slots with plain callers.
    pub(super) async fn shut<C: Case>(stage: &Stage) -> Self {
        let callers = stage.plain_callers::<C>(2 * LANES).await;
        let holder = cluster::connect(&stage.app.database_config).await;
        let held: Vec<i64> = callers.iter().map(C::locks).collect();
        hold(&holder, C::WAITS_FOR, &held).await;
        Self::fill(stage, holder, callers).await
    }

    /// Fills all slots with these callers; `holder` keeps them waiting.
    pub(super) async fn fill<C: Case>(stage: &Stage, holder: Client, callers: Vec<C>) -> Self {
        let mut gate = Self { holder, ahead: JoinSet::new() };
        let mut callers = callers.into_iter();
        eventually_mut("all places taken", async || {
            if waiting(&stage.app).await == LANES {
                return Some(());
            }
            let call = spawn(callers.next()?, &stage.database);
            gate.ahead.spawn(async move { drop(call.await) });
            tokio::time::sleep(PACE).await;
            None
        })
        .await;
        gate
    }

    /// Waits until each caller has done what comes before its statement.
    pub(super) async fn until_all_wait(&self, stage: &Stage) {
        let mut still = 0;
        eventually_mut("all callers wait", async || {
            let (used, _) = stage.database.connections();
            still = if used as usize == LANES { still + 1 } else { 0 };
            (still == STILL).then_some(())
        })
        .await;
    }

    /// Lets all callers go on that have arrived by now.
    pub(super) async fn open(mut self) {
        self.holder.batch_execute("ROLLBACK").await.expect("let go");
        while self.ahead.join_next().await.is_some() {}
    }
}

/// Locks this, so that all statements that need it wait until the session rolls back.
pub(super) async fn hold(session: &Client, what: WaitsFor, rows: &[i64]) {
    session.batch_execute("BEGIN").await.expect("begin");
    match what {
        WaitsFor::Table(table) => {
            let lock = format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
            session.batch_execute(&lock).await.expect("the table");
        }
        WaitsFor::Row(table, column) => {
            let lock = format!("SELECT FROM {table} WHERE {column} = ANY($1) FOR UPDATE");
            let locked = session.query(&lock, &[&rows]).await.expect("the rows");
            assert_eq!(locked.len(), rows.len(), "each caller has a row");
        }
    }
}

/// Returns how many sessions wait for a lock, each with one statement.
pub(super) async fn waiting(app: &TestApp) -> usize {
    let waiting =
        app.count("pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()").await;
    usize::try_from(waiting).expect("a count")
}
