//! A ride, from request to receipt: the state machine on top of the engine.
//!
//! The API and the completer both call [`Rides::drive`], and nothing else books a ride. It holds no transaction
//! and no connection while Stripe is asked: [`Database`] offers no way to.

mod params;
mod store;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Notify;

pub use params::{ParamError, RideParams};

use crate::clock::Clock;
use crate::database::{Database, DatabaseError};
use crate::idempotency::{Job, Lease, Response, settle};
use crate::stripe::{self, ChargeOutcome, ChargeRequest, LookupError};
use crate::users::User;

/// What a ride costs, in cents.
pub const PRICE: u32 = 2000;
/// And in which currency.
pub const CURRENCY: &str = "usd";
/// The job that follows a paid ride.
pub const RECEIPT_JOB: &str = "send_ride_receipt";

/// Where a ride's request resumes. Stored on the key; advances one step at a time and never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecoveryPoint {
    /// The key exists.
    Started,
    /// The ride exists; the card may have been charged.
    RideCreated,
    /// The card was charged, and the ride knows the charge.
    ChargeCreated,
    /// The answer is stored.
    Finished,
}

impl RecoveryPoint {
    const ALL: [Self; 4] = [Self::Started, Self::RideCreated, Self::ChargeCreated, Self::Finished];

    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::RideCreated => "ride_created",
            Self::ChargeCreated => "charge_created",
            Self::Finished => "finished",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.name() == name)
    }
}

/// Why an attempt did not finish the request. Nothing here is final: a later attempt goes on from the recovery
/// point that was reached.
#[derive(Debug, thiserror::Error)]
pub enum RideError {
    /// Somebody else took the lease over; nothing was written since.
    #[error("the lease was lost")]
    LeaseLost,
    /// Stripe has not seen the charge.
    #[error("the card was not charged")]
    NotSent(#[source] stripe::NotSent),
    /// Stripe turned the charge down for a reason that is not the card's.
    #[error("Stripe refused the charge")]
    Refused(#[source] stripe::ErrorReply),
    /// The charge may have been made; asking again with the same key tells.
    #[error("it is not known whether the card was charged")]
    Unknown(#[source] stripe::Unknown),
    /// Stripe may have forgotten the charge's key, and it was not found out whether the charge was made.
    #[error("it was not found out whether the card was charged earlier")]
    LookUp(#[source] LookupError),
    /// A phase could not be carried out.
    #[error("a phase was not carried out")]
    Database(#[from] DatabaseError),
    /// What is stored on the key is not of this program's making.
    #[error("the stored request makes no sense: {0}")]
    Corrupt(String),
    /// The client asked for a failure, to see what happens.
    #[error("the client asked for a failure")]
    Raised,
}

/// A request in hand: the lease on its key, and what it asks for.
#[derive(Debug, Clone)]
pub struct Booking {
    /// The right to work on it.
    pub lease: Lease,
    /// Who pays.
    pub user: User,
    /// What is asked for.
    pub params: RideParams,
    /// Fail between the ride and the charge; a demonstration's own wish, and no part of the stored request.
    pub raise_error: bool,
}

/// How an attempt ended, and how far it came.
#[derive(Debug)]
pub struct Driven {
    /// The answer, or why there is none yet.
    pub result: Result<Response, RideError>,
    /// The recovery point that is now on the key, as far as this attempt knows.
    pub reached: RecoveryPoint,
}

/// The state of one attempt: a recovery point with what the next phase needs.
#[derive(Debug)]
enum Step {
    Started,
    RideCreated { ride_id: i64 },
    ChargeCreated { ride_id: i64 },
    Finished(Response),
}

/// Books rides.
#[derive(Debug, Clone)]
pub struct Rides {
    database: Database,
    stripe: stripe::Client,
    key_retention: Duration,
    staged: Arc<Notify>,
    clock: Clock,
}

impl Rides {
    /// `key_retention` is how long Stripe surely remembers a charge's key; `staged` is notified of every job that
    /// was staged.
    pub fn new(database: Database, stripe: stripe::Client, key_retention: Duration, staged: Arc<Notify>) -> Self {
        Self { database, stripe, key_retention, staged, clock: Clock::default() }
    }

    /// The same, by another clock.
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Takes the request as far as it will go. On any failure the lease is given back, unless it is no longer
    /// ours.
    pub async fn drive(&self, booking: &Booking) -> Driven {
        let mut reached = RecoveryPoint::parse(&booking.lease.recovery_point).unwrap_or(RecoveryPoint::Started);
        let result = self.advance(booking, &mut reached).await;
        if let Err(error) = &result {
            self.let_go(&booking.lease, error).await;
        }
        Driven { result, reached }
    }

    async fn advance(&self, booking: &Booking, reached: &mut RecoveryPoint) -> Result<Response, RideError> {
        let mut step = self.resume(&booking.lease).await?;
        loop {
            *reached = step.recovery_point();
            step = match step {
                Step::Started => self.create_ride(booking).await?,
                Step::RideCreated { .. } if booking.raise_error => return Err(RideError::Raised),
                Step::RideCreated { ride_id } => self.charge(booking, ride_id).await?,
                Step::ChargeCreated { ride_id } => self.finish_paid(booking, ride_id).await?,
                Step::Finished(response) => return Ok(response),
            };
        }
    }

    async fn resume(&self, lease: &Lease) -> Result<Step, RideError> {
        let point = RecoveryPoint::parse(&lease.recovery_point)
            .ok_or_else(|| RideError::Corrupt(format!("recovery point {:?}", lease.recovery_point)))?;
        let ride = async {
            let ride = store::find_ride(&self.database, lease).await?;
            ride.ok_or_else(|| RideError::Corrupt(format!("{} without a ride", point.name())))
        };
        match point {
            RecoveryPoint::Started => Ok(Step::Started),
            RecoveryPoint::RideCreated => Ok(Step::RideCreated { ride_id: ride.await? }),
            RecoveryPoint::ChargeCreated => Ok(Step::ChargeCreated { ride_id: ride.await? }),
            RecoveryPoint::Finished => Err(RideError::Corrupt("a lease on a finished request".to_owned())),
        }
    }

    async fn create_ride(&self, booking: &Booking) -> Result<Step, RideError> {
        let ride_id = store::create_ride(&self.database, &booking.lease, booking.params).await?;
        Ok(Step::RideCreated { ride_id: ride_id.ok_or(RideError::LeaseLost)? })
    }

    /// The foreign call. Its outcome's type decides what follows.
    async fn charge(&self, booking: &Booking, ride_id: i64) -> Result<Step, RideError> {
        match self.look_up_or_charge(booking, ride_id).await? {
            ChargeOutcome::Charged { charge_id } => {
                let fresh = store::record_charge(&self.database, &booking.lease, charge_id).await?;
                if fresh { Ok(Step::ChargeCreated { ride_id }) } else { Err(RideError::LeaseLost) }
            }
            ChargeOutcome::Declined { message } => self.finish_declined(booking, &message).await,
            ChargeOutcome::NotSent(error) => Err(RideError::NotSent(error)),
            ChargeOutcome::Refused(reply) => Err(RideError::Refused(reply)),
            ChargeOutcome::Unknown(error) => Err(RideError::Unknown(error)),
        }
    }

    async fn look_up_or_charge(&self, booking: &Booking, ride_id: i64) -> Result<ChargeOutcome, RideError> {
        let Booking { lease, user, .. } = booking;
        if let Some(intent) = lease.foreign_call_intent
            && intent.age >= self.key_retention
        {
            let found = self.stripe.find_charge(&user.stripe_customer_id, lease.foreign_call_key, intent.at).await;
            if let Some(charge_id) = found.map_err(RideError::LookUp)? {
                return Ok(ChargeOutcome::Charged { charge_id });
            }
        }
        let request = ChargeRequest {
            amount: PRICE,
            currency: CURRENCY.to_owned(),
            customer: user.stripe_customer_id.clone(),
            // Stripe refuses a repetition whose parameters differ. So they follow from the ride alone, and a release
            // that changes price or wording leaves the requests that are unfinished just then for a person.
            description: format!("Rocket ride {ride_id}"),
            ride_id,
            idempotency_key: lease.foreign_call_key,
        };
        // A worker that was paused, before the look-up or after it, could otherwise charge long after another has,
        // when Stripe no longer knows the key that both use. The whole call must fit into the lease.
        if self.clock.now() + self.stripe.timeout() >= lease.runs_out {
            return Err(RideError::LeaseLost);
        }
        Ok(self.stripe.charge(&request).await)
    }

    async fn finish_paid(&self, booking: &Booking, ride_id: i64) -> Result<Step, RideError> {
        let response = message(201, "message", "Your ride is booked and paid. The pilot is on the way.");
        let job = Job {
            name: RECEIPT_JOB,
            args: json!({
                "ride_id": ride_id, "user_id": booking.user.id, "amount": PRICE, "currency": CURRENCY,
            }),
        };
        let step = self.finish(booking, RecoveryPoint::ChargeCreated, response, Some(&job)).await?;
        self.staged.notify_one();
        Ok(step)
    }

    async fn finish_declined(&self, booking: &Booking, reason: &str) -> Result<Step, RideError> {
        let response = message(402, "error", &format!("The card was not charged: {reason}"));
        self.finish(booking, RecoveryPoint::RideCreated, response, None).await
    }

    async fn finish(
        &self,
        booking: &Booking,
        from: RecoveryPoint,
        response: Response,
        job: Option<&Job>,
    ) -> Result<Step, RideError> {
        let finished = settle::finish(&self.database, &booking.lease, from.name(), &response, job).await?;
        if finished { Ok(Step::Finished(response)) } else { Err(RideError::LeaseLost) }
    }

    async fn let_go(&self, lease: &Lease, error: &RideError) {
        let reason = crate::errors::chain(error);
        let settled = match error {
            RideError::LeaseLost => return,
            RideError::LookUp(LookupError::Undecidable(_)) | RideError::Corrupt(_) => {
                settle::park(&self.database, lease, &reason).await
            }
            RideError::NotSent(_)
            | RideError::Refused(_)
            | RideError::Unknown(_)
            | RideError::LookUp(LookupError::Transient(_))
            | RideError::Database(_)
            | RideError::Raised => settle::release(&self.database, lease, &reason).await,
        };
        if let Err(error) = settled {
            tracing::warn!(
                key_id = lease.key_id,
                error = crate::errors::chain(&error),
                "a lease could not be given back; it runs out by itself"
            );
        }
    }
}

impl Step {
    fn recovery_point(&self) -> RecoveryPoint {
        match self {
            Self::Started => RecoveryPoint::Started,
            Self::RideCreated { .. } => RecoveryPoint::RideCreated,
            Self::ChargeCreated { .. } => RecoveryPoint::ChargeCreated,
            Self::Finished(_) => RecoveryPoint::Finished,
        }
    }
}

fn message(code: u16, key: &str, text: &str) -> Response {
    Response { code, body: json!({ key: text }).to_string() }
}
