//! `POST /rides`: the checks in their order, the lease, the ride.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::HeaderName;
use hyper::{HeaderMap, StatusCode};

use super::decode::{Fields, single_header};
use super::error::ApiError;
use super::{Api, Reply, Trail, auth};
use crate::idempotency::acquire::{Acquired, acquire};
use crate::idempotency::{IdempotencyKey, Request, Response};
use crate::rides::Booking;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Books the ride, or repeats what was answered before. Checks run in the documented order: who asks, the key,
/// the parameters, whether the key fits the request, whether somebody else is at work on it.
pub(super) async fn book(
    api: &Api,
    headers: &HeaderMap,
    fields: Result<Fields, ApiError>,
    origin_ip: IpAddr,
    trail: &mut Trail,
) -> Result<Reply, ApiError> {
    let user = auth::authenticate(&api.database, &api.seen, headers).await?;
    let key = idempotency_key(headers)?;
    let (params, raise_error) = fields?.into_ride(api.demo)?;
    let request = Arc::new(Request {
        user_id: user.id,
        key,
        method: "POST".to_owned(),
        path: "/rides".to_owned(),
        params: params.to_json(),
        origin_ip,
    });
    let acquired = acquire(&api.database, request, api.lock_timeout, api.grace).await?;
    let lease = match acquired {
        Acquired::Lease(lease) => lease,
        Acquired::Finished { key_id, response } => {
            trail.key_id = Some(key_id);
            trail.replayed = true;
            return Ok(reply(response, true));
        }
        Acquired::Mismatch { key_id } => {
            trail.key_id = Some(key_id);
            return Err(ApiError::Mismatch);
        }
        Acquired::InProgress { key_id } => {
            trail.key_id = key_id;
            return Err(ApiError::InProgress);
        }
        Acquired::Parked { key_id } => {
            trail.key_id = Some(key_id);
            return Err(ApiError::Parked);
        }
    };
    trail.key_id = Some(lease.key_id);
    trail.attempt = Some(lease.attempts);
    let driven = api.rides.drive(&Booking { lease, user, params, raise_error }).await;
    trail.reached = Some(driven.reached.name());
    Ok(reply(driven.result?, false))
}

fn idempotency_key(headers: &HeaderMap) -> Result<IdempotencyKey, ApiError> {
    match single_header(headers, &IDEMPOTENCY_KEY)?.map(str::trim) {
        None | Some("") => Err(ApiError::KeyMissing),
        Some(key) => Ok(key.parse()?),
    }
}

fn reply(response: Response, replayed: bool) -> Reply {
    let status = StatusCode::from_u16(response.code).expect("the schema bounds it");
    Reply { status, body: response.body, replayed, header: None }
}
