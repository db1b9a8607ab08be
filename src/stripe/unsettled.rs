//! What becomes of an attempt that does not know what became of its call.

use atomic_phases::idempotency::Stop;

use super::{ErrorReply, LookupError, NotSent, Unknown};

/// Why it is not settled whether a charge or a refund was made, as far as an attempt knows. The first part says which.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    /// Stripe has not seen the request.
    #[error("the {0} was not made")]
    NotSent(&'static str, #[source] NotSent),
    /// Stripe turned it down, for a reason that is not the card's.
    #[error("Stripe refused the {0}")]
    Refused(&'static str, #[source] ErrorReply),
    /// It may have been made; asking again with the same key tells.
    #[error("it is not known whether the {0} was made")]
    Unknown(&'static str, #[source] Unknown),
    /// Stripe may have forgotten the key, and it was not found out whether it was made.
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
