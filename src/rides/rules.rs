//! What must always hold of rides.

use std::sync::Arc;

use atomic_phases::rules::{Found, Rule, When};

use crate::stripe;
use crate::stripe::books::Charges;

/// Returns the rules of rides, which compare them with Stripe's ledger.
pub(super) fn rules(stripe: &stripe::Client) -> Vec<Rule> {
    let ledger = Arc::new(Charges(stripe.clone()));
    let charges = vec![Found::Ledger { ledger, sql: include_str!("rule_charges_found.sql") }];
    let records = vec![Found::Rows(include_str!("rule_audit_found.sql"))];
    vec![
        Rule::rows(
            "a ride is what its request asked for, and its answer says what became of it",
            include_str!("rule_keys.sql"),
        ),
        Rule::pairs("a ride is made once", (When::Always, include_str!("rule_audit.sql")), records),
        Rule::pairs(
            "a ride that says so has one charge at Stripe, and no other has any",
            (When::Always, include_str!("rule_charges.sql")),
            charges,
        ),
    ]
}
