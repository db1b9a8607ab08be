//! The engine as its callers use it: an operation that writes nothing but its key, a request of it, and a lease on
//! that.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use atomic_phases::clock::Clock;
use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::idempotency::claim::{self, Claims, RetryPolicy};
use atomic_phases::idempotency::open::Opened;
use atomic_phases::idempotency::{
    Attempt, Engine, Executor, Job, Lease, Next, Opening, Operation, Phase, Phases, Request, Response, Stop,
};
use rocket_rides_atomic::rides::{PRICE, RideParams, Rides};
use rocket_rides_atomic::stripe;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A lease younger than this is respected.
pub const LOCK: Duration = Duration::from_secs(60);
/// The completer leaves a request alone for this long.
pub const GRACE: Duration = Duration::from_secs(300);

/// An operation that writes nothing but its keys, and makes no foreign call.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlainState {
    Opened {},
    HalfWay {
        /// Tells one request's state from another's.
        of: i64,
    },
}

impl Operation for Plain {
    const NAME: &'static str = "plain";
    const PHASES: Phases = Phases {
        open: Opening {
            point: "opened",
            admit: "SELECT f.*, f.request_params ->> 'refusal' AS refusal, '{}'::jsonb AS state FROM fresh f",
            effects: "",
        },
        between: &[Phase { point: "half_way", effects: "" }],
        close: "",
    };

    type Params = Value;
    type State = PlainState;

    async fn advance(&self, attempt: &Attempt<Value>, state: PlainState) -> Result<Next<PlainState>, Stop> {
        Ok(match state {
            PlainState::Opened {} => {
                Next::Advance { state: PlainState::HalfWay { of: attempt.lease.key_id }, data: Value::Null }
            }
            PlainState::HalfWay { .. } => Next::Close { response: done(), jobs: Vec::new(), data: Value::Null },
        })
    }
}

/// Returns the answer of [`Plain`].
pub fn done() -> Response {
    Response::new(201, r#"{"message": "done"}"#)
}

/// Returns an engine that respects leases for this long.
pub fn engine(database: &Database, lock_timeout: Duration) -> Engine {
    let (database, clock) = (database.clone(), Clock::default());
    Engine { database, lock_timeout, grace: GRACE, staged: Arc::default(), clock }
}

/// Returns an executor of the plain operation.
pub fn plain(database: &Database) -> Executor<Plain> {
    Executor::new(engine(database, LOCK), Plain)
}

/// Returns a plain request of the first user, under this key.
pub fn request(key: &str) -> Request<Value> {
    Request {
        user_id: 1,
        key: key.parse().expect("a key"),
        method: "POST".into(),
        path: "/plain".into(),
        params: json!({"origin_lat": 1.0, "origin_lon": 2.0, "target_lat": 3.0, "target_lon": 4.0}),
        origin_ip: IpAddr::from([127, 0, 0, 1]),
    }
}

/// Opens this request, and returns the outcome.
pub async fn ask(database: &Database, request: &Request<Value>) -> Opened {
    plain(database).open(request).await.expect("an answer")
}

/// Takes the lease on this request, which must be free.
pub async fn lease(database: &Database, request: &Request<Value>) -> Lease {
    expect_lease(ask(database, request).await)
}

/// Takes the lease on this request even if there is another holder: with a lock timeout of zero, every lease has run
/// out.
pub async fn take_over(database: &Database, request: &Request<Value>) -> Lease {
    let plain = Executor::new(engine(database, Duration::ZERO), Plain);
    expect_lease(plain.open(request).await.expect("an answer"))
}

/// Ends the request with this answer.
pub async fn finish(
    database: &Database,
    lease: &Lease,
    response: &Response,
    jobs: &[Job],
) -> Result<bool, DatabaseError> {
    plain(database).close(lease, response.clone(), jobs, Value::Null).await
}

/// Returns the lease, and panics if there is none.
pub fn expect_lease(opened: Opened) -> Lease {
    match opened {
        Opened::Lease(lease) => lease,
        other => panic!("{other:?}"),
    }
}

/// Claims requests of the plain operation, and rides.
pub async fn claim(database: &Database, limit: i64, policy: &RetryPolicy) -> Result<Claims, DatabaseError> {
    claim::claim(database, &[Plain::NAME, "ride"], limit, policy).await
}

/// Returns a request for a ride of the first user, under this key.
pub fn ride_request(key: &str) -> Request<RideParams> {
    let Request { user_id, key, method, origin_ip, .. } = request(key);
    let params = RideParams { origin_lat: 1.0, origin_lon: 2.0, target_lat: 3.0, target_lon: 4.0 };
    Request { user_id, key, method, path: "/rides".into(), params, origin_ip }
}

/// Returns an executor that books rides, with this Stripe.
pub fn rides(engine: Engine, stripe: stripe::Client, key_retention: Duration) -> Executor<Rides> {
    Executor::new(engine, Rides { stripe, key_retention, price: PRICE })
}
