//! The operation behind `POST /rides/{id}/refund`: refunds a paid ride, in full and once.
//!
//! The row in `refunds` means that a request is about to refund the ride; its unique `ride_id` keeps a second one from
//! beginning.

use std::sync::Arc;
use std::time::Duration;

use atomic_phases::idempotency::{Attempt, Next, Opening, Operation, Phases, Response, Stop};
use atomic_phases::rules::{Found, Rule, When};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::endpoint::{Endpoint, ParamError, Refusal};
use crate::receipts::RefundReceipt;
use crate::stripe::{self, Refund, RefundOutcome, RefundRequest, Unsettled, books};

/// Refunds rides.
#[derive(Debug, Clone)]
pub struct Refunds {
    /// The client that makes the refund.
    pub stripe: stripe::Client,
    /// How long Stripe certainly remembers a refund's key.
    pub key_retention: Duration,
}

/// The ride to refund.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the name says it")]
pub struct RefundParams {
    pub ride_id: i64,
}

/// A refund's recovery points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundState {
    /// The refund has its row; Stripe may have made it.
    RefundCreated {
        /// The row.
        refund_id: i64,
        /// The ride that is refunded.
        ride_id: i64,
        /// The charge that Stripe is to refund.
        charge_id: String,
    },
}

impl Operation for Refunds {
    const NAME: &'static str = "refund";
    const PHASES: Phases = Phases {
        open: Opening {
            point: "refund_created",
            admit: include_str!("admit.sql"),
            effects: include_str!("open.sql"),
        },
        between: &[],
        close: include_str!("close.sql"),
    };

    type Params = RefundParams;
    type State = RefundState;

    fn rules(&self) -> Vec<Rule> {
        let ledger = Arc::new(books::Refunds(self.stripe.clone()));
        let made = (When::Always, include_str!("rule_made.sql"));
        let found = vec![Found::Ledger { ledger, sql: include_str!("rule_made_found.sql") }];
        vec![
            Rule::rows(
                "a refund is of its user's paid ride, and made when it says so",
                include_str!("rule_books.sql"),
            ),
            Rule::pairs("a ride is refunded here if it is at Stripe, and once", made, found),
        ]
    }

    async fn advance(
        &self,
        attempt: &Attempt<RefundParams>,
        state: RefundState,
    ) -> Result<Next<RefundState>, Stop> {
        let RefundState::RefundCreated { refund_id, ride_id, charge_id } = state;
        let refund = self.look_up_or_refund(attempt, ride_id, charge_id).await?;
        let Refund { stripe_refund_id, amount, currency } = refund;
        let receipt = RefundReceipt { refund_id, ride_id, user_id: attempt.user_id, amount, currency };
        let body = json!({ "message": "Your ride is refunded. The money is on its way back to your card." });
        Ok(Next::Close {
            response: Response::new(201, body.to_string()),
            jobs: vec![receipt.into()],
            data: json!({ "stripe_refund_id": stripe_refund_id }),
        })
    }
}

impl Endpoint for Refunds {
    const PATH: &'static str = "/rides/{id}/refund";
    const FIELDS: &'static [&'static str] = &[];
    const UNFINISHED: &'static str = "The ride could not be refunded yet. Repeat the request with the same \
        Idempotency-Key; it is refunded once at most.";

    fn params(id: Option<i64>, _: &dyn Fn(&str) -> Option<String>) -> Result<RefundParams, ParamError> {
        let ride_id = id.ok_or_else(|| ParamError { field: "id", problem: "is missing".to_owned() })?;
        Ok(RefundParams { ride_id })
    }

    fn refusal(word: &str) -> Option<Refusal> {
        Some(match word {
            // A user must not learn of another user's ride, not even that it exists.
            "no_such_ride" => Refusal { status: 404, text: "You have no such ride." },
            "not_paid" => Refusal { status: 409, text: "This ride is not paid, so there is nothing to refund." },
            "refunded_by_another" => {
                Refusal { status: 409, text: "This ride is refunded already, or about to be, by another request." }
            }
            _ => return None,
        })
    }
}

impl Refunds {
    /// Returns the refund, looked up or newly made. A charge is refunded as a whole, so an existing refund of it is the
    /// one.
    async fn look_up_or_refund(
        &self,
        attempt: &Attempt<RefundParams>,
        ride_id: i64,
        charge_id: String,
    ) -> Result<Refund, Stop> {
        const WHAT: &str = "refund";
        let look_up = |error| Unsettled::LookUp(WHAT, error);
        let call = attempt.lease.foreign_call;
        if call.age >= self.key_retention
            && let Some(refund) = self.stripe.find_refund(&charge_id).await.map_err(look_up)?
        {
            return Ok(refund);
        }
        attempt.has_time_for(self.stripe.timeout())?;
        let request = RefundRequest { charge_id, ride_id, idempotency_key: call.key };
        Err(match self.stripe.refund(&request).await {
            RefundOutcome::Refunded(refund) => return Ok(refund),
            RefundOutcome::AlreadyRefunded(reply) => {
                let found = self.stripe.find_refund(&request.charge_id).await.map_err(look_up)?;
                return found.ok_or_else(|| Unsettled::Refused(WHAT, reply).into());
            }
            RefundOutcome::NotSent(error) => Unsettled::NotSent(WHAT, error).into(),
            RefundOutcome::Refused(reply) => Unsettled::Refused(WHAT, reply).into(),
            RefundOutcome::Unknown(error) => Unsettled::Unknown(WHAT, error).into(),
        })
    }
}
