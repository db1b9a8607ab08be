//! The operations as those see them who attack them: how one is asked for, and what it leaves behind.

use std::ops::{Add, Mul};

use crate::support::client::{Answer, Post, new_key};
use crate::support::world::World;

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ride,
    Refund,
}

/// What has been done, as numbers.
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
    /// Every operation that is registered: a test sees to it.
    pub const ALL: [Self; 2] = [Self::Ride, Self::Refund];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ride => "ride",
            Self::Refund => "refund",
        }
    }

    /// A request under a new key, once all is there that it needs.
    pub async fn request(self, world: &World) -> Post {
        match self {
            Self::Ride => Post::default().key(&new_key()),
            Self::Refund => {
                let answer = world.post(Post::default()).await;
                Post::refund(ride(&answer)).key(&new_key())
            }
        }
    }

    /// What one request leaves behind that was paid, or declined.
    pub fn leaves(self, paid: bool) -> Books {
        let paid = i64::from(paid);
        match self {
            Self::Ride => Books { rides: 1, audit_records: 1, jobs: paid, charges: paid, ..Books::default() },
            Self::Refund => Books { refunds: 1, audit_records: 1, jobs: paid, refunded: paid, ..Books::default() },
        }
    }

    /// How its work ends, as boundaries' labels have it.
    pub fn last(self) -> &'static str {
        match self {
            Self::Ride => "execute update idempotency_keys + insert staged_jobs + update rides",
            Self::Refund => "execute update idempotency_keys + insert staged_jobs + update refunds",
        }
    }

    /// Whether a card can decline it.
    pub fn can_be_declined(self) -> bool {
        self == Self::Ride
    }
}

/// The ride that an answer says is there.
pub fn ride(answer: &Answer) -> i64 {
    assert_eq!(answer.status, 201, "{answer:?}");
    let place = answer.header("location").expect("a place");
    place.strip_prefix("/rides/").expect("a ride's").parse().expect("a number")
}

impl Books {
    /// As they are.
    pub async fn of(world: &World) -> Self {
        let count = "SELECT (SELECT count(*) FROM rides), (SELECT count(*) FROM refunds),
                            (SELECT count(*) FROM audit_records),
                            (SELECT count(*) FROM staged_jobs) + (SELECT count(*) FROM jobs)";
        let row = &world.query(count, &[]).await[0];
        Self {
            rides: row.get(0),
            refunds: row.get(1),
            audit_records: row.get(2),
            jobs: row.get(3),
            charges: i64::try_from(world.charges().await.len()).expect("a count"),
            refunded: i64::try_from(world.refunds().await.len()).expect("a count"),
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

/// What is not listed above is attacked by nobody.
#[tokio::test]
async fn every_operation_is_attacked() {
    let world = World::start().await;
    let crew = crate::crew::Crew::new(&world, None).await;
    assert_eq!(crew.completer.operations.names().len(), Kind::ALL.len());
    for kind in Kind::ALL {
        assert!(crew.completer.operations.get(kind.name()).is_some(), "{kind:?}");
    }
}
