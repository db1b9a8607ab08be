//! Decides what becomes of an attempt whose call had no certain outcome.

use atomic_phases::idempotency::Stop;

use super::{ErrorReply, LookupError, NotSent, Unknown};

/// Why an attempt ends without a certain charge or refund. The first field names which of the two.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    /// Stripe has not seen the request.
    #[error("the {0} was not made")]
    NotSent(&'static str, #[source] NotSent),
    /// Stripe refused it, for a reason that is not the card's.
    #[error("Stripe refused the {0}")]
    Refused(&'static str, #[source] ErrorReply),
    /// It may have been made; a repetition with the same key returns the outcome.
    #[error("it is not known whether the {0} was made")]
    Unknown(&'static str, #[source] Unknown),
    /// Stripe may have forgotten the key, and a lookup did not find out whether it was made.
    #[error("it was not found out whether the {0} was made earlier")]
    LookUp(&'static str, #[source] LookupError),
}

impl From<Unsettled> for Stop {
    fn from(unsettled: Unsettled) -> Self {
        match unsettled {
            Unsettled::LookUp(_, LookupError::Undecidable(_)) => Self::Park(unsettled.into()),
            Unsettled::NotSent(..)
            | Unsettled::Refused(..)
            | Unsettled::Unknown(..)
            | Unsettled::LookUp(_, LookupError::Transient(_)) => Self::Retry(unsettled.into()),
        }
    }
}
