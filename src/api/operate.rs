//! Handles a request for an operation: the checks in their order, then the answer.

use std::net::IpAddr;

use atomic_phases::idempotency::{Answer, IdempotencyKey, Response};
use hyper::header::HeaderName;
use hyper::{HeaderMap, StatusCode};

use super::decode::{Fields, single_header};
use super::error::ApiError;
use super::serve::{Asked, Serves};
use super::{Api, Reply, Trail, auth};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The target of a request, and the address that it comes from.
pub(super) struct Addressed<'a> {
    pub(super) operation: &'a dyn Serves,
    pub(super) path: &'a str,
    /// The number in the path.
    pub(super) id: Option<i64>,
    pub(super) origin_ip: IpAddr,
}

/// Carries the request out, or replays the stored answer. Checks run in the documented order: the user, the key, the
/// parameters, whether the key fits the request, whether another attempt is under way.
pub(super) async fn operate(
    api: &Api,
    addressed: Addressed<'_>,
    headers: &HeaderMap,
    fields: Result<Fields, ApiError>,
    trail: &mut Trail,
) -> Result<Reply, ApiError> {
    let Addressed { operation, path, id, origin_ip } = addressed;
    let user = auth::authenticate(&api.database, &api.seen, headers).await?;
    let key = idempotency_key(headers)?;
    let fields = fields?;
    fields.each_once(operation.fields())?;
    let carry_out = operation.prepare(id, &|name| fields.find(name))?;
    let raise_error = api.demo && fields.raise_error()?;
    let asked = Asked { user_id: user.id, key, path: path.to_owned(), origin_ip, raise_error };
    let executed = carry_out(asked).await;
    trail.key_id = executed.key_id;
    trail.attempt = executed.attempt;
    trail.reached = executed.reached;
    match executed.answer {
        Answer::Done { response, replayed } => {
            trail.replayed = replayed;
            Ok(reply(response, replayed))
        }
        Answer::Refused(word) => Err(match operation.refusal(&word) {
            Some(refusal) => ApiError::Refused(refusal),
            None => ApiError::Internal,
        }),
        Answer::Mismatch => Err(ApiError::Mismatch),
        Answer::InProgress => Err(ApiError::InProgress),
        Answer::Parked => Err(ApiError::Parked),
        Answer::Stopped(stop) => Err(ApiError::Stopped { stop, unfinished: operation.unfinished() }),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<IdempotencyKey, ApiError> {
    match single_header(headers, &IDEMPOTENCY_KEY)?.map(str::trim) {
        None | Some("") => Err(ApiError::KeyMissing),
        Some(key) => Ok(key.parse()?),
    }
}

fn reply(response: Response, replayed: bool) -> Reply {
    let status = StatusCode::from_u16(response.code).expect("the schema bounds it");
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse().ok()?, value.parse().ok()?))
    };
    let headers = response.headers.lines().filter_map(header).collect();
    Reply { status, body: response.body, replayed, headers }
}
