//! Carries an operation out: for a client, which gets the answer, and for the completer, when the client has given up.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use super::claim::Claimed;
use super::open::{Opened, Stored, Terms, open};
use super::operation::{Attempt, Job, Next, Operation, Response, Stop};
use super::phase::Statements;
use super::{FINISHED, Lease, Request, json, settle};
use crate::clock::Clock;
use crate::database::{Database, DatabaseError};
use crate::errors::{BoxError, chain};
use crate::rules::Rule;

/// What all operations of a process share.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Where the keys are.
    pub database: Database,
    /// A lease older than this is taken over.
    pub lock_timeout: Duration,
    /// How long the completer leaves a request to its client.
    pub grace: Duration,
    /// Notified when a request has staged jobs.
    pub staged: Arc<Notify>,
    /// The clock that decides whether a foreign call still fits into a lease.
    pub clock: Clock,
}

/// The result of a request. The HTTP layer maps it, once for all operations.
#[derive(Debug)]
pub enum Answer {
    /// It is finished.
    Done {
        /// The answer.
        response: Response,
        /// Whether an earlier attempt finished it.
        replayed: bool,
    },
    /// The operation did not admit it, and nothing was written.
    Refused(String),
    /// The key belongs to another request of this user. Nothing was done.
    Mismatch,
    /// Another attempt is under way.
    InProgress,
    /// It waits for a person.
    Parked,
    /// This attempt did not finish it.
    Stopped(Stop),
}

/// The result of a request, with what is known of the attempt, if there was one.
#[derive(Debug)]
pub struct Executed {
    /// What the client gets.
    pub answer: Answer,
    /// The key's row, if it is known.
    pub key_id: Option<i64>,
    /// How often the request has been taken up, if it was.
    pub attempt: Option<i32>,
    /// The recovery point that is now on the key, as far as this attempt knows.
    pub reached: Option<String>,
}

/// An operation with the engine that carries it out. Clones share both.
#[derive(Debug)]
pub struct Executor<O> {
    engine: Engine,
    operation: Arc<O>,
    statements: Arc<Statements>,
    terms: Arc<Terms>,
}

/// An operation of any kind, as the completer uses it.
pub trait Completes: Send + Sync {
    /// [`Operation::NAME`].
    fn name(&self) -> &'static str;

    /// Its recovery points, in their order.
    fn points(&self) -> Vec<&'static str>;

    /// See [`Operation::rules`].
    fn rules(&self) -> Vec<Rule>;

    /// Takes up a request that the completer has claimed.
    fn complete(&self, claimed: Claimed) -> BoxFuture<'_, Executed>;
}

/// The operations that a process knows, by their names.
#[derive(Clone, Default)]
pub struct Operations(BTreeMap<&'static str, Arc<dyn Completes>>);

/// A stored value that this program cannot read.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("the stored {what} make no sense")]
    Json {
        what: &'static str,
        #[source]
        error: serde_json::Error,
    },
}

impl Engine {
    /// Creates an engine with the host's clock. No other part is notified of its jobs.
    pub fn new(database: Database, lock_timeout: Duration, grace: Duration) -> Self {
        Self { database, lock_timeout, grace, staged: Arc::default(), clock: Clock::default() }
    }
}

impl<O: Operation> Executor<O> {
    /// Creates the executor of an operation.
    pub fn new(engine: Engine, operation: O) -> Self {
        let statements = Arc::new(Statements::of::<O>());
        let terms = Arc::new(Terms {
            operation: O::NAME,
            point: O::PHASES.open.point,
            terms: operation.terms(),
            sql: statements.open,
            lock_timeout: engine.lock_timeout,
            grace: engine.grace,
        });
        Self { engine, operation: Arc::new(operation), statements, terms }
    }

    /// Creates an executor of another operation on the same engine.
    pub fn with<P: Operation>(&self, operation: P) -> Executor<P> {
        Executor::new(self.engine.clone(), operation)
    }

    /// Returns the operation itself.
    pub fn operation(&self) -> &Arc<O> {
        &self.operation
    }

    /// Carries a request out as far as possible, or repeats the answer that was stored before.
    pub async fn execute(&self, request: Request<O::Params>) -> Executed {
        let opened = match self.open(&request).await {
            Ok(opened) => opened,
            Err(error) => return Executed::without_attempt(None, Answer::Stopped(error.into())),
        };
        let Request { user_id, params, origin_ip, .. } = request;
        let (key_id, answer) = match opened {
            Opened::Lease(lease) => return self.drive(self.attempt(lease, user_id, params, origin_ip)).await,
            Opened::Refused { refusal } => (None, Answer::Refused(refusal)),
            Opened::Finished { key_id, response } => (Some(key_id), Answer::Done { response, replayed: true }),
            Opened::Mismatch { key_id } => (Some(key_id), Answer::Mismatch),
            Opened::InProgress { key_id } => (key_id, Answer::InProgress),
            Opened::Parked { key_id } => (Some(key_id), Answer::Parked),
        };
        Executed::without_attempt(key_id, answer)
    }

    /// The first step of [`Executor::execute`]: opens the request, or returns the state of its key.
    pub async fn open(&self, request: &Request<O::Params>) -> Result<Opened, DatabaseError> {
        let Request { user_id, key, method, path, params, origin_ip } = request;
        let stored = Stored {
            user_id: *user_id,
            key: key.clone(),
            method: method.clone(),
            path: path.clone(),
            params: json(params),
            origin_ip: *origin_ip,
        };
        open(&self.engine.database, &self.terms, &Arc::new(stored)).await
    }

    /// The last step: stores the answer, stages the jobs and ends the lease. Returns `false` if the lease was lost or
    /// the request is no longer at its recovery point; then nothing is written.
    pub async fn close(
        &self,
        lease: &Lease,
        response: Response,
        jobs: &[Job],
        data: Value,
    ) -> Result<bool, DatabaseError> {
        let closed = self.statements.close(&self.engine.database, lease, response, jobs, data).await?;
        if closed && !jobs.is_empty() {
            self.engine.staged.notify_one();
        }
        Ok(closed)
    }

    /// A step in between: carries out the phase that leads to this state, and changes the lease to go on from there.
    /// Returns `false` in the same cases as [`Executor::close`].
    pub async fn advance(&self, lease: &mut Lease, state: &O::State, data: Value) -> Result<bool, DatabaseError> {
        let (point, stored) = split(state);
        let advanced = self.statements.advance(&self.engine.database, lease, &point, stored, data).await?;
        if let Some(foreign_call) = advanced {
            lease.foreign_call = foreign_call;
            lease.step = self.statements.step(&point);
            lease.recovery_point = point;
        }
        Ok(advanced.is_some())
    }

    /// Goes on with a request under this lease. However that ends, the lease is given back, unless it was lost.
    pub async fn resume(&self, lease: Lease, user_id: i64, params: &Value, origin_ip: IpAddr) -> Executed {
        match O::Params::deserialize(params) {
            Ok(params) => self.drive(self.attempt(lease, user_id, params, origin_ip)).await,
            Err(error) => self.stopped(&lease, unreadable("parameters", error)).await,
        }
    }

    fn attempt(&self, lease: Lease, user_id: i64, params: O::Params, origin_ip: IpAddr) -> Attempt<O::Params> {
        Attempt { lease, user_id, params, origin_ip, clock: self.engine.clock.clone() }
    }

    async fn drive(&self, mut attempt: Attempt<O::Params>) -> Executed {
        match self.carry_on(&mut attempt).await {
            Ok(response) => Executed {
                answer: Answer::Done { response, replayed: false },
                key_id: Some(attempt.lease.key_id),
                attempt: Some(attempt.lease.attempts),
                reached: Some(FINISHED.to_owned()),
            },
            Err(stop) => self.stopped(&attempt.lease, stop).await,
        }
    }

    async fn carry_on(&self, attempt: &mut Attempt<O::Params>) -> Result<Response, Stop> {
        let mut state = state_of::<O>(&attempt.lease)?;
        loop {
            match self.operation.advance(attempt, state).await? {
                Next::Advance { state: next, data } => {
                    if !self.advance(&mut attempt.lease, &next, data).await? {
                        return Err(Stop::LeaseLost);
                    }
                    state = next;
                }
                Next::Close { response, jobs, data } => {
                    let closed = self.close(&attempt.lease, response.clone(), &jobs, data).await?;
                    return if closed { Ok(response) } else { Err(Stop::LeaseLost) };
                }
            }
        }
    }

    /// Ends an attempt that stopped: releases the lease or parks the request, unless the lease was lost.
    async fn stopped(&self, lease: &Lease, stop: Stop) -> Executed {
        let database = &self.engine.database;
        let settled = match &stop {
            Stop::LeaseLost => Ok(()),
            Stop::Park(_) => settle::park(database, lease, &chain(&stop)).await,
            Stop::Retry(_) | Stop::Database(_) => settle::release(database, lease, &chain(&stop)).await,
        };
        if let Err(error) = settled {
            tracing::warn!(
                key_id = lease.key_id,
                error = chain(&error),
                "a lease could not be given back; it runs out by itself"
            );
        }
        Executed {
            answer: Answer::Stopped(stop),
            key_id: Some(lease.key_id),
            attempt: Some(lease.attempts),
            reached: Some(lease.recovery_point.clone()),
        }
    }
}

impl<O: Operation> Completes for Executor<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn points(&self) -> Vec<&'static str> {
        O::PHASES.points().collect()
    }

    fn rules(&self) -> Vec<Rule> {
        self.operation.rules()
    }

    fn complete(&self, claimed: Claimed) -> BoxFuture<'_, Executed> {
        Box::pin(async move {
            let Claimed { lease, user_id, params, origin_ip, .. } = claimed;
            self.resume(lease, user_id, &params, origin_ip).await
        })
    }
}

impl Operations {
    /// Adds an operation.
    ///
    /// # Panics
    ///
    /// If an operation of its name is registered already.
    pub fn register(&mut self, operation: impl Completes + 'static) {
        let name = operation.name();
        assert!(self.0.insert(name, Arc::new(operation)).is_none(), "two operations are called {name}");
    }

    /// Returns the names of the operations.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// Returns the rules of all operations.
    pub fn rules(&self) -> Vec<Rule> {
        self.0.values().flat_map(|operation| operation.rules()).collect()
    }

    /// Returns the operation of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Completes>> {
        self.0.get(name)
    }
}

impl Executed {
    fn without_attempt(key_id: Option<i64>, answer: Answer) -> Self {
        Self { answer, key_id, attempt: None, reached: None }
    }
}

impl<O> Clone for Executor<O> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            operation: Arc::clone(&self.operation),
            statements: Arc::clone(&self.statements),
            terms: Arc::clone(&self.terms),
        }
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Splits a state into its recovery point, which is its variant's name, and what is stored with it.
fn split(state: &impl Serialize) -> (String, Value) {
    match serde_json::to_value(state).expect("an operation's types are JSON") {
        Value::Object(object) => object.into_iter().next().expect("an enum is an object with one member"),
        Value::String(point) => (point, Value::Null),
        other => unreachable!("a state is an enum, and not {other}"),
    }
}

fn state_of<O: Operation>(lease: &Lease) -> Result<O::State, Stop> {
    // As serde writes an enum; a state without fields is stored as null.
    let tagged = format!("{{{}: {}}}", Value::from(lease.recovery_point.as_str()), lease.state);
    serde_json::from_str(&tagged).map_err(|error| unreadable("state", error))
}

fn unreadable(what: &'static str, error: serde_json::Error) -> Stop {
    Stop::Park(BoxError::from(Unreadable::Json { what, error }))
}
