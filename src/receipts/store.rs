//! What a receipt needs to know of its ride.

use crate::database::{Database, DatabaseError};

/// A ride, and whom it was for.
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

/// The ride with this id. Locks nothing.
pub(super) async fn find_ride(database: &Database, id: i64) -> Result<Option<Ride>, DatabaseError> {
    Ok(database.query_opt(FIND, &[&id]).await?.map(|row| Ride {
        user_id: row.get("user_id"),
        email: row.get("email"),
        origin: (row.get("origin_lat"), row.get("origin_lon")),
        target: (row.get("target_lat"), row.get("target_lon")),
        charge_id: row.get("stripe_charge_id"),
        receipted: row.get("receipted"),
    }))
}
