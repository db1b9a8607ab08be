//! What must always hold, checked over the database and Stripe's ledger.
//!
//! The checks run on a live system. Each statement sees one moment, and what spans two is read in the order in which
//! it can only come true: a finished request before its job, a job before its receipt, a recorded charge before Stripe's
//! list of them. So nothing that is merely under way looks wrong.
//!
//! Cost: every row of keys, rides, jobs, receipts and audit records is read once, by primary key in pages of 5,000, and
//! Stripe's list of charges once, in pages of 100. Nothing is locked, and no snapshot is held for longer than a page.
//! Memory: about 330 bytes for each ride.

mod check;
mod jobs;
mod refunds;

use std::collections::BTreeMap;

use crate::database::{Database, DatabaseError};
use crate::stripe::{self, CallError};
use check::Check;

/// Offenders that a report names; it counts the others.
const NAMED: usize = 10;

/// What must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// 1.
    OneRidePerKey,
    /// 2.
    OneChargePerKey,
    /// 3.
    BookedIsChargedAndReceipted,
    /// 4.
    DeclinedIsNotCharged,
    /// 5.
    RecoveryPointAgrees,
    /// 6.
    AnswerNeverChanges,
    /// 7.
    OnlyTheRequestIsExecuted,
    /// 8.
    StaleLeaseWritesNothing,
    /// 9.
    NothingIsForgotten,
    /// 10.
    UnfinishedIsNeverRemoved,
    /// 11.
    StagedIsDelivered,
    /// 12.
    RefundedOnce,
}

impl Invariant {
    /// All, in order.
    pub const ALL: [Self; 12] = [
        Self::OneRidePerKey,
        Self::OneChargePerKey,
        Self::BookedIsChargedAndReceipted,
        Self::DeclinedIsNotCharged,
        Self::RecoveryPointAgrees,
        Self::AnswerNeverChanges,
        Self::OnlyTheRequestIsExecuted,
        Self::StaleLeaseWritesNothing,
        Self::NothingIsForgotten,
        Self::UnfinishedIsNeverRemoved,
        Self::StagedIsDelivered,
        Self::RefundedOnce,
    ];

    /// Its number.
    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// As a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneRidePerKey => "one ride per key",
            Self::OneChargePerKey => "at most one charge per key in Stripe's ledger",
            Self::BookedIsChargedAndReceipted => "201, one charge and one receipt go together",
            Self::DeclinedIsNotCharged => "no charge behind a final 402",
            Self::RecoveryPointAgrees => "a recovery point agrees with what is there, and never moves back",
            Self::AnswerNeverChanges => "a finished response is whole and never changes",
            Self::OnlyTheRequestIsExecuted => "what was executed is what the key's request asked for",
            Self::StaleLeaseWritesNothing => "nothing was written twice",
            Self::NothingIsForgotten => "every key ends finished or parked",
            Self::UnfinishedIsNeverRemoved => "no unfinished request was removed",
            Self::StagedIsDelivered => "a staged job is delivered, once",
            Self::RefundedOnce => {
                "at most one refund per charge in Stripe's ledger, and refunded here means refunded there"
            }
        }
    }
}

/// How much traffic the system has while it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// It runs: requests may be under way.
    Live,
    /// It has come to rest: every request must have ended, and every job be finished or dead.
    Quiet,
}

/// Where the enqueuer delivers to, and so how much of a job's life there is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// To the table `jobs`: every job leaves a trace for good.
    InDatabase,
    /// Out of this database: a job that was delivered leaves none, so all that can be checked is that there is no
    /// second one.
    Elsewhere,
}

/// What one invariant's check counted and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Rows or charges looked at.
    pub examined: u64,
    /// Violations.
    pub violations: u64,
    /// The first of them, with ids.
    pub named: Vec<String>,
    /// What could not be checked.
    pub unchecked: Option<&'static str>,
}

/// What all checks found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(BTreeMap<Invariant, Finding>);

/// Why the checks could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database did not answer.
    #[error("cannot read the database")]
    Database(#[from] DatabaseError),
    /// Stripe did not list its charges.
    #[error("cannot list the charges at Stripe")]
    Stripe(#[from] CallError),
}

impl Report {
    /// One for each invariant, in order.
    pub fn findings(&self) -> impl Iterator<Item = (Invariant, &Finding)> {
        self.0.iter().map(|(invariant, finding)| (*invariant, finding))
    }

    /// The invariants that do not hold.
    pub fn violated(&self) -> Vec<Invariant> {
        self.findings().filter(|(_, finding)| finding.violations > 0).map(|(invariant, _)| invariant).collect()
    }

    fn examine(&mut self, invariant: Invariant, count: usize) {
        self.0.entry(invariant).or_default().examined += count as u64;
    }

    fn leave_unchecked(&mut self, invariant: Invariant, what: &'static str) {
        self.0.entry(invariant).or_default().unchecked = Some(what);
    }

    fn violate(&mut self, invariant: Invariant, offender: impl FnOnce() -> String) {
        let finding = self.0.entry(invariant).or_default();
        finding.violations += 1;
        if finding.named.len() < NAMED {
            finding.named.push(offender());
        }
    }
}

impl std::fmt::Display for Report {
    /// A line for each invariant, and one for each named offender.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (invariant, finding) in self.findings() {
            let verdict = if finding.violations == 0 { "holds   " } else { "VIOLATED" };
            let (number, name) = (invariant.number(), invariant.name());
            writeln!(
                f,
                "{verdict} {number:>2} {name}: {} examined, {} violations{}",
                finding.examined,
                finding.violations,
                finding.unchecked.map(|unchecked| format!(" ({unchecked})")).unwrap_or_default()
            )?;
            for offender in &finding.named {
                writeln!(f, "            {offender}")?;
            }
        }
        Ok(())
    }
}

/// Checks everything.
pub async fn verify(
    database: &Database,
    stripe: &stripe::Client,
    traffic: Traffic,
    queue: Queue,
) -> Result<Report, VerifyError> {
    let mut check = Check::new(database, traffic);
    check.guards().await?;
    check.keys().await?;
    check.rides().await?;
    check.jobs(queue).await?;
    check.audit_records().await?;
    check.ledger(stripe).await?;
    check.refunds(stripe).await?;
    Ok(check.into_report())
}
