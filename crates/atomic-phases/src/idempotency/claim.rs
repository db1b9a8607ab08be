//! How the completer gets leases, on requests whose clients have given up.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::Lease;
use crate::database::{Database, DatabaseError};

/// When to try again, and when to stop.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// A lease older than this may be taken over.
    pub lock_timeout: Duration,
    /// Pause after the first attempt; it doubles with each, up to [`LONGEST_PAUSE`], give or take a quarter.
    pub retry_after: Duration,
    /// A request that was tried this often is parked instead.
    pub max_attempts: i32,
}

/// Past an hour, waiting longer helps no outage and only delays the answer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A request to complete.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The right to work on it.
    pub lease: Lease,
    /// The operation's name.
    pub operation: String,
    /// Who asked for it.
    pub user_id: i64,
    /// The request's parameters, as they are stored.
    pub params: Value,
    /// The client's address.
    pub origin_ip: IpAddr,
}

/// The result of one claim.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    /// To be completed.
    pub claimed: Vec<Claimed>,
    /// Rows of keys that have used up their attempts and were parked.
    pub parked: Vec<i64>,
}

/// The claim itself schedules the next attempt, not the code that handles a failure: a process that dies during the
/// attempt cannot write anything.
///
/// Flushed, as every take-over is: see [`super::open`].
const CLAIM: &str = include_str!("claim.sql");

/// Claims up to `limit` requests of these operations that are due, longest due first, and parks those that were tried
/// too often. Requests of an operation that this process does not know are left to a process that does.
///
/// Locks the rows it returns and skips rows that others have locked, so that several completers share the work.
pub async fn claim(
    database: &Database,
    operations: &[&str],
    limit: i64,
    policy: &RetryPolicy,
) -> Result<Claims, DatabaseError> {
    let runs_out = Instant::now() + policy.lock_timeout;
    let rows = database
        .query(
            CLAIM,
            &[
                &limit,
                &policy.lock_timeout.as_secs_f64(),
                &policy.retry_after.as_secs_f64(),
                &LONGEST_PAUSE.as_secs_f64(),
                &policy.max_attempts,
                &operations,
                &database.process(),
            ],
        )
        .await?;
    let mut claims = Claims::default();
    for row in &rows {
        if row.get::<_, Option<Uuid>>("lease_token").is_none() {
            claims.parked.push(row.get("key_id"));
            continue;
        }
        claims.claimed.push(Claimed {
            lease: Lease::from_row(row, runs_out),
            operation: row.get("operation"),
            user_id: row.get("user_id"),
            params: row.get("request_params"),
            origin_ip: row.get("origin_ip"),
        });
    }
    Ok(claims)
}
