//! A load generator that needs little processor time, because it shares the cores with the system that it measures.
//!
//! - [`wire`]: one request and one answer on a kept-alive connection.
//! - [`keys`]: the idempotency keys that the requests carry.
//! - [`closed`]: each client sends when it has its answer; measures how many rides per second are possible.
//! - [`open`]: each request is sent when it is due, whether or not earlier ones are answered; measures how long clients
//!   wait.

pub(crate) mod closed;
pub(crate) mod keys;
pub(crate) mod open;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use wire::Answer;

/// The answers of one measurement.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Answers within the measured window.
    pub(crate) answers: u64,
    /// Answers other than 201, warm-up included, by status; 0 stands for a broken connection.
    pub(crate) others: BTreeMap<u16, u64>,
    /// Answers 201 with the mark of a replay, and those without; warm-up included.
    pub(crate) replayed: u64,
    pub(crate) fresh: u64,
    /// How long the window was.
    pub(crate) window: Duration,
    /// How long clients waited, in microseconds, in no order; open loops only.
    pub(crate) waits_us: Vec<u32>,
}

impl Tally {
    pub(crate) fn per_second(&self) -> f64 {
        self.answers as f64 / self.window.as_secs_f64()
    }

    fn count(&mut self, answer: &std::io::Result<Answer>) {
        match answer {
            Ok(Answer { status: 201, replayed: true }) => self.replayed += 1,
            Ok(Answer { status: 201, replayed: false }) => self.fresh += 1,
            Ok(Answer { status, .. }) => *self.others.entry(*status).or_default() += 1,
            Err(_) => *self.others.entry(0).or_default() += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.replayed += other.replayed;
        self.fresh += other.fresh;
        self.waits_us.extend(other.waits_us);
        for (status, count) in other.others {
            *self.others.entry(status).or_default() += count;
        }
    }

    /// Returns the number of answers other than 201.
    pub(crate) fn failures(&self) -> u64 {
        self.others.values().sum()
    }
}

/// Returns the exact percentile in milliseconds; NaN if there are no waits.
pub(crate) fn percentile_ms(waits_us: &mut [u32], percent: f64) -> f64 {
    waits_us.sort_unstable();
    let rank = (waits_us.len() as f64 * percent / 100.0).ceil() as usize;
    waits_us.get(rank.saturating_sub(1)).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
}
