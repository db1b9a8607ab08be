//! Reads what a receipt needs of its ride or refund.

use atomic_phases::database::{Database, DatabaseError};
use tokio_postgres::Row;

/// A ride, and the user who booked it.
#[derive(Debug)]
pub(super) struct Ride {
    pub(super) user_id: i64,
    pub(super) email: String,
    /// Latitude and longitude, in degrees.
    pub(super) origin: (f64, f64),
    pub(super) target: (f64, f64),
    pub(super) charge_id: Option<String>,
    /// Its receipt was sent.
    pub(super) receipted: bool,
}

const FIND: &str = include_str!("store_find_ride.sql");

/// Returns the ride with this id. Locks nothing.
pub(super) async fn find_ride(database: &Database, id: i64) -> Result<Option<Ride>, DatabaseError> {
    Ok(database.query_opt(FIND, &[&id]).await?.as_ref().map(Ride::from_row))
}

/// A refund, and the ride that was refunded.
#[derive(Debug)]
pub(super) struct Refund {
    /// `receipted` is the refund's.
    pub(super) ride: Ride,
    pub(super) ride_id: i64,
    pub(super) stripe_refund_id: Option<String>,
}

const FIND_REFUND: &str = include_str!("store_find_refund.sql");

/// Returns the refund with this id. Locks nothing.
pub(super) async fn find_refund(database: &Database, id: i64) -> Result<Option<Refund>, DatabaseError> {
    Ok(database.query_opt(FIND_REFUND, &[&id]).await?.map(|row| Refund {
        ride: Ride::from_row(&row),
        ride_id: row.get("ride_id"),
        stripe_refund_id: row.get("stripe_refund_id"),
    }))
}

impl Ride {
    fn from_row(row: &Row) -> Self {
        Self {
            user_id: row.get("user_id"),
            email: row.get("email"),
            origin: (row.get("origin_lat"), row.get("origin_lon")),
            target: (row.get("target_lat"), row.get("target_lon")),
            charge_id: row.get("stripe_charge_id"),
            receipted: row.get("receipted"),
        }
    }
}
