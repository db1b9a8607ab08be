//! The checks themselves: a pass over each table, and one over Stripe's list.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use uuid::Uuid;

use super::{Finding, Invariant, Report, Traffic, VerifyError};
use crate::database::Database;
use crate::stripe::{self, ListedCharge};

/// Rows a statement reads.
const PAGE: i64 = 5000;
/// An unfinished key this much past the moment when the completer should have taken it has been forgotten.
const FORGOTTEN_AFTER_SECONDS: f64 = 3600.0;

/// A check under way, with what one part of it leaves for the next.
pub(super) struct Check<'a> {
    database: &'a Database,
    traffic: Traffic,
    report: Report,
    /// Rides whose key says 201, and their receipts as far as they have been seen.
    awaiting_receipt: HashMap<i64, u32>,
    /// Charges that rides have recorded, until they are seen in the ledger, and their rides.
    recorded_charges: HashMap<String, i64>,
    /// Rides that have neither key nor charge: declined long ago, if all is well.
    keyless_uncharged: HashSet<i64>,
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
            SELECT k.id, k.recovery_point, k.response_code, k.foreign_call_intended_at IS NOT NULL AS intended,
                   k.response_body IS NOT NULL AND k.lease_token IS NULL AS whole,
                   k.parked_at IS NOT NULL AS parked,
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
        for invariant in [I::OneRidePerKey, I::RecoveryPointAgrees, I::NothingIsForgotten] {
            report.examine(invariant, 1);
        }
        if rides > 1 {
            report.violate(I::OneRidePerKey, || format!("key {id}: {rides} rides"));
        }
        let agrees = match (point, code) {
            ("started", None) => rides == 0 && !row.get::<_, bool>("intended"),
            ("ride_created", None) => rides > 0 && charges == 0,
            ("charge_created", None) => rides > 0 && charges > 0,
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
            self.finished_key(row, id, code, charges);
        } else if !row.get::<_, bool>("parked") {
            let overdue: f64 = row.get("overdue");
            if self.traffic == Traffic::Quiet || overdue > FORGOTTEN_AFTER_SECONDS {
                self.report
                    .violate(I::NothingIsForgotten, || format!("key {id}: at {point}, due {overdue:.0} s ago"));
            }
        }
    }

    fn finished_key(&mut self, row: &Row, id: i64, code: i32, charges: i64) {
        use Invariant as I;
        let report = &mut self.report;
        report.examine(I::AnswerNeverChanges, 1);
        if !row.get::<_, bool>("whole") || !matches!(code, 201 | 402) {
            report.violate(I::AnswerNeverChanges, || format!("key {id}: finished with {code}, or not as a whole"));
        }
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
        const SQL: &str = "SELECT id, stripe_charge_id, idempotency_key_id IS NULL AS keyless FROM rides
            WHERE id > $1 ORDER BY id LIMIT $2";
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(SQL, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.get("id");
            for row in &rows {
                let (id, keyless): (i64, bool) = (row.get("id"), row.get("keyless"));
                if let Some(charge) = row.get::<_, Option<String>>("stripe_charge_id") {
                    self.recorded_charges.insert(charge, id);
                } else if keyless {
                    self.keyless_uncharged.insert(id);
                }
            }
        }
    }

    /// A job may move from one table to the other meanwhile, but never back.
    pub(super) async fn jobs(&mut self) -> Result<(), VerifyError> {
        const STAGED: &str = "
            SELECT id, id AS staged_id, job_name, (job_args ->> 'ride_id')::bigint AS ride_id
            FROM staged_jobs WHERE id > $1 ORDER BY id LIMIT $2";
        const QUEUED: &str = "
            SELECT id, staged_id, job_name, (job_args ->> 'ride_id')::bigint AS ride_id
            FROM jobs WHERE id > $1 ORDER BY id LIMIT $2";
        let mut staged = HashSet::new();
        let mut queued = HashSet::new();
        for sql in [STAGED, QUEUED] {
            let mut after = 0_i64;
            loop {
                let rows = self.database.query(sql, &[&after, &PAGE]).await?;
                let Some(last) = rows.last() else { break };
                after = last.get("id");
                let mut unknown = Vec::new();
                for row in &rows {
                    let staged_id: i64 = row.get("staged_id");
                    self.report.examine(Invariant::StagedIsDelivered, 1);
                    let moved = sql == QUEUED && staged.remove(&staged_id);
                    let new = if sql == STAGED { staged.insert(staged_id) } else { queued.insert(staged_id) };
                    if !new {
                        let what = || format!("staged job {staged_id}: delivered twice");
                        self.report.violate(Invariant::StagedIsDelivered, what);
                    }
                    if moved || row.get::<_, &str>("job_name") != crate::rides::RECEIPT_JOB {
                        continue;
                    }
                    let ride: Option<i64> = row.get("ride_id");
                    match ride.and_then(|ride| self.awaiting_receipt.get_mut(&ride)) {
                        Some(receipts) => *receipts += 1,
                        None => unknown.push(ride.unwrap_or_default()),
                    }
                }
                self.receipts_of_other_rides(unknown).await?;
            }
        }
        if self.traffic == Traffic::Quiet {
            for id in staged {
                self.report.violate(Invariant::StagedIsDelivered, || format!("staged job {id}: not delivered"));
            }
        }
        for (ride, receipts) in &self.awaiting_receipt {
            if *receipts != 1 {
                self.report.violate(Invariant::BookedIsChargedAndReceipted, || {
                    format!("ride {ride}: 201 with {receipts} receipts")
                });
            }
        }
        Ok(())
    }

    /// Receipts of rides that were not seen with a 201 before: finished since, or their keys are gone.
    async fn receipts_of_other_rides(&mut self, rides: Vec<i64>) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT i.ride_id FROM unnest($1::bigint[]) AS i (ride_id)
            WHERE NOT EXISTS (
                SELECT FROM rides r LEFT JOIN idempotency_keys k ON k.id = r.idempotency_key_id
                WHERE r.id = i.ride_id AND r.stripe_charge_id IS NOT NULL
                  AND (k.id IS NULL OR k.response_code = 201))";
        for row in self.database.query(SQL, &[&rides]).await? {
            let ride: i64 = row.get("ride_id");
            let what = || format!("ride {ride}: a receipt without a 201 and a charge");
            self.report.violate(Invariant::BookedIsChargedAndReceipted, what);
        }
        Ok(())
    }

    /// Phase two writes a ride and its record together; a second record is a second execution.
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
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.get("id");
            for row in &rows {
                let ride: i64 = row.get("resource_id");
                self.report.examine(Invariant::StaleLeaseWritesNothing, 1);
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
    }

    pub(super) async fn ledger(&mut self, stripe: &stripe::Client) -> Result<(), VerifyError> {
        let mut charged: HashMap<Uuid, String> = HashMap::new();
        let mut after = None;
        loop {
            let page = stripe.list_charges(after.as_deref()).await?;
            self.ledger_page(&page.charges, &mut charged).await?;
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
            SELECT i.charge_id, k.id AS key_id, k.response_code, r.id AS ride_id, k.recovery_point
            FROM unnest($1::text[], $2::uuid[], $3::text[]) AS i (charge_id, idempotency_key, customer)
            JOIN users u ON u.stripe_customer_id = i.customer
            LEFT JOIN idempotency_keys k ON k.foreign_call_key = i.idempotency_key
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
        let ours = self.database.query(SQL, &[&ids, &keys, &customers]).await?;
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
                (_, None, None) => {
                    self.report.violate(I::UnfinishedIsNeverRemoved, || {
                        format!("charge {charge}: its key is gone, and no ride knows it")
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
