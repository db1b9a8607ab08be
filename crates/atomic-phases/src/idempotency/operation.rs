//! What an operation is: what an endpoint does exactly once.
//!
//! A request opens, makes its foreign calls, and closes. Between two foreign calls, and before the first and after the last,
//! stands a phase: one statement, atomic, fenced, and stored with the recovery point from which the next attempt goes on.
//! So an operation is its phases, as SQL, and [`Operation::advance`], which makes the foreign call that is next and says
//! which phase follows.

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
    /// Stored on each of its keys; never given to another operation.
    const NAME: &'static str;
    /// What it writes, and its recovery points in their order.
    const PHASES: Phases;

    /// What is asked for, in a normal form: equal requests are equal values, and equal JSON.
    type Params: Serialize + DeserializeOwned + Send + Sync;
    /// An enum with a variant for each recovery point, named like it in snake case, which holds what the attempts from
    /// there on need: above all what the foreign call sends, frozen when it became possible. Another attempt may be made
    /// by another release, days later, and must send the same.
    type State: Serialize + DeserializeOwned + Send + Sync;

    /// What this process adds to each new request, such as a price. [`Opening::admit`] finds it as `terms`.
    fn terms(&self) -> Value {
        Value::Null
    }

    /// What must always hold of what this operation does.
    fn rules(&self) -> Vec<Rule> {
        Vec::new()
    }

    /// Makes the foreign call of this recovery point, and says what comes next. No transaction is open meanwhile and no
    /// connection held. Its outcome decides: only what is certain leads on, all else is a [`Stop`].
    fn advance(
        &self,
        attempt: &Attempt<Self::Params>,
        state: Self::State,
    ) -> impl Future<Output = Result<Next<Self::State>, Stop>> + Send;
}

/// What an operation writes. Each text is SQL of the operation's own that becomes part of one of the engine's statements,
/// which takes many requests at once: it must treat each row by itself.
///
/// New recovery points may be added behind the last; a request that is unfinished keeps the place that it has.
#[derive(Debug, Clone, Copy)]
pub struct Phases {
    /// The first phase.
    pub open: Opening,
    /// Those between foreign calls, in their order.
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
    /// A constraint that it breaks means that another request was faster; then `admit` decides once more.
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
        /// Stored with the recovery point of its name.
        state: S,
        /// For the phase's SQL.
        data: Value,
    },
    /// The end of the request.
    Close {
        /// Stored, and given to every repetition.
        response: Response,
        /// Staged by the same statement.
        jobs: Vec<Job>,
        /// For the phase's SQL.
        data: Value,
    },
}

/// Why an attempt does not finish the request. Nothing here is final: a later attempt goes on from the recovery point that
/// was reached. Named by what becomes of the lease.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Another attempt has taken the lease over, or it runs out too soon for a call; this one writes nothing more.
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

/// What was answered, and will be answered again: the same bytes for as long as the key lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status, or what stands for it elsewhere.
    pub code: u16,
    /// Lines of the answer's head that belong to the answer, as in `Location: /rides/7`, each ended by a line feed.
    pub headers: String,
    /// A JSON text.
    pub body: String,
}

impl Response {
    /// One without headers.
    pub fn new(code: u16, body: impl Into<String>) -> Self {
        Self { code, headers: String::new(), body: body.into() }
    }

    /// With another header. Neither name nor value may hold a line feed.
    pub fn with_header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push_str(&format!("{name}: {value}\n"));
        self
    }
}

/// A job to be done after the request, staged by the very statement that finishes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// What the queue's workers know it by.
    pub name: &'static str,
    /// What it needs to know.
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
    /// From where.
    pub origin_ip: IpAddr,
    pub(super) clock: Clock,
}

impl<P> Attempt<P> {
    /// Whether a foreign call that may take so long fits into the lease. To be asked right before it: a worker that was
    /// paused could otherwise make the call long after another has, when the other side has forgotten the key of both.
    pub fn has_time_for(&self, call: Duration) -> Result<(), Stop> {
        if self.clock.now() + call < self.lease.runs_out { Ok(()) } else { Err(Stop::LeaseLost) }
    }
}

impl Phases {
    /// The place of a recovery point among the operation's, or `None` if it has no such.
    pub fn step(&self, point: &str) -> Option<i16> {
        let place = self.points().position(|known| known == point)?;
        i16::try_from(place + 1).ok()
    }

    /// The recovery points, in their order, without the last, which all operations share.
    pub fn points(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.open.point).chain(self.between.iter().map(|phase| phase.point))
    }
}
