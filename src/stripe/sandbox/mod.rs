//! A stateful stand-in for Stripe, so that no account at Stripe is needed to see money move, or not move.
//!
//! It keeps what matters of the real one: charges that stay charged, idempotency keys with Stripe's rules, lists
//! by customer. It is a ledger first ([`Ledger`]): tests and `verify` compare what it recorded with what the service
//! stored. And it fails on request ([`Faults`]), in each way that leaves a client without knowledge of the outcome.
//!
//! Idempotency as in Stripe's v1: keys of up to 255 characters; the first answer is stored, declines included,
//! as soon as execution has begun, and replayed with `Idempotent-Replayed: true`; nothing is stored if
//! validation failed or another request holds the key (409); the same key with other parameters is an error;
//! keys are forgotten after a day, and a forgotten key is a new request.
//!
//! Tests may steer it over HTTP, without an API key: `GET` and `PUT /_sandbox/faults` (a JSON object as in the
//! configuration; `PUT` replaces all of it), `POST /_sandbox/faults/next` (a JSON array of fault names for the
//! next charge requests, one each), `GET /_sandbox/faults/held` (how many requests are held now),
//! `PUT /_sandbox/faults/release` (lets them go on) and `PUT /_sandbox/forget` (forgets all idempotency keys now).
//! Lists of charges and refunds have faults of their own: `PUT /_sandbox/lists` (`page` and `latency` as a JSON object)
//! and `POST /_sandbox/lists/next` (a JSON array of fault names, one for each list to come). Two requests change what
//! was recorded: `POST /_sandbox/age` (a duration, as in `"26h"`: all of it becomes older by that) and
//! `PUT /_sandbox/settle` (`"succeeded"` or `"failed"`: how pending charges end).
//!
//! Charges are refunded as a whole and once. Requests for refunds get the same faults as those for charges, except that
//! a refund is never declined.
//!
//! Deliberately absent: everything about cards except whether they decline, partial refunds, webhooks, a limit on
//! requests.

mod books;
mod faults;
mod journal;
mod ledger;
mod lists;
mod money;
mod params;
mod record;
mod reply;
mod routes;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use hyper::header::{ALLOW, HeaderValue};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lists::ListControl;
use self::reply::{ApiError, Reply};
use crate::http::{self, Body, Limits, Listener};

pub use self::faults::{Fault, FaultControl, Faults};
pub use self::journal::LedgerError;
pub use self::ledger::Ledger;
pub use self::record::{Charge, ChargeStatus, ChargeTerms, Metadata, Refund, RefundTerms};

/// More connections than the service ever opens to it, and a time limit so long that the client closes an idle one
/// first.
const LIMITS: Limits = Limits { connections: 4096, head_timeout: Duration::from_secs(60) };

/// `[stripe_sandbox]`: the stand-in for Stripe.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The file with every customer and charge.
    pub ledger: PathBuf,
    /// How long an idempotency key is remembered; Stripe promises 24 h.
    #[serde(with = "humantime_serde")]
    pub key_retention: Duration,
    /// What goes wrong, and how often.
    pub faults: Faults,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5001)),
            ledger: PathBuf::from("var/stripe-sandbox.jsonl"),
            key_retention: Duration::from_secs(24 * 3600),
            faults: Faults::default(),
        }
    }
}

/// Serves the sandbox until `stop`, then drains: requests in flight are answered, without the delays that their faults
/// demand, and charges whose clients have hung up are completed.
pub async fn serve(
    listener: Arc<Listener>,
    ledger: Arc<Ledger>,
    faults: Arc<FaultControl>,
    stop: CancellationToken,
) {
    let executions = TaskTracker::new();
    let sandbox = Arc::new(Sandbox {
        ledger,
        faults,
        lists: ListControl::default(),
        executions: executions.clone(),
        stop: stop.clone(),
    });
    http::serve(&listener, LIMITS, stop, move |request, _peer| routes::handle(Arc::clone(&sandbox), request)).await;
    executions.close();
    executions.wait().await;
}

/// What every request handler needs.
struct Sandbox {
    ledger: Arc<Ledger>,
    faults: Arc<FaultControl>,
    lists: ListControl,
    /// Charges being executed, which outlive their requests.
    executions: TaskTracker,
    stop: CancellationToken,
}

impl Sandbox {
    /// Waits for `delay`, or until the sandbox is told to stop.
    async fn unless_stopped(&self, delay: impl Future<Output = ()>) {
        tokio::select! {
            () = delay => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// Returns the answer when the ledger could not be written. The log shows why, the client gets only the failure.
fn not_recorded(error: LedgerError) -> ApiError {
    tracing::error!(error = &error as &dyn std::error::Error, "the Stripe sandbox cannot write its ledger");
    ApiError::ServerError
}

/// Returns the HTTP response of an answer.
fn respond(reply: Reply) -> Response<Body> {
    let mut response = http::json(reply.status, reply.body);
    let headers = response.headers_mut();
    if let Ok(request_id) = HeaderValue::try_from(ledger::new_id("req_", 14)) {
        headers.insert("request-id", request_id);
    }
    if reply.replayed {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    if let Some(allowed) = reply.allowed {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}
