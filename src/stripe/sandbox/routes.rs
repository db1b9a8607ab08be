//! Maps each request to what handles it.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::{Request, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::books::Object;
use super::faults::{Fault, Faults};
use super::ledger::{Claimed, Ledger};
use super::lists::List;
use super::money::Terms;
use super::reply::{ApiError, ChargeBody, CustomerBody, Reply};
use super::{Sandbox, lists, money, not_recorded, params, respond};
use crate::http::{self, Body, HangUp};

/// Bounds of a request's body. Forms are far smaller.
const BODY_BYTES: usize = 16 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Stripe's bound on idempotency keys.
const KEY_CHARACTERS: usize = 255;

pub(super) async fn handle(sandbox: Arc<Sandbox>, request: Request<Incoming>) -> Result<Response<Body>, HangUp> {
    let (head, body) = request.into_parts();
    let body = match http::read_body(body, BODY_BYTES, BODY_TIMEOUT).await {
        Ok(body) => body,
        Err(error) => return Ok(respond(ApiError::UnreadableBody(error.to_string()).into())),
    };
    let method = head.method.as_str();
    let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    let reply = match path.as_slice() {
        ["_sandbox", path @ ..] => control(&sandbox, method, path, &body),
        path => match check_api_key(&head.headers).and_then(|()| idempotency_key(&head.headers)) {
            Ok(key) if path == ["v1", "charges"] && method == "POST" => {
                let terms = params::charge_terms(&body).map(Terms::Charge);
                return money::create(&sandbox, key, terms).await;
            }
            Ok(key) if path == ["v1", "refunds"] && method == "POST" => {
                let terms = params::refund_terms(&body).map(Terms::Refund);
                return money::create(&sandbox, key, terms).await;
            }
            Ok(_) if path == ["v1", "charges"] && method == "GET" => {
                return lists::list(&sandbox, List::Charges, head.uri.query().unwrap_or_default()).await;
            }
            Ok(_) if path == ["v1", "refunds"] && method == "GET" => {
                return lists::list(&sandbox, List::Refunds, head.uri.query().unwrap_or_default()).await;
            }
            Ok(key) if path == ["v1", "customers"] && method == "POST" => {
                create_customer(&sandbox.ledger, key, &body)
            }
            Ok(_) => read(&sandbox.ledger, method, path),
            Err(error) => Err(error),
        },
    };
    Ok(respond(reply.unwrap_or_else(Reply::from)))
}

/// Handles the part of Stripe's API that reads one object.
fn read(ledger: &Ledger, method: &str, path: &[&str]) -> Result<Reply, ApiError> {
    match (path, method) {
        (["v1", "charges", id], "GET") => match ledger.charge(id) {
            Some(charge) => Ok(Reply::ok(&ChargeBody::new(&charge, ledger.is_refunded(id)))),
            None => Err(ApiError::NoSuchObject { what: "charge", id: (*id).to_owned() }),
        },
        (["v1", "customers", id], "GET") => match ledger.customer(id) {
            Some(customer) => Ok(Reply::ok(&CustomerBody::new(&customer))),
            None => Err(ApiError::NoSuchObject { what: "customer", id: (*id).to_owned() }),
        },
        (["v1", "charges" | "refunds"], _) => Err(ApiError::NoSuchMethod { allowed: "GET, POST" }),
        (["v1", "customers"], _) => Err(ApiError::NoSuchMethod { allowed: "POST" }),
        (["v1", "charges" | "customers", _], _) => Err(ApiError::NoSuchMethod { allowed: "GET" }),
        _ => Err(no_such_url(method, path)),
    }
}

/// Creates a customer. Never waits between taking the key and recording, so unlike a charge it needs no task of its
/// own.
fn create_customer(ledger: &Ledger, key: Option<String>, form: &[u8]) -> Result<Reply, ApiError> {
    let terms = params::customer_terms(form)?;
    match ledger.claim(key) {
        Claimed::New(claim) => {
            let customer = claim.create_customer(terms).map_err(not_recorded)?;
            Ok(Reply::ok(&CustomerBody::new(&customer)))
        }
        Claimed::InUse => Err(ApiError::KeyInUse),
        Claimed::Stored(object) => match &object {
            Object::Customer(customer) if customer.terms == terms => Ok(Reply::replay(&object)),
            _ => Err(ApiError::KeyReused),
        },
    }
}

/// Handles what Stripe does not have: tests choose here what goes wrong next.
fn control(sandbox: &Sandbox, method: &str, path: &[&str], body: &[u8]) -> Result<Reply, ApiError> {
    match (path, method) {
        (["faults"], "GET") => {}
        (["faults"], "PUT") => {
            let faults: Faults = decode(body)?;
            faults.validate().map_err(ApiError::UnreadableBody)?;
            sandbox.faults.set(faults);
        }
        (["faults", "next"], "POST") => sandbox.faults.script(decode::<Vec<Fault>>(body)?),
        (["faults", "release"], "PUT") => sandbox.faults.release(),
        (["faults", "held"], "GET") => return Ok(Reply::ok(&sandbox.faults.held())),
        (["forget"], "PUT") => {
            sandbox.ledger.forget_keys().map_err(not_recorded)?;
            return Ok(Reply::ok(&json!({})));
        }
        (["lists"], "PUT") => {
            sandbox.lists.set(decode(body)?);
            return Ok(Reply::ok(&json!({})));
        }
        (["lists", "next"], "POST") => {
            sandbox.lists.script(decode(body)?);
            return Ok(Reply::ok(&json!({})));
        }
        (["age"], "POST") => {
            let by: humantime_serde::Serde<Duration> = decode(body)?;
            sandbox.ledger.age(by.into_inner()).map_err(not_recorded)?;
            return Ok(Reply::ok(&json!({})));
        }
        (["settle"], "PUT") => {
            sandbox.ledger.settle(decode(body)?).map_err(not_recorded)?;
            return Ok(Reply::ok(&json!({})));
        }
        (["faults"], _) => return Err(ApiError::NoSuchMethod { allowed: "GET, PUT" }),
        (["faults", "held"], _) => return Err(ApiError::NoSuchMethod { allowed: "GET" }),
        (["faults" | "lists", "next"] | ["age"], _) => return Err(ApiError::NoSuchMethod { allowed: "POST" }),
        (["faults", "release"] | ["forget"] | ["lists"] | ["settle"], _) => {
            return Err(ApiError::NoSuchMethod { allowed: "PUT" });
        }
        _ => return Err(no_such_url(method, path)),
    }
    Ok(Reply::ok(&sandbox.faults.faults()))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::UnreadableBody(error.to_string()))
}

/// Accepts any API key, since there is nothing to protect. A request without one is an error that its client must see.
fn check_api_key(headers: &HeaderMap) -> Result<(), ApiError> {
    let authorization = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match authorization.split_once(' ') {
        Some((scheme, key)) if !key.trim().is_empty() => {
            let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("basic");
            if known { Ok(()) } else { Err(ApiError::NoApiKey) }
        }
        _ => Err(ApiError::NoApiKey),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if (1..=KEY_CHARACTERS).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::BadIdempotencyKey),
    }
}

fn no_such_url(method: &str, path: &[&str]) -> ApiError {
    ApiError::NoSuchUrl { method: method.to_owned(), path: format!("/{}", path.join("/")) }
}
