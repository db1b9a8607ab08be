//! The check of a job's life: staged, queued, finished or dead, and at last no more than a line in `receipts`.

use std::collections::HashMap;

use tokio_postgres::Row;

use super::check::{Check, PAGE};
use super::{Invariant, Queue, Traffic, VerifyError};
use crate::receipts::RIDE_RECEIPT;

/// Where a job was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Dead,
    /// A person gave it up.
    Purged,
    Staged,
    Queued,
    Finished,
    /// Its receipt is there, and it has been swept.
    Receipted,
}

/// A pass over one table.
struct Pass {
    sql: &'static str,
    place: Place,
}

const DEAD: Pass = Pass {
    sql: "SELECT staged_id AS id, job_name, job_args ->> 'ride_id' AS ride_id, false AS finished
          FROM dead_jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2",
    place: Place::Dead,
};
const STAGED: Pass = Pass {
    sql: "SELECT id, job_name, job_args ->> 'ride_id' AS ride_id, false AS finished
          FROM staged_jobs WHERE id > $1 ORDER BY id LIMIT $2",
    place: Place::Staged,
};
const QUEUED: Pass = Pass {
    sql: "SELECT staged_id AS id, job_name, job_args ->> 'ride_id' AS ride_id, finished_at IS NOT NULL AS finished
          FROM jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2",
    place: Place::Queued,
};

const PURGED: Pass = Pass {
    sql: "SELECT staged_id AS id, job_name, job_args ->> 'ride_id' AS ride_id, false AS finished
          FROM purged_jobs WHERE staged_id > $1 ORDER BY staged_id LIMIT $2",
    place: Place::Purged,
};

/// Jobs by their ids, and where each was seen last.
type Seen = HashMap<i64, Place>;

impl Check<'_> {
    /// A job may move meanwhile, so the tables are read in the order in which it does, and one that was seen twice is
    /// looked at again. Dead letters come first too, because a person may just be sending one back.
    pub(super) async fn jobs(&mut self, queue: Queue) -> Result<(), VerifyError> {
        let (mut seen, mut met_again) = (Seen::new(), Vec::new());
        for pass in [DEAD, STAGED, QUEUED, DEAD, PURGED] {
            self.pass(&pass, &mut seen, &mut met_again).await?;
        }
        self.in_two_places(met_again).await?;
        self.receipts(&mut seen).await?;
        if self.traffic == Traffic::Quiet {
            for (id, place) in &seen {
                let left = match place {
                    Place::Staged => "not delivered",
                    Place::Queued => "not worked",
                    Place::Dead | Place::Purged | Place::Finished | Place::Receipted => continue,
                };
                self.report.violate(Invariant::StagedIsDelivered, || format!("staged job {id}: {left}"));
            }
        }
        self.count_receipts(queue);
        Ok(())
    }

    async fn pass(&mut self, pass: &Pass, seen: &mut Seen, met_again: &mut Vec<i64>) -> Result<(), VerifyError> {
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(pass.sql, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.get("id");
            let (mut unknown, mut finished) = (Vec::new(), Vec::new());
            for row in &rows {
                let (id, ride) = (row.get("id"), ride_of(row));
                let done = row.get::<_, bool>("finished");
                let met = seen.insert(id, if done { Place::Finished } else { pass.place });
                if met.is_some_and(|place| place != pass.place) {
                    met_again.push(id);
                }
                let Some(ride) = ride else { continue };
                if met.is_none() && !self.count_receipt(ride) {
                    unknown.push(ride);
                }
                if done {
                    finished.push(ride);
                }
            }
            self.report.examine(Invariant::StagedIsDelivered, rows.len());
            self.receipts_of_other_rides(unknown).await?;
            self.finished_without_receipt(finished).await?;
        }
    }

    /// One more job for this ride's receipt. `false` if the ride was not seen to be booked and paid.
    fn count_receipt(&mut self, ride: i64) -> bool {
        let counted = self.awaiting_receipt.get_mut(&ride).map(|receipts| *receipts += 1);
        counted.is_some()
    }

    /// Receipts of rides that were not seen to be booked before: finished since, or they should not be there.
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

    /// The statement that finishes a job records its receipt.
    async fn finished_without_receipt(&mut self, rides: Vec<i64>) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT i.ride_id FROM unnest($1::bigint[]) AS i (ride_id)
            WHERE NOT EXISTS (SELECT FROM receipts s WHERE s.ride_id = i.ride_id)";
        for row in self.database.query(SQL, &[&rides]).await? {
            let ride: i64 = row.get("ride_id");
            let what = || format!("ride {ride}: its job is finished, and no receipt was recorded");
            self.report.violate(Invariant::StagedIsDelivered, what);
        }
        Ok(())
    }

    /// One statement sees one moment, in which a job is in one table only.
    async fn in_two_places(&mut self, ids: Vec<i64>) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT i.id FROM unnest($1::bigint[]) AS i (id)
            WHERE (SELECT count(*) FROM staged_jobs j WHERE j.id = i.id)
                + (SELECT count(*) FROM jobs j WHERE j.staged_id = i.id)
                + (SELECT count(*) FROM dead_jobs j WHERE j.staged_id = i.id)
                + (SELECT count(*) FROM purged_jobs j WHERE j.staged_id = i.id) > 1";
        for row in self.database.query(SQL, &[&ids]).await? {
            let id: i64 = row.get("id");
            let what = || format!("staged job {id}: delivered twice");
            self.report.violate(Invariant::StagedIsDelivered, what);
        }
        Ok(())
    }

    /// What was sent was paid for, and is not about to be sent again.
    async fn receipts(&mut self, seen: &mut Seen) -> Result<(), VerifyError> {
        const SQL: &str = "
            SELECT s.ride_id, s.staged_id,
                   EXISTS (SELECT FROM staged_jobs j WHERE j.id = s.staged_id)
                   OR EXISTS (SELECT FROM jobs j WHERE j.staged_id = s.staged_id AND j.finished_at IS NULL)
                   OR EXISTS (SELECT FROM dead_jobs j WHERE j.staged_id = s.staged_id) AS pending
            FROM receipts s WHERE s.ride_id > $1 ORDER BY s.ride_id LIMIT $2";
        let mut after = 0_i64;
        loop {
            let rows = self.database.query(SQL, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.get("ride_id");
            let mut unknown = Vec::new();
            for row in &rows {
                let (ride, id): (i64, i64) = (row.get("ride_id"), row.get("staged_id"));
                // A job that is there has been counted by itself.
                let swept = seen.insert(id, Place::Receipted).is_none();
                let known =
                    if swept { self.count_receipt(ride) } else { self.awaiting_receipt.contains_key(&ride) };
                if !known {
                    unknown.push(ride);
                }
                if row.get::<_, bool>("pending") {
                    let what = || format!("staged job {id}: its receipt was sent, and it is still to be worked");
                    self.report.violate(Invariant::StagedIsDelivered, what);
                }
            }
            self.report.examine(Invariant::StagedIsDelivered, rows.len());
            self.receipts_of_other_rides(unknown).await?;
        }
    }

    fn count_receipts(&mut self, queue: Queue) {
        let least = match queue {
            Queue::InDatabase => 1,
            Queue::Elsewhere => {
                let what = "jobs leave this database for their queue, so only a second receipt would be noticed";
                self.report.leave_unchecked(Invariant::BookedIsChargedAndReceipted, what);
                0
            }
        };
        for (ride, receipts) in &self.awaiting_receipt {
            if !(least..=1).contains(receipts) {
                self.report.violate(Invariant::BookedIsChargedAndReceipted, || {
                    format!("ride {ride}: 201 with {receipts} receipts")
                });
            }
        }
    }
}

/// The ride that a receipt's job names; a dead letter may name none.
fn ride_of(row: &Row) -> Option<i64> {
    let ride = row.get::<_, Option<&str>>("ride_id").filter(|_| row.get::<_, &str>("job_name") == RIDE_RECEIPT);
    ride.and_then(|ride| ride.parse().ok())
}
