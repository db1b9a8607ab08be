//! The times that the model leaves out: when each action becomes possible.
//!
//! The walk has its own time, in seconds, which passes only when a move says so: then every time in the rows is moved
//! into the past, and nothing sleeps. Real time passes as well, a fraction of a second in a walk. So a time that is
//! read back may be older than in the walk's time by that fraction, and never younger. Where a limit lies within that
//! fraction, nothing is asserted about it.

use std::time::Duration;

use crate::database::Row;

/// `idempotency.lock_timeout`.
pub(super) const LEASE: Duration = Duration::from_secs(90);
/// `completer.grace`.
pub(super) const GRACE: Duration = Duration::from_secs(300);
/// `completer.crash_grace`: with the most attempts that are tried, longer than any other pause.
pub(super) const CRASH_GRACE: Duration = Duration::from_secs(20);
/// `completer.retry_after`.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(60);
/// The completer's longest backoff, and the share by which a backoff is shorter or longer at random.
const LONGEST_PAUSE: f64 = 3600.0;
const JITTER: f64 = 0.25;
/// `reaper.retention`: shorter here than Stripe remembers a key, so that a key can be old before Stripe forgets.
pub(super) const RETENTION: Duration = Duration::from_secs(2 * 3600);
/// `stripe.key_retention`.
pub(super) const KEY_RETENTION: Duration = Duration::from_secs(23 * 3600);
/// `stripe.timeout`.
pub(super) const STRIPE_TIMEOUT: Duration = Duration::from_secs(20);
/// A walk that has taken longer than this in real time is of no use any more.
pub(super) const REAL_TIME: Duration = Duration::from_secs(10);

/// The times of a row, by the walk's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    pub(super) created: f64,
    pub(super) locked: Option<f64>,
    pub(super) last_run: f64,
    /// When the key is due for the completer, at the earliest and at the latest; the same once it was read.
    pub(super) due: (f64, f64),
    /// When the next call became possible.
    pub(super) intended: f64,
    /// How often the lease was taken.
    pub(super) attempts: i32,
}

/// What has changed a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Client,
    Completer,
    Person,
    /// The lease was handed back.
    HandBack,
    Other,
}

/// Whether a limit has passed, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Yes,
    No,
    /// The limit is too close to tell.
    Unknown,
}

impl Times {
    /// Returns a row's times after a step of this cause that has turned `before` into `after`.
    pub(super) fn next(old: Option<Self>, before: Option<&Row>, after: &Row, cause: Cause, now: f64) -> Self {
        let Some((mut times, before)) = old.zip(before) else {
            let due = now + GRACE.as_secs_f64();
            let times = Self {
                created: now,
                locked: Some(now),
                last_run: now,
                due: (due, due),
                intended: now,
                attempts: 1,
            };
            return times;
        };
        if after.lease.is_some() && after.lease != before.lease {
            (times.locked, times.last_run) = (Some(now), now);
            times.attempts += 1;
            times.due = match cause {
                Cause::Client => (now + GRACE.as_secs_f64(), now + GRACE.as_secs_f64()),
                Cause::Completer => {
                    let doubled = RETRY_AFTER.as_secs_f64() * 2_f64.powi(i32::from(before.completer_attempts));
                    let pause = doubled.min(LONGEST_PAUSE);
                    (now + pause * (1.0 - JITTER), now + pause * (1.0 + JITTER))
                }
                Cause::Person | Cause::HandBack | Cause::Other => times.due,
            };
        }
        if after.lease.is_none() {
            times.locked = None;
        }
        if after.foreign_call_key != before.foreign_call_key {
            times.intended = now;
        }
        if cause == Cause::HandBack {
            let left_alone = CRASH_GRACE.as_secs_f64() * 2_f64.powi(i32::from(before.completer_attempts));
            let due = now.max(times.last_run + left_alone);
            times.due = (times.due.0.min(due), times.due.1.min(due));
        }
        if cause == Cause::Person {
            (times.due, times.last_run) = ((now, now), now);
        }
        times
    }

    /// Returns when the lease may be taken over.
    pub(super) fn free_at(&self) -> f64 {
        self.locked.map_or(f64::NEG_INFINITY, |locked| locked + LEASE.as_secs_f64())
    }

    /// Returns when the completer may take the key.
    pub(super) fn claimable_at(&self) -> f64 {
        self.free_at().max(self.due.1)
    }

    /// Returns when the reaper may take the key.
    pub(super) fn reapable_at(&self) -> f64 {
        let retention = RETENTION.as_secs_f64();
        self.free_at().max(self.created + retention).max(self.last_run + retention)
    }
}

/// Returns whether `moment` has come, if `real` seconds have passed in addition.
pub(super) fn come(moment: f64, now: f64, real: f64) -> Known {
    if now >= moment {
        Known::Yes
    } else if now + real < moment {
        Known::No
    } else {
        Known::Unknown
    }
}
