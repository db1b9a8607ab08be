//! What is walked: an operation of the program, which books a ride or does anything else that happens exactly once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rocket_rides_atomic::clock::Clock;
use rocket_rides_atomic::config;
use rocket_rides_atomic::database::Database;
use rocket_rides_atomic::idempotency::acquire::{Acquired, acquire};
use rocket_rides_atomic::idempotency::{Lease, Request};
use rocket_rides_atomic::rides::{Booking, RideError, RideParams, Rides};
use rocket_rides_atomic::roles::completer::Completer;
use rocket_rides_atomic::roles::periodic::Periodic;
use rocket_rides_atomic::stripe::{self, LookupError};
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
pub(super) trait Operation: Copy + Send + Sync + 'static {
    /// What a client asks for.
    fn request(self, user: &User, key: &str) -> Request;

    /// Goes on from a lease to the end of the attempt.
    fn drive(self, means: Means, lease: Lease, user: User) -> impl Future<Output = Told> + Send;

    /// The completer's look, which takes what is due and drives it.
    fn complete(self, means: Means, max_attempts: i32) -> impl Future<Output = Told> + Send;

    /// The message that carries out a step, as the proxies label it: the tables that it writes, or method and path.
    fn message(self, step: Step) -> &'static str;

    /// By its name in the row.
    fn recovery_point(self, name: &str) -> Option<RecoveryPoint>;

    /// By its code in the row.
    fn response(self, code: i32) -> Option<Response>;
}

/// A client's whole attempt.
pub(super) async fn attempt<O: Operation>(operation: O, means: Means, request: Request, user: User) -> Told {
    match acquire(&means.database, Arc::new(request), LEASE, GRACE).await {
        Ok(Acquired::Lease(lease)) => operation.drive(means, lease, user).await,
        Ok(acquired) => told(operation, acquired),
        Err(error) => Told::Strange(error.to_string()),
    }
}

/// What a client is told that gets no lease.
pub(super) fn told<O: Operation>(operation: O, acquired: Acquired) -> Told {
    match acquired {
        Acquired::Finished { response, .. } => finished(operation, response.code, response.body),
        Acquired::Mismatch { .. } => Told::Mismatch,
        Acquired::InProgress { .. } => Told::InProgress,
        Acquired::Parked { .. } => Told::Parked,
        Acquired::Lease(lease) => Told::Strange(format!("a lease on {}", lease.recovery_point)),
    }
}

fn finished<O: Operation>(operation: O, code: u16, body: String) -> Told {
    match operation.response(i32::from(code)) {
        Some(response) => Told::Final(response, body),
        None => Told::Strange(format!("status {code}")),
    }
}

/// A ride is booked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ride;

impl Ride {
    fn rides(means: &Means) -> Rides {
        let Means { database, stripe, clock } = means.clone();
        Rides::new(database, stripe, KEY_RETENTION, Arc::default()).with_clock(clock)
    }
}

impl Operation for Ride {
    fn request(self, user: &User, key: &str) -> Request {
        let params = RideParams { origin_lat: 1.0, origin_lon: 2.0, target_lat: 3.0, target_lon: 4.0 };
        Request {
            user_id: user.id,
            key: key.parse().unwrap(),
            method: "POST".to_owned(),
            path: "/rides".to_owned(),
            params: params.to_json(),
            origin_ip: IpAddr::from([127, 0, 0, 1]),
        }
    }

    async fn drive(self, means: Means, lease: Lease, user: User) -> Told {
        let params = RideParams { origin_lat: 1.0, origin_lon: 2.0, target_lat: 3.0, target_lon: 4.0 };
        match Self::rides(&means).drive(&Booking { lease, user, params, raise_error: false }).await.result {
            Ok(response) => finished(self, response.code, response.body),
            Err(RideError::LeaseLost) => Told::LeaseLost,
            Err(RideError::LookUp(LookupError::Undecidable(_))) => Told::Parked,
            Err(
                RideError::NotSent(_)
                | RideError::Refused(_)
                | RideError::Unknown(_)
                | RideError::LookUp(LookupError::Transient(_)),
            ) => Told::Again,
            Err(RideError::Database(error)) if error.is_transient() => Told::Again,
            Err(error) => Told::Strange(rocket_rides_atomic::errors::chain(&error)),
        }
    }

    async fn complete(self, means: Means, max_attempts: i32) -> Told {
        let completer = Completer {
            rides: Self::rides(&means),
            database: means.database,
            config: config::Completer {
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

    fn message(self, step: Step) -> &'static str {
        match step {
            Step::CreateRide => "execute update idempotency_keys + insert rides + insert audit_records",
            Step::LookUp => "GET /v1/charges",
            Step::Charge => "POST /v1/charges",
            Step::RecordCharge => "execute update idempotency_keys + update rides",
            Step::Finish(_) => "execute update idempotency_keys + insert staged_jobs",
            Step::Release | Step::Park => "execute update idempotency_keys",
        }
    }

    fn recovery_point(self, name: &str) -> Option<RecoveryPoint> {
        Some(match name {
            "started" => RecoveryPoint::Started,
            "ride_created" => RecoveryPoint::RideCreated,
            "charge_created" => RecoveryPoint::ChargeCreated,
            "finished" => RecoveryPoint::Finished,
            _ => return None,
        })
    }

    fn response(self, code: i32) -> Option<Response> {
        match code {
            201 => Some(Response::Paid),
            402 => Some(Response::Declined),
            _ => None,
        }
    }
}
