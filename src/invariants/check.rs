//! The checks themselves: a pass over each table, and one over Stripe's list.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{Finding, Invariant, Report, Traffic, VerifyError};
use crate::database::Database;
use crate::idempotency::Operation;
use crate::rides::Rides;
use crate::stripe::{self, ListedCharge};

/// Rows a statement reads.
pub(super) const PAGE: i64 = 5000;
/// An unfinished key this much past the moment when the completer should have taken it has been forgotten.
const FORGOTTEN_AFTER_SECONDS: f64 = 3600.0;

/// A check under way, with what one part of it leaves for the next.
pub(super) struct Check<'a> {
    pub(super) database: &'a Database,
    pub(super) traffic: Traffic,
    pub(super) report: Report,
    /// Rides that were booked and paid, and the jobs for their receipts as far as they have been seen.
    pub(super) awaiting_receipt: HashMap<i64, u32>,
    /// Charges that rides have recorded, until they are seen in the ledger, and their rides.
    recorded_charges: HashMap<String, i64>,
    /// Rides that have neither key nor charge: declined long ago, if all is well.
    keyless_uncharged: HashSet<i64>,
    /// Rides, until their audit records are seen.
    unrecorded: HashSet<i64>,
    /// Keys that had no ride, by what Stripe would know them by.
    rideless: HashMap<Uuid, i64>,
}

impl<'a> Check<'a> {
    pub(super) fn new(database: &'a Database, traffic: Traffic) -> Self {
        Self {
            database,
            traffic,
            report: Report(Invariant::ALL.map(|invariant| (invariant, Finding::default())).into()),
            awaiting_receipt: HashMap::new(),
            recorded_charges: HashMap::new(),
            keyless_uncharged: HashSet::new(),
            unrecorded: HashSet::new(),
            rideless: HashMap::new(),
        }
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }

    /// The triggers behind the invariants that no look at the present can show.
    pub(super) async fn guards(&mut self) -> Result<(), VerifyError> {
        const SQL: &str = "SELECT tgname::text AS name FROM pg_trigger
            WHERE tgrelid = 'idempotency_keys'::regclass AND NOT tgisinternal AND tgenabled = 'O'";
        let rows = self.database.query(SQL, &[]).await?;
        for (trigger, invariant) in [
            ("recovery_point_never_moves_back", Invariant::RecoveryPointAgrees),
            ("answer_never_changes", Invariant::AnswerNeverChanges),
            ("unfinished_is_never_removed", Invariant::UnfinishedIsNeverRemoved),
        ] {
            if !rows.iter().any(|row| row.get::<_, &str>("name") == trigger) {
                self.report.violate(invariant, || format!("the trigger {trigger} is missing or disabled"));
            }
        }
        Ok(())
    }

    pub(super) async fn keys(&mut self) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT k.id, k.operation, k.recovery_point, k.response_code, k.foreign_call_key,
                   k.response_body IS NOT NULL AND k.lease_token IS NULL AS whole,
                   k.parked_at IS NOT NULL AS parked, k.last_error IS NULL AS clean,
                   extract(epoch FROM now() - greatest(k.next_attempt_at, k.locked_at))::float8 AS overdue,
                   r.rides, r.ride_id, r.charges, r.same
            FROM idempotency_keys k
            CROSS JOIN LATERAL (
                SELECT count(*) AS rides, min(r.id) AS ride_id, count(r.stripe_charge_id) AS charges,
                       bool_and(r.user_id = k.user_id
                           AND to_jsonb(r.origin_lat) = k.request_params -> 'origin_lat'
                           AND to_jsonb(r.origin_lon) = k.request_params -> 'origin_lon'
                           AND to_jsonb(r.target_lat) = k.request_params -> 'target_lat'
                           AND to_jsonb(r.target_lon) = k.request_params -> 'target_lon') AS same
                FROM rides r WHERE r.idempotency_key_id = k.id
            ) r
            WHERE k.id > $1 ORDER BY k.id LIMIT $2";
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(SQL, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.get("id");
            rows.iter().for_each(|row| self.key(row));
        }
    }

    fn key(&mut self, row: &Row) {
        use Invariant as I;
        let id: i64 = row.get("id");
        let (rides, charges): (i64, i64) = (row.get("rides"), row.get("charges"));
        let point: &str = row.get("recovery_point");
        let code: Option<i32> = row.get("response_code");
        let report = &mut self.report;
        report.examine(I::NothingIsForgotten, 1);
        if row.get::<_, &str>("operation") != Rides::NAME {
            self.any_key(row, id, point, code);
            return;
        }
        for invariant in [I::OneRidePerKey, I::RecoveryPointAgrees] {
            report.examine(invariant, 1);
        }
        if rides == 0 {
            self.rideless.insert(row.get("foreign_call_key"), id);
        }
        if rides > 1 {
            report.violate(I::OneRidePerKey, || format!("key {id}: {rides} rides"));
        }
        let agrees = match (point, code) {
            ("ride_created", None) => rides > 0 && charges == 0,
            ("finished", Some(_)) => rides > 0,
            _ => false,
        };
        if !agrees {
            report.violate(I::RecoveryPointAgrees, || {
                format!("key {id}: at {point}, answered {code:?}, with {rides} rides and {charges} charges")
            });
        }
        if rides > 0 {
            report.examine(I::OnlyTheRequestIsExecuted, 1);
            if row.get::<_, Option<bool>>("same") != Some(true) {
                report.violate(I::OnlyTheRequestIsExecuted, || format!("key {id}: its ride is another one"));
            }
        }
        if let Some(code) = code {
            self.finished_ride(row, id, code, charges);
        }
        self.any_key(row, id, point, code);
    }

    /// What holds for every operation's keys.
    fn any_key(&mut self, row: &Row, id: i64, point: &str, code: Option<i32>) {
        use Invariant as I;
        let report = &mut self.report;
        let Some(code) = code else {
            let overdue: f64 = row.get("overdue");
            let forgotten = self.traffic == Traffic::Quiet || overdue > FORGOTTEN_AFTER_SECONDS;
            if forgotten && !row.get::<_, bool>("parked") {
                report.violate(I::NothingIsForgotten, || format!("key {id}: at {point}, due {overdue:.0} s ago"));
            }
            return;
        };
        report.examine(I::AnswerNeverChanges, 1);
        if !row.get::<_, bool>("whole") || !matches!(code, 201 | 402) {
            report.violate(I::AnswerNeverChanges, || format!("key {id}: finished with {code}, or not as a whole"));
        }
        // Finishing forgets the last error, and nobody who writes one may come after.
        if !row.get::<_, bool>("clean") {
            report.violate(I::StaleLeaseWritesNothing, || format!("key {id}: written to after it was finished"));
        }
    }

    fn finished_ride(&mut self, row: &Row, id: i64, code: i32, charges: i64) {
        use Invariant as I;
        let report = &mut self.report;
        if code == 201 {
            report.examine(I::BookedIsChargedAndReceipted, 1);
            if charges != 1 {
                report.violate(I::BookedIsChargedAndReceipted, || format!("key {id}: 201 with {charges} charges"));
            }
            self.awaiting_receipt.extend(row.get::<_, Option<i64>>("ride_id").map(|ride| (ride, 0)));
        } else {
            report.examine(I::DeclinedIsNotCharged, 1);
            if charges != 0 {
                report.violate(I::DeclinedIsNotCharged, || format!("key {id}: {code} with a recorded charge"));
            }
        }
    }

    pub(super) async fn rides(&mut self) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT r.id, r.stripe_charge_id, k.id IS NULL AS keyless
            FROM rides r LEFT JOIN idempotency_keys k ON k.id = r.idempotency_key_id
            WHERE r.id > $1 ORDER BY r.id LIMIT $2";
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(SQL, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.get("id");
            for row in &rows {
                let (id, keyless): (i64, bool) = (row.get("id"), row.get("keyless"));
                self.unrecorded.insert(id);
                if let Some(charge) = row.get::<_, Option<String>>("stripe_charge_id") {
                    self.recorded_charges.insert(charge, id);
                    if keyless {
                        // Only a finished request's key is ever removed, and it had a charge: it said 201.
                        self.awaiting_receipt.insert(id, 0);
                    }
                } else if keyless {
                    self.keyless_uncharged.insert(id);
                }
            }
        }
    }

    /// Phase two writes a ride and its record together; a second record is a second execution. A ride that was seen
    /// has its record by now.
    pub(super) async fn audit_records(&mut self) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT a.id, a.resource_id, r.id IS NOT NULL AS ride, k.id IS NULL OR k.origin_ip = a.origin_ip AS client
            FROM audit_records a
            LEFT JOIN rides r ON r.id = a.resource_id
            LEFT JOIN idempotency_keys k ON k.id = r.idempotency_key_id
            WHERE a.id > $1 AND a.action = 'ride.created' ORDER BY a.id LIMIT $2";
        let mut after = 0_i64;
        let mut seen = HashSet::new();
        loop {
            let rows = self.database.query(SQL, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { break };
            after = last.get("id");
            for row in &rows {
                let ride: i64 = row.get("resource_id");
                self.report.examine(Invariant::StaleLeaseWritesNothing, 1);
                self.unrecorded.remove(&ride);
                if !seen.insert(ride) {
                    self.report
                        .violate(Invariant::StaleLeaseWritesNothing, || format!("ride {ride}: recorded twice"));
                }
                if !row.get::<_, bool>("ride") {
                    self.report.violate(Invariant::StaleLeaseWritesNothing, || {
                        format!("ride {ride}: recorded, not there")
                    });
                }
                if !row.get::<_, bool>("client") {
                    let what = || format!("ride {ride}: recorded with another address than its client's");
                    self.report.violate(Invariant::OnlyTheRequestIsExecuted, what);
                }
            }
        }
        for ride in &self.unrecorded {
            let what = || format!("ride {ride}: without its audit record");
            self.report.violate(Invariant::RecoveryPointAgrees, what);
        }
        Ok(())
    }

    pub(super) async fn ledger(&mut self, stripe: &stripe::Client) -> Result<(), VerifyError> {
        let mut charged: HashMap<Uuid, String> = HashMap::new();
        let mut after = None;
        loop {
            let page = stripe.list_charges(after.as_deref()).await?;
            self.ledger_page(&page.entries, &mut charged).await?;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for (charge, ride) in &self.recorded_charges {
            let what = || format!("ride {ride}: its charge {charge} is not in Stripe's ledger");
            self.report.violate(Invariant::BookedIsChargedAndReceipted, what);
        }
        for ride in &self.keyless_uncharged {
            self.report.examine(Invariant::UnfinishedIsNeverRemoved, 1);
            let what = || format!("ride {ride}: without key, charge and decline");
            self.report.violate(Invariant::UnfinishedIsNeverRemoved, what);
        }
        Ok(())
    }

    async fn ledger_page(
        &mut self,
        charges: &[ListedCharge],
        charged: &mut HashMap<Uuid, String>,
    ) -> Result<(), VerifyError> {
        use Invariant as I;
        // Another database may use the same account; its customers are not ours.
        const SQL: &str = "
            SELECT i.charge_id, k.id AS key_id, k.response_code, r.id AS ride_id,
                   paid.id AS paid_id, paid.stripe_charge_id AS paid_by
            FROM unnest($1::text[], $2::uuid[], $3::text[], $4::bigint[])
                AS i (charge_id, idempotency_key, customer, ride_id)
            JOIN users u ON u.stripe_customer_id = i.customer
            LEFT JOIN rides paid ON paid.id = i.ride_id AND paid.user_id = u.id
            LEFT JOIN idempotency_keys k
                ON k.id = paid.idempotency_key_id AND k.foreign_call_key = i.idempotency_key
            LEFT JOIN rides r ON r.stripe_charge_id = i.charge_id";
        let mut made = Vec::new();
        for charge in charges {
            if charge.succeeded {
                made.push(charge);
            } else if let Some(ride) = charge.ride_id {
                self.keyless_uncharged.remove(&ride);
            }
        }
        let ids: Vec<_> = made.iter().map(|charge| charge.id.as_str()).collect();
        let keys: Vec<_> = made.iter().map(|charge| charge.idempotency_key).collect();
        let customers: Vec<_> = made.iter().map(|charge| charge.customer.as_str()).collect();
        let rides: Vec<_> = made.iter().map(|charge| charge.ride_id).collect();
        let ours = self.database.query(SQL, &[&ids, &keys, &customers, &rides]).await?;
        let by_id: HashMap<&str, Option<Uuid>> =
            made.iter().map(|charge| (charge.id.as_str(), charge.idempotency_key)).collect();
        for row in &ours {
            let charge: &str = row.get("charge_id");
            let (key, ride): (Option<i64>, Option<i64>) = (row.get("key_id"), row.get("ride_id"));
            self.recorded_charges.remove(charge);
            self.report.examine(I::OneChargePerKey, 1);
            let earlier = by_id[charge].and_then(|uuid| charged.insert(uuid, charge.to_owned()));
            if let Some(earlier) = earlier {
                let what = || format!("key {}: charges {charge} and {earlier}", key.unwrap_or_default());
                self.report.violate(I::OneChargePerKey, what);
            }
            match (row.get::<_, Option<i32>>("response_code"), key, ride) {
                (Some(402), Some(key), _) => {
                    self.report.violate(I::DeclinedIsNotCharged, || format!("key {key}: 402 and charge {charge}"));
                }
                (Some(_), Some(key), None) => {
                    self.report.violate(I::BookedIsChargedAndReceipted, || {
                        format!("key {key}: finished, and its ride does not know charge {charge}")
                    });
                }
                // Made with a key that is none of ours, for a ride that another charge has paid for.
                (_, None, None) if row.get::<_, Option<&str>>("paid_by").is_some() => {
                    let (ride, other): (i64, &str) = (row.get("paid_id"), row.get("paid_by"));
                    let what = || format!("ride {ride}: charges {charge} and {other}");
                    self.report.violate(I::OneChargePerKey, what);
                }
                (_, None, None) => match by_id[charge].and_then(|uuid| self.rideless.get(&uuid)) {
                    Some(key) => {
                        let what = || format!("key {key}: without a ride, and charge {charge}");
                        self.report.violate(I::RecoveryPointAgrees, what);
                    }
                    None => {
                        let what = || format!("charge {charge}: its key is gone, and no ride knows it");
                        self.report.violate(I::UnfinishedIsNeverRemoved, what);
                    }
                },
                _ => {}
            }
        }
        Ok(())
    }
}
