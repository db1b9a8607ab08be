//! The processes that work on one database: which of them live, and what becomes of the leases of one that has died.
//!
//! Each process has a row, and says again and again that it lives: it *beats*, by the database's clock. It writes its id
//! on the leases that it takes. When it has died, another process hands its leases back, so that what it was at work on
//! need not wait until they run out.
//!
//! A verdict may be mistaken: a process that was stopped, or cut off from the database, wakes and goes on. That is
//! harmless. Its leases are gone, so its fenced statements write nothing, as if the leases had run out. Only rows are
//! used for all this, no advisory locks and no `LISTEN`, because neither works through a pooler of connections.

mod place;

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio_postgres::Row;
use uuid::Uuid;

pub use place::Place;

use crate::database::{Database, DatabaseError, Params};

/// `[processes]`: how processes know of each other.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The name of this process, for people. Without one, that of its host.
    pub name: Option<String>,
    /// Pause between two beats. Each is one small statement that waits for no disk.
    #[serde(with = "humantime_serde")]
    pub beat: Duration,
    /// A process that has not beaten for this long is taken for dead, unless its host shows earlier that it has ended. Five
    /// beats: long enough for a connection that must be opened anew, or a host that is short of processors for a
    /// moment. A mistake costs the attempts that were under way, and nothing else.
    #[serde(with = "humantime_serde")]
    pub dead_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { name: None, beat: Duration::from_secs(1), dead_after: Duration::from_secs(5) }
    }
}

/// A process as it describes itself.
#[derive(Debug, Clone)]
pub struct Process {
    /// Random for each process.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// The release that it runs.
    pub version: String,
    /// Where it runs.
    pub place: Place,
}

impl Process {
    /// Describes this process.
    pub fn new(name: Option<&str>, version: &str) -> Self {
        let place = Place::here();
        let name = name.unwrap_or(&place.host).to_owned();
        Self { id: Uuid::new_v4(), name, version: version.to_owned(), place }
    }
}

/// A process that has not ended, as another one sees it.
#[derive(Debug, Clone)]
pub struct Other {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub place: Place,
    /// When it beat last, by the database's clock.
    pub last_beat_at: SystemTime,
    /// How long ago that was.
    pub silent: Duration,
}

/// What a process sees when it beats.
#[derive(Debug, Clone, Default)]
pub struct Beat {
    /// The other processes that have not ended.
    pub others: Vec<Other>,
    /// How long this process had said nothing before.
    pub silent: Duration,
}

/// Not flushed: a crash of the database makes processes seem older for the second until the next beat.
const BEAT: &str = include_str!("beat.sql");

/// Says that this process lives, and returns which others have not ended. Makes its row, if there is none.
///
/// Locks the row.
pub async fn beat(database: &Database, process: &Process) -> Result<Beat, DatabaseError> {
    let Process { id, name, version, place: Place { host, scope, pid, pid_started } } = process;
    let rows = database.query(BEAT, &[id, name, version, host, scope, pid, pid_started]).await?;
    let mut beat = Beat::default();
    for row in &rows {
        if row.get::<_, Uuid>("id") == *id {
            beat.silent = seconds(row.get("silent"));
        } else {
            beat.others.push(other(row));
        }
    }
    Ok(beat)
}

fn other(row: &Row) -> Other {
    Other {
        id: row.get("id"),
        name: row.get("name"),
        place: Place {
            host: row.get("host"),
            scope: row.get("scope"),
            pid: row.get("pid"),
            pid_started: row.get("pid_started"),
        },
        last_beat_at: row.get("last_beat_at"),
        silent: seconds(row.get("silent")),
    }
}

/// Of which process the leases go back, and on what terms.
#[derive(Debug, Clone, Copy)]
pub struct Verdict<'a> {
    /// The process.
    pub process: Uuid,
    /// Only if it has not beaten for this long.
    pub silent_for: Duration,
    /// It is marked as ended once it has not beaten for this long: a statement that it had sent before it died may still be
    /// carried out, and take another lease.
    pub ended_after: Duration,
    /// A request that waits for the completer is due once it has been left alone for this long. The time doubles with each
    /// attempt of a completer, because the request itself may be what kills processes.
    pub crash_grace: Duration,
    /// For the rows.
    pub why: &'a str,
}

/// How many leases went back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandedBack {
    /// Requests, for the completer or for a client that comes back.
    pub requests: i64,
    /// Jobs that were being worked. Their attempts stay counted: one may have killed the process.
    pub queued: i64,
    /// Jobs that were being pushed to a queue outside this database.
    pub staged: i64,
    /// Whether the process is marked as ended now.
    pub ended: bool,
}

impl HandedBack {
    /// How many leases they are together.
    pub fn total(&self) -> i64 {
        self.requests + self.queued + self.staged
    }
}

/// Not flushed: a crash of the database that undoes it does no harm. Until a lease is taken over, no process works under it;
/// and a take-over is flushed, which flushes this too.
const HAND_BACK: &str = include_str!("hand_back.sql");

/// Hands the leases of a process back.
///
/// Locks the rows of the process and of its leases, and skips rows that others have locked; then the process has not
/// ended yet. Reads the unfinished requests, the unfinished jobs and the outbox once, along their indexes.
pub async fn hand_back(database: &Database, verdict: Verdict<'_>) -> Result<HandedBack, DatabaseError> {
    let Verdict { process, silent_for, ended_after, crash_grace, why } = verdict;
    let (silent_for, ended_after) = (silent_for.as_secs_f64(), ended_after.as_secs_f64());
    let params: Params<'_> = &[&process, &silent_for, &crash_grace.as_secs_f64(), &why, &ended_after];
    let row = database.query_opt(HAND_BACK, params).await?;
    Ok(row.map_or_else(HandedBack::default, |row| HandedBack {
        requests: row.get("requests"),
        queued: row.get("queued"),
        staged: row.get("staged"),
        ended: row.get("ended"),
    }))
}

/// Not flushed: if a crash of the database undoes it, the rows are found again.
const REMOVE: &str = include_str!("remove.sql");

/// Removes up to `limit` processes that ended this long ago and hold no lease. Returns how many.
///
/// Locks their rows and skips rows that others have locked.
pub async fn remove(database: &Database, ended_for: Duration, limit: i64) -> Result<usize, DatabaseError> {
    Ok(database.query(REMOVE, &[&ended_for.as_secs_f64(), &limit]).await?.len())
}

/// A process, for a person.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The release that it runs.
    pub version: String,
    /// Its host.
    pub host: String,
    /// Its number there.
    pub pid: Option<i32>,
    /// Whether it has ended, and all of its leases have been handed back.
    pub ended: bool,
    /// How long ago it was started.
    pub age: Duration,
    /// How long ago it beat last.
    pub silent: Duration,
}

const LIST: &str = include_str!("list.sql");

/// Returns the processes, oldest first, `limit` at most. Locks nothing.
pub async fn list(database: &Database, limit: i64) -> Result<Vec<Listed>, DatabaseError> {
    let rows = database.query(LIST, &[&limit]).await?;
    let listed = |row: &Row| Listed {
        id: row.get("id"),
        name: row.get("name"),
        version: row.get("version"),
        host: row.get("host"),
        pid: row.get("pid"),
        ended: row.get("ended"),
        age: seconds(row.get("age")),
        silent: seconds(row.get("silent")),
    };
    let mut processes: Vec<_> = rows.iter().map(listed).collect();
    processes.sort_by_key(|process| std::cmp::Reverse(process.age));
    Ok(processes)
}

/// Converts seconds from the database, which are negative if its clock was set back.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
