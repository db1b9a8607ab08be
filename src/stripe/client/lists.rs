//! Reads what Stripe lists: to find out what became of one request, and to read its whole ledger.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use form_urlencoded::Serializer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Charge, Client, RefundBody, SUCCEEDED};
use crate::stripe::{CallError, KEY_METADATA, LookupError, RIDE_METADATA, Refund};

/// The most that Stripe lists at once.
pub(super) const PAGE: usize = 100;
/// Pages a lookup reads before it gives up. No real customer makes five thousand charges in the few days that a key
/// lives.
pub(super) const MAX_PAGES: usize = 50;
/// How much earlier than asked a lookup begins. Stripe's clock may differ from ours, and a charge missed because of
/// that would be made twice; looking back too far costs a page at most.
pub(super) const CLOCK_MARGIN: Duration = Duration::from_secs(600);

/// A charge as Stripe's ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

/// A refund as Stripe's ledger has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedRefund {
    /// `re_…`.
    pub id: String,
    /// The charge that is refunded, `ch_…`.
    pub charge_id: String,
    /// Whether the money went back.
    pub succeeded: bool,
}

/// A page of Stripe's ledger.
#[derive(Debug, Clone)]
pub struct LedgerPage<T> {
    /// Newest first.
    pub entries: Vec<T>,
    /// Where the next page starts, if there is one.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    has_more: bool,
}

/// A kind of object that Stripe lists.
trait Listed: DeserializeOwned {
    const PATH: &'static str;
    /// The statuses which mean that no money was moved and none will be.
    const FAILED: &'static [&'static str];

    fn id(&self) -> &str;
    fn status(&self) -> &str;
}

impl Listed for Charge {
    const PATH: &'static str = "/v1/charges";
    const FAILED: &'static [&'static str] = &["failed"];

    fn id(&self) -> &str {
        &self.id
    }

    fn status(&self) -> &str {
        &self.status
    }
}

impl Listed for RefundBody {
    const PATH: &'static str = "/v1/refunds";
    const FAILED: &'static [&'static str] = &["failed", "canceled"];

    fn id(&self) -> &str {
        &self.id
    }

    fn status(&self) -> &str {
        &self.status
    }
}

impl Client {
    /// Looks among the customer's charges since `created_since` for one that succeeded and carries
    /// `idempotency_key`: the way to find out what became of a charge once Stripe may have forgotten its key.
    ///
    /// `None` is proof that there is none, provided that `created_since` is not after the first attempt. The
    /// whole lookup, however many pages it takes, keeps to the configured timeout.
    pub async fn find_charge(
        &self,
        customer: &str,
        idempotency_key: Uuid,
        created_since: SystemTime,
    ) -> Result<Option<String>, LookupError> {
        let key = idempotency_key.to_string();
        let since = created_since.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(CLOCK_MARGIN);
        let ours = |charge: &Charge| charge.metadata.get(KEY_METADATA).is_some_and(|found| *found == key);
        Ok(self.succeeded(("customer", customer), Some(since), ours).await?.map(|charge| charge.id))
    }

    /// Returns the refund of this charge that succeeded, if there is one. Keeps to the same timeout.
    pub async fn find_refund(&self, charge_id: &str) -> Result<Option<Refund>, LookupError> {
        Ok(self.succeeded::<RefundBody>(("charge", charge_id), None, |_| true).await?.map(Refund::from))
    }

    /// Returns a page of the account's charges, newest first: the ledger that the database is checked against. `after`
    /// is the last id of the page before.
    pub async fn list_charges(&self, after: Option<&str>) -> Result<LedgerPage<ListedCharge>, CallError> {
        self.page(after, |charge: Charge| ListedCharge {
            succeeded: charge.status == SUCCEEDED,
            idempotency_key: charge.metadata.get(KEY_METADATA).and_then(|key| key.parse().ok()),
            ride_id: charge.metadata.get(RIDE_METADATA).and_then(|id| id.parse().ok()),
            customer: charge.customer.unwrap_or_default(),
            id: charge.id,
        })
        .await
    }

    /// Returns a page of the account's refunds, as [`Client::list_charges`].
    pub async fn list_refunds(&self, after: Option<&str>) -> Result<LedgerPage<ListedRefund>, CallError> {
        self.page(after, |refund: RefundBody| ListedRefund {
            succeeded: refund.status == SUCCEEDED,
            charge_id: refund.charge,
            id: refund.id,
        })
        .await
    }

    /// Returns the newest entry that is `ours` and succeeded. All pages share one deadline.
    async fn succeeded<T: Listed>(
        &self,
        of: (&str, &str),
        since: Option<Duration>,
        ours: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, LookupError> {
        let deadline = Instant::now() + self.timeout;
        let mut last_seen: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let path = list_path::<T>(Some(of), since, last_seen.as_deref());
            let page: Page<T> = self.get(&path, deadline).await.map_err(LookupError::Transient)?;
            let last = page.data.last().map(|one| one.id().to_owned());
            for one in page.data.into_iter().filter(&ours) {
                match one.status() {
                    SUCCEEDED => return Ok(Some(one)),
                    // Another one may have succeeded.
                    status if T::FAILED.contains(&status) => {}
                    _ => return Err(LookupError::Undecidable("one has neither succeeded nor failed")),
                }
            }
            if !page.has_more {
                return Ok(None);
            }
            last_seen = Some(last.ok_or(LookupError::Undecidable("a page is empty, yet not the last"))?);
        }
        Err(LookupError::Undecidable("there are too many"))
    }

    async fn page<T: Listed, L>(
        &self,
        after: Option<&str>,
        listed: impl Fn(T) -> L,
    ) -> Result<LedgerPage<L>, CallError> {
        let path = list_path::<T>(None, None, after);
        let page: Page<T> = self.get(&path, Instant::now() + self.timeout).await?;
        let next = page.data.last().map(|one| one.id().to_owned()).filter(|_| page.has_more);
        Ok(LedgerPage { entries: page.data.into_iter().map(listed).collect(), next })
    }
}

/// Returns the path of a page of a list, newest first: of the whole list, or only of one object or since some time.
fn list_path<T: Listed>(of: Option<(&str, &str)>, since: Option<Duration>, starting_after: Option<&str>) -> String {
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
    format!("{}?{}", T::PATH, query.finish())
}
