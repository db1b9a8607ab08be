//! This host's clock, as a part that is handed in.
//!
//! What time decides is the database's to say, but for one thing that no statement can: whether a call to Stripe still
//! fits into a lease. The holder of the lease asks its own clock, and a test can put that forward between two messages
//! instead of waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The host's monotonic clock. Clones are one clock.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    /// The time, on the scale of [`Instant::now`].
    pub fn now(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Puts it forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).expect("less than an age of the world");
        self.ahead_ms.fetch_add(by, Ordering::Relaxed);
    }
}
