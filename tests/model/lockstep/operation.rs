//! What is walked: an operation of the program, which books a ride or does anything else that happens exactly once.

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

/// What one worker works with.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) database: Database,
    pub(super) stripe: stripe::Client,
    /// What the worker asks whether a call still fits into its lease.
    pub(super) clock: Clock,
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// The final answer, and its bytes.
    Final(Response, String),
    LeaseLost,
    /// Not finished; to be repeated.
    Again,
    Parked,
    InProgress,
    Mismatch,
    /// A completer has no client to tell.
    Nothing,
    /// What the model has no name for.
    Strange(String),
}

/// An operation: how it is asked for and carried out, and what its rows look like.
pub(super) trait Walked: Copy + Send + Sync + 'static {
    /// The program's own.
    type Operation: Operation<Params: Clone>;

    /// It, with these means.
    fn executor(self, means: &Means) -> Executor<Self::Operation>;

    /// What a client asks for.
    fn request(self, user: &User, key: &str) -> Request<<Self::Operation as Operation>::Params>;

    /// The same with other parameters.
    fn other_request(
        self,
        request: Request<<Self::Operation as Operation>::Params>,
    ) -> Request<<Self::Operation as Operation>::Params>;

    /// The message that opens a request, as the proxies label it: the tables that it writes.
    fn opening(self) -> &'static str;

    /// The message that carries out a step, likewise, or by method and path.
    fn message(self, step: Step) -> &'static str;

    /// By its code in the row.
    fn response(self, code: i32) -> Option<Response>;

    /// Its name in the row.
    fn name(self) -> &'static str {
        Self::Operation::NAME
    }

    /// By its name and place in the row.
    fn recovery_point(self, name: &str, step: i16) -> Option<RecoveryPoint> {
        if (name, step) == (FINISHED, FINISHED_STEP) {
            return Some(RecoveryPoint::Finished);
        }
        let place = Self::Operation::PHASES.points().position(|point| point == name)?;
        let call = u8::try_from(place + 1).ok()?;
        (i16::from(call) == step).then_some(RecoveryPoint::Call(call))
    }
}

/// A client's whole attempt.
pub(super) async fn attempt<O: Walked>(
    operation: O,
    means: Means,
    request: Request<<O::Operation as Operation>::Params>,
) -> Told {
    told(operation, operation.executor(&means).execute(request).await.answer)
}

/// The completer's look, which takes what is due and carries it out.
pub(super) async fn complete<O: Walked>(operation: O, means: Means, max_attempts: i32) -> Told {
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
    };
    match completer.run_once().await {
        Ok(_) => Told::Nothing,
        Err(error) => Told::Strange(error.to_string()),
    }
}

/// What a client is told.
pub(super) fn told<O: Walked>(operation: O, answer: Answer) -> Told {
    match answer {
        Answer::Done { response, .. } => match operation.response(i32::from(response.code)) {
            Some(known) => Told::Final(known, response.body),
            None => Told::Strange(format!("status {}", response.code)),
        },
        Answer::Mismatch => Told::Mismatch,
        Answer::InProgress => Told::InProgress,
        Answer::Parked | Answer::Stopped(Stop::Park(_)) => Told::Parked,
        Answer::Stopped(Stop::LeaseLost) => Told::LeaseLost,
        Answer::Stopped(Stop::Retry(_)) => Told::Again,
        Answer::Stopped(Stop::Database(error)) if error.is_transient() => Told::Again,
        Answer::Stopped(stop) => Told::Strange(atomic_phases::errors::chain(&stop)),
        Answer::Refused(refusal) => Told::Strange(refusal),
    }
}

/// A ride is booked.
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
