//! A client's way to a lease: phase one of a request.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use uuid::Uuid;

use super::fence::by_token;
use super::{Lease, Request, Response};
use crate::database::{Batched, Database, DatabaseError, column};

/// What a key says to a request that comes with it.
#[derive(Debug, Clone)]
pub enum Acquired {
    /// The request is new or unfinished, and ours to work on.
    Lease(Lease),
    /// It was answered before; this is the answer.
    Finished {
        /// The key's row.
        key_id: i64,
        /// To be repeated byte for byte.
        response: Response,
    },
    /// The key belongs to another request of this user.
    Mismatch {
        /// The key's row.
        key_id: i64,
    },
    /// Somebody else is working on it just now.
    InProgress {
        /// The key's row; unknown when the other one has only just begun.
        key_id: Option<i64>,
    },
    /// It waits for a person.
    Parked {
        /// The key's row.
        key_id: i64,
    },
}

/// How often a statement that lost a race against another is run again to see what the other did. The winner
/// has committed by then, so once is enough; twice leaves room for a finish in between.
const RACES: usize = 3;

/// Each request finds its key's row or none, by one look-up, and then creates the key, or hears what the row says. Whoever
/// gets no row was overtaken by somebody who creates the same key just now.
///
/// In a replay there is nothing to create, so the statement gets no transaction id, writes nothing and waits for no flush.
/// Nor does a key that is created wait for one.
///
/// `num_nulls`, because `IS NULL` would let the planner walk a whole partial index in place of one look-up by id.
const LOOK_OR_CREATE: &str = include_str!("acquire_look_or_create.sql");

/// Asks again what the look-up saw, because somebody may have been faster.
///
/// Flushed: were a take-over lost in a crash, the token before it would be good again, and its holder could write what it
/// learned before Stripe was asked anew.
const TAKE_OVER: &str = include_str!("acquire_take_over.sql");

/// Takes the lease on the request's key, or says why not.
///
/// A lease older than `lock_timeout` is taken over; the completer leaves the request alone for `grace`. Locks
/// the key's row, and only if it takes the lease. Waits for a concurrent first use of the same key to commit.
pub async fn acquire(
    database: &Database,
    request: Arc<Request>,
    lock_timeout: Duration,
    grace: Duration,
) -> Result<Acquired, DatabaseError> {
    for _ in 0..RACES {
        let terms = Terms::new(lock_timeout, grace);
        let found = match database.batched(LookOrCreate { request: Arc::clone(&request), terms }).await? {
            Some(Found::Free { key_id }) => {
                let terms = Terms::new(lock_timeout, grace);
                database.batched(TakeOver { key_id, terms }).await?.map(Acquired::Lease)
            }
            Some(Found::Settled(acquired)) => Some(acquired),
            None => None,
        };
        if let Some(acquired) = found {
            return Ok(acquired);
        }
    }
    Ok(Acquired::InProgress { key_id: None })
}

/// What a lease is asked for with.
#[derive(Debug, Clone, Copy)]
struct Terms {
    token: Uuid,
    /// Reckoned from before the statement is sent.
    runs_out: Instant,
    lock_timeout: f64,
    grace: f64,
}

impl Terms {
    fn new(lock_timeout: Duration, grace: Duration) -> Self {
        Self {
            token: Uuid::new_v4(),
            runs_out: Instant::now() + lock_timeout,
            lock_timeout: lock_timeout.as_secs_f64(),
            grace: grace.as_secs_f64(),
        }
    }
}

/// What the look-up found.
enum Found {
    /// Nothing more to do.
    Settled(Acquired),
    /// An unfinished request that nobody works on.
    Free { key_id: i64 },
}

/// `None` if another was faster.
struct LookOrCreate {
    request: Arc<Request>,
    terms: Terms,
}

impl Batched for LookOrCreate {
    type Output = Option<Found>;

    fn order(&self, other: &Self) -> Ordering {
        let (one, two) = (&self.request, &other.request);
        (one.user_id, one.key.as_str()).cmp(&(two.user_id, two.key.as_str()))
    }

    async fn run(database: &Database, looks: &[Self]) -> Result<Vec<Option<Found>>, DatabaseError> {
        let requests = || looks.iter().map(|look| &*look.request);
        let rows = database
            .query(
                LOOK_OR_CREATE,
                &[
                    &column(requests(), |request| request.user_id),
                    &column(requests(), |request| request.key.as_str()),
                    &column(requests(), |request| request.method.as_str()),
                    &column(requests(), |request| request.path.as_str()),
                    &column(requests(), |request| &request.params),
                    &column(requests(), |request| request.origin_ip),
                    &column(looks, |look| look.terms.token),
                    &column(looks, |look| look.terms.lock_timeout),
                    &column(looks, |look| look.terms.grace),
                ],
            )
            .await?;
        let rows = by_token(rows);
        Ok(column(looks, |look| rows.get(&look.terms.token).map(|row| found(row, look.terms.runs_out))))
    }
}

fn found(row: &Row, runs_out: Instant) -> Found {
    let key_id = row.get("id");
    Found::Settled(match row.get("verdict") {
        "free" => return Found::Free { key_id },
        "created" => Acquired::Lease(Lease::from_row(row, runs_out)),
        "finished" => Acquired::Finished { key_id, response: response(row) },
        "mismatch" => Acquired::Mismatch { key_id },
        "parked" => Acquired::Parked { key_id },
        _ => Acquired::InProgress { key_id: Some(key_id) },
    })
}

/// `None` if another was faster.
struct TakeOver {
    key_id: i64,
    terms: Terms,
}

impl Batched for TakeOver {
    type Output = Option<Lease>;

    fn order(&self, other: &Self) -> Ordering {
        self.key_id.cmp(&other.key_id)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<Option<Lease>>, DatabaseError> {
        let rows = database
            .query(
                TAKE_OVER,
                &[
                    &column(items, |item| item.key_id),
                    &column(items, |item| item.terms.token),
                    &column(items, |item| item.terms.lock_timeout),
                    &column(items, |item| item.terms.grace),
                ],
            )
            .await?;
        let rows = by_token(rows);
        Ok(column(items, |item| rows.get(&item.terms.token).map(|row| Lease::from_row(row, item.terms.runs_out))))
    }
}

fn response(row: &Row) -> Response {
    let code: i32 = row.get("response_code");
    Response { code: u16::try_from(code).expect("the schema bounds it"), body: row.get("response_body") }
}
