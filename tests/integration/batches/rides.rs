//! The ride's part of the engine's statements: each request of a batch writes its own rows only.

use std::time::Duration;

use atomic_phases::database::Database;
use atomic_phases::idempotency::open::Opened;
use atomic_phases::idempotency::{Answer, Executor, Lease, Request, Stop};
use rocket_rides_atomic::demo::raise_error::{RaiseError, Raised};
use rocket_rides_atomic::rides::{PRICE, RideParams, Rides};
use uuid::Uuid;

use super::{Case, Stage, WaitsFor, refusal};
use crate::support::app::TestApp;
use crate::support::client::new_key;
use crate::support::keys::{LOCK, engine, expect_lease};

const RIDE: Option<(&str, &str)> = Some(("rides", "idempotency_key_id"));

/// Returns random coordinates, which no other request is likely to have.
fn params() -> RideParams {
    let degrees = || f64::from(rand::random::<u16>()) / 1000.0;
    RideParams { origin_lat: degrees(), origin_lon: degrees(), target_lat: degrees(), target_lon: degrees() }
}

fn new_request() -> Request<RideParams> {
    Request {
        user_id: 1,
        key: new_key().parse().unwrap(),
        method: "POST".to_owned(),
        path: "/rides".to_owned(),
        params: params(),
        origin_ip: [10, 1, 2, rand::random()].into(),
    }
}

fn rides(stage: &Stage) -> Executor<Rides> {
    let day = Duration::from_secs(24 * 3600);
    let rides = Rides { stripe: stage.app.stripe(), key_retention: day, price: PRICE };
    Executor::new(engine(&stage.database, LOCK), rides)
}

/// Asserts that the request has one ride, with its coordinates and an audit record. Returns the ride and its charge.
async fn ride(app: &TestApp, request: &Request<RideParams>) -> (i64, Option<String>) {
    let RideParams { origin_lat, origin_lon, target_lat, target_lon } = request.params;
    let sql = "SELECT r.id, r.stripe_charge_id FROM rides r
               JOIN idempotency_keys k ON k.id = r.idempotency_key_id
               JOIN audit_records a ON a.resource_id = r.id AND a.user_id = r.user_id
                    AND a.data = k.request_params AND host(a.origin_ip) = $7
               WHERE k.idempotency_key = $1 AND r.user_id = $2
                 AND r.origin_lat = $3 AND r.origin_lon = $4 AND r.target_lat = $5 AND r.target_lon = $6
                 AND k.state ->> 'ride_id' = r.id::text
                 AND k.state -> 'charge' ->> 'description' = 'Rocket ride ' || r.id";
    let (key, ip) = (request.key.as_str(), request.origin_ip.to_string());
    let rows =
        app.query(sql, &[&key, &request.user_id, &origin_lat, &origin_lon, &target_lat, &target_lon, &ip]).await;
    assert_eq!(rows.len(), 1, "key {key}");
    (rows[0].get(0), rows[0].get(1))
}

/// Requests that are opened, and fail before their charge.
pub(super) struct Opens {
    rides: Executor<RaiseError<Rides>>,
    request: Request<RideParams>,
    expected: &'static str,
}

impl Case for Opens {
    const COVERS: &'static str = "idempotency/open.rs: Opening";
    const WAITS_FOR: WaitsFor = WaitsFor::Table("rides");

    async fn caller(stage: &Stage, n: usize) -> Self {
        let rides = rides(stage);
        let rides = rides.with(RaiseError(std::sync::Arc::clone(rides.operation())));
        let request = new_request();
        match n % 4 {
            0 | 1 => Self { rides, request, expected: "raised" },
            2 => {
                Self { rides, request: Request { user_id: -1, ..request }, expected: "not admitted: unknown_user" }
            }
            _ => {
                let raised = rides.execute(request.clone()).await;
                assert!(matches!(raised.answer, Answer::Stopped(Stop::Retry(_))), "{raised:?}");
                let params = RideParams { target_lon: -1.0, ..request.params };
                Self { rides, request: Request { params, ..request }, expected: "mismatched" }
            }
        }
    }

    async fn refused(stage: &Stage) -> Option<Self> {
        let caller = Self::caller(stage, 0).await;
        let params = RideParams { origin_lat: 91.0, ..caller.request.params };
        Some(Self { request: Request { params, ..caller.request }, expected: "refused", ..caller })
    }

    async fn call(&self, _: &Database) -> String {
        match self.rides.execute(self.request.clone()).await.answer {
            Answer::Stopped(Stop::Retry(error)) if error.is::<Raised>() => "raised".to_owned(),
            Answer::Stopped(Stop::Database(error)) => refusal(&error),
            Answer::Refused(word) => format!("not admitted: {word}"),
            Answer::Mismatch => "mismatched".to_owned(),
            answer => format!("{answer:?}"),
        }
    }

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        if self.expected == "raised" {
            assert_eq!(ride(app, &self.request).await.1, None);
        }
        None
    }
}

/// Charges that were made.
pub(super) struct Pays {
    rides: Executor<Rides>,
    request: Request<RideParams>,
    lease: Lease,
    expected: &'static str,
}

impl Case for Pays {
    const COVERS: &'static str = "idempotency/phase.rs: Closing";
    const WAITS_FOR: WaitsFor = WaitsFor::Row("idempotency_keys", "id");
    const WRITES: Option<(&'static str, &'static str)> = RIDE;

    async fn caller(stage: &Stage, n: usize) -> Self {
        let (rides, request) = (rides(stage), new_request());
        let lease: Lease = expect_lease(rides.open(&request).await.unwrap());
        match n % 4 {
            // Another attempt takes the lease over while the charge is under way.
            2 => Self { rides, request, lease, expected: "lease lost" },
            3 => Self { rides, request, lease: Lease { token: Uuid::new_v4(), ..lease }, expected: "lease lost" },
            _ => Self { rides, request, lease, expected: "201" },
        }
    }

    fn meanwhile(&self) -> Option<String> {
        let key_id = self.lease.key_id;
        (self.expected == "lease lost")
            .then(|| format!("UPDATE idempotency_keys SET lease_token = gen_random_uuid() WHERE id = {key_id}"))
    }

    async fn call(&self, _: &Database) -> String {
        let params = serde_json::to_value(self.request.params).unwrap();
        let (user_id, ip) = (self.request.user_id, self.request.origin_ip);
        match self.rides.resume(self.lease.clone(), user_id, &params, ip).await.answer {
            Answer::Done { response, .. } => response.code.to_string(),
            Answer::Stopped(Stop::LeaseLost) => "lease lost".to_owned(),
            Answer::Stopped(Stop::Database(error)) => refusal(&error),
            answer => format!("{answer:?}"),
        }
    }

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn locks(&self) -> i64 {
        self.lease.key_id
    }

    async fn check(&self, app: &TestApp) -> Option<i64> {
        let (ride_id, charge) = ride(app, &self.request).await;
        assert_eq!(charge.is_some(), self.expected == "201");
        let charge = charge?;
        let path = format!("/v1/charges/{charge}");
        let charge = app.sandbox.call(hyper::Method::GET, &path, "").await.json();
        assert_eq!(charge["metadata"]["ride_id"], ride_id.to_string(), "{charge}");
        assert_eq!(charge["metadata"]["idempotency_key"], self.lease.foreign_call.key.to_string(), "{charge}");
        Some(self.lease.key_id)
    }
}

/// A lease on a ride holds the parameters that Stripe gets.
#[tokio::test]
async fn a_lease_on_a_ride_says_what_is_sent_to_stripe() {
    let stage = Stage::new().await;
    let opened = rides(&stage).open(&new_request()).await.unwrap();
    let Opened::Lease(lease) = opened else { panic!("{opened:?}") };
    let state: serde_json::Value = serde_json::from_str(&lease.state).unwrap();
    let customer: String = stage.app.get("SELECT stripe_customer_id FROM users WHERE id = 1").await;
    assert_eq!(state["charge"]["customer"], customer);
    assert_eq!((&state["charge"]["amount"], &state["charge"]["currency"]), (&2000.into(), &"usd".into()));
}
