//! The one loop under every role that polls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::database::DatabaseError;
use crate::errors::chain;

/// What one batch says about the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The batch was full: look again at once, or after a rest.
    More,
    /// It was not: there is time.
    Idle,
}

/// A role that looks for work at intervals.
pub trait Periodic: Send + Sync {
    /// For logs.
    const NAME: &'static str;

    /// Pause between looks when there is nothing to do.
    fn interval(&self) -> Duration;

    /// Something that ends the pause early, if there is such a thing.
    fn wake(&self) -> Option<&Notify> {
        None
    }

    /// Pause after a full batch that took so long, for work that nobody waits for: it leaves the database to others for a
    /// share of the time, and for longer when that is slow.
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

/// Works batches until `stop`, which is heeded between batches and never within one.
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

/// Up to a fifth less or more, so that processes which started together do not poll together for ever.
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
