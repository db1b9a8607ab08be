//! Stripe, as far as this service needs it: a client whose answers say what is *known* about the money, and a
//! sandbox that stands in for the real thing.
//!
//! Whether a card was charged is never a matter of `Ok` and `Err`. A refused connection proves that nothing
//! happened; a timeout proves nothing at all; a decline is final. The caller must act differently on each, so
//! [`Client::charge`] returns a [`ChargeOutcome`], with a variant for each of these cases.
//!
//! This module makes no retries, on purpose. The caller owns the idempotency key, and only the caller can make a retry
//! outlive this process. Nor is there a trait over client and sandbox: the sandbox speaks HTTP, so tests and
//! demonstrations run the very client that production runs.

pub mod books;
mod client;
pub mod sandbox;
#[cfg(test)]
mod testing;
mod unsettled;

use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use secrecy::SecretString;
use serde::Deserialize;
use uuid::Uuid;

pub use client::{Client, ClientError, LedgerPage, ListedCharge, ListedRefund};
pub use unsettled::Unsettled;

/// The address of Stripe, unless the settings name another.
const STRIPE: &str = "https://api.stripe.com";

/// The metadata field of a charge that carries its idempotency key, by which [`Client::find_charge`] finds it
/// after Stripe has forgotten the key itself.
const KEY_METADATA: &str = "idempotency_key";

/// The metadata field of a charge that names the ride, for people who look at the charge at Stripe.
const RIDE_METADATA: &str = "ride_id";

/// `[stripe]`: the foreign call.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Scheme, host and port. Left out, it is this process's sandbox if that role runs, or else Stripe.
    pub api_base: Option<String>,
    /// The secret key; `STRIPE_API_KEY` is the place to set it.
    pub api_key: SecretString,
    /// Deadline for one whole call: connect, send, answer. An attempt makes two at most, and both must fit into
    /// the lease and into the shutdown's deadline.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long after the charge was first intended Stripe certainly still knows our idempotency key. Stripe promises
    /// 24 h. After this time, a charge is looked up before it is made.
    #[serde(with = "humantime_serde")]
    pub key_retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_base: None,
            api_key: SecretString::default(),
            timeout: Duration::from_secs(10),
            key_retention: Duration::from_secs(23 * 3600),
        }
    }
}

impl Settings {
    /// Returns a client of the configured Stripe: the one that `api_base` names, else this process's sandbox, else
    /// Stripe.
    pub fn client(&self, sandbox: Option<SocketAddr>) -> Result<Client, ClientError> {
        let api_base = match (&self.api_base, sandbox) {
            (Some(api_base), _) => api_base.clone(),
            (None, Some(sandbox)) => format!("http://{sandbox}"),
            (None, None) => STRIPE.to_owned(),
        };
        Client::new(&api_base, &self.api_key, self.timeout)
    }
}

/// One charge to be made, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargeRequest {
    /// In the currency's minor unit: cents for `usd`.
    pub amount: u32,
    /// Three-letter ISO code in lower case.
    pub currency: String,
    /// The Stripe customer whose default card pays, `cus_…`.
    pub customer: String,
    /// What the customer reads about it.
    pub description: String,
    /// The ride that is paid for.
    pub ride_id: i64,
    /// The same for every attempt at this charge, and random: a derived key would repeat when a database is
    /// created anew.
    pub idempotency_key: Uuid,
}

/// What is known about the money after an attempt to charge a card.
#[derive(Debug)]
pub enum ChargeOutcome {
    /// The card was charged, by this attempt or by an earlier one with the same idempotency key.
    Charged {
        /// Stripe's name for the charge, `ch_…`.
        charge_id: String,
    },
    /// The card was declined. Final: Stripe has stored this answer under the idempotency key.
    Declined {
        /// The reason in words meant for the cardholder.
        message: String,
    },
    /// Stripe has not seen the request. Safe to retry, with any key.
    NotSent(NotSent),
    /// The card may or may not have been charged. Retry with the same key only.
    Unknown(Unknown),
    /// Stripe turned the request down without charging. A retry makes sense once the cause is fixed.
    Refused(ErrorReply),
}

/// A charge to be refunded as a whole, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefundRequest {
    /// The charge, `ch_…`.
    pub charge_id: String,
    /// The ride that was paid with it.
    pub ride_id: i64,
    /// As [`ChargeRequest::idempotency_key`].
    pub idempotency_key: Uuid,
}

/// A refund that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refund {
    /// Stripe's name for it, `re_…`.
    pub stripe_refund_id: String,
    /// In the currency's minor unit.
    pub amount: u32,
    /// Three-letter ISO code in lower case.
    pub currency: String,
}

/// What is known about the money after an attempt to refund a charge.
#[derive(Debug)]
pub enum RefundOutcome {
    /// It was refunded, by this attempt or by an earlier one with the same idempotency key.
    Refunded(Refund),
    /// There is a refund of this charge, made with another key: by an attempt whose key Stripe has forgotten, or by a person.
    AlreadyRefunded(ErrorReply),
    /// As [`ChargeOutcome::NotSent`].
    NotSent(NotSent),
    /// As [`ChargeOutcome::Unknown`].
    Unknown(Unknown),
    /// As [`ChargeOutcome::Refused`].
    Refused(ErrorReply),
}

/// Proof that not a byte of a request reached Stripe.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    /// Name resolution, TCP or the TLS handshake failed, or no request could be formed at all.
    #[error("cannot connect to Stripe")]
    Connect(#[source] BoxError),
    /// The deadline passed while the connection was still being established.
    #[error("no connection to Stripe within {} ms", .0.as_millis())]
    TimedOut(Duration),
}

/// Why it is not known whether Stripe acted on a request.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The deadline passed after the request may have been sent.
    #[error("no answer from Stripe within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The connection broke before an answer began.
    #[error("the connection to Stripe broke before an answer came")]
    NoAnswer(#[source] BoxError),
    /// The connection broke within the answer.
    #[error("Stripe's answer (status {status}) broke off")]
    Truncated {
        /// The status that had arrived already.
        status: StatusCode,
        /// What ended the body.
        source: BoxError,
    },
    /// The answer is longer than anything that was asked for.
    #[error("Stripe's answer (status {status}) is longer than {limit} bytes")]
    TooLong {
        /// The status that had arrived already.
        status: StatusCode,
        /// The bound that it broke, in bytes.
        limit: usize,
    },
    /// A success that is not JSON, or lacks what such an answer always has.
    #[error("Stripe's answer (status {status}) makes no sense")]
    Garbled {
        /// The status of the answer.
        status: StatusCode,
        /// Where decoding stopped.
        source: serde_json::Error,
    },
    /// A charge or refund that exists, but has not succeeded.
    #[error("Stripe answered with a {what} that is {status:?}, not succeeded")]
    NotSucceeded {
        /// Which of the two.
        what: &'static str,
        /// Its `status`, empty if it had none.
        status: String,
    },
    /// Stripe failed (5xx), or something in between answered for it (a redirect, an odd 2xx).
    #[error("Stripe did not say what became of the request")]
    Failed(#[source] ErrorReply),
}

/// An answer that is not a success, in Stripe's error shape as far as it had that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("status {status}, {kind}/{code}: {message} (request {request_id})")]
pub struct ErrorReply {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stripe's `error.type`, such as `card_error`; empty if the answer was not Stripe's.
    pub kind: String,
    /// Stripe's `error.code`, such as `card_declined`; often empty.
    pub code: String,
    /// Stripe's `error.message`.
    pub message: String,
    /// The `Request-Id` header, by which Stripe's support finds the request.
    pub request_id: String,
}

/// Why a call returned no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Stripe has not seen the request.
    #[error(transparent)]
    NotSent(#[from] NotSent),
    /// Stripe may have acted on the request.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// Stripe turned the request down.
    #[error("Stripe refused the request")]
    Refused(#[source] ErrorReply),
}

/// Why a lookup could not decide whether a charge or refund exists.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// A page could not be fetched; a later lookup may succeed.
    #[error("cannot list the customer's charges")]
    Transient(#[source] CallError),
    /// The charges were listed, yet they do not decide it: a person must look.
    #[error("the customer's charges do not decide it: {0}")]
    Undecidable(&'static str),
}

/// An error of the layers below. Its type does not matter here; it is only logged.
type BoxError = Box<dyn std::error::Error + Send + Sync>;
