//! The check that a process can go on with unfinished requests: their recovery points must be those of its operations.

use super::Operations;
use crate::database::{Database, DatabaseError};

/// Walks the indexes of unfinished and of parked keys. Locks nothing.
const UNFINISHED: &str = include_str!("points.sql");

/// Why a process must not work on these keys.
#[derive(Debug, thiserror::Error)]
pub enum PointsError {
    /// The operation has changed since these requests stopped.
    #[error(
        "{keys} unfinished requests of the operation {operation:?} (key {key_id} is one) are at its recovery point {point:?}, \
         number {step}, which this release does not have: finish them with the release before"
    )]
    Unknown {
        /// Its name.
        operation: String,
        /// The recovery point at which they are.
        point: String,
        /// The point's step.
        step: i16,
        /// The row of one of their keys.
        key_id: i64,
        /// How many they are.
        keys: i64,
    },
    /// The keys could not be read.
    #[error("the recovery points of unfinished requests could not be read")]
    Database(#[from] DatabaseError),
}

impl Operations {
    /// Compares the recovery points of all unfinished requests with those of their operations. Points may have been
    /// added behind the last; one that was renamed, moved or removed while requests stand at it is an error. Requests
    /// of operations that this process does not know are not checked.
    pub async fn check_points(&self, database: &Database) -> Result<(), PointsError> {
        for row in database.query(UNFINISHED, &[&self.names()]).await? {
            let (operation, point, step): (String, String, i16) =
                (row.get("operation"), row.get("recovery_point"), row.get("step"));
            let points = self.get(&operation).map(|operation| operation.points()).unwrap_or_default();
            let known = usize::try_from(step - 1).ok().and_then(|place| points.get(place));
            if known.is_none_or(|known| *known != point) {
                return Err(PointsError::Unknown {
                    operation,
                    point,
                    step,
                    key_id: row.get("key_id"),
                    keys: row.get("keys"),
                });
            }
        }
        Ok(())
    }
}
