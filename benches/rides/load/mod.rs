//! Clients that cost little, for they share the cores with what they measure.
//!
//! - [`wire`]: one request and one answer on a kept-alive connection.
//! - [`keys`]: which idempotency keys the requests come with.
//! - [`closed`]: each client sends when it has its answer: how many rides there can be.
//! - [`open`]: requests are sent when they are due, whatever became of those before: how long clients wait.

pub(crate) mod closed;
pub(crate) mod keys;
pub(crate) mod open;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use wire::Answer;

/// What the answers of one measurement were.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Answers within the measured window.
    pub(crate) answers: u64,
    /// Answers that were no 201, warm-up included, by status; 0 stands for a broken connection.
    pub(crate) others: BTreeMap<u16, u64>,
    /// 201 with the mark of a replay, warm-up included; and without.
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

    /// Answers that were no 201.
    pub(crate) fn failures(&self) -> u64 {
        self.others.values().sum()
    }
}

/// The exact percentile, in milliseconds; of nothing it is no number.
pub(crate) fn percentile_ms(waits_us: &mut [u32], percent: f64) -> f64 {
    waits_us.sort_unstable();
    let rank = (waits_us.len() as f64 * percent / 100.0).ceil() as usize;
    waits_us.get(rank.saturating_sub(1)).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
}
