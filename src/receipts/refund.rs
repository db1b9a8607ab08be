//! The receipt of a refund.

use atomic_phases::idempotency::Job;
use atomic_phases::queue::handler::{Handler, HandlerError};
use atomic_phases::queue::leases::Held;
use atomic_phases::queue::work::Claimed;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Mail, ReceiptError, Receipts, render, store};

/// The job that is staged with a refund.
pub const REFUND_RECEIPT: &str = "send_refund_receipt";

/// The arguments of that job.
#[derive(Debug, Serialize, Deserialize)]
pub struct RefundReceipt {
    /// The refund.
    pub refund_id: i64,
    /// The ride that was refunded.
    pub ride_id: i64,
    /// The user who got it.
    pub user_id: i64,
    /// The amount, in hundredths of the currency.
    pub amount: u32,
    /// The currency.
    pub currency: String,
}

impl From<RefundReceipt> for Job {
    fn from(receipt: RefundReceipt) -> Self {
        Self { name: REFUND_RECEIPT, args: serde_json::to_value(receipt).expect("numbers and texts") }
    }
}

/// Sends receipts of refunds.
#[derive(Debug, Clone)]
pub struct RefundReceipts(pub Receipts);

impl Handler for RefundReceipts {
    fn name(&self) -> &'static str {
        REFUND_RECEIPT
    }

    fn effects(&self) -> &'static str {
        include_str!("record_refund.sql")
    }

    fn work<'a>(&'a self, job: &'a Claimed, held: &'a Held) -> BoxFuture<'a, Result<Value, HandlerError>> {
        Box::pin(async move {
            let Some((refund_id, mail)) = self.prepare(job).await? else { return Ok(Value::Null) };
            self.0.send(&mail, held).await?;
            Ok(json!({ "refund_id": refund_id, "message_id": mail.message_id }))
        })
    }
}

impl RefundReceipts {
    /// Does the same as [`Receipts::prepare`].
    async fn prepare(&self, job: &Claimed) -> Result<Option<(i64, Mail)>, ReceiptError> {
        let arguments: RefundReceipt = serde_json::from_str(job.args.get()).map_err(ReceiptError::Arguments)?;
        let Some(refund) = store::find_refund(&self.0.database, arguments.refund_id).await? else {
            return Err(ReceiptError::Ride("there is no such refund"));
        };
        if refund.ride.receipted {
            return Ok(None);
        }
        if (refund.ride.user_id, refund.ride_id) != (arguments.user_id, arguments.ride_id) {
            return Err(ReceiptError::Ride("the refund is another ride's"));
        }
        let (Some(charge_id), Some(stripe_id)) = (&refund.ride.charge_id, &refund.stripe_refund_id) else {
            return Err(ReceiptError::Ride("the ride was not refunded"));
        };
        let receipt = render::Receipt {
            ride_id: arguments.ride_id,
            refund: Some(render::Refund { id: arguments.refund_id, stripe_id }),
            staged_id: job.lease.job_id,
            at: job.staged_at,
            amount: arguments.amount,
            currency: &arguments.currency,
            origin: refund.ride.origin,
            target: refund.ride.target,
            charge_id,
        };
        Ok(Some((arguments.refund_id, self.0.mail(&receipt, &refund.ride.email)?)))
    }
}
