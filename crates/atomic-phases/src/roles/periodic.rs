//! The one loop under every role that polls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::database::DatabaseError;
use crate::errors::chain;

/// When to look again after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The batch was full: look again at once, or after a rest.
    More,
    /// The batch was not full: the next look can wait.
    Idle,
}

/// A role that looks for work at intervals.
pub trait Periodic: Send + Sync {
    /// The role's name in logs.
    const NAME: &'static str;

    /// Pause between looks when there is nothing to do.
    fn interval(&self) -> Duration;

    /// Returns a notification that ends the pause early, if there is one.
    fn wake(&self) -> Option<&Notify> {
        None
    }

    /// Returns the pause after a full batch that took this long. For work that no client waits for, it leaves the
    /// database to others for a share of the time, and for longer when the database is slow.
    fn rest(&self, _batch: Duration) -> Duration {
        Duration::ZERO
    }

    /// Works one batch.
    fn run_once(&self) -> impl Future<Output = Result<Progress, DatabaseError>> + Send;
}

impl<P: Periodic> Periodic for Arc<P> {
    const NAME: &'static str = P::NAME;

    fn interval(&self) -> Duration {
        P::interval(self)
    }

    fn wake(&self) -> Option<&Notify> {
        P::wake(self)
    }

    fn rest(&self, batch: Duration) -> Duration {
        P::rest(self, batch)
    }

    fn run_once(&self) -> impl Future<Output = Result<Progress, DatabaseError>> + Send {
        P::run_once(self)
    }
}

/// Pause after a failed batch, so that a database that has come back is noticed soon.
pub(super) const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Works batches until `stop`, which takes effect between batches and never within one.
pub async fn poll(role: impl Periodic, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let began = Instant::now();
        let pause = match role.run_once().await {
            Ok(Progress::More) => match role.rest(began.elapsed()) {
                Duration::ZERO => continue,
                rest => rest,
            },
            Ok(Progress::Idle) => role.interval(),
            Err(error) => {
                report(&role, &error);
                AFTER_ERROR.min(role.interval())
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = woken(role.wake()) => {}
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

fn report<R: Periodic>(_: &R, error: &DatabaseError) {
    let (role, error, transient) = (R::NAME, chain(error), error.is_transient());
    if transient {
        tracing::warn!(role, error, "a batch failed; trying again");
    } else {
        tracing::error!(role, error, "a batch failed; trying again");
    }
}

async fn woken(wake: Option<&Notify>) {
    match wake {
        Some(wake) => wake.notified().await,
        None => std::future::pending().await,
    }
}

/// Returns the pause, up to a fifth shorter or longer, so that processes which started together do not poll together
/// for ever.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_by_a_fifth_and_no_more() {
        let pauses: Vec<f64> = (0..500).map(|_| jittered(Duration::from_secs(10)).as_secs_f64()).collect();
        let (least, most) =
            pauses.iter().fold((f64::MAX, f64::MIN), |(least, most), p| (least.min(*p), most.max(*p)));
        assert!((8.0..8.5).contains(&least) && (11.5..12.0).contains(&most), "{least} to {most} s");
    }
}
