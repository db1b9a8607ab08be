//! The host's clock, passed in as a value.
//!
//! For a request, the database's clock decides whatever depends on time, except for what no statement can decide:
//! whether a foreign call still fits into a lease. The holder of the lease decides that by this clock. A test can put
//! the clock forward between two messages instead of waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The host's monotonic clock. A clone is the same clock: [`Clock::advance`] moves all of them.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    /// Returns the time, on the scale of [`Instant::now`].
    pub fn now(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Puts the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).expect("less than an age of the world");
        self.ahead_ms.fetch_add(by, Ordering::Relaxed);
    }
}
