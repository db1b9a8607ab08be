//! A ride's own phases, through the one function that carries rides on.

use std::time::Duration;

use rocket_rides_atomic::database::Database;
use rocket_rides_atomic::idempotency::{IdempotencyKey, Lease, Request};
use rocket_rides_atomic::rides::{Booking, RideError, RideParams, Rides};
use rocket_rides_atomic::users::User;
use uuid::Uuid;

use super::{Case, Stage, WaitsFor, refusal};
use crate::support::client::new_key;
use crate::support::keys::{lease, request};
use crate::support::world::World;

const RIDE: Option<(&str, &str)> = Some(("rides", "idempotency_key_id"));

/// A request in hand, and what must come of it.
struct Ride {
    rides: Rides,
    booking: Booking,
    expected: &'static str,
}

/// A place like no other.
fn params() -> RideParams {
    let degrees = || f64::from(rand::random::<u16>()) / 1000.0;
    RideParams { origin_lat: degrees(), origin_lon: degrees(), target_lat: degrees(), target_lon: degrees() }
}

impl Ride {
    async fn new(stage: &Stage, raise_error: bool) -> Self {
        let params = params();
        let key: IdempotencyKey = new_key().parse().unwrap();
        let request = Request { params: params.to_json(), key, ..request(&new_key()) };
        let lease = lease(&stage.database, &request).await;
        let customer = "SELECT stripe_customer_id FROM users WHERE id = 1";
        let user = User { id: 1, stripe_customer_id: stage.world.get(customer).await };
        let day = Duration::from_secs(24 * 3600);
        let rides = Rides::new(stage.database.clone(), stage.world.stripe(), day, std::sync::Arc::default());
        Self { rides, booking: Booking { lease, user, params, raise_error }, expected: "201" }
    }

    /// The same request, up to where the charge is next.
    async fn before_its_charge(stage: &Stage) -> Self {
        let mut ride = Self::new(stage, true).await;
        let raised = ride.rides.drive(&ride.booking).await;
        assert!(matches!(raised.result, Err(RideError::Raised)), "{raised:?}");
        let sql =
            "UPDATE idempotency_keys SET lease_token = $2, locked_at = now(), last_error = NULL WHERE id = $1";
        let booking = &mut ride.booking;
        stage.world.query(sql, &[&booking.lease.key_id, &booking.lease.token]).await;
        booking.raise_error = false;
        booking.lease.recovery_point = "ride_created".to_owned();
        ride
    }

    async fn drive(&self) -> String {
        match self.rides.drive(&self.booking).await.result {
            Ok(response) => response.code.to_string(),
            Err(RideError::LeaseLost) => "lease lost".to_owned(),
            Err(RideError::Raised) => "raised".to_owned(),
            Err(RideError::Corrupt(_)) => "corrupt".to_owned(),
            Err(RideError::Database(error)) => refusal(&error),
            Err(error) => format!("{error:?}"),
        }
    }

    fn key_id(&self) -> i64 {
        self.booking.lease.key_id
    }

    /// Its ride, which goes where it was asked to, is recorded, and is paid by its own charge if it is `paid`.
    async fn assert_made(&self, world: &World, paid: bool) {
        let RideParams { origin_lat, origin_lon, target_lat, target_lon } = self.booking.params;
        let ride = "SELECT r.id, r.stripe_charge_id FROM rides r
                    JOIN audit_records a ON a.resource_id = r.id AND a.user_id = r.user_id
                         AND (a.data ->> 'origin_lat')::float8 = r.origin_lat
                         AND (a.data ->> 'origin_lon')::float8 = r.origin_lon
                         AND (a.data ->> 'target_lat')::float8 = r.target_lat
                         AND (a.data ->> 'target_lon')::float8 = r.target_lon
                    WHERE r.idempotency_key_id = $1 AND r.user_id = $2
                      AND r.origin_lat = $3 AND r.origin_lon = $4 AND r.target_lat = $5 AND r.target_lon = $6";
        let user_id = self.booking.user.id;
        let ride = world
            .query(ride, &[&self.key_id(), &user_id, &origin_lat, &origin_lon, &target_lat, &target_lon])
            .await;
        assert_eq!(ride.len(), 1, "key {}", self.key_id());
        let (ride_id, charge): (i64, Option<String>) = (ride[0].get(0), ride[0].get(1));
        assert_eq!(charge.is_some(), paid);
        if let Some(charge) = charge {
            let path = format!("/v1/charges/{charge}");
            let charge = world.sandbox.call(hyper::Method::GET, &path, "").await.json();
            assert_eq!(charge["metadata"]["ride_id"], ride_id.to_string(), "{charge}");
            let key = self.booking.lease.foreign_call_key.to_string();
            assert_eq!(charge["metadata"]["idempotency_key"], key, "{charge}");
        }
    }
}

/// The first phase.
pub(super) struct Creates(Ride);

impl Case for Creates {
    const COVERS: &'static str = "rides/store.rs: CreateRide";
    const WAITS_FOR: WaitsFor = WaitsFor::Row("idempotency_keys", "id");
    const WRITES: Option<(&'static str, &'static str)> = RIDE;

    async fn caller(stage: &Stage, n: usize) -> Self {
        let mut ride = Ride::new(stage, true).await;
        ride.expected = "raised";
        match n % 4 {
            0 | 1 => {}
            2 => {
                ride.booking.lease = Lease { token: Uuid::new_v4(), ..ride.booking.lease };
                ride.expected = "lease lost";
            }
            // It has its ride already.
            _ => {
                ride = Ride::before_its_charge(stage).await;
                ride.booking.lease.recovery_point = "started".to_owned();
                ride.expected = "lease lost";
            }
        }
        Self(ride)
    }

    async fn refused(stage: &Stage) -> Option<Self> {
        let mut ride = Ride::new(stage, true).await;
        ride.booking.params.origin_lat = 91.0;
        ride.expected = "refused";
        Some(Self(ride))
    }

    async fn call(&self, _: &Database) -> String {
        self.0.drive().await
    }

    fn expected(&self) -> String {
        self.0.expected.to_owned()
    }

    fn locks(&self) -> i64 {
        self.0.key_id()
    }

    async fn check(&self, world: &World) -> Option<i64> {
        if self.0.expected != "raised" {
            return None;
        }
        self.0.assert_made(world, false).await;
        Some(self.0.key_id())
    }
}

/// An attempt that goes on from the ride of an earlier one.
pub(super) struct Finds(Ride);

impl Case for Finds {
    const COVERS: &'static str = "rides/store.rs: FindRide";
    const WAITS_FOR: WaitsFor = WaitsFor::Table("rides");

    async fn caller(stage: &Stage, n: usize) -> Self {
        let mut ride = Ride::before_its_charge(stage).await;
        if n % 3 == 1 {
            let key_id = ride.key_id();
            stage.world.execute(&format!("DELETE FROM rides WHERE idempotency_key_id = {key_id}")).await;
            ride.expected = "corrupt";
        }
        Self(ride)
    }

    async fn call(&self, _: &Database) -> String {
        self.0.drive().await
    }

    fn expected(&self) -> String {
        self.0.expected.to_owned()
    }

    async fn check(&self, world: &World) -> Option<i64> {
        if self.0.expected == "201" {
            self.0.assert_made(world, true).await;
        }
        None
    }
}

/// A charge that was made.
pub(super) struct Records(Ride);

impl Case for Records {
    const COVERS: &'static str = "rides/store.rs: RecordCharge";
    const WAITS_FOR: WaitsFor = WaitsFor::Row("idempotency_keys", "id");
    const WRITES: Option<(&'static str, &'static str)> = RIDE;

    async fn caller(stage: &Stage, n: usize) -> Self {
        let mut ride = Ride::before_its_charge(stage).await;
        if n % 4 == 2 {
            ride.expected = "lease lost";
        }
        Self(ride)
    }

    /// Another attempt takes the lease over while the charge is under way.
    fn meanwhile(&self) -> Option<String> {
        let key_id = self.0.key_id();
        (self.0.expected == "lease lost")
            .then(|| format!("UPDATE idempotency_keys SET lease_token = gen_random_uuid() WHERE id = {key_id}"))
    }

    async fn call(&self, _: &Database) -> String {
        self.0.drive().await
    }

    fn expected(&self) -> String {
        self.0.expected.to_owned()
    }

    fn locks(&self) -> i64 {
        self.0.key_id()
    }

    async fn check(&self, world: &World) -> Option<i64> {
        let paid = self.0.expected == "201";
        self.0.assert_made(world, paid).await;
        paid.then(|| self.0.key_id())
    }
}
