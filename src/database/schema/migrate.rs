//! Brings a database of an earlier version to this one, while processes of the release before go on serving from it.
//!
//! The first steps change nothing for those processes (expand); then a switch refuses them, and processes of this release
//! can start; the last steps only check.
//! No step holds up traffic: none rewrites a table or reads a large one under a lock that others wait for, and none
//! waits for such a lock for longer than others can wait behind it. Each step is a transaction and may be carried out
//! again, so a process that is killed anywhere leaves a database from which the next process goes on.

use std::time::{Duration, Instant};

use atomic_phases::database::{Database, Session};
use atomic_phases::errors::chain;

use super::{SchemaError, VERSION};

/// How long a step waits for a lock, and with it everybody who wants the table after it.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);
/// Then it lets the others go first.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a process looks whether another one has done the work.
const LOOK: Duration = Duration::from_millis(100);
/// A session that holds a lock for so long is looked at by a person.
const LOCK_RETRY_TIME: Duration = Duration::from_secs(60);

/// For steps that change many rows: so many at a time, without those that another session has locked.
const BATCH: &str = "LIMIT 1000 FOR UPDATE SKIP LOCKED";
/// The same, without requests that are being worked on.
const IDLE_BATCH: &str =
    "AND (locked_at IS NULL OR locked_at <= now() - interval '5 minutes') LIMIT 1000 FOR UPDATE SKIP LOCKED";

const ANSWER: &str = include_str!("0003_3_answer.sql");
const FREEZE: &str = include_str!("0003_4_freeze.sql");
const OPEN: &str = include_str!("0003_5_open.sql");

/// One step of a migration.
#[derive(Debug, Clone)]
pub struct Step {
    /// The version that it leads to.
    pub to: i32,
    /// What it does, for people.
    pub what: &'static str,
    /// What it locks, and for how long.
    pub locks: &'static str,
    sql: String,
    work: Work,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// One transaction.
    Once,
    /// One transaction after another, until one returns that it `changed` nothing.
    Batches,
}

impl Step {
    fn once(to: i32, what: &'static str, locks: &'static str, sql: impl Into<String>) -> Self {
        Self { to, what, locks, sql: sql.into(), work: Work::Once }
    }

    fn batches(to: i32, what: &'static str, sql: String) -> Self {
        Self { to, what, locks: "the rows that it changes, 1,000 at a time", sql, work: Work::Batches }
    }
}

/// For a step that makes all other users of the table, or of some, wait.
const BRIEFLY: &str = "the table, for milliseconds";
const BRIEFLY_EACH: &str = "each table, for milliseconds";

/// Returns the steps from this version to the next.
fn steps_from(version: i32) -> Option<Vec<Step>> {
    let steps = match version {
        1 => vec![Step::once(
            2,
            "add the table purged_jobs",
            "nothing that requests need",
            include_str!("0002_purged_jobs.sql"),
        )],
        2 => vec![
            Step::once(3, "add columns to idempotency_keys", BRIEFLY, include_str!("0003_1_add.sql")),
            Step::once(3, "add the tables of refunds", BRIEFLY, include_str!("0003_2_tables.sql")),
            Step::batches(
                3,
                "answer each request that was charged and not answered",
                ANSWER.replace("/* batch */", IDLE_BATCH),
            ),
            Step::batches(
                3,
                "store with each unfinished request what it will send",
                FREEZE.replace("/* batch */", BATCH),
            ),
            Step::batches(
                3,
                "give each request that has only a key its ride",
                OPEN.replace("/* batch */", IDLE_BATCH),
            ),
            Step::once(3, "switch: the release before is refused from here on", BRIEFLY, switch()),
        ],
        3 => vec![Step::once(
            4,
            "add the processes, and to each lease which one holds it",
            BRIEFLY_EACH,
            include_str!("0004_processes.sql"),
        )],
        _ => return None,
    };
    Some(steps)
}

/// Processes can use a database of this version, and of later ones, before its last steps have been carried out.
const UNCHECKED: i32 = 3;

/// Returns these last steps.
fn steps_after() -> Vec<Step> {
    vec![
        Step::once(
            UNCHECKED,
            "validate the new constraints",
            "nothing that requests need",
            include_str!("0003_7_validate.sql"),
        ),
        Step::once(UNCHECKED, "make a column NOT NULL", BRIEFLY, include_str!("0003_8_end.sql")),
    ]
}

fn switch() -> String {
    include_str!("0003_6_switch.sql")
        .replace("/* answer */", &ANSWER.replace("/* batch */", ""))
        .replace("/* open */", &OPEN.replace("/* batch */", ""))
        .replace("/* freeze */", &FREEZE.replace("/* batch */", ""))
}

/// Returns the steps that a database still needs, in order.
pub async fn plan(database: &Database) -> Result<Vec<Step>, SchemaError> {
    let migration = Migration::open(database).await?;
    let version = migration.version().await?;
    if version != VERSION && steps_from(version).is_none() {
        return Err(SchemaError::Version { found: version });
    }
    let mut steps: Vec<Step> = (version..VERSION).filter_map(steps_from).flatten().collect();
    if version < UNCHECKED || migration.has_unfinished_steps().await? {
        steps.extend(steps_after());
    }
    Ok(steps)
}

/// Returns the version of the database's schema; that of this program, if a later one is usable by it.
pub(super) async fn version(database: &Database) -> Result<i32, SchemaError> {
    Migration::open(database).await?.version().await
}

/// How far a database is to be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Processes of this release can use it. Large tables have not been read.
    Usable,
    /// No step of [`plan`] is left.
    Complete,
}

/// Carries out the steps of [`plan`]. Several processes may do so at once: one works, and the others wait and find it
/// done.
pub async fn migrate(database: &Database, extent: Extent) -> Result<(), SchemaError> {
    let migration = Migration::open(database).await?;
    let (mut our_turn, mut said) = (false, false);
    while let Some(steps) = migration.next_steps(extent).await? {
        if !our_turn {
            our_turn = migration.takes_turn().await?;
            if !our_turn {
                if !said {
                    tracing::info!("another process migrates the schema; waiting for it");
                    said = true;
                }
                tokio::time::sleep(LOOK).await;
            }
            // These steps may have been done before the turn was ours.
            continue;
        }
        for step in steps {
            let begun = Instant::now();
            migration.carry_out(&step).await?;
            let (to, ms) = (step.to, begun.elapsed().as_millis());
            tracing::info!(version = to, ms, "schema: {}", step.what);
        }
    }
    Ok(())
}

/// One connection for the whole migration: a lock that it holds ends with it, however the process ends.
struct Migration(Session);

impl Migration {
    async fn open(database: &Database) -> Result<Self, SchemaError> {
        if !super::is_ours(database).await? {
            return Err(SchemaError::Absent);
        }
        let session = Session::open(database).await?;
        // A step may read a whole table. A time limit that the database's role has for its requests is too short for
        // that. And compiling a statement (JIT) under a lock takes longer than running it.
        session.run("SET statement_timeout = 0; SET jit = off").await?;
        Ok(Self(session))
    }

    /// Returns whether this process is the one that works, from now on until its connection ends.
    async fn takes_turn(&self) -> Result<bool, SchemaError> {
        const SQL: &str = "SELECT pg_try_advisory_lock(7265736375)::text AS mine";
        Ok(self.0.run(SQL).await?.as_deref() == Some("true"))
    }

    /// Returns the steps up to the next version, or those that are left of this one, or `None`.
    async fn next_steps(&self, extent: Extent) -> Result<Option<Vec<Step>>, SchemaError> {
        Ok(match self.version().await? {
            VERSION if extent == Extent::Complete && self.has_unfinished_steps().await? => Some(steps_after()),
            VERSION => None,
            found => Some(steps_from(found).ok_or(SchemaError::Version { found })?),
        })
    }

    async fn version(&self) -> Result<i32, SchemaError> {
        const SQL: &str = "SELECT version FROM rocket_rides_schema WHERE singleton";
        // No column of this name before version 3.
        const USABLE_FROM: &str = "SELECT usable_from FROM rocket_rides_schema WHERE singleton";
        let version = self.number(SQL).await?;
        Ok(if version > VERSION && self.number(USABLE_FROM).await? <= VERSION { VERSION } else { version })
    }

    async fn number(&self, sql: &str) -> Result<i32, SchemaError> {
        Ok(self.0.run(sql).await?.and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    /// Returns whether an earlier process made the switch but not all steps after it.
    async fn has_unfinished_steps(&self) -> Result<bool, SchemaError> {
        // The last step drops it.
        const SQL: &str = "SELECT true FROM pg_constraint
            WHERE conrelid = 'idempotency_keys'::regclass AND conname = 'call_was_intended'";
        Ok(self.0.run(SQL).await?.is_some())
    }

    async fn carry_out(&self, step: &Step) -> Result<(), SchemaError> {
        // Statements sent together are one transaction.
        let sql = format!("SET LOCAL lock_timeout = {}; {}", LOCK_TIMEOUT.as_millis(), step.sql);
        let mut since = Instant::now();
        loop {
            match self.0.run(&sql).await {
                Ok(None) => return Ok(()),
                Ok(Some(changed)) if step.work == Work::Once || changed == "0" => return Ok(()),
                Ok(Some(_)) => since = Instant::now(),
                Err(error) if error.is_contention() && since.elapsed() < LOCK_RETRY_TIME => {
                    tracing::warn!(step = step.what, error = chain(&error), "a table is in use; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) if error.is_contention() => {
                    return Err(SchemaError::Blocked { step: step.what, error });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
