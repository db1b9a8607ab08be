//! The engine: idempotency keys, leases, atomic phases and recovery points.
//!
//! A request that must be carried out exactly once, although it makes a foreign call that no rollback undoes, is cut
//! into atomic phases. An [`Operation`] defines what the phases write and what is called between them. The engine
//! stores which attempt may work on a request ([`Lease`]), how far the request has come (its recovery point) and what
//! was answered ([`Response`]). It contains no code about rides, cards or HTTP.
//!
//! - [`operation`]: what an operation is.
//! - [`executor`]: carries one out, for a client or for the completer.
//! - [`open`]: the statement that begins a request, and the take-over of one that is unfinished.
//! - [`phase`]: the fenced statements that come after: from one foreign call to the next, and the close.
//! - [`claim`]: how the completer gets its leases.
//! - [`settle`]: the two ways to end a lease without finishing: release, park.
//! - [`parked`], [`reap`]: keys that wait for a person, and the removal of old ones.
//! - [`points`]: the check that a process can go on with the unfinished requests in the database.
//! - [`key`]: what a client may use as a key.

pub mod claim;
pub mod executor;
pub mod key;
pub mod open;
pub mod operation;
pub mod parked;
pub mod phase;
pub mod points;
pub mod reap;
pub mod settle;

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio_postgres::Row;
use uuid::Uuid;

pub use executor::{Answer, Completes, Engine, Executed, Executor, Operations};
pub use key::IdempotencyKey;
pub use operation::{Attempt, Job, Next, Opening, Operation, Phase, Phases, Response, Stop};

/// `[idempotency]`: the engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How long a lease on a key lasts. When it has run out, another attempt may start. So it is longer than an attempt
    /// takes, unless the database is extremely slow; then the fence makes the overlap harmless.
    #[serde(with = "humantime_serde")]
    pub lock_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lock_timeout: Duration::from_secs(90) }
    }
}

/// The recovery point of a request that has its answer.
pub const FINISHED: &str = "finished";
/// Its step, behind those of all recovery points that an operation has or will have.
pub const FINISHED_STEP: i16 = i16::MAX;

/// A request as its client sent it: what decides whether a repetition is the same request, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<P> {
    /// Whose request it is. Keys of different users are independent.
    pub user_id: i64,
    /// Chosen by the client.
    pub key: IdempotencyKey,
    /// The HTTP method, as in `POST`.
    pub method: String,
    /// The path, as in `/rides`.
    pub path: String,
    /// In a normal form: equal requests have equal parameters, as JSON too.
    pub params: P,
    /// The client's address, kept for the completer, which works without the client.
    pub origin_ip: IpAddr,
}

/// The right to work on a request until the lease runs out, and all that is needed to go on with the request.
///
/// Holding one does not prove that it is still valid: only the fence of a [`phase`] decides that.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The key's row.
    pub key_id: i64,
    /// Random for each acquisition, never a counter. A failover to a standby that lagged may lose an acquisition, and a
    /// counter would then give the same number twice.
    pub token: Uuid,
    /// The recovery point from which to go on.
    pub recovery_point: String,
    /// Its place among the operation's recovery points.
    pub step: i16,
    /// What was stored with the recovery point, as JSON.
    pub state: String,
    /// How often the request has been taken up, this time included.
    pub attempts: i32,
    /// The call that comes next.
    pub foreign_call: ForeignCall,
    /// When it runs out, at the earliest, by this host's clock. A fenced statement need not check this; a foreign call
    /// must, because no fence protects it.
    pub runs_out: Instant,
}

/// The idempotency key of a foreign call, and since when the call may have been made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignCall {
    /// The call's idempotency key. Random and stored, never derived from a row's id, because a new database would give
    /// the same ids again.
    pub key: Uuid,
    /// When the call first became possible, by the database's clock.
    pub intended_at: SystemTime,
    /// How long ago that was when the lease was taken.
    pub age: Duration,
}

impl Lease {
    /// Reads a lease. `runs_out` is computed before the statement is sent.
    fn from_row(row: &Row, runs_out: Instant) -> Self {
        Self {
            key_id: row.get("key_id"),
            token: row.get("lease_token"),
            recovery_point: row.get("recovery_point"),
            step: row.get("step"),
            state: row.get("state"),
            attempts: row.get("attempts"),
            foreign_call: ForeignCall { age: seconds(row.get("foreign_call_age")), ..ForeignCall::from_row(row) },
            runs_out,
        }
    }
}

impl ForeignCall {
    /// Reads a foreign call that has just become possible, so that its age is zero.
    fn from_row(row: &Row) -> Self {
        Self {
            key: row.get("foreign_call_key"),
            intended_at: row.get("foreign_call_intended_at"),
            age: Duration::ZERO,
        }
    }
}

/// Converts seconds from the database. They are negative if its clock was set back, and then count as zero.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Serializes a value into text, which goes to the database as it is.
fn json(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("an operation's types are JSON")
}
