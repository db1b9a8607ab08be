//! How a client's request gets a lease: by the first phase, if it is new, or by a take-over, if it is unfinished.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use serde_json::value::RawValue;
use tokio_postgres::Row;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::phase::by_token;
use super::{ForeignCall, IdempotencyKey, Lease, Response};
use crate::database::{Batched, Database, DatabaseError, column};

/// The result of opening a request: what is known of its key.
#[derive(Debug, Clone)]
pub enum Opened {
    /// The request is new or unfinished, and this attempt has the lease.
    Lease(Lease),
    /// It is new, and the operation does not admit it. Nothing was written.
    Refused {
        /// The reason, which the operation's SQL returns.
        refusal: String,
    },
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
    /// Another attempt is under way.
    InProgress {
        /// The key's row; `None` if the other attempt has only just begun.
        key_id: Option<i64>,
    },
    /// It waits for a person.
    Parked {
        /// The key's row.
        key_id: i64,
    },
}

/// A request as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// See [`super::Request`].
    pub user_id: i64,
    /// See [`super::Request`].
    pub key: IdempotencyKey,
    /// See [`super::Request`].
    pub method: String,
    /// See [`super::Request`].
    pub path: String,
    /// See [`super::Request`].
    pub params: Box<RawValue>,
    /// See [`super::Request`].
    pub origin_ip: IpAddr,
}

/// What is the same for all requests of an operation in one process.
#[derive(Debug)]
pub struct Terms {
    /// [`super::Operation::NAME`].
    pub operation: &'static str,
    /// The operation's first recovery point.
    pub point: &'static str,
    /// [`super::Operation::terms`].
    pub terms: Value,
    /// The whole statement. It looks each key up, inserts the new ones with what the operation's first phase writes,
    /// and returns the state of the others. No row back means that a concurrent insert of the same key won.
    ///
    /// Flushed, because a foreign call follows, which must not be made for a request that a crash of the database can
    /// still undo. A replay writes nothing, gets no transaction id, and waits for no flush.
    ///
    /// `num_nulls` is used because, with `IS NULL`, the planner could walk a whole partial index instead of one look-up
    /// by id.
    pub sql: &'static str,
    /// A lease older than this is taken over.
    pub lock_timeout: Duration,
    /// How long the completer leaves the request alone.
    pub grace: Duration,
}

/// How often a statement that loses a race is run at most. The winner has committed by then, so one repetition is
/// enough to see its result; the second leaves room for a finish in between.
const RACES: usize = 3;

/// Checks again what the look-up saw, because another attempt may have been faster.
///
/// Flushed: if a crash of the database undid a take-over, the token before it would be valid again, and its holder
/// could write an outcome that is older than the new attempt's foreign call.
const TAKE_OVER: &str = include_str!("open_take_over.sql");

/// Opens a new request, takes the lease on an unfinished one, or returns why neither was done.
///
/// Locks the key's row only if it takes the lease, and what the operation's first phase locks. Waits for a concurrent
/// first use of the same key to commit.
pub async fn open(database: &Database, terms: &Arc<Terms>, request: &Arc<Stored>) -> Result<Opened, DatabaseError> {
    let mut broken = None;
    for _ in 0..RACES {
        let item = Opening { terms: Arc::clone(terms), request: Arc::clone(request), ticket: Ticket::new(terms) };
        let found = match database.batched(item).await {
            Ok(found) => found,
            // Another request took what this one wants, so shortly before that the statement did not see it.
            Err(error) if error.is_constraint_violation() => {
                broken = Some(error);
                None
            }
            Err(error) => return Err(error),
        };
        let opened = match found {
            Some(Found::Free { key_id }) => {
                let item = TakingOver { key_id, terms: Arc::clone(terms), ticket: Ticket::new(terms) };
                database.batched(item).await?.map(Opened::Lease)
            }
            Some(Found::Answer(opened)) => Some(opened),
            None => None,
        };
        if let Some(opened) = opened {
            return Ok(opened);
        }
    }
    broken.map_or(Ok(Opened::InProgress { key_id: None }), Err)
}

/// The token and the end of a lease that is asked for.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    token: Uuid,
    /// Computed before the statement is sent.
    runs_out: Instant,
}

impl Ticket {
    fn new(terms: &Terms) -> Self {
        Self { token: Uuid::new_v4(), runs_out: Instant::now() + terms.lock_timeout }
    }
}

/// What the look-up found.
enum Found {
    /// The result; no other statement is needed.
    Answer(Opened),
    /// An unfinished request without a lease that is still valid.
    Free { key_id: i64 },
}

/// A request in the opening statement. Its output is `None` if another attempt was faster.
struct Opening {
    terms: Arc<Terms>,
    request: Arc<Stored>,
    ticket: Ticket,
}

impl Batched for Opening {
    type Output = Option<Found>;

    fn statement(&self) -> &'static str {
        self.terms.sql
    }

    fn order(&self, other: &Self) -> Ordering {
        let (one, two) = (&self.request, &other.request);
        (one.user_id, one.key.as_str()).cmp(&(two.user_id, two.key.as_str()))
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<Option<Found>>, DatabaseError> {
        let terms = &items[0].terms;
        let requests = || items.iter().map(|item| &*item.request);
        let rows = database
            .query(
                terms.sql,
                &[
                    &terms.operation,
                    &terms.point,
                    &terms.terms,
                    &terms.lock_timeout.as_secs_f64(),
                    &terms.grace.as_secs_f64(),
                    &column(requests(), |request| request.user_id),
                    &column(requests(), |request| request.key.as_str()),
                    &column(requests(), |request| request.method.as_str()),
                    &column(requests(), |request| request.path.as_str()),
                    &column(requests(), |request| Json(&request.params)),
                    &column(requests(), |request| request.origin_ip),
                    &column(items, |item| item.ticket.token),
                    &database.process(),
                ],
            )
            .await?;
        let rows = by_token(rows);
        Ok(column(items, |item| rows.get(&item.ticket.token).map(|row| found(row, item))))
    }
}

fn found(row: &Row, item: &Opening) -> Found {
    let key_id = || row.get("key_id");
    Found::Answer(match row.get("verdict") {
        "free" => return Found::Free { key_id: key_id() },
        "opened" => Opened::Lease(Lease {
            key_id: key_id(),
            token: item.ticket.token,
            recovery_point: item.terms.point.to_owned(),
            step: 1,
            state: row.get("state"),
            attempts: 1,
            foreign_call: ForeignCall::from_row(row),
            runs_out: item.ticket.runs_out,
        }),
        "refused" => Opened::Refused { refusal: row.get("refusal") },
        "finished" => Opened::Finished { key_id: key_id(), response: response(row) },
        "mismatch" => Opened::Mismatch { key_id: key_id() },
        "parked" => Opened::Parked { key_id: key_id() },
        _ => Opened::InProgress { key_id: Some(key_id()) },
    })
}

/// A request in the take-over statement. Its output is `None` if another attempt was faster.
struct TakingOver {
    key_id: i64,
    terms: Arc<Terms>,
    ticket: Ticket,
}

impl Batched for TakingOver {
    type Output = Option<Lease>;

    fn order(&self, other: &Self) -> Ordering {
        self.key_id.cmp(&other.key_id)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<Option<Lease>>, DatabaseError> {
        let terms = &items[0].terms;
        let rows = database
            .query(
                TAKE_OVER,
                &[
                    &column(items, |item| item.key_id),
                    &column(items, |item| item.ticket.token),
                    &terms.lock_timeout.as_secs_f64(),
                    &terms.grace.as_secs_f64(),
                    &database.process(),
                ],
            )
            .await?;
        let rows = by_token(rows);
        let lease = |item: &Self| Some(Lease::from_row(rows.get(&item.ticket.token)?, item.ticket.runs_out));
        Ok(column(items, lease))
    }
}

fn response(row: &Row) -> Response {
    let code: i32 = row.get("response_code");
    Response {
        code: u16::try_from(code).expect("the schema bounds it"),
        headers: row.get("response_headers"),
        body: row.get("response_body"),
    }
}
