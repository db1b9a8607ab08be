//! Stripe's lists of charges and refunds, in the form in which rules compare them with the database.

use atomic_phases::errors::BoxError;
use atomic_phases::rules::{Ledger, LedgerPage};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;

use super::Client;
use super::client::LedgerPage as Listed;

/// All charges. Another database may use the same account, so not all of them are ours.
#[derive(Debug, Clone)]
pub struct Charges(pub Client);

/// All refunds.
#[derive(Debug, Clone)]
pub struct Refunds(pub Client);

impl Ledger for Charges {
    fn page(&self, after: Option<String>) -> BoxFuture<'_, Result<LedgerPage, BoxError>> {
        Box::pin(async move { entries(self.0.list_charges(after.as_deref()).await?) })
    }
}

impl Ledger for Refunds {
    fn page(&self, after: Option<String>) -> BoxFuture<'_, Result<LedgerPage, BoxError>> {
        Box::pin(async move { entries(self.0.list_refunds(after.as_deref()).await?) })
    }
}

fn entries(page: Listed<impl Serialize>) -> Result<LedgerPage, BoxError> {
    let entries = page.entries.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>()?;
    Ok(LedgerPage { entries, next: page.next })
}
