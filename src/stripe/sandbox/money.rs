//! `POST /v1/charges` and `/v1/refunds`: the requests that would move money, with all their faults.
//!
//! A request passes three stages, and each fault belongs to one of them: before Stripe has looked at the
//! request, in the execution, and on the way back. Only the execution touches the ledger, and it runs as a task
//! of its own: like the real Stripe, it finishes a request whose client has hung up.

use std::io;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use serde_json::Value;

use super::books::Object;
use super::faults::{Draw, Fault};
use super::ledger::{Claim, Claimed};
use super::record::{ChargeStatus, ChargeTerms, RefundTerms, Source};
use super::reply::{ApiError, Reply};
use super::{Sandbox, not_recorded, respond};
use crate::http::{Body, HangUp};

/// The parameters of a charge or a refund.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Terms {
    Charge(ChargeTerms),
    Refund(RefundTerms),
}

pub(super) async fn create(
    sandbox: &Arc<Sandbox>,
    key: Option<String>,
    terms: Result<Terms, ApiError>,
) -> Result<Response<Body>, HangUp> {
    let draw = sandbox.faults.draw();
    let early = match draw.fault {
        Fault::Reset => return Err(HangUp),
        Fault::ServerError => Some(ApiError::ServerError),
        Fault::RateLimited => Some(ApiError::RateLimited),
        Fault::Conflict => Some(ApiError::KeyInUse),
        Fault::BadRequest => Some(ApiError::invalid("amount")),
        Fault::Unauthorized => Some(ApiError::Revoked),
        Fault::Forbidden => Some(ApiError::Forbidden),
        Fault::None
        | Fault::Declined
        | Fault::Hold
        | Fault::ChargedThenServerError
        | Fault::StoredServerError
        | Fault::ChargedThenStoredServerError
        | Fault::ReplyLost
        | Fault::Truncated
        | Fault::SlowReply
        | Fault::NoId
        | Fault::Pending => None,
    };
    if let Some(error) = early {
        return Ok(respond(error.into()));
    }
    let terms = match terms {
        Ok(terms) => terms,
        Err(error) => return Ok(respond(error.into())),
    };

    let execution = sandbox.executions.spawn(execute(Arc::clone(sandbox), key, terms, draw));
    let reply = match execution.await {
        Ok(reply) => reply.unwrap_or_else(Reply::from),
        Err(error) => {
            tracing::error!(%error, "the execution of a charge or refund panicked");
            ApiError::ServerError.into()
        }
    };

    match draw.fault {
        Fault::ChargedThenServerError => Ok(respond(ApiError::ServerError.into())),
        Fault::ReplyLost => Err(HangUp),
        Fault::Truncated => Ok(truncated(reply)),
        Fault::SlowReply => {
            sandbox.unless_stopped(tokio::time::sleep(draw.slow_reply_delay)).await;
            Ok(respond(reply))
        }
        Fault::NoId => Ok(respond(without_id(reply))),
        Fault::None
        | Fault::Declined
        | Fault::Hold
        | Fault::Pending
        | Fault::StoredServerError
        | Fault::ChargedThenStoredServerError
        | Fault::Reset
        | Fault::ServerError
        | Fault::RateLimited
        | Fault::Conflict
        | Fault::BadRequest
        | Fault::Unauthorized
        | Fault::Forbidden => Ok(respond(reply)),
    }
}

async fn execute(sandbox: Arc<Sandbox>, key: Option<String>, terms: Terms, draw: Draw) -> Result<Reply, ApiError> {
    // Validation comes before the key: its errors are not stored.
    let source = match &terms {
        Terms::Charge(charge) => {
            let customer = sandbox.ledger.customer(&charge.customer);
            let customer =
                customer.ok_or_else(|| ApiError::no_such_parameter("customer", &charge.customer, "customer"))?;
            customer.terms.source
        }
        Terms::Refund(refund) => {
            let charge = sandbox.ledger.charge(&refund.charge);
            let charge = charge.ok_or_else(|| ApiError::no_such_parameter("charge", &refund.charge, "charge"))?;
            if charge.status != ChargeStatus::Succeeded {
                return Err(ApiError::NotPaid { charge: charge.id.clone() });
            }
            Source::Visa
        }
    };
    let claim = match sandbox.ledger.claim(key) {
        Claimed::New(claim) => claim,
        Claimed::InUse => return Err(ApiError::KeyInUse),
        Claimed::Stored(object) => {
            let same = match (&object, &terms) {
                (Object::Charge(charge), Terms::Charge(terms)) => charge.terms == *terms,
                (Object::Failure(failure), Terms::Charge(terms)) => failure.terms == *terms,
                (Object::Refund(refund), Terms::Refund(terms)) => refund.terms == *terms,
                (Object::RefundFailure(failure), Terms::Refund(terms)) => failure.terms == *terms,
                _ => false,
            };
            return if same { Ok(Reply::replay(&object)) } else { Err(ApiError::KeyReused) };
        }
    };
    if !draw.latency.is_zero() {
        sandbox.unless_stopped(tokio::time::sleep(draw.latency)).await;
    }
    if draw.fault == Fault::Hold {
        sandbox.unless_stopped(sandbox.faults.hold()).await;
    }
    match terms {
        Terms::Charge(terms) => charge(claim, terms, source, draw.fault),
        Terms::Refund(terms) => refund(claim, terms, draw.fault),
    }
}

fn charge(claim: Claim<'_>, terms: ChargeTerms, source: Source, fault: Fault) -> Result<Reply, ApiError> {
    let status = match (source, fault) {
        (Source::ChargeCustomerFail, _) | (_, Fault::Declined) => ChargeStatus::Failed,
        (Source::Visa, Fault::Pending) => ChargeStatus::Pending,
        (Source::Visa, _) => ChargeStatus::Succeeded,
    };
    let charge = match fault {
        Fault::StoredServerError => {
            claim.fail(terms).map_err(not_recorded)?;
            return Err(ApiError::ServerError);
        }
        Fault::ChargedThenStoredServerError => claim.charge_and_fail(terms, status),
        _ => claim.charge(terms, status),
    };
    let charge = charge.map_err(not_recorded)?;
    Ok(Reply::created_charge(&charge))
}

fn refund(claim: Claim<'_>, terms: RefundTerms, fault: Fault) -> Result<Reply, ApiError> {
    let status = if fault == Fault::Pending { ChargeStatus::Pending } else { ChargeStatus::Succeeded };
    if fault == Fault::StoredServerError {
        claim.fail_refund(terms).map_err(not_recorded)?;
        return Err(ApiError::ServerError);
    }
    let charge = terms.charge.clone();
    let refund = claim.refund(terms, status, fault == Fault::ChargedThenStoredServerError);
    match refund.map_err(not_recorded)? {
        Some(refund) => Ok(Reply::created_refund(&refund)),
        None => Err(ApiError::AlreadyRefunded { charge }),
    }
}

/// Removes the id from a success, so that it does not say what was created.
fn without_id(reply: Reply) -> Reply {
    let body = match serde_json::from_slice(&reply.body) {
        Ok(Value::Object(mut charge)) => {
            charge.remove("id");
            Value::Object(charge).to_string().into()
        }
        _ => reply.body,
    };
    Reply { body, ..reply }
}

/// Returns a reply that promises a whole body and breaks the connection after half of it.
fn truncated(reply: Reply) -> Response<Body> {
    let whole = reply.body.len();
    let half = reply.body.slice(..whole / 2);
    let mut response = respond(reply);
    response.headers_mut().insert(hyper::header::CONTENT_LENGTH, whole.into());
    let frames =
        stream::once(async { Ok::<Frame<Bytes>, io::Error>(Frame::data(half)) }).chain(stream::once(async {
            // hyper sends what it has when a body makes it wait, but not when a body fails.
            tokio::task::yield_now().await;
            Err(io::Error::other("truncated on purpose"))
        }));
    response.map(|_| StreamBody::new(frames).boxed_unsync())
}
