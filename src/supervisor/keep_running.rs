//! Runs one role again and again until it is told to stop or has failed too often.

use std::any::Any;
use std::collections::VecDeque;
use std::time::Duration;

use atomic_phases::errors::chain;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Why one run of a role ended although it was not told to stop.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A role that failed this often within [`WINDOW`] will fail again. So the process ends, and whatever monitors the
/// process notices that.
const MOST_FAILURES: usize = 5;
/// The time over which failures are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Pause before the first restart; it doubles with each failure in the window.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A role failed too often.
#[derive(Debug, thiserror::Error)]
#[error("the role {role} failed {failures} times within {WINDOW:?}; the last time: {last}")]
pub struct GaveUp {
    /// The role's name.
    pub role: &'static str,
    /// How often it failed.
    pub failures: usize,
    /// Its last error.
    pub last: String,
}

/// Runs `run` until `stop`. A run that panics, fails or just returns is logged and repeated after a pause.
pub(super) async fn keep_running<F, R>(role: &'static str, stop: &CancellationToken, run: F) -> Result<(), GaveUp>
where
    F: Fn(CancellationToken) -> R,
    R: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut failures = VecDeque::new();
    loop {
        // Aborted with this task, when the drain cuts a late role off.
        let ended = AbortOnDropHandle::new(tokio::spawn(run(stop.clone()))).await;
        let problem = match ended {
            Ok(_) if stop.is_cancelled() => return Ok(()),
            Ok(Ok(())) => "it ended by itself".to_owned(),
            Ok(Err(failure)) => chain(failure.as_ref()),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
                // The runtime is going down, and this task with it.
                Err(_) => return Ok(()),
            },
        };
        let now = Instant::now();
        failures.push_back(now);
        while failures.front().is_some_and(|failure| now - *failure > WINDOW) {
            failures.pop_front();
        }
        if failures.len() >= MOST_FAILURES {
            tracing::error!(role, problem, "a role failed too often");
            return Err(GaveUp { role, failures: failures.len(), last: problem });
        }
        let pause = FIRST_PAUSE * (1 << (failures.len() - 1));
        tracing::error!(role, problem, restart_in_ms = pause.as_millis() as u64, "a role failed");
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_role_that_panics_is_restarted() {
        let runs = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let counted = Arc::clone(&runs);
        let kept = keep_running("reaper", &stop, move |stop| {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(run >= 3, "not yet");
                stop.cancel();
                Ok(())
            }
        })
        .await;
        assert!(kept.is_ok());
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_keeps_failing_is_given_up_by_name() {
        let stop = CancellationToken::new();
        let gave_up = keep_running("enqueuer", &stop, |_| async { Err("no luck".into()) }).await;
        let gave_up = gave_up.expect_err("five failures");
        assert_eq!((gave_up.role, gave_up.failures), ("enqueuer", 5));
        assert!(gave_up.to_string().contains("enqueuer") && gave_up.to_string().contains("no luck"), "{gave_up}");
    }

    #[tokio::test(start_paused = true)]
    async fn rare_failures_are_forgiven() {
        let runs = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let counted = Arc::clone(&runs);
        let kept = keep_running("completer", &stop, move |stop| {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(WINDOW / 2).await;
                if run == 20 {
                    stop.cancel();
                }
                Err("now and then".into())
            }
        })
        .await;
        assert!(kept.is_ok());
    }
}
