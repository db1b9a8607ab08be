//! Parameters of the endpoints, from form or query text to typed terms.
//!
//! As at Stripe, a parameter that is missing, malformed or unknown is an error that names it.

use std::collections::BTreeMap;

use super::books::Page;
use super::record::{ChargeTerms, CustomerTerms, Metadata, RefundTerms, Source};
use super::reply::ApiError;

/// The largest amount Stripe takes: eight digits.
const MAX_AMOUNT: u32 = 99_999_999;
/// Entries listed if no `limit` is given; below, the most that a `limit` may ask for.
const DEFAULT_LIMIT: usize = 10;
pub(super) const MAX_LIMIT: usize = 100;

pub(super) fn charge_terms(form: &[u8]) -> Result<ChargeTerms, ApiError> {
    let (mut amount, mut currency, mut customer, mut description) = (None, None, None, None);
    let mut metadata = BTreeMap::new();
    for (name, value) in pairs(form) {
        match name.as_str() {
            "amount" => amount = Some(value.parse().map_err(|_| ApiError::invalid("amount"))?),
            "currency" => currency = Some(value),
            "customer" => customer = Some(value),
            "description" => description = Some(value),
            _ => match name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']')) {
                Some(inner) => drop(metadata.insert(inner.to_owned(), value)),
                None => return Err(ApiError::UnknownParameter(name)),
            },
        }
    }
    let amount = amount.ok_or(ApiError::MissingParameter("amount"))?;
    if !(1..=MAX_AMOUNT).contains(&amount) {
        return Err(ApiError::invalid("amount"));
    }
    let currency = currency.ok_or(ApiError::MissingParameter("currency"))?.to_ascii_lowercase();
    if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err(ApiError::invalid("currency"));
    }
    let customer = customer.ok_or(ApiError::MissingParameter("customer"))?;
    Ok(ChargeTerms { amount, currency, customer, description, metadata: Metadata::from(metadata) })
}

pub(super) fn customer_terms(form: &[u8]) -> Result<CustomerTerms, ApiError> {
    let (mut email, mut source) = (None, None);
    for (name, value) in pairs(form) {
        match name.as_str() {
            "email" => email = Some(value),
            "source" => source = Some(value),
            _ => return Err(ApiError::UnknownParameter(name)),
        }
    }
    let source = match source.as_deref() {
        Some("tok_visa") => Source::Visa,
        Some("tok_chargeCustomerFail") => Source::ChargeCustomerFail,
        Some(other) => return Err(ApiError::no_such_parameter("token", other, "source")),
        None => return Err(ApiError::MissingParameter("source")),
    };
    Ok(CustomerTerms { email, source })
}

pub(super) fn refund_terms(form: &[u8]) -> Result<RefundTerms, ApiError> {
    let (mut charge, mut metadata) = (None, BTreeMap::new());
    for (name, value) in pairs(form) {
        match name.as_str() {
            "charge" => charge = Some(value),
            _ => match name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']')) {
                Some(inner) => drop(metadata.insert(inner.to_owned(), value)),
                None => return Err(ApiError::UnknownParameter(name)),
            },
        }
    }
    let charge = charge.ok_or(ApiError::MissingParameter("charge"))?;
    Ok(RefundTerms { charge, metadata: Metadata::from(metadata) })
}

/// Reads a list's query; `of` is the parameter that names whose objects are listed.
pub(super) fn page(query: &str, of: &'static str) -> Result<Page, ApiError> {
    let mut page = Page { of: None, created_since: 0, starting_after: None, limit: DEFAULT_LIMIT };
    for (name, value) in pairs(query.as_bytes()) {
        match name.as_str() {
            name if name == of => page.of = Some(value),
            "starting_after" => page.starting_after = Some(value),
            "created[gte]" => page.created_since = value.parse().map_err(|_| ApiError::invalid("created[gte]"))?,
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                page.limit = limit.ok_or(ApiError::invalid("limit"))?;
            }
            _ => return Err(ApiError::UnknownParameter(name)),
        }
    }
    Ok(page)
}

fn pairs(text: &[u8]) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(text).map(|(name, value)| (name.into_owned(), value.into_owned()))
}
