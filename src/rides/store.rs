//! The rides' own phases as SQL: each one fenced statement over arrays.

use std::sync::LazyLock;

use super::{RecoveryPoint, RideParams};
use crate::database::{Database, DatabaseError};
use crate::idempotency::Lease;
use crate::idempotency::fence::{Durability, Fence};

/// Flushed, because the charge follows: a ride that a crash forgot must not have been paid for.
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
    format!(
        "{fenced}, ride AS (
            INSERT INTO rides (idempotency_key_id, user_id, origin_lat, origin_lon, target_lat, target_lon)
            SELECT key_id, user_id, origin_lat, origin_lon, target_lat, target_lon FROM fenced
            RETURNING id, idempotency_key_id
        ), audit AS (
            INSERT INTO audit_records (action, data, origin_ip, resource_id, resource_type, user_id)
            SELECT 'ride.created',
                   jsonb_build_object('origin_lat', f.origin_lat, 'origin_lon', f.origin_lon,
                                      'target_lat', f.target_lat, 'target_lon', f.target_lon),
                   f.origin_ip, ride.id, 'ride', f.user_id
            FROM fenced f JOIN ride ON ride.idempotency_key_id = f.key_id
        )
        SELECT ride.id FROM ride"
    )
});

/// Phase two: the ride and its audit record. Returns the ride, or `None` if the fence is shut.
///
/// Locks the key's row, and the user's against removal.
pub(super) async fn create_ride(
    database: &Database,
    lease: &Lease,
    params: &RideParams,
) -> Result<Option<i64>, DatabaseError> {
    let row = database
        .query_opt(
            &CREATE_RIDE,
            &[
                &[lease.key_id].as_slice(),
                &[lease.token].as_slice(),
                &[params.origin_lat].as_slice(),
                &[params.origin_lon].as_slice(),
                &[params.target_lat].as_slice(),
                &[params.target_lon].as_slice(),
            ],
        )
        .await?;
    Ok(row.map(|row| row.get("id")))
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
    format!(
        "{fenced}
        UPDATE rides SET stripe_charge_id = f.stripe_charge_id
        FROM fenced f WHERE rides.idempotency_key_id = f.key_id
        RETURNING rides.id"
    )
});

/// Phase three: the charge's id on the ride. `false` if the fence is shut.
///
/// Locks the rows of the key and the ride.
pub(super) async fn record_charge(
    database: &Database,
    lease: &Lease,
    charge_id: &str,
) -> Result<bool, DatabaseError> {
    let rows = database
        .query(&RECORD_CHARGE, &[&[lease.key_id].as_slice(), &[lease.token].as_slice(), &[charge_id].as_slice()])
        .await?;
    Ok(!rows.is_empty())
}

/// The ride that an earlier attempt made for this key. Locks nothing.
pub(super) async fn find_ride(database: &Database, lease: &Lease) -> Result<Option<i64>, DatabaseError> {
    const SQL: &str = "SELECT id FROM rides WHERE idempotency_key_id = $1";
    Ok(database.query_opt(SQL, &[&lease.key_id]).await?.map(|row| row.get("id")))
}
