//! The end of a receipt's job, as the worker ends it.

use atomic_phases::database::{Database, DatabaseError};
use atomic_phases::queue::work::{self, FinishStatement, JobLease};
use serde_json::{Value, json};

/// A receipt that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentReceipt {
    /// The id of its ride.
    pub ride_id: i64,
    /// The id of its message.
    pub message_id: String,
}

/// Finishes the job, and records the receipt that it sent, if it sent one.
pub async fn finish(
    database: &Database,
    lease: JobLease,
    sent: Option<SentReceipt>,
) -> Result<bool, DatabaseError> {
    let statement = FinishStatement::with(include_str!("../../src/receipts/record.sql"));
    let data = |sent: SentReceipt| json!({ "ride_id": sent.ride_id, "message_id": sent.message_id });
    work::finish(database, statement, lease, sent.map_or(Value::Null, data)).await
}
