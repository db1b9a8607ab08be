//! The calls this service makes to Stripe.
//!
//! Every answer is judged by what it proves (see [`ChargeOutcome`]); where it proves nothing, `Unknown` is the
//! safe reading, because a retry with the same idempotency key is answered with the truth. For the same reason
//! a decline counts only if Stripe itself says `card_error`: a 402 from something in between must not become
//! a final answer to a customer.

mod exchange;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

use self::exchange::{Reply, Transport};
use super::{
    CallError, ChargeOutcome, ChargeRequest, ErrorReply, KEY_METADATA, LookupError, NotSent, RIDE_METADATA, Refund,
    RefundOutcome, RefundRequest, Unknown,
};

/// Stripe shapes its answers by this version; without it, by whatever the account was created with.
const API_VERSION: &str = "2024-06-20";
/// The most that Stripe lists at once.
const PAGE: usize = 100;
/// Pages a lookup reads before it gives up. Five thousand charges of one customer in the few days that a key
/// lives are not a customer's doing.
const MAX_PAGES: usize = 50;
/// Stripe's messages are sentences; a proxy's need not be.
const MESSAGE_CHARACTERS: usize = 500;
/// How much earlier than asked a lookup begins. Stripe's clock is not ours, and a charge missed because of that
/// would be made twice; looking back too far costs a page at most.
const CLOCK_MARGIN: Duration = Duration::from_secs(600);

/// Why no client could be made of the configuration. The API key appears in none of them.
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
    /// A client of the Stripe at `api_base`, with a deadline of `timeout` for each call. Nothing is connected before
    /// the first one.
    pub fn new(api_base: &str, api_key: &SecretString, timeout: Duration) -> Result<Self, ClientError> {
        let key = api_key.expose_secret();
        if key.is_empty() {
            return Err(ClientError::Key);
        }
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ClientError::Key)?;
        authorization.set_sensitive(true);
        Ok(Self { transport: Transport::new()?, base: parse_base(api_base)?, authorization, timeout })
    }

    /// The deadline of each call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Charges a card, and says within the configured timeout what is known about it.
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

    /// Looks among the customer's charges since `created_since` for one that succeeded and carries
    /// `idempotency_key`: the way to learn what became of a charge once Stripe may have forgotten its key.
    ///
    /// `None` is proof that there is none, provided that `created_since` is not after the first attempt. The
    /// whole lookup, however many pages it takes, keeps to the configured timeout.
    pub async fn find_charge(
        &self,
        customer: &str,
        idempotency_key: Uuid,
        created_since: SystemTime,
    ) -> Result<Option<String>, LookupError> {
        let deadline = Instant::now() + self.timeout;
        let key = idempotency_key.to_string();
        let since = created_since.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_MARGIN);
        let mut last_seen: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let path = list_path("/v1/charges", Some(("customer", customer)), Some(since), last_seen.as_deref());
            let page: Page<Charge> = self.get(&path, deadline).await.map_err(LookupError::Transient)?;

            for charge in &page.data {
                if charge.metadata.get(KEY_METADATA).is_some_and(|found| *found == key) {
                    match charge.status.as_str() {
                        SUCCEEDED => return Ok(Some(charge.id.clone())),
                        // A declined attempt; another one with the same key may have succeeded.
                        "failed" => {}
                        _ => return Err(LookupError::Undecidable("one has neither succeeded nor failed")),
                    }
                }
            }
            if !page.has_more {
                return Ok(None);
            }
            let last = page.data.into_iter().next_back();
            last_seen = Some(last.ok_or(LookupError::Undecidable("a page is empty, yet not the last"))?.id);
        }
        Err(LookupError::Undecidable("there are too many"))
    }

    /// Refunds a charge as a whole, and says within the configured timeout what is known about it.
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

    /// The refund of this charge that succeeded, if there is one.
    pub async fn find_refund(&self, charge_id: &str) -> Result<Option<Refund>, LookupError> {
        let deadline = Instant::now() + self.timeout;
        let mut last_seen: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let path = list_path("/v1/refunds", Some(("charge", charge_id)), None, last_seen.as_deref());
            let page: Page<RefundBody> = self.get(&path, deadline).await.map_err(LookupError::Transient)?;
            for refund in &page.data {
                match refund.status.as_str() {
                    SUCCEEDED => return Ok(Some(refund.clone().into())),
                    "failed" | "canceled" => {}
                    _ => return Err(LookupError::Undecidable("one has neither succeeded nor failed")),
                }
            }
            if !page.has_more {
                return Ok(None);
            }
            let last = page.data.into_iter().next_back();
            last_seen = Some(last.ok_or(LookupError::Undecidable("a page is empty, yet not the last"))?.id);
        }
        Err(LookupError::Undecidable("there are too many"))
    }

    /// A page of the account's refunds, as [`Client::list_charges`].
    pub async fn list_refunds(&self, after: Option<&str>) -> Result<LedgerPage<ListedRefund>, CallError> {
        let path = list_path("/v1/refunds", None, None, after);
        let page: Page<RefundBody> = self.get(&path, Instant::now() + self.timeout).await?;
        let next = page.data.last().map(|refund| refund.id.clone()).filter(|_| page.has_more);
        let listed = |refund: RefundBody| ListedRefund {
            succeeded: refund.status == SUCCEEDED,
            charge_id: refund.charge,
            id: refund.id,
        };
        Ok(LedgerPage { entries: page.data.into_iter().map(listed).collect(), next })
    }

    /// A page of the account's charges, newest first: the ledger that this service's own books are checked against.
    /// `after` is the last id of the page before.
    pub async fn list_charges(&self, after: Option<&str>) -> Result<LedgerPage<ListedCharge>, CallError> {
        let path = list_path("/v1/charges", None, None, after);
        let page: Page<Charge> = self.get(&path, Instant::now() + self.timeout).await?;
        let next = page.data.last().map(|charge| charge.id.clone()).filter(|_| page.has_more);
        let listed = |charge: Charge| ListedCharge {
            succeeded: charge.status == SUCCEEDED,
            idempotency_key: charge.metadata.get(KEY_METADATA).and_then(|key| key.parse().ok()),
            ride_id: charge.metadata.get(RIDE_METADATA).and_then(|id| id.parse().ok()),
            customer: charge.customer.unwrap_or_default(),
            id: charge.id,
        };
        Ok(LedgerPage { entries: page.data.into_iter().map(listed).collect(), next })
    }

    /// Whether Stripe knows this customer.
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
        let request = self
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("idempotency-key", idempotency_key);
        let deadline = Instant::now() + self.timeout;
        self.send(request, Full::from(form), deadline).await
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

    /// Sends the request, and sorts the answer's status by what it proves.
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
    /// Never fails: a proxy's HTML page is an error reply too, one that says nothing.
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

    fn is_decline(&self) -> bool {
        self.status == StatusCode::PAYMENT_REQUIRED && self.kind == "card_error"
    }
}

/// The status of a charge that has taken the money.
const SUCCEEDED: &str = "succeeded";

/// A charge as Stripe's books have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCharge {
    /// `ch_…`.
    pub id: String,
    /// `cus_…`; empty if the charge has none.
    pub customer: String,
    /// Whether it took the money.
    pub succeeded: bool,
    /// The key that it was made with, if it was made by this service.
    pub idempotency_key: Option<Uuid>,
    /// The ride that it pays for, likewise.
    pub ride_id: Option<i64>,
}

/// A refund as Stripe's books have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRefund {
    /// `re_…`.
    pub id: String,
    /// What is refunded, `ch_…`.
    pub charge_id: String,
    /// Whether the money went back.
    pub succeeded: bool,
}

/// A part of Stripe's books.
#[derive(Debug, Clone)]
pub struct LedgerPage<T> {
    /// Newest first.
    pub entries: Vec<T>,
    /// Where the next page starts, if there is one.
    pub next: Option<String>,
}

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

#[derive(Clone, Deserialize)]
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
struct Page<T> {
    data: Vec<T>,
    has_more: bool,
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

/// A message that is fit for a log, a column and an answer, whatever was sent in its place.
fn legible(message: &str) -> String {
    message.chars().filter(|character| !character.is_control()).take(MESSAGE_CHARACTERS).collect()
}

/// Where a page of the list at this path is, newest first: all of it, or what is of one object, and since some time.
fn list_path(
    path: &str,
    of: Option<(&str, &str)>,
    since: Option<Duration>,
    starting_after: Option<&str>,
) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("limit", &PAGE.to_string());
    if let Some((name, id)) = of {
        query.append_pair(name, id);
    }
    if let Some(since) = since {
        query.append_pair("created[gte]", &since.as_secs().to_string());
    }
    if let Some(id) = starting_after {
        query.append_pair("starting_after", id);
    }
    format!("{path}?{}", query.finish())
}

fn decode<T: DeserializeOwned>(reply: &Reply) -> Result<T, CallError> {
    serde_json::from_slice(&reply.body).map_err(|source| Unknown::Garbled { status: reply.status, source }.into())
}

/// A string that is not empty: an id that names nothing must not pass for one.
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
