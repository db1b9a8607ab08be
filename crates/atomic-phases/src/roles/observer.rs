//! What the roles report, for metrics.

use std::fmt::Debug;

use crate::queue::Relayed;

/// Receives what roles do, for example to count it. `()` is an observer that does nothing.
pub trait Observer: Send + Sync + Debug + 'static {
    /// Receives the result of one round to the queue of this name.
    fn relayed(&self, queue: &'static str, relayed: &Relayed) {
        let _ = (queue, relayed);
    }

    /// Receives the outcome of one attempt at a job.
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
    /// The lease was lost, or the end of the attempt could not be recorded.
    LeaseLost,
}

impl Outcome {
    /// Returns the outcome's name, as a metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retried => "retried",
            Self::Died => "died",
            Self::LeaseLost => "lease_lost",
        }
    }
}
