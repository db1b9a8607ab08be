//! The operation behind `POST /rides`: books a ride and charges the card.
//!
//! It makes one foreign call, the charge, between its two statements. What is sent to Stripe is stored with the ride
//! and never changes, because Stripe refuses a repetition whose parameters differ. So a new price, description or
//! customer affects new rides only.

mod params;
mod rules;

use std::time::Duration;

use atomic_phases::idempotency::{Attempt, Next, Opening, Operation, Phases, Response, Stop};
use atomic_phases::rules::Rule;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::endpoint::{Endpoint, ParamError, Refusal};
use crate::receipts::RideReceipt;
use crate::stripe::{self, ChargeOutcome, ChargeRequest, Unsettled};
pub use params::RideParams;

/// What a ride costs, in cents.
pub const PRICE: u32 = 2000;
/// The currency of the price.
pub const CURRENCY: &str = "usd";

/// The foreign call's name in errors.
const WHAT: &str = "charge";

/// Books rides.
#[derive(Debug, Clone)]
pub struct Rides {
    /// The client that makes the charge.
    pub stripe: stripe::Client,
    /// How long Stripe certainly remembers a charge's key.
    pub key_retention: Duration,
    /// What a new ride costs, in cents.
    pub price: u32,
}

/// A ride's recovery points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RideState {
    /// The ride exists; the card may have been charged.
    RideCreated {
        /// The row.
        ride_id: i64,
        /// What is sent to Stripe.
        charge: Charge,
    },
}

/// What each attempt sends to Stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are Stripe's")]
pub struct Charge {
    pub amount: u32,
    pub currency: String,
    pub customer: String,
    pub description: String,
}

impl Operation for Rides {
    const NAME: &'static str = "ride";
    const PHASES: Phases = Phases {
        open: Opening {
            point: "ride_created",
            admit: include_str!("admit.sql"),
            effects: include_str!("open.sql"),
        },
        between: &[],
        close: include_str!("close.sql"),
    };

    type Params = RideParams;
    type State = RideState;

    fn terms(&self) -> Value {
        json!({ "amount": self.price, "currency": CURRENCY })
    }

    fn rules(&self) -> Vec<Rule> {
        rules::rules(&self.stripe)
    }

    async fn advance(&self, attempt: &Attempt<RideParams>, state: RideState) -> Result<Next<RideState>, Stop> {
        let RideState::RideCreated { ride_id, charge } = state;
        match self.look_up_or_charge(attempt, ride_id, &charge).await? {
            ChargeOutcome::Charged { charge_id } => Ok(paid(attempt.user_id, ride_id, &charge, &charge_id)),
            ChargeOutcome::Declined { message } => Ok(declined(&message)),
            ChargeOutcome::NotSent(error) => Err(Unsettled::NotSent(WHAT, error).into()),
            ChargeOutcome::Refused(reply) => Err(Unsettled::Refused(WHAT, reply).into()),
            ChargeOutcome::Unknown(error) => Err(Unsettled::Unknown(WHAT, error).into()),
        }
    }
}

impl Endpoint for Rides {
    const PATH: &'static str = "/rides";
    const FIELDS: &'static [&'static str] = &["origin_lat", "origin_lon", "target_lat", "target_lon"];
    const UNFINISHED: &'static str = "The ride could not be finished yet. Repeat the request with the same \
        Idempotency-Key; the card is charged once at most.";

    fn params(_: Option<i64>, find: &dyn Fn(&str) -> Option<String>) -> Result<RideParams, ParamError> {
        RideParams::parse(find)
    }

    fn refusal(word: &str) -> Option<Refusal> {
        // The user was removed after the request was authenticated.
        (word == "unknown_user")
            .then_some(Refusal { status: 401, text: "The header Authorization names no user that we know." })
    }
}

impl Rides {
    async fn look_up_or_charge(
        &self,
        attempt: &Attempt<RideParams>,
        ride_id: i64,
        charge: &Charge,
    ) -> Result<ChargeOutcome, Stop> {
        let call = attempt.lease.foreign_call;
        if call.age >= self.key_retention {
            let found = self.stripe.find_charge(&charge.customer, call.key, call.intended_at).await;
            if let Some(charge_id) = found.map_err(|error| Unsettled::LookUp(WHAT, error))? {
                return Ok(ChargeOutcome::Charged { charge_id });
            }
        }
        attempt.has_time_for(self.stripe.timeout())?;
        let Charge { amount, currency, customer, description } = charge.clone();
        let request = ChargeRequest { amount, currency, customer, description, ride_id, idempotency_key: call.key };
        Ok(self.stripe.charge(&request).await)
    }
}

fn paid(user_id: i64, ride_id: i64, charge: &Charge, charge_id: &str) -> Next<RideState> {
    let (amount, currency) = (charge.amount, charge.currency.clone());
    let receipt = RideReceipt { ride_id, user_id, amount, currency };
    Next::Close {
        response: message(201, "message", "Your ride is booked and paid. The pilot is on the way.")
            .with_header("Location", format_args!("/rides/{ride_id}")),
        jobs: vec![receipt.into()],
        data: json!({ "charge_id": charge_id }),
    }
}

fn declined(reason: &str) -> Next<RideState> {
    let response = message(402, "error", &format!("The card was not charged: {reason}"));
    Next::Close { response, jobs: Vec::new(), data: Value::Null }
}

fn message(code: u16, key: &str, text: &str) -> Response {
    Response::new(code, json!({ key: text }).to_string())
}
