//! The engine as its callers use it: a request, and a lease on it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rocket_rides_atomic::database::Database;
use rocket_rides_atomic::idempotency::acquire::{Acquired, acquire};
use rocket_rides_atomic::idempotency::{Lease, Request};
use serde_json::json;

/// A lease younger than this is respected.
pub const LOCK: Duration = Duration::from_secs(60);
/// The completer leaves a request alone for so long.
pub const GRACE: Duration = Duration::from_secs(300);

/// A ride of the first user's, under this key.
pub fn request(key: &str) -> Request {
    Request {
        user_id: 1,
        key: key.parse().expect("a key"),
        method: "POST".into(),
        path: "/rides".into(),
        params: json!({"origin_lat": 1.0, "origin_lon": 2.0, "target_lat": 3.0, "target_lon": 4.0}),
        origin_ip: IpAddr::from([127, 0, 0, 1]),
    }
}

/// What the key says to this request.
pub async fn ask(database: &Database, request: &Request) -> Acquired {
    acquire(database, Arc::new(request.clone()), LOCK, GRACE).await.expect("an answer")
}

/// A lease on this request, which must be free.
pub async fn lease(database: &Database, request: &Request) -> Lease {
    expect_lease(ask(database, request).await)
}

/// A lease on this request, also if another holds one: leases of any age have run out.
pub async fn take_over(database: &Database, request: &Request) -> Lease {
    expect_lease(acquire(database, Arc::new(request.clone()), Duration::ZERO, GRACE).await.expect("an answer"))
}

fn expect_lease(acquired: Acquired) -> Lease {
    match acquired {
        Acquired::Lease(lease) => lease,
        other => panic!("{other:?}"),
    }
}
