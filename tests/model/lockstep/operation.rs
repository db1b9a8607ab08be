//! The operation that is walked: it books a ride, or does anything else that happens exactly once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::clock::Clock;
use atomic_phases::database::Database;
use atomic_phases::idempotency::{
    Answer, Engine, Executor, FINISHED, FINISHED_STEP, Operation, Operations, Request, Stop,
};
use atomic_phases::roles::completer::Completer;
use atomic_phases::roles::periodic::Periodic;
use rocket_rides_atomic::config;
use rocket_rides_atomic::rides::{PRICE, RideParams, Rides};
use rocket_rides_atomic::stripe;
use rocket_rides_atomic::users::User;

use super::times::{GRACE, KEY_RETENTION, LEASE, RETRY_AFTER};
use crate::database::{RecoveryPoint, Response};
use crate::worker::Step;

/// The connections and the clock of one worker.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) database: Database,
    pub(super) stripe: stripe::Client,
    /// The clock by which the worker checks whether a call still fits into its lease.
    pub(super) clock: Clock,
}

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AttemptResult {
    /// The final answer, and its bytes.
    Final(Response, String),
    LeaseLost,
    /// Not finished; to be repeated.
    Again,
    Parked,
    InProgress,
    Mismatch,
    /// A completer has no client to answer.
    Nothing,
    /// A result that the model does not have.
    Strange(String),
}

/// An operation: how it is requested and carried out, and what its rows look like.
pub(super) trait Walked: Copy + Send + Sync + 'static {
    /// The program's type of the operation.
    type Operation: Operation<Params: Clone>;

    /// Returns its executor, with these means.
    fn executor(self, means: &Means) -> Executor<Self::Operation>;

    /// Returns a client's request.
    fn request(self, user: &User, key: &str) -> Request<<Self::Operation as Operation>::Params>;

    /// Returns the same request with other parameters.
    fn other_request(
        self,
        request: Request<<Self::Operation as Operation>::Params>,
    ) -> Request<<Self::Operation as Operation>::Params>;

    /// Returns the message that opens a request, as the proxies label it: by the tables that it writes.
    fn opening(self) -> &'static str;

    /// Returns the message that carries out a step, by the tables that it writes or by method and path.
    fn message(self, step: Step) -> &'static str;

    /// Returns the response that has this code in the row.
    fn response(self, code: i32) -> Option<Response>;

    /// Returns its name in the row.
    fn name(self) -> &'static str {
        Self::Operation::NAME
    }

    /// Returns the recovery point that has this name and step in the row.
    fn recovery_point(self, name: &str, step: i16) -> Option<RecoveryPoint> {
        if (name, step) == (FINISHED, FINISHED_STEP) {
            return Some(RecoveryPoint::Finished);
        }
        let place = Self::Operation::PHASES.points().position(|point| point == name)?;
        let call = u8::try_from(place + 1).ok()?;
        (i16::from(call) == step).then_some(RecoveryPoint::Call(call))
    }
}

/// Runs a client's whole attempt.
pub(super) async fn attempt<O: Walked>(
    operation: O,
    means: Means,
    request: Request<<O::Operation as Operation>::Params>,
) -> AttemptResult {
    told(operation, operation.executor(&means).execute(request).await.answer)
}

/// Runs the completer once: it claims what is due and carries it out.
pub(super) async fn complete<O: Walked>(operation: O, means: Means, max_attempts: i32) -> AttemptResult {
    let mut operations = Operations::default();
    operations.register(operation.executor(&means));
    let completer = Completer {
        operations,
        database: means.database,
        settings: config::Completer {
            retry_after: RETRY_AFTER,
            max_attempts,
            poll_interval: Duration::MAX,
            ..config::Completer::default()
        },
        lock_timeout: LEASE,
        handed_back: Arc::default(),
    };
    match completer.run_once().await {
        Ok(_) => AttemptResult::Nothing,
        Err(error) => AttemptResult::Strange(error.to_string()),
    }
}

/// Returns the result that a client gets from this answer.
pub(super) fn told<O: Walked>(operation: O, answer: Answer) -> AttemptResult {
    match answer {
        Answer::Done { response, .. } => match operation.response(i32::from(response.code)) {
            Some(known) => AttemptResult::Final(known, response.body),
            None => AttemptResult::Strange(format!("status {}", response.code)),
        },
        Answer::Mismatch => AttemptResult::Mismatch,
        Answer::InProgress => AttemptResult::InProgress,
        Answer::Parked | Answer::Stopped(Stop::Park(_)) => AttemptResult::Parked,
        Answer::Stopped(Stop::LeaseLost) => AttemptResult::LeaseLost,
        Answer::Stopped(Stop::Retry(_)) => AttemptResult::Again,
        Answer::Stopped(Stop::Database(error)) if error.is_transient() => AttemptResult::Again,
        Answer::Stopped(stop) => AttemptResult::Strange(atomic_phases::errors::chain(&stop)),
        Answer::Refused(refusal) => AttemptResult::Strange(refusal),
    }
}

/// The booking of a ride.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ride;

impl Walked for Ride {
    type Operation = Rides;

    fn executor(self, means: &Means) -> Executor<Rides> {
        let Means { database, stripe, clock } = means.clone();
        let engine = Engine { database, lock_timeout: LEASE, grace: GRACE, staged: Arc::default(), clock };
        Executor::new(engine, Rides { stripe, key_retention: KEY_RETENTION, price: PRICE })
    }

    fn request(self, user: &User, key: &str) -> Request<RideParams> {
        Request {
            user_id: user.id,
            key: key.parse().unwrap(),
            method: "POST".to_owned(),
            path: "/rides".to_owned(),
            params: RideParams { origin_lat: 1.0, origin_lon: 2.0, target_lat: 3.0, target_lon: 4.0 },
            origin_ip: IpAddr::from([127, 0, 0, 1]),
        }
    }

    fn other_request(self, request: Request<RideParams>) -> Request<RideParams> {
        Request { params: RideParams { target_lon: 5.0, ..request.params }, ..request }
    }

    fn opening(self) -> &'static str {
        "execute insert idempotency_keys + insert rides + insert audit_records"
    }

    fn message(self, step: Step) -> &'static str {
        match step {
            Step::LookUp => "GET /v1/charges",
            Step::Charge => "POST /v1/charges",
            Step::Advance => "",
            Step::Close(_) => "execute update idempotency_keys + insert staged_jobs + update rides",
            Step::Release | Step::Park => "execute update idempotency_keys",
        }
    }

    fn response(self, code: i32) -> Option<Response> {
        match code {
            201 => Some(Response::Paid),
            402 => Some(Response::Declined),
            _ => None,
        }
    }
}
