//! The calls this service makes to Stripe.
//!
//! Every answer is classified by what it proves (see [`ChargeOutcome`]). Where it proves nothing, `Unknown` is the safe
//! outcome, because a retry with the same idempotency key is answered with what really happened. For the same reason a
//! decline counts only with Stripe's own error type `card_error`: a 402 from something in between must not become a
//! final answer to a customer.

mod exchange;
mod lists;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use form_urlencoded::Serializer;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::http::request;
use hyper::{Method, Request, StatusCode, Uri};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

pub use self::lists::{LedgerPage, ListedCharge, ListedRefund};

use self::exchange::{Reply, Transport};
use super::{
    CallError, ChargeOutcome, ChargeRequest, ErrorReply, KEY_METADATA, NotSent, RIDE_METADATA, Refund,
    RefundOutcome, RefundRequest, Unknown,
};

/// Stripe's answers have the form of this version; without it, that of the version which the account was created with.
const API_VERSION: &str = "2024-06-20";
/// How much of a message is kept. Stripe's messages are sentences; a proxy's need not be.
const MESSAGE_CHARACTERS: usize = 500;
/// The pauses before a key that is in use at Stripe is tried again; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Why no client could be made with the settings. No variant holds the API key.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// `stripe.api_base` is not an absolute `http` or `https` URL, or has more than a path after the host.
    #[error("stripe.api_base must be like https://api.stripe.com, without user, query or fragment")]
    Base,
    /// `stripe.api_key` is empty or has characters that no header may have.
    #[error("stripe.api_key is empty or has characters that cannot be sent in a header")]
    Key,
    /// The TLS library rejected its own defaults.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// A client for Stripe's API. Clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
    base: String,
    /// Marked sensitive, so that `Debug` of this client and of its requests hides it.
    authorization: HeaderValue,
    timeout: Duration,
}

impl Client {
    /// Makes a client of the Stripe at `api_base`, with a deadline of `timeout` for each call. It connects at the first
    /// call.
    pub fn new(api_base: &str, api_key: &SecretString, timeout: Duration) -> Result<Self, ClientError> {
        let key = api_key.expose_secret();
        if key.is_empty() {
            return Err(ClientError::Key);
        }
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ClientError::Key)?;
        authorization.set_sensitive(true);
        Ok(Self { transport: Transport::new()?, base: parse_base(api_base)?, authorization, timeout })
    }

    /// Returns the deadline of each call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Charges a card, and returns within the configured timeout what is known about it.
    pub async fn charge(&self, charge: &ChargeRequest) -> ChargeOutcome {
        let key = charge.idempotency_key.to_string();
        let form = Serializer::new(String::new())
            .append_pair("amount", &charge.amount.to_string())
            .append_pair("currency", &charge.currency)
            .append_pair("customer", &charge.customer)
            .append_pair("description", &charge.description)
            .append_pair(&format!("metadata[{KEY_METADATA}]"), &key)
            .append_pair(&format!("metadata[{RIDE_METADATA}]"), &charge.ride_id.to_string())
            .finish();
        match self.post("/v1/charges", &key, form).await.and_then(|reply| decode::<Charge>(&reply)) {
            Ok(charge) if charge.status == SUCCEEDED => ChargeOutcome::Charged { charge_id: charge.id },
            Ok(Charge { status, .. }) => ChargeOutcome::Unknown(Unknown::NotSucceeded { what: "charge", status }),
            Err(CallError::Refused(reply)) if reply.is_decline() => {
                ChargeOutcome::Declined { message: reply.message }
            }
            Err(CallError::Refused(reply)) => ChargeOutcome::Refused(reply),
            Err(CallError::NotSent(why)) => ChargeOutcome::NotSent(why),
            Err(CallError::Unknown(why)) => ChargeOutcome::Unknown(why),
        }
    }

    /// Refunds a charge as a whole, and returns within the configured timeout what is known about it.
    pub async fn refund(&self, refund: &RefundRequest) -> RefundOutcome {
        let key = refund.idempotency_key.to_string();
        let form = Serializer::new(String::new())
            .append_pair("charge", &refund.charge_id)
            .append_pair(&format!("metadata[{KEY_METADATA}]"), &key)
            .append_pair(&format!("metadata[{RIDE_METADATA}]"), &refund.ride_id.to_string())
            .finish();
        match self.post("/v1/refunds", &key, form).await.and_then(|reply| decode::<RefundBody>(&reply)) {
            Ok(refund) if refund.status == SUCCEEDED => RefundOutcome::Refunded(refund.into()),
            Ok(RefundBody { status, .. }) => {
                RefundOutcome::Unknown(Unknown::NotSucceeded { what: "refund", status })
            }
            Err(CallError::Refused(reply)) if reply.code == "charge_already_refunded" => {
                RefundOutcome::AlreadyRefunded(reply)
            }
            Err(CallError::Refused(reply)) => RefundOutcome::Refused(reply),
            Err(CallError::NotSent(why)) => RefundOutcome::NotSent(why),
            Err(CallError::Unknown(why)) => RefundOutcome::Unknown(why),
        }
    }

    /// Returns whether Stripe knows this customer.
    pub async fn has_customer(&self, customer: &str) -> Result<bool, CallError> {
        let deadline = Instant::now() + self.timeout;
        match self.get::<Customer>(&format!("/v1/customers/{customer}"), deadline).await {
            Ok(_) => Ok(true),
            Err(CallError::Refused(reply)) if reply.status == StatusCode::NOT_FOUND => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates a customer who pays with the card behind `source_token`, and returns its id, `cus_…`.
    pub async fn create_customer(
        &self,
        email: &str,
        source_token: &str,
        idempotency_key: Uuid,
    ) -> Result<String, CallError> {
        let form =
            Serializer::new(String::new()).append_pair("email", email).append_pair("source", source_token).finish();
        let reply = self.post("/v1/customers", &idempotency_key.to_string(), form).await?;
        decode::<Customer>(&reply).map(|customer| customer.id)
    }

    async fn post(&self, path: &str, idempotency_key: &str, form: String) -> Result<Reply, CallError> {
        let deadline = Instant::now() + self.timeout;
        let form = Bytes::from(form);
        let mut pause = FIRST_PAUSE;
        loop {
            let request = self
                .request(Method::POST, path)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header("idempotency-key", idempotency_key);
            match self.send(request, Full::from(form.clone()), deadline).await {
                Err(CallError::Refused(reply)) if reply.is_in_use() && Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                done => return done,
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, deadline: Instant) -> Result<T, CallError> {
        decode(&self.send(self.request(Method::GET, path), Full::default(), deadline).await?)
    }

    fn request(&self, method: Method, path: &str) -> request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("rocket-rides-atomic/", env!("CARGO_PKG_VERSION")))
            .header("stripe-version", API_VERSION)
    }

    /// Sends the request, and classifies the answer's status by what it proves.
    async fn send(
        &self,
        request: request::Builder,
        body: Full<Bytes>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let request = request.body(body).map_err(|error| NotSent::Connect(error.into()))?;
        let reply = self.transport.exchange(request, deadline, self.timeout).await?;
        if reply.status == StatusCode::OK {
            Ok(reply)
        } else if reply.status.is_client_error() {
            Err(CallError::Refused(ErrorReply::read(&reply)))
        } else {
            Err(Unknown::Failed(ErrorReply::read(&reply)).into())
        }
    }
}

impl ErrorReply {
    /// Reads an error reply. Never fails: a proxy's HTML page is an error reply too, with empty fields.
    fn read(reply: &Reply) -> Self {
        let Envelope { error } = serde_json::from_slice(&reply.body).unwrap_or_default();
        Self {
            status: reply.status,
            kind: error.kind.unwrap_or_default(),
            code: error.code.unwrap_or_default(),
            message: legible(&error.message.unwrap_or_default()),
            request_id: reply.request_id.clone(),
        }
    }

    /// Whether Stripe is still at work on an earlier request with this key, whose sender may have died: it will soon have
    /// an answer.
    fn is_in_use(&self) -> bool {
        self.status == StatusCode::CONFLICT && self.code == "idempotency_key_in_use"
    }

    fn is_decline(&self) -> bool {
        self.status == StatusCode::PAYMENT_REQUIRED && self.kind == "card_error"
    }
}

/// The status of a charge that has taken the money.
const SUCCEEDED: &str = "succeeded";

#[derive(Deserialize)]
struct Charge {
    #[serde(deserialize_with = "filled")]
    id: String,
    #[serde(default)]
    customer: Option<String>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    metadata: HashMap<String, String>,
}

#[derive(Deserialize)]
struct RefundBody {
    #[serde(deserialize_with = "filled")]
    id: String,
    charge: String,
    amount: u32,
    currency: String,
    #[serde(default)]
    status: String,
}

impl From<RefundBody> for Refund {
    fn from(refund: RefundBody) -> Self {
        Self { stripe_refund_id: refund.id, amount: refund.amount, currency: refund.currency }
    }
}

#[derive(Deserialize)]
struct Customer {
    #[serde(deserialize_with = "filled")]
    id: String,
}

#[derive(Default, Deserialize)]
struct Envelope {
    error: EnvelopeError,
}

#[derive(Default, Deserialize)]
struct EnvelopeError {
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

/// Returns a message that is fit for a log, a column and an answer, whatever text it was made from.
fn legible(message: &str) -> String {
    message.chars().filter(|character| !character.is_control()).take(MESSAGE_CHARACTERS).collect()
}

fn decode<T: DeserializeOwned>(reply: &Reply) -> Result<T, CallError> {
    serde_json::from_slice(&reply.body).map_err(|source| Unknown::Garbled { status: reply.status, source }.into())
}

/// Reads a string that is not empty: an empty id must not pass for an id.
fn filled<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(serde::de::Error::custom("an id is empty")) } else { Ok(text) }
}

/// Checks the base once, so that a typing error stops the process at boot and not the first ride.
fn parse_base(base: &str) -> Result<String, ClientError> {
    let uri: Uri = base.parse().map_err(|_| ClientError::Base)?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    let user = uri.authority().is_none_or(|authority| authority.as_str().contains('@'));
    // The parser drops a fragment silently, hence the look at the text.
    if !http || user || uri.query().is_some() || base.contains('#') {
        return Err(ClientError::Base);
    }
    Ok(base.trim_end_matches('/').to_owned())
}
