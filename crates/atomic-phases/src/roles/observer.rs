//! What the roles report, for metrics.

use std::fmt::Debug;

use crate::queue::Drained;

/// Counts what roles do, or does nothing: `()` is one.
pub trait Observer: Send + Sync + Debug + 'static {
    /// One look at the outbox, on the way to the queue of this name.
    fn drained(&self, queue: &'static str, drained: &Drained) {
        let _ = (queue, drained);
    }

    /// One attempt at a job.
    fn worked(&self, outcome: Outcome) {
        let _ = outcome;
    }
}

impl Observer for () {}

/// How an attempt at a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The job is finished.
    Done,
    /// It is tried again.
    Retried,
    /// It is a dead letter.
    Died,
    /// It is somebody else's to say.
    LeaseLost,
}

impl Outcome {
    /// As a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retried => "retried",
            Self::Died => "died",
            Self::LeaseLost => "lease_lost",
        }
    }
}
