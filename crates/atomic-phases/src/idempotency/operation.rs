//! What an operation is: what an endpoint does exactly once.
//!
//! A request opens, makes its foreign calls, and closes. There is a phase before the first foreign call, between two of
//! them, and after the last. A phase is one atomic statement, which also stores the recovery point from which the next
//! attempt goes on; each phase after the first is fenced. So an operation consists of its phases, as SQL, and of
//! [`Operation::advance`], which makes the next foreign call and returns which phase follows.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Lease;
use crate::clock::Clock;
use crate::database::DatabaseError;
use crate::errors::BoxError;
use crate::rules::Rule;

/// What an endpoint does exactly once.
pub trait Operation: Send + Sync + 'static {
    /// The operation's name, which is stored on each of its keys and never given to another operation.
    const NAME: &'static str;
    /// What it writes, and its recovery points in their order.
    const PHASES: Phases;

    /// What is asked for, in a normal form: equal requests are equal values, and equal JSON.
    type Params: Serialize + DeserializeOwned + Send + Sync;
    /// An enum with a variant for each recovery point, named like the point in snake case. A variant holds what
    /// attempts from its point on need: above all what the foreign call sends, frozen when the call became possible.
    /// Another attempt may be made by another release, days later, and must send the same.
    type State: Serialize + DeserializeOwned + Send + Sync;

    /// Returns what this process adds to each new request, such as a price. [`Opening::admit`] reads it as the column
    /// `terms`.
    fn terms(&self) -> Value {
        Value::Null
    }

    /// Returns the rules that must always hold for what this operation does.
    fn rules(&self) -> Vec<Rule> {
        Vec::new()
    }

    /// Makes the foreign call of this recovery point, and returns what comes next. No transaction is open and no
    /// connection is held during the call. Only a certain outcome leads on; every other outcome is a [`Stop`].
    fn advance(
        &self,
        attempt: &Attempt<Self::Params>,
        state: Self::State,
    ) -> impl Future<Output = Result<Next<Self::State>, Stop>> + Send;
}

/// What an operation writes. Each text is the operation's own SQL, which becomes part of one of the engine's
/// statements. Such a statement takes many requests at once, so the SQL must treat each row by itself.
///
/// New recovery points may be added behind the last; an unfinished request keeps its step.
#[derive(Debug, Clone, Copy)]
pub struct Phases {
    /// The first phase.
    pub open: Opening,
    /// The phases between foreign calls, in their order.
    pub between: &'static [Phase],
    /// What is written with the answer: nothing, or `, name AS (…)`, more CTEs that take their rows from `closed`. Its columns
    /// are `key_id, user_id, request_params, origin_ip, state`, and `data`, as [`Next::Close`] gives it.
    pub close: &'static str,
}

/// The phase that begins a request: one statement with the insert of its key.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// The recovery point that it leads to.
    pub point: &'static str,
    /// Decides on new requests: a `SELECT` of every row of `fresh`, with all its columns (`user_id, request_params,
    /// origin_ip, terms` are of interest), and two more: `refusal`, a text, or null for a request that is to be carried
    /// out, and `state`, what is stored with the recovery point.
    pub admit: &'static str,
    /// What is written: as [`Phases::close`], from `opened`, with `key_id, user_id, request_params, origin_ip, state`.
    ///
    /// If it breaks a constraint, another request was faster; then `admit` decides once more.
    pub effects: &'static str,
}

/// A phase between two foreign calls.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    /// The recovery point that it leads to.
    pub point: &'static str,
    /// What is written: as [`Phases::close`], from `advanced`, with the columns of `closed`; `state` is the new one.
    pub effects: &'static str,
}

/// What follows a foreign call.
#[derive(Debug)]
pub enum Next<S> {
    /// Another foreign call.
    Advance {
        /// Stored with the recovery point that has the variant's name.
        state: S,
        /// Passed to the phase's SQL as the column `data`.
        data: Value,
    },
    /// The end of the request.
    Close {
        /// Stored, and returned to every repetition of the request.
        response: Response,
        /// Staged by the same statement.
        jobs: Vec<Job>,
        /// Passed to the phase's SQL as the column `data`.
        data: Value,
    },
}

/// Why an attempt does not finish the request. Nothing here is final: a later attempt goes on from the recovery point
/// that was reached. The variants are named after what happens to the lease.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Another attempt has taken the lease over, or the lease runs out too soon for a foreign call; this attempt writes
    /// nothing more.
    #[error("the lease was lost")]
    LeaseLost,
    /// The lease is given back, and the next attempt may succeed.
    #[error(transparent)]
    Retry(BoxError),
    /// A phase was not carried out; the lease is given back.
    #[error("a phase was not carried out")]
    Database(#[from] DatabaseError),
    /// No attempt will succeed before a person has looked at it.
    #[error(transparent)]
    Park(BoxError),
}

/// The answer as it is stored, and repeated byte for byte for as long as the key exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status, or its equivalent in another protocol.
    pub code: u16,
    /// Header lines that belong to the answer, as in `Location: /rides/7`, each ended by a line feed.
    pub headers: String,
    /// A JSON text.
    pub body: String,
}

impl Response {
    /// Creates a response without headers.
    pub fn new(code: u16, body: impl Into<String>) -> Self {
        Self { code, headers: String::new(), body: body.into() }
    }

    /// Adds a header. Neither name nor value may hold a line feed.
    pub fn with_header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push_str(&format!("{name}: {value}\n"));
        self
    }
}

/// A job to be done after the request, staged by the statement that finishes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// The name by which the queue's workers find the handler.
    pub name: &'static str,
    /// The job's arguments.
    pub args: Value,
}

/// One attempt at a request.
#[derive(Debug)]
pub struct Attempt<P> {
    /// The right to work on it.
    pub lease: Lease,
    /// Whose request it is.
    pub user_id: i64,
    /// What was asked for.
    pub params: P,
    /// The client's address.
    pub origin_ip: IpAddr,
    pub(super) clock: Clock,
}

impl<P> Attempt<P> {
    /// Returns [`Stop::LeaseLost`] if a foreign call that may take this long does not fit into the lease. It must be
    /// asked right before the call: a worker that was paused could otherwise make the call long after another one has,
    /// when the foreign system no longer remembers the idempotency key of both.
    pub fn has_time_for(&self, call: Duration) -> Result<(), Stop> {
        if self.clock.now() + call < self.lease.runs_out { Ok(()) } else { Err(Stop::LeaseLost) }
    }
}

impl Phases {
    /// Returns the step of a recovery point, counted from 1, or `None` if the operation has no such point.
    pub fn step(&self, point: &str) -> Option<i16> {
        let place = self.points().position(|known| known == point)?;
        i16::try_from(place + 1).ok()
    }

    /// Returns the recovery points in their order, without the last, which all operations share.
    pub fn points(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.open.point).chain(self.between.iter().map(|phase| phase.point))
    }
}
