//! What the sandbox answers, in Stripe's shapes.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::json;

use super::books::Object;
use super::record::{Charge, ChargeStatus, Customer, Metadata, Refund};

/// A whole answer, before a fault may damage it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// Whether an earlier request was answered with this before.
    pub(super) replayed: bool,
    /// The methods that the URL allows, if the request's was none of them.
    pub(super) allowed: Option<&'static str>,
}

impl Reply {
    fn new(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("an answer has string keys only");
        Self { status, body: body.into(), replayed: false, allowed: None }
    }

    pub(super) fn ok(body: &impl Serialize) -> Self {
        Self::new(StatusCode::OK, body)
    }

    /// Returns the answer to the request that made this charge, now and whenever it is repeated.
    pub(super) fn created_charge(charge: &Charge) -> Self {
        match charge.status {
            _ if charge.failed_to_answer => ApiError::ServerError.into(),
            ChargeStatus::Succeeded | ChargeStatus::Pending => Self::ok(&ChargeBody::new(charge, false)),
            ChargeStatus::Failed => ApiError::Declined { charge: charge.id.clone() }.into(),
        }
    }

    /// Does the same as [`Reply::created_charge`], for a refund.
    pub(super) fn created_refund(refund: &Refund) -> Self {
        if refund.failed_to_answer { ApiError::ServerError.into() } else { Self::ok(&RefundBody::new(refund)) }
    }

    /// Returns the answer to the request that created this, as it was given then.
    pub(super) fn replay(object: &Object) -> Self {
        let first = match object {
            Object::Customer(customer) => Self::ok(&CustomerBody::new(customer)),
            Object::Charge(charge) => Self::created_charge(charge),
            Object::Refund(refund) => Self::created_refund(refund),
            Object::Failure(_) | Object::RefundFailure(_) => ApiError::ServerError.into(),
        };
        Self { replayed: true, ..first }
    }

    pub(super) fn page(charges: &[(Arc<Charge>, bool)], has_more: bool) -> Self {
        let data: Vec<_> = charges.iter().map(|(charge, refunded)| ChargeBody::new(charge, *refunded)).collect();
        Self::ok(&PageBody { object: "list", url: "/v1/charges", has_more, data })
    }

    pub(super) fn refund_page(refunds: &[Arc<Refund>], has_more: bool) -> Self {
        let data: Vec<_> = refunds.iter().map(|refund| RefundBody::new(refund)).collect();
        Self::ok(&PageBody { object: "list", url: "/v1/refunds", has_more, data })
    }
}

/// A charge as Stripe shows it.
#[derive(Serialize)]
pub(super) struct ChargeBody<'a> {
    id: &'a str,
    object: &'static str,
    amount: u32,
    captured: bool,
    created: u64,
    currency: &'a str,
    customer: &'a str,
    description: Option<&'a str>,
    failure_code: Option<&'static str>,
    livemode: bool,
    metadata: &'a Metadata,
    paid: bool,
    refunded: bool,
    status: ChargeStatus,
}

impl<'a> ChargeBody<'a> {
    pub(super) fn new(charge: &'a Charge, refunded: bool) -> Self {
        let paid = charge.status == ChargeStatus::Succeeded;
        Self {
            id: &charge.id,
            object: "charge",
            amount: charge.terms.amount,
            captured: paid,
            created: charge.created_ms / 1000,
            currency: &charge.terms.currency,
            customer: &charge.terms.customer,
            description: charge.terms.description.as_deref(),
            failure_code: (charge.status == ChargeStatus::Failed).then_some("card_declined"),
            livemode: false,
            metadata: &charge.terms.metadata,
            paid,
            refunded,
            status: charge.status,
        }
    }
}

/// A refund as Stripe shows it.
#[derive(Serialize)]
pub(super) struct RefundBody<'a> {
    id: &'a str,
    object: &'static str,
    amount: u32,
    charge: &'a str,
    created: u64,
    currency: &'a str,
    metadata: &'a Metadata,
    status: ChargeStatus,
}

impl<'a> RefundBody<'a> {
    fn new(refund: &'a Refund) -> Self {
        Self {
            id: &refund.id,
            object: "refund",
            amount: refund.amount,
            charge: &refund.terms.charge,
            created: refund.created_ms / 1000,
            currency: &refund.currency,
            metadata: &refund.terms.metadata,
            status: refund.status,
        }
    }
}

/// A customer as Stripe shows it.
#[derive(Serialize)]
pub(super) struct CustomerBody<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    email: Option<&'a str>,
    livemode: bool,
}

impl<'a> CustomerBody<'a> {
    pub(super) fn new(customer: &'a Customer) -> Self {
        Self {
            id: &customer.id,
            object: "customer",
            created: customer.created_ms / 1000,
            email: customer.terms.email.as_deref(),
            livemode: false,
        }
    }
}

#[derive(Serialize)]
struct PageBody<T> {
    object: &'static str,
    url: &'static str,
    has_more: bool,
    data: Vec<T>,
}

/// Every error that the sandbox returns.
#[derive(Debug)]
pub(super) enum ApiError {
    NoApiKey,
    NoSuchUrl { method: String, path: String },
    NoSuchMethod { allowed: &'static str },
    NoSuchObject { what: &'static str, id: String },
    NoSuchParameter { what: &'static str, id: String, parameter: &'static str },
    MissingParameter(&'static str),
    InvalidParameter(&'static str),
    UnknownParameter(String),
    UnreadableBody(String),
    BadIdempotencyKey,
    KeyReused,
    KeyInUse,
    Declined { charge: String },
    AlreadyRefunded { charge: String },
    NotPaid { charge: String },
    RateLimited,
    Revoked,
    Forbidden,
    ServerError,
}

impl ApiError {
    pub(super) fn invalid(parameter: &'static str) -> Self {
        Self::InvalidParameter(parameter)
    }

    pub(super) fn no_such_parameter(what: &'static str, id: &str, parameter: &'static str) -> Self {
        Self::NoSuchParameter { what, id: id.to_owned(), parameter }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NoApiKey | Self::Revoked => StatusCode::UNAUTHORIZED,
            Self::NoSuchUrl { .. } | Self::NoSuchObject { .. } => StatusCode::NOT_FOUND,
            Self::NoSuchMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoSuchParameter { .. }
            | Self::MissingParameter(_)
            | Self::InvalidParameter(_)
            | Self::UnknownParameter(_)
            | Self::UnreadableBody(_)
            | Self::BadIdempotencyKey
            | Self::AlreadyRefunded { .. }
            | Self::NotPaid { .. }
            | Self::KeyReused => StatusCode::BAD_REQUEST,
            Self::KeyInUse => StatusCode::CONFLICT,
            Self::Declined { .. } => StatusCode::PAYMENT_REQUIRED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns Stripe's `error.type`.
    fn kind(&self) -> &'static str {
        match self {
            Self::Declined { .. } => "card_error",
            Self::KeyReused | Self::KeyInUse => "idempotency_error",
            Self::ServerError => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// Returns Stripe's `error.code`, where it has one.
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::NoSuchObject { .. } | Self::NoSuchParameter { .. } => Some("resource_missing"),
            Self::MissingParameter(_) => Some("parameter_missing"),
            Self::InvalidParameter(_) => Some("parameter_invalid"),
            Self::UnknownParameter(_) => Some("parameter_unknown"),
            Self::KeyInUse => Some("idempotency_key_in_use"),
            Self::Declined { .. } => Some("card_declined"),
            Self::AlreadyRefunded { .. } => Some("charge_already_refunded"),
            Self::RateLimited => Some("rate_limit"),
            Self::Revoked => Some("api_key_expired"),
            Self::NoApiKey
            | Self::NoSuchUrl { .. }
            | Self::NoSuchMethod { .. }
            | Self::UnreadableBody(_)
            | Self::BadIdempotencyKey
            | Self::KeyReused
            | Self::NotPaid { .. }
            | Self::Forbidden
            | Self::ServerError => None,
        }
    }

    fn parameter(&self) -> Option<&str> {
        match self {
            Self::NoSuchParameter { parameter, .. }
            | Self::MissingParameter(parameter)
            | Self::InvalidParameter(parameter) => Some(parameter),
            Self::UnknownParameter(parameter) => Some(parameter),
            Self::NoSuchObject { .. } => Some("id"),
            _ => None,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::NoApiKey => "You did not provide an API key in the Authorization header.".to_owned(),
            Self::NoSuchUrl { method, path } => format!("Unrecognized request URL ({method}: {path})."),
            Self::NoSuchMethod { allowed } => format!("This URL allows {allowed} only."),
            Self::NoSuchObject { what, id } | Self::NoSuchParameter { what, id, .. } => {
                format!("No such {what}: '{id}'")
            }
            Self::MissingParameter(name) => format!("Missing required param: {name}."),
            Self::InvalidParameter(name) => format!("Invalid value for {name}."),
            Self::UnknownParameter(name) => format!("Received unknown parameter: {name}"),
            Self::UnreadableBody(why) => why.clone(),
            Self::BadIdempotencyKey => "Idempotency keys have 1 to 255 ASCII characters.".to_owned(),
            Self::KeyReused => "Keys for idempotent requests can only be used with the same parameters \
                                they were first used with."
                .to_owned(),
            Self::KeyInUse => {
                "There is currently another in-progress request using this Idempotency-Key.".to_owned()
            }
            Self::Declined { .. } => "Your card was declined.".to_owned(),
            Self::AlreadyRefunded { charge } => format!("Charge {charge} has already been refunded."),
            Self::NotPaid { charge } => format!("Charge {charge} took no money that could be refunded."),
            Self::RateLimited => "Request rate limit exceeded.".to_owned(),
            Self::Revoked => "Expired API Key provided.".to_owned(),
            Self::Forbidden => "The provided key does not have the required permissions.".to_owned(),
            Self::ServerError => "An unknown error occurred.".to_owned(),
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let mut body = json!({ "type": error.kind(), "message": error.message() });
        if let Some(code) = error.code() {
            body["code"] = code.into();
        }
        if let Some(parameter) = error.parameter() {
            body["param"] = parameter.into();
        }
        if let ApiError::Declined { charge } = &error {
            body["charge"] = charge.as_str().into();
            body["decline_code"] = "generic_decline".into();
        }
        let reply = Self::new(error.status(), &json!({ "error": body }));
        match error {
            ApiError::NoSuchMethod { allowed } => Self { allowed: Some(allowed), ..reply },
            _ => reply,
        }
    }
}
