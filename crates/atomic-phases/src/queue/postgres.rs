//! The default queue: the table `jobs` in the same database.

use std::sync::LazyLock;
use std::time::Instant;

use super::{BEFORE_FIRST, ROUND_TIME, Relay, Relayed, dead};
use crate::database::{Database, DatabaseError, intern};

/// This queue's name in config, logs and metrics.
pub const NAME: &str = "postgres";

/// The way out to the table `jobs`.
#[derive(Debug)]
pub struct PostgresRelay {
    /// Where both tables are.
    pub database: Database,
    /// Jobs moved by one statement.
    pub batch: i64,
}

/// Delete and insert are one statement, so there is no moment in which a job is in neither table or in both.
/// `RETURNING` has no order, so the insert restores the order of staging.
const DELIVER: &str = include_str!("postgres_deliver.sql");
/// The oldest of those behind a job.
static DELIVER_BEHIND: LazyLock<&str> = LazyLock::new(|| delivering("id > $2 ORDER BY id LIMIT $1"));
/// Those with these ids.
static DELIVER_THESE: LazyLock<&str> = LazyLock::new(|| delivering("id = ANY($1::bigint[])"));

fn delivering(which: &str) -> &'static str {
    intern(DELIVER.replace("/* which */", which))
}

impl Relay for PostgresRelay {
    async fn relay(&self) -> Result<Relayed, DatabaseError> {
        let (began, mut relayed, mut after) = (Instant::now(), Relayed::default(), BEFORE_FIRST);
        loop {
            let moved = match deliver(&self.database, after, self.batch).await {
                Err(error) if error.is_data_error() => {
                    let bisected = bisect(&self.database, self.batch).await?;
                    return Ok(Relayed { delivered: relayed.delivered + bisected.delivered, ..bisected });
                }
                moved => moved?,
            };
            let full = moved.jobs == self.batch;
            relayed.delivered += moved.jobs;
            relayed.more |= full;
            match moved.last.filter(|_| full && began.elapsed() < ROUND_TIME) {
                Some(last) => after = last,
                None => return Ok(relayed),
            }
        }
    }
}

/// What one statement moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moved {
    /// How many jobs.
    pub jobs: i64,
    /// The id of the last of them.
    pub last: Option<i64>,
}

/// Moves up to `limit` staged jobs behind the job `after` to the table `jobs`, oldest first.
///
/// Locks the staged rows and skips rows that others have locked, so that several enqueuers share the work. Rows
/// are found by what is there, never by a remembered id: a transaction that commits late has a low one.
pub async fn deliver(database: &Database, after: i64, limit: i64) -> Result<Moved, DatabaseError> {
    let row = database.query_opt(&DELIVER_BEHIND, &[&limit, &after]).await?;
    Ok(row.map_or_else(Moved::default, |row| Moved { jobs: row.get("delivered"), last: row.get("last") }))
}

/// Delivers a batch that the table refuses as a whole. Halves what is refused, in order, until each refused job stands
/// alone; these become dead letters. A batch with one bad job takes about twice as many statements as the batch has
/// binary digits.
///
/// Locks, statement by statement, the staged rows that it moves; other enqueuers may take rows in between.
async fn bisect(database: &Database, limit: i64) -> Result<Relayed, DatabaseError> {
    const DUE: &str = "SELECT id FROM staged_jobs WHERE next_attempt_at <= now() ORDER BY id LIMIT $1";
    let due: Vec<i64> = database.query(DUE, &[&limit]).await?.iter().map(|row| row.get("id")).collect();
    let mut relayed = Relayed { more: true, ..Relayed::default() };
    let mut parts = vec![due.as_slice()];
    while let Some(part) = parts.pop() {
        match (database.query_opt(&DELIVER_THESE, &[&part]).await, part) {
            (Ok(row), _) => relayed.delivered += row.map_or(0, |row| row.get("delivered")),
            (Err(error), _) if !error.is_data_error() => return Err(error),
            (Err(error), [id]) => relayed.dead += i64::from(dead::bury(database, *id, &error).await?),
            (Err(_), part) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(relayed)
}
