//! The order in which everything ends. One deadline covers all of it.

use std::time::Duration;

use atomic_phases::errors::chain;
use tokio::time::{Instant, timeout_at};

use super::{HeartTask, RoleTask, RunError, Supervisor};
use crate::role::Role;

/// Returns when a role ends, counted from 0; some end together. First the role that makes work, then the one that
/// accepts it, then those that work by themselves, and last what all of them need.
const fn shutdown_step(role: Role) -> usize {
    match role {
        Role::Simulator => 0,
        Role::Api => 1,
        Role::Completer | Role::Enqueuer | Role::Reaper => 2,
        Role::Worker => 3,
        Role::StripeSandbox => 4,
        Role::Postgres => 5,
    }
}
const SHUTDOWN_STEPS: usize = 6;

/// Returns whether a role uses the pool, which is closed after its last user has ended.
const fn uses_the_pool(role: Role) -> bool {
    match role {
        Role::Api | Role::Completer | Role::Enqueuer | Role::Reaper | Role::Worker => true,
        Role::Simulator | Role::StripeSandbox | Role::Postgres => false,
    }
}

/// A role that takes longer than this to end is named in the log.
const SLOW: Duration = Duration::from_millis(500);
/// The time that a role gets even when those before it have used up the deadline: enough to end if it has nothing to
/// do, so that it is not named for the lateness of others.
const MIN_STOP_TIME: Duration = Duration::from_millis(200);

pub(super) async fn drain(supervisor: &mut Supervisor) -> Result<(), RunError> {
    let began = Instant::now();
    let deadline = began + supervisor.shutdown.deadline;
    supervisor.leaving.cancel();
    if !supervisor.shutdown.notice.is_zero() {
        tracing::info!(notice = ?supervisor.shutdown.notice, "not ready any more; the listener closes after the notice");
        tokio::time::sleep_until((began + supervisor.shutdown.notice).min(deadline)).await;
    }
    let mut late = Vec::new();
    for now in 0..SHUTDOWN_STEPS {
        let (due, rest) = supervisor.tasks.drain(..).partition(|task: &RoleTask| shutdown_step(task.role) == now);
        supervisor.tasks = rest;
        late.extend(end(due, deadline).await);
        if !supervisor.tasks.iter().any(|task| uses_the_pool(task.role)) {
            end_heart(supervisor.heart.take(), !late.is_empty(), deadline).await;
            supervisor.database.pool.take();
        }
    }
    if late.is_empty() {
        tracing::info!(ms = began.elapsed().as_millis() as u64, "everything has ended");
        Ok(())
    } else {
        Err(RunError::DeadlinePassed { deadline: supervisor.shutdown.deadline, late })
    }
}

/// Hands back what roles that were cut off still hold, so that no other process waits for it.
async fn end_heart(heart: Option<HeartTask>, late: bool, deadline: Instant) {
    let Some(HeartTask { heart, stop, task }) = heart else { return };
    stop.cancel();
    let ended = async {
        // The last beat must not come after the end.
        let _ = task.await;
        heart.end(late).await
    };
    match timeout_at(deadline.max(Instant::now() + MIN_STOP_TIME), ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = chain(&error), "leases could not be handed back; others will notice");
        }
        Err(_) => tracing::warn!("leases were not handed back in time; others will notice"),
    }
}

/// Tells these roles to stop and waits for them. Returns those that were late, which are then cut off.
async fn end(tasks: Vec<RoleTask>, deadline: Instant) -> Vec<Role> {
    for task in &tasks {
        task.stop.cancel();
    }
    let mut late = Vec::new();
    for RoleTask { role, mut task, .. } in tasks {
        let left = deadline.saturating_duration_since(Instant::now());
        // A role that has work under way is logged early, not only when time is up.
        if tokio::time::timeout(SLOW.min(left), &mut task).await.is_ok() {
            tracing::debug!(role = role.name(), "ended");
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        tracing::info!(role = role.name(), left_ms = left.as_millis() as u64, "still at work; waiting for it");
        let deadline = deadline.max(Instant::now() + MIN_STOP_TIME);
        if timeout_at(deadline, &mut task).await.is_err() {
            tracing::error!(role = role.name(), "did not end in time; cut off");
            task.abort();
            late.push(role);
        }
    }
    late
}
