//! The rides' own phases as SQL: each one fenced statement over arrays.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::LazyLock;

use super::{RecoveryPoint, RideParams};
use crate::database::{Batched, Database, DatabaseError, column};
use crate::idempotency::Lease;
use crate::idempotency::fence::{Durability, Fence, Pass, by_token};

/// Flushed, because the charge follows: a ride that a crash forgot must not have been paid for.
///
/// Rides are numbered before they are inserted, so that nothing has to be joined: the work grows with the batch, not with
/// its square.
static CREATE_RIDE: LazyLock<String> = LazyLock::new(|| {
    let fenced = Fence {
        from: RecoveryPoint::Started.name(),
        to: RecoveryPoint::RideCreated.name(),
        intends_foreign_call: true,
        durability: Durability::Flushed,
    }
    .with_columns(&[
        ("origin_lat", "float8"),
        ("origin_lon", "float8"),
        ("target_lat", "float8"),
        ("target_lon", "float8"),
    ]);
    fenced + include_str!("store_create_ride.sql")
});

/// Phase two: the ride and its audit record. Returns the ride, or `None` if the fence is shut.
///
/// Locks the key's row, and the user's against removal.
pub(super) async fn create_ride(
    database: &Database,
    lease: &Lease,
    params: RideParams,
) -> Result<Option<i64>, DatabaseError> {
    database.batched(CreateRide { pass: lease.into(), params }).await
}

struct CreateRide {
    pass: Pass,
    params: RideParams,
}

impl Batched for CreateRide {
    type Output = Option<i64>;

    fn order(&self, other: &Self) -> Ordering {
        self.pass.cmp(&other.pass)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<Option<i64>>, DatabaseError> {
        let rows = database
            .query(
                &CREATE_RIDE,
                &[
                    &column(items, |item| item.pass.key_id),
                    &column(items, |item| item.pass.token),
                    &column(items, |item| item.params.origin_lat),
                    &column(items, |item| item.params.origin_lon),
                    &column(items, |item| item.params.target_lat),
                    &column(items, |item| item.params.target_lon),
                ],
            )
            .await?;
        let rides = by_token(rows);
        Ok(column(items, |item| rides.get(&item.pass.token).map(|row| row.get("ride_id"))))
    }
}

/// Not flushed: if it is lost, Stripe's idempotency gives the same charge again.
static RECORD_CHARGE: LazyLock<String> = LazyLock::new(|| {
    let fenced = Fence {
        from: RecoveryPoint::RideCreated.name(),
        to: RecoveryPoint::ChargeCreated.name(),
        intends_foreign_call: false,
        durability: Durability::Later,
    }
    .with_columns(&[("stripe_charge_id", "text")]);
    fenced + include_str!("store_record_charge.sql")
});

/// Phase three: the charge's id on the ride. `false` if the fence is shut.
///
/// Locks the rows of the key and the ride.
pub(super) async fn record_charge(
    database: &Database,
    lease: &Lease,
    charge_id: String,
) -> Result<bool, DatabaseError> {
    database.batched(RecordCharge { pass: lease.into(), charge_id }).await
}

struct RecordCharge {
    pass: Pass,
    charge_id: String,
}

impl Batched for RecordCharge {
    type Output = bool;

    fn order(&self, other: &Self) -> Ordering {
        self.pass.cmp(&other.pass)
    }

    async fn run(database: &Database, items: &[Self]) -> Result<Vec<bool>, DatabaseError> {
        let rows = database
            .query(
                &RECORD_CHARGE,
                &[
                    &column(items, |item| item.pass.key_id),
                    &column(items, |item| item.pass.token),
                    &column(items, |item| item.charge_id.as_str()),
                ],
            )
            .await?;
        let recorded = by_token(rows);
        Ok(column(items, |item| recorded.contains_key(&item.pass.token)))
    }
}

/// The ride that an earlier attempt made for this key. Locks nothing.
pub(super) async fn find_ride(database: &Database, lease: &Lease) -> Result<Option<i64>, DatabaseError> {
    database.batched(FindRide(lease.key_id)).await
}

struct FindRide(i64);

impl Batched for FindRide {
    type Output = Option<i64>;

    fn order(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }

    async fn run(database: &Database, keys: &[Self]) -> Result<Vec<Option<i64>>, DatabaseError> {
        const SQL: &str = "
            SELECT r.id, r.idempotency_key_id
            FROM unnest($1::bigint[]) AS i (key_id) JOIN rides r ON r.idempotency_key_id = i.key_id";
        let rows = database.query(SQL, &[&column(keys, |key| key.0)]).await?;
        let rides: HashMap<i64, i64> =
            rows.iter().map(|row| (row.get("idempotency_key_id"), row.get("id"))).collect();
        Ok(column(keys, |key| rides.get(&key.0).copied()))
    }
}
