//! `GET /v1/charges` and `/v1/refunds`: the way to find out what became of a charge or refund whose key is forgotten,
//! and the faults that such a list can have.
//!
//! Lists have faults of their own, apart from those of charges: what matters about a list is how it is cut into pages,
//! how long it takes, and whether it arrives at all.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use hyper::Response;
use serde::Deserialize;

use super::reply::{ApiError, Reply};
use super::{Sandbox, params, respond};
use crate::http::{Body, HangUp};

/// What happens to one list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ListFault {
    /// Nothing.
    None,
    /// The page is empty, but `has_more` is true.
    EmptyPage,
    /// The connection is dropped.
    Reset,
    /// 500.
    ServerError,
    /// 429.
    RateLimited,
    /// The list waits, before anything is read, for the release of held requests.
    Hold,
}

/// How charges and refunds are listed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listing {
    /// The most entries on a page, whatever the request's `limit` is.
    page: usize,
    /// How long every list takes.
    #[serde(with = "humantime_serde")]
    latency: Duration,
}

impl Default for Listing {
    /// As Stripe does.
    fn default() -> Self {
        Self { page: params::MAX_LIMIT, latency: Duration::ZERO }
    }
}

/// How charges and refunds are listed now, and what happens to the next lists.
#[derive(Debug, Default)]
pub(super) struct ListControl(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    listing: Listing,
    script: VecDeque<ListFault>,
}

impl ListControl {
    pub(super) fn set(&self, listing: Listing) {
        self.lock().listing = listing;
    }

    /// Scripts the next lists, one fault each in this order, after what is scripted already.
    pub(super) fn script(&self, faults: Vec<ListFault>) {
        self.lock().script.extend(faults);
    }

    fn draw(&self) -> (ListFault, Listing) {
        let mut state = self.lock();
        (state.script.pop_front().unwrap_or(ListFault::None), state.listing.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the lists")
    }
}

/// Which list.
#[derive(Debug, Clone, Copy)]
pub(super) enum List {
    Charges,
    Refunds,
}

pub(super) async fn list(sandbox: &Sandbox, list: List, query: &str) -> Result<Response<Body>, HangUp> {
    let (fault, listing) = sandbox.lists.draw();
    if !listing.latency.is_zero() {
        sandbox.unless_stopped(tokio::time::sleep(listing.latency)).await;
    }
    let reply = match fault {
        ListFault::Reset => return Err(HangUp),
        ListFault::EmptyPage => Ok(Reply::page(&[], true)),
        ListFault::ServerError => Err(ApiError::ServerError),
        ListFault::RateLimited => Err(ApiError::RateLimited),
        ListFault::Hold => {
            sandbox.unless_stopped(sandbox.faults.hold()).await;
            page(sandbox, list, query, &listing)
        }
        ListFault::None => page(sandbox, list, query, &listing),
    };
    Ok(respond(reply.unwrap_or_else(Reply::from)))
}

fn page(sandbox: &Sandbox, list: List, query: &str, listing: &Listing) -> Result<Reply, ApiError> {
    let of = match list {
        List::Charges => "customer",
        List::Refunds => "charge",
    };
    let mut page = params::page(query, of)?;
    page.limit = page.limit.min(listing.page);
    let unknown = |what| {
        let id = page.starting_after.as_deref().unwrap_or_default();
        ApiError::no_such_parameter(what, id, "starting_after")
    };
    match list {
        List::Charges => {
            let (charges, has_more) = sandbox.ledger.page(&page).ok_or_else(|| unknown("charge"))?;
            Ok(Reply::page(&sandbox.ledger.with_refunds(charges), has_more))
        }
        List::Refunds => {
            let (refunds, has_more) = sandbox.ledger.refund_page(&page).ok_or_else(|| unknown("refund"))?;
            Ok(Reply::refund_page(&refunds, has_more))
        }
    }
}
