//! The phases after the first: fenced statements over many requests.
//!
//! A phase is one statement. It begins with a CTE that updates the key's row where id, lease token and step all match, and
//! everything that the operation writes is taken *from* that CTE. So if the lease has gone to another attempt, or the phase
//! was carried out already, the CTE is empty and nothing is written at all. One statement also means no `BEGIN`: a task that
//! is cancelled leaves nothing half-done, and a phase costs one round trip.
//!
//! Both kinds of phase are flushed. A phase between two foreign calls is followed by a call, which must not be made for
//! a state that a crash of the database can still undo. The last phase is followed by the client's answer.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::Value;
use serde_json::value::RawValue;
use tokio_postgres::Row;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::operation::{Job, Operation, Response};
use super::{ForeignCall, Lease, json};
use crate::database::{Batched, Database, DatabaseError, column, intern};

/// The engine's part of each statement.
const ADVANCE: &str = include_str!("advance.sql");
const CLOSE: &str = include_str!("close.sql");
const OPEN: &str = include_str!("open.sql");

/// An operation's statements, complete.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    /// See [`super::open`].
    pub(super) open: &'static str,
    /// By recovery point.
    between: HashMap<&'static str, Advance>,
    close: &'static str,
}

#[derive(Debug, Clone, Copy)]
struct Advance {
    sql: &'static str,
    point: &'static str,
    step: i16,
}

impl Statements {
    pub(super) fn of<O: Operation>() -> Self {
        let phases = O::PHASES;
        let with_effects = |statement: &str, effects| intern(statement.replace("/* effects */", effects));
        let advance = |phase: &super::Phase| {
            let step = phases.step(phase.point).expect("one of its own");
            (phase.point, Advance { sql: with_effects(ADVANCE, phase.effects), point: phase.point, step })
        };
        Self {
            open: with_effects(&OPEN.replace("/* admit */", phases.open.admit), phases.open.effects),
            between: phases.between.iter().map(advance).collect(),
            close: with_effects(CLOSE, phases.close),
        }
    }

    /// Carries out the phase that leads to `point`, where `state` is stored. Returns the foreign call that it makes
    /// possible, or `None` if the fence does not match.
    ///
    /// Locks the key's row.
    pub(super) async fn advance(
        &self,
        database: &Database,
        lease: &Lease,
        point: &str,
        state: Value,
        data: Value,
    ) -> Result<Option<ForeignCall>, DatabaseError> {
        let phase = self.between[point];
        database.batched(Advancing { phase, fence: Fence::of(lease), state, data }).await
    }

    /// Returns the step of a recovery point.
    pub(super) fn step(&self, point: &str) -> i16 {
        self.between[point].step
    }

    /// Stores the answer, stages the jobs and ends the lease. Returns `false` if the fence does not match.
    ///
    /// Locks the key's row.
    pub(super) async fn close(
        &self,
        database: &Database,
        lease: &Lease,
        response: Response,
        jobs: &[Job],
        data: Value,
    ) -> Result<bool, DatabaseError> {
        let item = Closing { sql: self.close, fence: Fence::of(lease), response, jobs: json(&jobs), data };
        database.batched(item).await
    }
}

/// What a fence compares. Fences are ordered by their keys, and so are the rows of every batch: batches that lock keys
/// in the same order never deadlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fence {
    pub(super) key_id: i64,
    pub(super) token: Uuid,
    pub(super) step: i16,
}

impl Fence {
    pub(super) fn of(lease: &Lease) -> Self {
        Self { key_id: lease.key_id, token: lease.token, step: lease.step }
    }
}

/// Returns the rows of a statement by their `lease_token`. A key may be in one batch twice, with its lease's present
/// token and a former one.
pub(super) fn by_token(rows: Vec<Row>) -> HashMap<Uuid, Row> {
    rows.into_iter().map(|row| (row.get("lease_token"), row)).collect()
}

struct Advancing {
    phase: Advance,
    fence: Fence,
    state: Value,
    data: Value,
}

impl Batched for Advancing {
    type Output = Option<ForeignCall>;

    fn statement(&self) -> &'static str {
        self.phase.sql
    }

    fn order(&self, other: &Self) -> Ordering {
        self.fence.cmp(&other.fence)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<Option<ForeignCall>>, DatabaseError> {
        let Advance { sql, point, step } = items[0].phase;
        let rows = database
            .query(
                sql,
                &[
                    &point,
                    &step,
                    &column(items, |item| item.fence.key_id),
                    &column(items, |item| item.fence.token),
                    &column(items, |item| item.fence.step),
                    &column(items, |item| &item.state),
                    &column(items, |item| &item.data),
                ],
            )
            .await?;
        let rows = by_token(rows);
        Ok(column(items, |item| rows.get(&item.fence.token).map(ForeignCall::from_row)))
    }
}

struct Closing {
    sql: &'static str,
    fence: Fence,
    response: Response,
    jobs: Box<RawValue>,
    data: Value,
}

impl Batched for Closing {
    type Output = bool;

    fn statement(&self) -> &'static str {
        self.sql
    }

    fn order(&self, other: &Self) -> Ordering {
        self.fence.cmp(&other.fence)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<bool>, DatabaseError> {
        let rows = database
            .query(
                items[0].sql,
                &[
                    &column(items, |item| item.fence.key_id),
                    &column(items, |item| item.fence.token),
                    &column(items, |item| item.fence.step),
                    &column(items, |item| i32::from(item.response.code)),
                    &column(items, |item| item.response.headers.as_str()),
                    &column(items, |item| item.response.body.as_str()),
                    &column(items, |item| &item.data),
                    &column(items, |item| Json(&item.jobs)),
                ],
            )
            .await?;
        let closed = by_token(rows);
        Ok(column(items, |item| closed.contains_key(&item.fence.token)))
    }
}
