//! What the ledger records. These types are its file format, too: a field may be added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

/// A customer with one card on file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Customer {
    /// `cus_` and 14 characters.
    pub(super) id: String,
    /// When it was created, in milliseconds of Unix time.
    pub(super) created_ms: u64,
    /// What was asked for.
    pub(super) terms: CustomerTerms,
    /// The key of the request that created it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<String>,
}

/// The parameters of a new customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CustomerTerms {
    /// The customer's e-mail address.
    pub(super) email: Option<String>,
    /// The card on file.
    pub(super) source: Source,
}

/// The test cards that the sandbox knows, by Stripe's names for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// Every charge succeeds.
    #[serde(rename = "tok_visa")]
    Visa,
    /// Attaching it succeeds, every charge is declined.
    #[serde(rename = "tok_chargeCustomerFail")]
    ChargeCustomerFail,
}

/// An attempt to charge a card that ran to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// `ch_` and 24 characters.
    pub id: String,
    /// When it was made, in milliseconds of Unix time; never less than that of an earlier charge.
    pub created_ms: u64,
    /// Whether the money moved.
    pub status: ChargeStatus,
    /// What was asked for.
    pub terms: ChargeTerms,
    /// The key of the request that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Whether that request was answered 500 all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed_to_answer: bool,
}

/// A request for a charge that failed within Stripe before any money moved. It is in no list, but its answer is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// When it was made, in milliseconds of Unix time.
    pub(super) created_ms: u64,
    /// What was asked for.
    pub(super) terms: ChargeTerms,
    /// The key of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<String>,
}

/// The parameters of a charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeTerms {
    /// In the currency's minor unit.
    pub amount: u32,
    /// Three lower-case letters.
    pub currency: String,
    /// Who pays, `cus_…`.
    pub customer: String,
    /// What it is for.
    pub description: Option<String>,
    /// Texts by which the caller can find it.
    pub metadata: Metadata,
}

/// A refund of a whole charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    /// `re_` and 24 characters.
    pub id: String,
    /// When it was made, in milliseconds of Unix time.
    pub created_ms: u64,
    /// Whether the money went back.
    pub status: ChargeStatus,
    /// What was asked for.
    pub terms: RefundTerms,
    /// The charge's.
    pub amount: u32,
    /// The charge's.
    pub currency: String,
    /// The key of the request that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Whether that request was answered 500 all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed_to_answer: bool,
}

/// As [`Failure`], of a request for a refund.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RefundFailure {
    /// When it was made, in milliseconds of Unix time.
    pub(super) created_ms: u64,
    /// What was asked for.
    pub(super) terms: RefundTerms,
    /// The key of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<String>,
}

/// The parameters of a refund.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefundTerms {
    /// The charge to refund, `ch_…`.
    pub charge: String,
    /// Texts by which the caller can find it.
    pub metadata: Metadata,
}

/// How an attempt to move money ended, or that it is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeStatus {
    /// The card was charged, or refunded.
    Succeeded,
    /// The card was declined.
    Failed,
    /// The bank has not decided. [`Ledger::settle`](super::Ledger::settle) ends this.
    Pending,
}

/// Named texts attached to a charge, sorted by name.
///
/// A vector, because most charges have one of them and a `BTreeMap` takes half a kilobyte for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<String, String>")]
pub struct Metadata(Vec<(String, String)>);

impl Metadata {
    /// The text of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, text)| text.as_str())
    }
}

impl From<BTreeMap<String, String>> for Metadata {
    fn from(map: BTreeMap<String, String>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, text)| (name, text)))
    }
}
