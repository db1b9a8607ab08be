//! The check of refunds: the books and Stripe's ledger say the same.

use std::collections::{HashMap, HashSet};

use super::check::{Check, PAGE};
use super::{Invariant, VerifyError};
use crate::stripe::{self, ListedRefund};

impl Check<'_> {
    /// Books first: a refund that is in them was in Stripe's ledger before.
    pub(super) async fn refunds(&mut self, stripe: &stripe::Client) -> Result<(), VerifyError> {
        let mut recorded = self.recorded_refunds().await?;
        let mut refunded = HashSet::new();
        let mut after = None;
        loop {
            let page = stripe.list_refunds(after.as_deref()).await?;
            self.refund_page(&page.entries, &mut recorded, &mut refunded).await?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for (refund, id) in recorded {
            let what = || format!("refund {id}: {refund} is not in Stripe's ledger");
            self.report.violate(Invariant::RefundedOnce, what);
        }
        Ok(())
    }

    /// Refunds that say that Stripe has made them. One whose key says that it is finished must.
    async fn recorded_refunds(&mut self) -> Result<HashMap<String, i64>, VerifyError> {
        const SQL: &str = "
            SELECT x.id, x.stripe_refund_id, k.response_code IS NOT NULL OR k.id IS NULL AS finished,
                   r.stripe_charge_id IS NOT NULL AND r.user_id = x.user_id AS paid
            FROM refunds x JOIN rides r ON r.id = x.ride_id
            LEFT JOIN idempotency_keys k ON k.id = x.idempotency_key_id
            WHERE x.id > $1 ORDER BY x.id LIMIT $2";
        let (mut recorded, mut after) = (HashMap::new(), 0_i64);
        loop {
            let rows = self.database.query(SQL, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(recorded) };
            after = last.get("id");
            self.report.examine(Invariant::RefundedOnce, rows.len());
            for row in &rows {
                let (id, made): (i64, Option<String>) = (row.get("id"), row.get("stripe_refund_id"));
                if made.is_some() != row.get::<_, bool>("finished") {
                    let what = || format!("refund {id}: finished or not, {made:?}");
                    self.report.violate(Invariant::RefundedOnce, what);
                }
                if !row.get::<_, bool>("paid") {
                    let what = || format!("refund {id}: of a ride that was not paid, or not by this user");
                    self.report.violate(Invariant::RefundedOnce, what);
                }
                recorded.extend(made.map(|made| (made, id)));
            }
        }
    }

    async fn refund_page(
        &mut self,
        refunds: &[ListedRefund],
        recorded: &mut HashMap<String, i64>,
        refunded: &mut HashSet<String>,
    ) -> Result<(), VerifyError> {
        // Charges of other databases are none of ours.
        const SQL: &str = "
            SELECT r.id AS ride_id, r.stripe_charge_id, x.id AS refund_id, x.stripe_refund_id
            FROM unnest($1::text[]) AS i (charge_id) JOIN rides r ON r.stripe_charge_id = i.charge_id
            LEFT JOIN refunds x ON x.ride_id = r.id";
        let made: Vec<_> = refunds.iter().filter(|refund| refund.succeeded).collect();
        let charges: Vec<_> = made.iter().map(|refund| refund.charge_id.as_str()).collect();
        let rows = self.database.query(SQL, &[&charges]).await?;
        let books: HashMap<&str, _> = rows.iter().map(|row| (row.get("stripe_charge_id"), row)).collect();
        for refund in made {
            let Some(row) = books.get(refund.charge_id.as_str()) else { continue };
            let ride: i64 = row.get("ride_id");
            let known = recorded.remove(&refund.id).is_some();
            if !refunded.insert(refund.charge_id.clone()) {
                let what = || format!("ride {ride}: a second refund, {}", refund.id);
                self.report.violate(Invariant::RefundedOnce, what);
            }
            match (row.get::<_, Option<i64>>("refund_id"), row.get::<_, Option<&str>>("stripe_refund_id")) {
                (None, _) => {
                    let what = || format!("ride {ride}: refunded at Stripe by {}, and not here", refund.id);
                    self.report.violate(Invariant::RefundedOnce, what);
                }
                (Some(id), Some(other)) if !known && other != refund.id => {
                    let what = || format!("refund {id}: {other} here, {} at Stripe", refund.id);
                    self.report.violate(Invariant::RefundedOnce, what);
                }
                (Some(_), _) => {}
            }
        }
        Ok(())
    }
}
