//! The engine: idempotency keys, leases, fences and recovery points.
//!
//! A request that must happen exactly once, although it makes a foreign call that no rollback undoes, is cut
//! into atomic phases. This module knows who may work on a request ([`Lease`]), how far it has come (its
//! recovery point) and what was answered ([`Response`]). It knows nothing of rides, cards or HTTP: to use it
//! for something else, take this folder, `database`, and the tables `idempotency_keys` and `staged_jobs`.
//!
//! - [`key`]: what a client may use as a key.
//! - [`fence`]: how a phase makes sure that it still holds the lease, in the statement that does its work.
//! - [`acquire`], [`claim`]: the two ways to a lease, for a client's request and for the completer.
//! - [`settle`]: the three ways to end one: finish, release, park.
//! - [`parked`], [`reap`]: what becomes of keys that wait for a person, and of old ones.

pub mod acquire;
pub mod claim;
pub mod fence;
pub mod key;
pub mod parked;
pub mod reap;
pub mod settle;

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

pub use key::IdempotencyKey;

/// A request as its client sent it: what decides whether a repetition is the same request, and whence it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Keys of different users never meet.
    pub user_id: i64,
    /// Chosen by the client.
    pub key: IdempotencyKey,
    /// As in `POST`.
    pub method: String,
    /// As in `/rides`.
    pub path: String,
    /// In a normal form: two spellings of the same request must be equal as JSON.
    pub params: Value,
    /// The client's address, kept for whoever completes the request without the client.
    pub origin_ip: IpAddr,
}

/// The right to work on a request until it runs out, and all that is needed to go on with it.
///
/// Holding one is no proof that it is still valid: only a [fence] decides that.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The key's row.
    pub key_id: i64,
    /// Random for each acquisition, never a counter: an acquisition may be lost with an unflushed commit, and a
    /// counter would then hand the same number out twice.
    pub token: Uuid,
    /// Where to resume.
    pub recovery_point: String,
    /// How often the request has been taken up, this time included.
    pub attempts: i32,
    /// The idempotency key for the foreign call. Random and stored, never derived from a row's id, which a
    /// database made anew would repeat.
    pub foreign_call_key: Uuid,
    /// When it runs out, at the earliest, by this host's clock. What is fenced need not ask; a foreign call must,
    /// because no fence stands before it.
    pub runs_out: Instant,
    /// When the foreign call first became possible; `None` if it never was.
    pub foreign_call_intent: Option<Intent>,
}

/// A moment by the database's clock, and how long ago that was when the lease was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Intent {
    pub at: SystemTime,
    pub age: Duration,
}

impl Lease {
    /// `runs_out` is reckoned from before the statement was sent.
    fn from_row(row: &Row, runs_out: Instant) -> Self {
        Self {
            key_id: row.get("id"),
            token: row.get("lease_token"),
            recovery_point: row.get("recovery_point"),
            attempts: row.get("attempts"),
            foreign_call_key: row.get("foreign_call_key"),
            runs_out,
            foreign_call_intent: row
                .get::<_, Option<SystemTime>>("foreign_call_intended_at")
                .map(|at| Intent { at, age: seconds(row.get("foreign_call_age")) }),
        }
    }
}

/// Seconds from the database, which a clock set back could have made negative.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// What was answered, and will be answered again: the same bytes for as long as the key lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status, or what stands for it elsewhere.
    pub code: u16,
    /// A JSON text.
    pub body: String,
}

/// A job to be done after the request, staged by the very transaction that finishes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What the queue's workers know it by.
    pub name: &'static str,
    /// What it needs to know.
    pub args: Value,
}
