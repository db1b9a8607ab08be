//! The operations as the chaos tests use them: how one is requested, and what it leaves behind.

use std::ops::{Add, Mul};

use crate::support::app::TestApp;
use crate::support::client::{Answer, Post, new_key};

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ride,
    Refund,
}

/// Counts of what has been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Books {
    pub rides: i64,
    pub refunds: i64,
    pub audit_records: i64,
    /// Jobs that were staged.
    pub jobs: i64,
    /// In Stripe's ledger.
    pub charges: i64,
    pub refunded: i64,
}

impl Kind {
    /// Every registered operation; `every_operation_is_attacked` checks this.
    pub const ALL: [Self; 2] = [Self::Ride, Self::Refund];

    /// Returns the name that is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ride => "ride",
            Self::Refund => "refund",
        }
    }

    /// Returns a request under a new key, after creating what it needs.
    pub async fn request(self, app: &TestApp) -> Post {
        match self {
            Self::Ride => Post::default().key(&new_key()),
            Self::Refund => {
                let answer = app.post(Post::default()).await;
                Post::refund(ride(&answer)).key(&new_key())
            }
        }
    }

    /// Returns what one request leaves behind, if it was paid and if it was declined.
    pub fn leaves(self, paid: bool) -> Books {
        let paid = i64::from(paid);
        match self {
            Self::Ride => Books { rides: 1, audit_records: 1, jobs: paid, charges: paid, ..Books::default() },
            Self::Refund => Books { refunds: 1, audit_records: 1, jobs: paid, refunded: paid, ..Books::default() },
        }
    }

    /// Returns the label of the boundary at which its work ends.
    pub fn last(self) -> &'static str {
        match self {
            Self::Ride => "execute update idempotency_keys + insert staged_jobs + update rides",
            Self::Refund => "execute update idempotency_keys + insert staged_jobs + update refunds",
        }
    }

    /// Returns whether a card can decline it.
    pub fn can_be_declined(self) -> bool {
        self == Self::Ride
    }
}

/// Returns the id of the ride in an answer's `location`.
pub fn ride(answer: &Answer) -> i64 {
    assert_eq!(answer.status, 201, "{answer:?}");
    let place = answer.header("location").expect("a place");
    place.strip_prefix("/rides/").expect("a ride's").parse().expect("a number")
}

impl Books {
    /// Counts what is there now.
    pub async fn of(app: &TestApp) -> Self {
        let count = "SELECT (SELECT count(*) FROM rides), (SELECT count(*) FROM refunds),
                            (SELECT count(*) FROM audit_records),
                            (SELECT count(*) FROM staged_jobs) + (SELECT count(*) FROM jobs)";
        let row = &app.query(count, &[]).await[0];
        Self {
            rides: row.get(0),
            refunds: row.get(1),
            audit_records: row.get(2),
            jobs: row.get(3),
            charges: i64::try_from(app.charges().await.len()).expect("a count"),
            refunded: i64::try_from(app.refunds().await.len()).expect("a count"),
        }
    }
}

impl Add for Books {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rides: self.rides + other.rides,
            refunds: self.refunds + other.refunds,
            audit_records: self.audit_records + other.audit_records,
            jobs: self.jobs + other.jobs,
            charges: self.charges + other.charges,
            refunded: self.refunded + other.refunded,
        }
    }
}

impl Mul<i64> for Books {
    type Output = Self;

    fn mul(self, times: i64) -> Self {
        (0..times).fold(Self::default(), |sum, _| sum + self)
    }
}

/// Chaos tests cover only the operations in [`Kind::ALL`].
#[tokio::test]
async fn every_operation_is_attacked() {
    let app = TestApp::start().await;
    let crew = crate::crew::Workers::new(&app, None).await;
    assert_eq!(crew.completer.operations.names().len(), Kind::ALL.len());
    for kind in Kind::ALL {
        assert!(crew.completer.operations.get(kind.name()).is_some(), "{kind:?}");
    }
}
