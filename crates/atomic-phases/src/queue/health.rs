//! Whether the queue takes jobs just now, and when to ask it again.
//!
//! An outage belongs to the queue and not to a job, so it is recorded here, once, and costs no job an attempt. The
//! enqueuer leaves a queue alone for growing pauses, and comes back with small batches: a queue that is too slow for a
//! large batch can take a small one, and a queue that is down costs a lease on a few rows only.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::QueueDown;
use crate::errors::chain;

/// How long a queue is left alone when it first refuses; this doubles with each further refusal, give or take a fifth.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: a queue that is back should not stand idle for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Batches are halved this often at most: a million becomes one.
const MOST_HALVINGS: u32 = 20;

/// What is known of one queue, shared by the code that delivers to it and the code that reports on it.
#[derive(Debug)]
pub struct QueueHealth {
    queue: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    down: Option<Outage>,
    /// How often a batch is halved before it is pushed.
    halvings: u32,
}

#[derive(Debug, Clone, Copy)]
struct Outage {
    since: SystemTime,
    began: Instant,
    refusals: u32,
    ask_again: Instant,
}

impl QueueHealth {
    /// Creates the record of a queue, which counts as up until it refuses a push.
    pub fn new(queue: &'static str) -> Self {
        Self { queue, state: Mutex::default() }
    }

    /// The queue's name.
    pub fn queue(&self) -> &'static str {
        self.queue
    }

    /// Returns since when the queue has taken nothing, by this host's clock; `None` if it is up.
    pub fn down_since(&self) -> Option<SystemTime> {
        self.state().down.map(|outage| outage.since)
    }

    /// Returns for how long the queue is still left alone; `None` if it may be asked now.
    pub fn pause(&self) -> Option<Duration> {
        let ask_again = self.state().down?.ask_again;
        Some(ask_again.saturating_duration_since(Instant::now())).filter(|pause| !pause.is_zero())
    }

    /// Returns how many jobs of a batch the queue is given now.
    pub(super) fn share_of(&self, batch: i64) -> i64 {
        (batch >> self.state().halvings).max(1)
    }

    /// Records that the queue took a push.
    pub(super) fn took_jobs(&self) {
        let mut state = self.state();
        state.halvings = state.halvings.saturating_sub(1);
        if let Some(outage) = state.down.take() {
            let down_s = outage.began.elapsed().as_secs();
            tracing::info!(queue = self.queue, down_s, "the queue takes jobs again");
        }
    }

    /// Records that the queue took nothing. Logs only the beginning of an outage.
    pub(super) fn took_nothing(&self, error: &QueueDown) {
        let mut state = self.state();
        state.halvings = (state.halvings + 1).min(MOST_HALVINGS);
        let refusals = state.down.map_or(0, |outage| outage.refusals);
        let pause = (FIRST_PAUSE * 2_u32.pow(refusals.min(16))).min(LONGEST_PAUSE);
        let (now, ask_again) = (Instant::now(), Instant::now() + pause.mul_f64(rand::random_range(0.8..1.2)));
        if state.down.is_none() {
            let error = chain(error);
            tracing::warn!(queue = self.queue, error, "the queue takes no jobs; they wait in the outbox");
        }
        let outage = state.down.get_or_insert(Outage { since: SystemTime::now(), began: now, refusals, ask_again });
        (outage.refusals, outage.ask_again) = (refusals + 1, ask_again);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }
}

/// For people: `up`, or since when it is down.
impl std::fmt::Display for QueueHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.down_since() {
            Some(since) => {
                write!(f, "down since {}", humantime_serde::re::humantime::format_rfc3339_seconds(since))
            }
            None => f.write_str("up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_down_is_left_alone_for_longer_and_longer() {
        const A_MOMENT: Duration = Duration::from_millis(1);
        for _ in 0..50 {
            let health = QueueHealth::new("test");
            assert_eq!((health.pause(), health.share_of(1000)), (None, 1000));
            for seconds in [1, 2, 4, 8, 16, 30, 30, 30] {
                health.took_nothing(&QueueDown("no".into()));
                let (pause, middle) = (health.pause().expect("a pause"), Duration::from_secs(seconds));
                assert!((middle.mul_f64(0.8)..middle.mul_f64(1.2)).contains(&pause), "{pause:?} of {middle:?}");
                tokio::time::advance(pause - A_MOMENT).await;
                assert_eq!(health.pause(), Some(A_MOMENT));
                tokio::time::advance(A_MOMENT).await;
                assert_eq!(health.pause(), None);
                assert!(health.down_since().is_some(), "down until it takes something");
            }
        }
    }

    #[tokio::test]
    async fn a_queue_that_is_back_is_given_larger_and_larger_shares() {
        let health = QueueHealth::new("test");
        for refusals in 1..=40_u32 {
            health.took_nothing(&QueueDown("no".into()));
            assert_eq!(health.share_of(1 << 20), 1 << (20 - refusals.min(20)));
        }
        assert_eq!(health.share_of(1000), 1);
        let since = health.down_since().expect("down");
        assert!(since <= SystemTime::now());
        assert!(health.to_string().starts_with("down since 2") && health.to_string().ends_with('Z'), "{health}");
        for takes in 1..=40_u32 {
            health.took_jobs();
            assert_eq!((health.down_since(), health.pause(), health.to_string()), (None, None, "up".to_owned()));
            assert_eq!(health.share_of(1 << 20), 1 << takes.min(20));
        }
    }
}
