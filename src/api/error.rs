//! Every error that a request can get in place of its operation's answer, and the one place that maps each to a status.

use atomic_phases::database::DatabaseError;
use atomic_phases::errors::chain;
use atomic_phases::idempotency::Stop;
use atomic_phases::idempotency::key::KeyError;
use hyper::StatusCode;
use hyper::header::HeaderName;
use serde_json::json;

use crate::demo::raise_error::Raised;
use crate::endpoint::{ParamError, Refusal};
use crate::http::BodyError;

/// Variants name the situation. The client's text and the log's differ: the client gets what it can act on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("no such path")]
    Path(String),
    #[error("method not allowed")]
    Method { allow: &'static str },
    #[error("a header was given twice")]
    HeaderTwice(HeaderName),
    #[error("a header is not text")]
    HeaderNotText(HeaderName),
    #[error("not authenticated")]
    Unauthenticated(Unauthenticated),
    #[error("no idempotency key")]
    KeyMissing,
    #[error("bad idempotency key")]
    Key(#[from] KeyError),
    #[error("unreadable body")]
    Body(#[source] BodyError),
    #[error("unparsable body")]
    Unparsable(String),
    #[error("unsupported content type")]
    ContentType(String),
    #[error("bad parameter")]
    Param(#[from] ParamError),
    #[error("the key belongs to another request")]
    Mismatch,
    #[error("the request is in progress elsewhere")]
    InProgress,
    #[error("the request is parked")]
    Parked,
    #[error("the operation did not admit it")]
    Refused(Refusal),
    #[error("{}", chain(stop))]
    Stopped { stop: Stop, unfinished: &'static str },
    #[error("the database did not answer")]
    Database(#[from] DatabaseError),
    #[error("the database does not answer, or not with our schema")]
    NotReady,
    #[error("too many rides are under way")]
    Overloaded,
    #[error("the process is leaving")]
    Leaving,
    #[error("internal error")]
    Internal,
}

/// Why the client could not be authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unauthenticated {
    Missing,
    Unknown,
}

/// In seconds. The attempt that holds the key takes about as long as one call to Stripe.
const RETRY_SOON: u32 = 1;
/// In seconds. An outage needs a moment to end.
const RETRY_LATER: u32 = 5;
/// In seconds. A parked request waits for a person, and that takes long.
const RETRY_MUCH_LATER: u32 = 3600;

impl ApiError {
    /// Returns the HTTP status.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Path(_) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::HeaderTwice(_)
            | Self::HeaderNotText(_)
            | Self::KeyMissing
            | Self::Key(_)
            | Self::Unparsable(_)
            | Self::Body(BodyError::Broken(_)) => StatusCode::BAD_REQUEST,
            Self::Body(BodyError::TooLong { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyError::TooSlow(_)) => StatusCode::REQUEST_TIMEOUT,
            Self::ContentType(_) | Self::Param(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Mismatch | Self::InProgress => StatusCode::CONFLICT,
            Self::Parked | Self::NotReady | Self::Overloaded | Self::Leaving => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Database(error) => database_status(error),
            Self::Refused(refusal) => StatusCode::from_u16(refusal.status).expect("a status"),
            Self::Stopped { stop, .. } => match stop {
                Stop::LeaseLost => StatusCode::CONFLICT,
                Stop::Database(error) => database_status(error),
                Stop::Retry(error) if error.is::<Raised>() => StatusCode::INTERNAL_SERVER_ERROR,
                Stop::Retry(_) | Stop::Park(_) => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// Returns the seconds after which it is worth repeating the same request with the same key.
    pub(super) fn retry_after(&self) -> Option<u32> {
        match self {
            Self::InProgress | Self::Stopped { stop: Stop::LeaseLost, .. } => Some(RETRY_SOON),
            Self::Parked | Self::Stopped { stop: Stop::Park(_), .. } => Some(RETRY_MUCH_LATER),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(RETRY_LATER),
            _ => None,
        }
    }

    /// Returns the JSON that the client gets.
    pub(super) fn body(&self) -> String {
        json!({ "error": self.for_client() }).to_string()
    }

    fn for_client(&self) -> String {
        match self {
            Self::Path(path) => format!("There is nothing at {path}. Book a ride with POST /rides."),
            Self::Method { allow } => format!("This path takes {allow} only."),
            Self::HeaderTwice(name) => format!("The header {} was sent more than once.", title(name)),
            Self::HeaderNotText(name) => {
                format!("The header {} may only hold visible ASCII characters.", title(name))
            }
            Self::Unauthenticated(Unauthenticated::Missing) => {
                "Say who you are: the header Authorization must hold your e-mail address.".to_owned()
            }
            Self::Unauthenticated(Unauthenticated::Unknown) => {
                "The header Authorization names no user that we know.".to_owned()
            }
            Self::KeyMissing => "The header Idempotency-Key is missing; a random UUID is a good key.".to_owned(),
            Self::Key(error) => format!("The header Idempotency-Key {error}."),
            Self::Body(error) => format!("Nothing was done: {error}."),
            Self::Unparsable(problem) => format!("The body cannot be parsed: {problem}."),
            Self::ContentType(kind) => format!(
                "The Content-Type {kind} is not understood; send application/x-www-form-urlencoded, \
                 application/json or multipart/form-data."
            ),
            Self::Param(error) => format!("The parameter {error}."),
            Self::Mismatch => {
                "This Idempotency-Key was used for a request with other parameters. Nothing was done; a new \
                 request needs a new key."
                    .to_owned()
            }
            Self::InProgress | Self::Stopped { stop: Stop::LeaseLost, .. } => {
                "A request with this Idempotency-Key is being worked on. Repeat it in a moment to get its answer."
                    .to_owned()
            }
            Self::Parked | Self::Stopped { stop: Stop::Park(_), .. } => {
                "This request waits for one of us to look at it. Nothing is lost, and nothing is done twice."
                    .to_owned()
            }
            Self::Refused(refusal) => refusal.text.to_owned(),
            Self::Stopped { stop: Stop::Retry(error), .. } if error.is::<Raised>() => {
                "This request failed because you asked for it. Repeat it with the same Idempotency-Key and without \
                 raise_error, or leave it to the completer."
                    .to_owned()
            }
            Self::Leaving => "This server is shutting down.".to_owned(),
            Self::Database(error) | Self::Stopped { stop: Stop::Database(error), .. } if !error.is_transient() => {
                internal()
            }
            Self::Internal => internal(),
            Self::Database(_) | Self::NotReady => "The database is not available. Repeat the request.".to_owned(),
            Self::Overloaded => "Too many rides are being booked just now. Repeat the request.".to_owned(),
            Self::Stopped { unfinished, .. } => (*unfinished).to_owned(),
        }
    }

    /// Returns what an operator needs to know, without anything that a client sent.
    pub(super) fn for_log(&self) -> String {
        chain(self)
    }
}

fn internal() -> String {
    "Something went wrong here. Repeat the request with the same Idempotency-Key; nothing is done twice.".to_owned()
}

fn database_status(error: &DatabaseError) -> StatusCode {
    if error.is_transient() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR }
}

/// Returns a header's name in its usual spelling, as in `Idempotency-Key`.
fn title(name: &HeaderName) -> String {
    let words = name.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    });
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_situation_has_its_status() {
        let stopped = |stop| ApiError::Stopped { stop, unfinished: "Repeat the request." };
        let cases: [(ApiError, u16, Option<u32>); 28] = [
            (ApiError::Path("/".into()), 404, None),
            (ApiError::Method { allow: "POST" }, 405, None),
            (ApiError::HeaderTwice(HeaderName::from_static("authorization")), 400, None),
            (ApiError::HeaderNotText(HeaderName::from_static("authorization")), 400, None),
            (ApiError::Unauthenticated(Unauthenticated::Missing), 401, None),
            (ApiError::Unauthenticated(Unauthenticated::Unknown), 401, None),
            (ApiError::KeyMissing, 400, None),
            (ApiError::Key(KeyError::Invisible), 400, None),
            (ApiError::Body(BodyError::TooLong { limit: 1 }), 413, None),
            (ApiError::Body(BodyError::TooSlow(Duration::ZERO)), 408, None),
            (ApiError::Unparsable(String::new()), 400, None),
            (ApiError::ContentType(String::new()), 422, None),
            (ApiError::Param(ParamError { field: "origin_lat", problem: String::new() }), 422, None),
            (ApiError::Mismatch, 409, None),
            (ApiError::InProgress, 409, Some(1)),
            (ApiError::Parked, 503, Some(3600)),
            (stopped(Stop::LeaseLost), 409, Some(1)),
            (ApiError::Database(DatabaseError::Busy), 503, Some(5)),
            (ApiError::Leaving, 503, Some(5)),
            (ApiError::Internal, 500, None),
            (ApiError::NotReady, 503, Some(5)),
            (ApiError::Overloaded, 503, Some(5)),
            (ApiError::Body(BodyError::Broken("cut".into())), 400, None),
            (stopped(Stop::Retry(Raised.into())), 500, None),
            (stopped(Stop::Retry("not sent".into())), 503, Some(5)),
            (stopped(Stop::Park("undecidable".into())), 503, Some(3600)),
            (stopped(Stop::Database(DatabaseError::Lost(None))), 503, Some(5)),
            (ApiError::Refused(Refusal { status: 404, text: "There is none." }), 404, None),
        ];
        for (error, status, retry_after) in cases {
            assert_eq!((error.status().as_u16(), error.retry_after()), (status, retry_after), "{error:?}");
            let body: serde_json::Value = serde_json::from_str(&error.body()).expect("JSON");
            assert!(body["error"].as_str().is_some_and(|text| text.ends_with('.')), "{body}");
        }
    }
}
